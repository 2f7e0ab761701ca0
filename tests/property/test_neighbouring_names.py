# SPDX-License-Identifier: Apache-2.0
"""Names that nearly collide: key ids, contexts and binds of different places never coincide."""

from __future__ import annotations

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sa_asherah.core import cell
from sa_asherah.core.encoding import lp
from sa_asherah.core.ids import KeyIds
from sa_asherah.core.key_record import bind
from sa_asherah.errors import OwnerRequiredError

MANY = settings(max_examples=500, deadline=None)

plain = st.text("ab-", min_size=1, max_size=3)
crowded = st.text("ab_", min_size=1, max_size=4)
partitions = st.text("ab_-", min_size=1, max_size=6)


def unlp(encoded: bytes) -> list[bytes]:
    parts: list[bytes] = []
    while encoded:
        end = 4 + int.from_bytes(encoded[:4], "big")
        assert len(encoded) >= end
        parts.append(encoded[4:end])
        encoded = encoded[end:]
    return parts


@MANY
@given(st.lists(st.binary(max_size=6) | st.text(max_size=3) | st.integers(0, 2**64 - 1)))
def test_lp_can_be_read_back(parts: list[str | bytes | int]) -> None:
    expected = [
        one if isinstance(one, bytes) else one.encode() if isinstance(one, str) else one.to_bytes(8, "big")
        for one in parts
    ]
    assert unlp(lp(*parts)) == expected


@MANY
@given(st.lists(st.text("ab", max_size=3), max_size=4), st.lists(st.text("ab", max_size=3), max_size=4))
@example(["a", "b"], ["ab"])
@example(["a", ""], ["a"])
@example(["ab", ""], ["a", "b"])
def test_lp_is_injective(one: list[str], other: list[str]) -> None:
    assert (lp(*one) == lp(*other)) == (one == other)


@MANY
@given(plain, plain, partitions, plain, plain, partitions, st.booleans())
def test_plain_names_never_share_an_id(
    service: str,
    product: str,
    partition: str,
    service2: str,
    product2: str,
    partition2: str,
    regional: bool,  # noqa: FBT001
) -> None:
    suffix = "eu" if regional else ""
    one, other = KeyIds(service, product, suffix), KeyIds(service2, product2, suffix)
    same = (service, product) == (service2, product2)
    assert (one.system_key_id() == other.system_key_id()) == same
    same_id = one.intermediate_key_id(partition) == other.intermediate_key_id(partition2)
    assert same_id == (same and partition == partition2)


@MANY
@given(crowded, crowded, st.just("") | crowded, partitions, partitions)
def test_one_hierarchy_never_shares_an_id(
    service: str, product: str, suffix: str, partition: str, partition2: str
) -> None:
    ids = KeyIds(service, product, suffix, peers=True)
    try:
        one, other = ids.intermediate_key_id(partition), ids.intermediate_key_id(partition2)
    except OwnerRequiredError:
        assert "_" in partition + partition2
        assert "_" in service + product + suffix
        return
    assert (one == other) == (partition == partition2)


hierarchies = st.builds(KeyIds, crowded, crowded, st.just("") | crowded, st.just(True))  # noqa: FBT003


@MANY
@given(hierarchies, partitions, hierarchies, partitions)
@example(KeyIds("a", "a"), "u_a", KeyIds("a", "a", "a"), "u")
@example(KeyIds("a_b", "p", peers=True), "u", KeyIds("b", "p"), "u_a")
def test_even_where_ids_collide_bind_and_context_do_not(
    one: KeyIds, partition: str, other: KeyIds, partition2: str
) -> None:
    mine = (one.service, one.product, one.suffix, partition)
    theirs = (other.service, other.product, other.suffix, partition2)
    assume(mine != theirs)
    place = ("_IK_same", 1, ("_SK_same", 1), bytes(32))
    assert bind("IK", one, partition, *place) != bind("IK", other, partition2, *place)
    if (*mine[:2], mine[3]) != (*theirs[:2], theirs[3]):
        assert cell.context(mine[0], mine[1], partition, "t.c") != cell.context(theirs[0], theirs[1], partition2, "t.c")

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from sa_asherah.core.ids import KeyIds
from sa_asherah.errors import ConfigurationError, OwnerRequiredError


def test_ids_have_the_form_of_the_reference() -> None:
    assert KeyIds("svc", "prod").system_key_id() == "_SK_svc_prod"
    assert KeyIds("svc", "prod", "us-west-2").system_key_id() == "_SK_svc_prod_us-west-2"
    assert KeyIds("svc", "prod").intermediate_key_id("a_b c/d@e.com") == "_IK_a_b c/d@e.com_svc_prod"
    assert KeyIds("svc", "prod", "us-west-2").intermediate_key_id("账户") == "_IK_账户_svc_prod_us-west-2"


@pytest.mark.parametrize("name", ["", " ", "a ", " a", "a\x00", "a\n", "a\ud800", 'a"b', "a\\b", "a\u200b"])
def test_unusable_names_are_refused(name: str) -> None:
    for peers in (False, True):
        with pytest.raises(ConfigurationError):
            KeyIds(name, "prod", peers=peers)
        with pytest.raises(ConfigurationError):
            KeyIds("svc", name, peers=peers)
        if name:
            with pytest.raises(ConfigurationError):
                KeyIds("svc", "prod", name, peers=peers)


@pytest.mark.parametrize("names", [("s_c", "prod", ""), ("svc", "p_d", ""), ("svc", "prod", "us_west")])
def test_underscores_need_peers_and_then_are_refused_in_partitions(names: tuple[str, str, str]) -> None:
    with pytest.raises(ConfigurationError, match="peers=True"):
        KeyIds(*names)
    ids = KeyIds(*names, peers=True)
    assert ids.intermediate_key_id("7").startswith("_IK_7_")
    with pytest.raises(OwnerRequiredError, match="ambiguous"):
        ids.intermediate_key_id("user_7")


def test_with_plain_names_partitions_may_contain_underscores() -> None:
    for peers in (False, True):
        assert KeyIds("svc", "prod", "eu", peers).intermediate_key_id("user_7") == "_IK_user_7_svc_prod_eu"


@pytest.mark.parametrize("partition", ["", "\x00", "a\x00b", "\ud800", "a\udfff"])
def test_unusable_partitions_are_refused(partition: str) -> None:
    with pytest.raises(OwnerRequiredError):
        KeyIds("svc", "prod").intermediate_key_id(partition)


def test_ids_of_255_characters_pass_and_longer_ones_do_not() -> None:
    ids = KeyIds("svc", "prod")
    longest = "é" * (255 - len("_IK__svc_prod"))
    assert len(ids.intermediate_key_id(longest)) == 255
    with pytest.raises(OwnerRequiredError, match="1 characters too long"):
        ids.intermediate_key_id(longest + "é")
    KeyIds("s" * 200, "p" * 50)
    with pytest.raises(ConfigurationError, match="255"):
        KeyIds("s" * 200, "p" * 51)


def test_error_texts_do_not_name_the_partition() -> None:
    ids = KeyIds("s_c", "prod", peers=True)
    for partition in ("ada@example.org_", "ada@example.org\x00", "ada@example.org" * 20):
        with pytest.raises(OwnerRequiredError) as caught:
            ids.intermediate_key_id(partition)
        assert "ada" not in str(caught.value)

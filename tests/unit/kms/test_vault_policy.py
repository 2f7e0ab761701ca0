# SPDX-License-Identifier: Apache-2.0
"""The policies grant single paths, for updating alone, and cannot be made to say anything else."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sa_asherah.errors import ConfigurationError
from sa_asherah.kms.vault.policy import policies

JOBS = {
    "application": {"encrypt", "decrypt"},
    "application-decrypt-only": {"decrypt"},
    "officer": {"encrypt", "decrypt"},
    "rewrap": {"rewrap", "decrypt"},
}


def granted(policy: str) -> dict[str, str]:
    """Return the capabilities by path, after making sure that the text is understood to the end."""
    code = re.sub(r"#[^\n]*", "", policy)
    blocks = re.findall(r'path\s+"([^"]+)"\s*\{\s*capabilities\s*=\s*(\[[^\]]*\])\s*\}', code)
    assert code.count("path") == len(blocks)
    return dict(blocks)


@pytest.mark.parametrize("comments", [True, False])
@pytest.mark.parametrize("bind_context", [True, False])
def test_each_job_may_update_its_own_paths_and_nothing_else(comments: bool, bind_context: bool) -> None:  # noqa: FBT001
    texts = policies("transit", "asherah-master", bind_context=bind_context, comments=comments)
    expected = {**JOBS, "rewrap": {"encrypt", "decrypt"}} if bind_context else JOBS
    assert {job: granted(text) for job, text in texts.items()} == {
        job: {f"transit/{operation}/asherah-master": '["update"]' for operation in operations}
        for job, operations in expected.items()
    }


def test_without_comments_nothing_but_rules() -> None:
    for text in policies("transit", "asherah-master", comments=False).values():
        assert "#" not in text
        assert all(line.startswith("path ") for line in text.splitlines())


def test_slashes_around_the_mount_do_not_matter() -> None:
    assert policies("/team/kms/transit/", "k") == policies("team/kms/transit", "k")


NAMES = st.text('aZ_-./*+ "\n\\{}#é', max_size=8)


@given(mount=NAMES, key=NAMES)
@example(mount="transit", key="*")
@example(mount="+", key="asherah-master")
@example(mount="transit/+", key="asherah-master")
@example(mount="transit", key='k" { capabilities = ["root"] }\n#')
@example(mount="transit", key="k/../../sys")
@example(mount="transit", key="k\n")
def test_no_name_reaches_another_path(mount: str, key: str) -> None:
    try:
        texts = policies(mount, key)
    except ConfigurationError:
        return
    path = re.escape(mount.strip("/"))
    for text in texts.values():
        for granted_path in granted(text):
            assert re.fullmatch(rf"{path}/(encrypt|decrypt|rewrap)/{re.escape(key)}", granted_path)
            assert not set(granted_path) & set("*+ \"'\n\\")
            assert ".." not in granted_path.split("/")


@pytest.mark.parametrize(("mount", "key"), [("", "k"), ("transit", ""), ("transit", "*"), ("+", "k"), ("a//b", "k")])
def test_names_that_stand_for_other_paths_are_refused(mount: str, key: str) -> None:
    with pytest.raises(ConfigurationError, match=r"VAULT_TRANSIT_(KEY|MOUNT)"):
        policies(mount, key)

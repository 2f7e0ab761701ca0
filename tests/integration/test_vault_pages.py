# SPDX-License-Identifier: Apache-2.0
"""The commands that the pages about Vault give to an operator, run as they stand there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.servers.certificates import Authority
from tests.servers.openbao import OpenBao, SealableOpenBao

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
# In the order in which a reader meets them; each page rests on the first.
PAGES_IN_ORDER = [
    "vault",
    "vault-kubernetes",
    "vault-approle",
    "vault-certificates",
    "vault-rotation",
    "vault-namespaces",
]
TAKEN = re.compile(r"vault |export VAULT_NAMESPACE=|\w+=\$\(vault ")
# What is the operator's: values to be filled in, raft storage, the engine of another product.
SKIPPED = re.compile(r"=\.\.\.|:\.\.\.|operator raft|^vault audit")

# What the page on auditing says about finding the decryptions of one wrapped key.
FIND_IN_AUDIT_LOG = [
    "wrapped=$(vault write -field=ciphertext transit/encrypt/asherah-master plaintext=AAAA)",
    'vault write transit/decrypt/asherah-master ciphertext="$wrapped"',
    'vault write -field=hash sys/audit-hash/to-file input="$wrapped"',
]


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Return the commands for Vault and the variables that they take, each with the lines that belong to it."""
    found: list[str] = []
    for block in blocks(page, "bash"):
        lines = iter(block.splitlines())
        for line in lines:
            command = [line]
            while command[-1].endswith("\\"):
                command.append(next(lines))
            if document := re.search(r"<<'(\w+)'$", line):
                while command[-1] != document[1]:
                    command.append(next(lines))
            if TAKEN.match(line) and not SKIPPED.search(line):
                found.append("\n".join(command))
    return found


def run(server: OpenBao, script: list[str]) -> str:
    """Run commands in one shell, with OpenBao's tool as `vault`, until one fails."""
    start = f'set -eu; vault() {{ "{server.program}" "$@"; }}'
    done = subprocess.run(
        ["/bin/bash", "-c", "\n".join([start, *script])],
        cwd=server.folder,
        env={
            "HOME": str(server.folder),
            "PATH": "/usr/bin:/bin",
            "BAO_ADDR": server.addr,
            "BAO_TOKEN": server.root_token,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_every_command_of_the_pages_runs() -> None:
    (audit,) = (json.loads(block) for block in blocks("vault-audit", "json"))
    (device,) = audit["audit"]
    device["options"]["file_path"] = "stdout"  # which the test's server keeps
    with SealableOpenBao(**audit) as server:
        for name in ("clients-ca", "cluster-ca"):
            (server.folder / f"{name}.pem").write_bytes(Authority(server.folder, name).pem.read_bytes())
        (server.folder / "reviewer.jwt").write_text("e30.e30.e30", encoding="utf-8")
        for page in PAGES_IN_ORDER:
            script = commands(page)
            assert script, page
            run(server, script)
        found = run(server, FIND_IN_AUDIT_LOG).splitlines()[-1]
        assert found.startswith("hmac-sha256:")
        lines = (server.folder / "log").read_text(encoding="utf-8").splitlines()
        uses = [json.loads(line) for line in lines if found in line]
        key = "asherah-master"
        assert {
            (use["request"]["path"], part)
            for use in uses
            for part in ("request", "response")
            if use.get(part, {}).get("data", {}).get("ciphertext") == found
        } == {(f"transit/decrypt/{key}", "request"), (f"transit/encrypt/{key}", "response")}

# SPDX-License-Identifier: Apache-2.0
"""Every Python block of the README and of the documentation runs, in order, one namespace per page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What a fenced block may be: `python` runs; the others are commands, output, or stored data.
LANGUAGES = {"python", "bash", "text", "sql", "json", "ini", "toml", "yaml", "{toctree}"}


# What the pages take as given.
SETTINGS = {"SERVICE_NAME": "records", "PRODUCT_ID": "clinic", "KMS": "static", "STATIC_MASTER_KEY_HEX": "5a" * 32}


@pytest.mark.filterwarnings("ignore::sa_asherah.errors.StaticKeyWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # files that a page makes
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    document = Sybil(parsers=[PythonCodeBlockParser()]).parse(page)
    try:
        for example in document.examples():
            example.evaluate()
    finally:
        for value in document.namespace.values():
            if isinstance(value, Engine):
                value.dispose()  # a page need not end with it


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_name_their_language(page: Path) -> None:
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert {language.strip() for language in fences[::2]} <= LANGUAGES

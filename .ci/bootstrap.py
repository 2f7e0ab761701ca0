# SPDX-License-Identifier: Apache-2.0
"""Bring tox to a machine that has nothing but Python: no pip, no venv module, no root.

The standard library fetches the wheel of `uv` from the package index; `uv` does the rest. Index and certificates are
those that pip is set up with (PIP_INDEX_URL, PIP_CERT, pip.conf). Everything is kept in `.cache` and `.tox`.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import html.parser
import io
import os
import platform
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13")
UV = "0.13.9"
TOX = ("tox==4.67.15", "tox-uv==1.37.1")
ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
TRIES = 4


class BootstrapError(Exception):
    """The environment cannot be set up; the text says what is missing."""


def tox(arguments: list[str], interpreters: dict[str, Path]) -> int:
    """Run tox and return its exit code.

    Args:
        arguments: What follows `tox` on the command line.
        interpreters: The Pythons by version; the first one runs tox itself.
    """
    uv = _uv()
    python = next(iter(interpreters.values()))
    command = [uv, "tool", "run", "--quiet", "--python", python, "--from", TOX[0], "--with", TOX[1], "tox", *arguments]
    return subprocess.run(command, cwd=ROOT, env=_environment(uv, interpreters), check=False).returncode


def find_interpreters() -> dict[str, Path]:
    """Return the path of each supported Python version that is on PATH or under `PYENV_ROOT/versions`."""
    found: dict[str, Path] = {}
    for version in VERSIONS:
        names = [shutil.which(f"python{version}"), shutil.which("python3"), sys.executable]
        if root := os.environ.get("PYENV_ROOT"):
            names += sorted(map(str, Path(root).glob(f"versions/{version}.*/bin/python{version}")))
        for name in filter(None, names):
            if path := _interpreter(name, version):
                found[version] = path
                break
    if not found:
        raise BootstrapError(f"none of Python {', '.join(VERSIONS)} is on PATH or under PYENV_ROOT/versions")
    return found


def _interpreter(name: str, version: str) -> Path | None:
    """Return the program behind `name` (a shim, a virtual environment), if there is one and it is that version."""
    code = "import sys; print('%d.%d' % sys.version_info[:2]); print(sys._base_executable or sys.executable)"
    with contextlib.suppress(OSError):
        done = subprocess.run([name, "-I", "-c", code], capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        if done.returncode == 0 and lines[0] == version:
            return Path(lines[1])
    return None


def _environment(uv: Path, interpreters: dict[str, Path]) -> dict[str, str]:
    """Return the environment for tox: our uv and interpreters first, caches in the checkout, pip's settings for uv."""
    ignored = ("PYTHON", "VIRTUAL_ENV", "CONDA_", "TOX_", "UV_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ignored)}
    folders = dict.fromkeys(str(path.parent) for path in (uv, *interpreters.values()))
    environment["PATH"] = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])
    environment |= {
        "UV_CACHE_DIR": str(CACHE / "uv"),
        "UV_TOOL_DIR": str(CACHE / "uv-tools"),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_PYTHON_PREFERENCE": "only-system",
        "UV_NO_CONFIG": "1",
        "UV_SYSTEM_CERTS": "1",
        "UV_HTTP_TIMEOUT": os.environ.get("PIP_DEFAULT_TIMEOUT", "60"),
    }
    if index := _pip_setting("index-url"):
        environment["UV_DEFAULT_INDEX"] = index
    if certificates := _certificates():
        environment["SSL_CERT_FILE"] = certificates
    return environment


def _uv() -> Path:
    """Return the path of uv, fetched on first use."""
    folder = CACHE / f"uv-{UV}"
    program = folder / "uv"
    if not program.exists():
        CACHE.mkdir(exist_ok=True)
        print(f"fetching uv {UV}", flush=True)
        with zipfile.ZipFile(io.BytesIO(_wheel())) as wheel:
            content = wheel.read(f"uv-{UV}.data/scripts/uv")
        folder.mkdir(exist_ok=True)
        partial = folder / f"uv.{os.getpid()}"
        partial.write_bytes(content)
        partial.chmod(0o755)
        partial.rename(program)
    return program


def _wheel() -> bytes:
    """Fetch the wheel of uv for this machine and check it against the sum that the index gives."""
    index = (_pip_setting("index-url") or "https://pypi.org/simple").rstrip("/") + "/uv/"
    page = _Links()
    page.feed(_get(index).decode())
    for link in page.links:
        address, _, fragment = urllib.parse.urljoin(index, link).partition("#")
        name = urllib.parse.unquote(address.rsplit("/", 1)[1])
        if name.startswith(f"uv-{UV}-") and _fits(name):
            content = _get(address)
            if fragment != f"sha256={hashlib.sha256(content).hexdigest()}":
                raise BootstrapError(f"{name}: the file is not the one that the index describes ({fragment})")
            return content
    raise BootstrapError(f"the package index has no wheel of uv {UV} for {sys.platform} {platform.machine()}")


def _fits(wheel: str) -> bool:
    """Return whether the wheel's platform tag means this machine."""
    kind = "macosx" if sys.platform == "darwin" else "manylinux" if platform.libc_ver()[0] == "glibc" else "musllinux"
    return f"-{kind}" in wheel and wheel.endswith(f"{platform.machine()}.whl")


class _Links(html.parser.HTMLParser):
    """Collects the addresses of a page of the simple index."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def _get(address: str) -> bytes:
    """Fetch an address; what may pass by itself is tried again."""
    context = ssl.create_default_context(cafile=_certificates())
    request = urllib.request.Request(address, headers={"Accept": "text/html, */*"})
    for attempt in range(1, TRIES + 1):
        try:
            with urllib.request.urlopen(request, timeout=60, context=context) as response:
                content: bytes = response.read()
                return content
        except OSError as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500  # noqa: PLR2004
            if final or attempt == TRIES:
                raise BootstrapError(f"{urllib.parse.urlsplit(address).path}: {error}") from error
            time.sleep(attempt)
    raise AssertionError


def _certificates() -> str | None:
    """Return the file of trusted certificates, if one is set up."""
    for name in ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if value := os.environ.get(name):
            return value
    return _pip_setting("cert")


def _pip_setting(name: str) -> str | None:
    """Return a setting of pip: from the environment, else from its configuration files."""
    if value := os.environ.get("PIP_" + name.replace("-", "_").upper()):
        return value
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 # Path.home() fails for an account without a home
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf"
    parser = configparser.RawConfigParser()
    named = os.environ.get("PIP_CONFIG_FILE")
    with contextlib.suppress(OSError, configparser.Error):
        parser.read([Path("/etc/pip.conf"), home / ".pip/pip.conf", config, *([named] if named else [])])
    return parser.get("install", name, fallback=None) or parser.get("global", name, fallback=None)

# SPDX-License-Identifier: Apache-2.0
"""URLs of the test databases."""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import make_url

ASYNC_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "mariadb": "mariadb+asyncmy",
}


def async_url(url: str) -> str:
    """Return the URL of the same database for its asynchronous driver."""
    parsed = make_url(url)
    driver = ASYNC_DRIVERS[parsed.get_backend_name()]
    return parsed.set(drivername=driver).render_as_string(hide_password=False)

# SPDX-License-Identifier: Apache-2.0
"""Reads a column type as it is written in Python, without running anything."""

from __future__ import annotations

import ast
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sqlalchemy import types as sql_types
from sqlalchemy.types import TypeEngine

from sa_asherah.errors import AsherahError, ConfigurationError, UsageError
from sa_asherah.orm.types import Encrypted

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["read_type"]

_EXAMPLE = 'Encrypted(String(), owner="tenant_id", storage="text")'


def read_type(text: str, environ: Mapping[str, str] | None = None) -> TypeEngine[Any]:
    """Read a type: of SQLAlchemy, `Encrypted`, or of `sa_asherah.reencrypt.foreign`.

    Args:
        text: For example `Encrypted(String(), owner="tenant_id")`. In the place of a key stands `env("NAME")`.
        environ: Where `env` looks; left out, in the environment of the process.

    Returns:
        The type.

    Raises:
        UsageError: It is not written as a type with literal arguments.
        ConfigurationError: A variable is missing, or the type refuses its arguments.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        tree = None
    found: Any = None if tree is None else _Reader(os.environ if environ is None else environ).value(tree)
    if _is_class(found):
        found = _made(found, (), {})
    if not _is_type(found):
        raise UsageError(f"this is no column type; write it as in Python, for example {_EXAMPLE}")
    return found  # type: ignore[no-any-return] # `_is_type` said so


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Call(func=ast.Name(id="env"), args=[ast.Constant(value=str(name))], keywords=[]):
                return self._variable(name)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=arguments, keywords=keywords):
                if any(keyword.arg is None for keyword in keywords):
                    raise _refused()
                named = {keyword.arg or "": self.value(keyword.value) for keyword in keywords}
                return _made(_class(name), tuple(map(self.value, arguments)), named)
            case ast.Name(id=name) | ast.Attribute(attr=name):
                return _class(name)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                return tuple(map(self.value, elements))
            case _:
                return _literal(node)

    def _variable(self, name: str) -> Any:
        if not self._environ.get(name):
            raise ConfigurationError(f"the type names the variable {name}, which is not set")
        environ = self._environ
        return lambda: environ[name]


def _class(name: str) -> type[Any]:
    if name == "Encrypted":
        return Encrypted
    for module in (sql_types, import_module("sa_asherah.reencrypt.foreign")):
        found: Any = getattr(module, name, None)
        if _is_class(found):
            return found  # type: ignore[no-any-return] # `_is_class` said so
    raise UsageError(f"there is no column type {name!r}; write it as in Python, for example {_EXAMPLE}")


def _is_class(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, TypeEngine)


def _is_type(found: Any) -> bool:
    return isinstance(found, TypeEngine)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise _refused() from None


def _refused() -> UsageError:
    return UsageError(f'a column type has literal arguments, and env("NAME") for a key; for example {_EXAMPLE}')


def _made(class_: type[Any], arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    try:
        return class_(*arguments, **named)
    except AsherahError:
        raise
    except (TypeError, ValueError, AttributeError):
        pass
    # Not from within `except`: the cause may quote an argument.
    raise ConfigurationError(f"{class_.__name__} does not take these arguments; see its page in the documentation")

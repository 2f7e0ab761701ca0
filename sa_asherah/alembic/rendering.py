# SPDX-License-Identifier: Apache-2.0
"""How the operations and the column type are written into a migration: names and types, never a value or a key."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from alembic.autogenerate.render import _repr_type, renderers  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType] # no public one

from sa_asherah.alembic.conversion import Conversion
from sa_asherah.alembic.copying import CreateCopyTriggersOp, DropCopyTriggersOp, RequireCopiedOp
from sa_asherah.alembic.gate import AllowPlaintextOp, RequireEncryptedOp, ValidateEncryptedOp
from sa_asherah.alembic.metastore import CreateAsherahMetastoreOp, DropAsherahMetastoreOp
from sa_asherah.orm.types import Encrypted

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.autogenerate.api import AutogenContext
    from sqlalchemy.types import TypeEngine

__all__ = ["render_encrypted", "rendering_encrypted"]

_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(Encrypted.__init__).parameters.items()
    if name not in {"self", "inner", "format", "reads"}
}
"""`reads=` is how long an application accepts an old form; a migration names the old form itself."""


def render_encrypted(type_: Encrypted, context: AutogenContext) -> str:
    """Write an encrypted column type, and ask for its import.

    Args:
        type_: The type.
        context: Alembic's.

    Returns:
        The expression.
    """
    context.imports.add("from sa_asherah import Encrypted")
    default = type_.variant(**_DEFAULTS)
    arguments = [_repr_type(type_.inner, context)]
    arguments += [] if type_.format == "cell" else [f"format={type_.format!r}"]
    changed = [name for name in _DEFAULTS if getattr(type_, name) != getattr(default, name)]
    arguments += [f"{name}={getattr(type_, name)!r}" for name in changed]
    return f"Encrypted({', '.join(arguments)})"


def rendering_encrypted(given: Callable[..., Any] | None) -> Callable[[str, Any, AutogenContext], Any]:
    """Extend the `render_item` of an `env.py`.

    Args:
        given: What the `env.py` gives, if anything; it comes first.

    Returns:
        A `render_item` that writes encrypted column types too.
    """

    def render_item(kind: str, item: Any, context: AutogenContext) -> Any:
        rendered = given(kind, item, context) if given else False
        if rendered is False and kind == "type" and type(item) is Encrypted:
            return render_encrypted(item, context)
        return rendered

    return render_item


def _type(type_: TypeEngine[Any], context: AutogenContext) -> str:
    return render_encrypted(type_, context) if type(type_) is Encrypted else _repr_type(type_, context)


def _call(name: str, arguments: list[str], schema: str | None) -> str:
    if schema is not None:
        arguments = [*arguments, f"schema={schema!r}"]
    return f"op.{name}({', '.join(arguments)})"


@renderers.dispatch_for(Conversion)
def _conversion(context: AutogenContext, operation: Conversion) -> str:
    sources = [_type(type_, context) for type_ in operation.source]
    source = sources[0] if len(sources) == 1 else f"[{', '.join(sources)}]"
    arguments = [repr(operation.table), repr(operation.column), source, _type(operation.target, context)]
    if operation.into is not None:
        arguments.append(f"into={operation.into!r}")
    if operation.types:
        types = ", ".join(f"{name!r}: {_type(type_, context)}" for name, type_ in operation.types.items())
        arguments.append(f"types={{{types}}}")
    return _call(f"{operation.verb}_column", arguments, operation.schema)


@renderers.dispatch_for(RequireEncryptedOp)
def _require_encrypted(context: AutogenContext, operation: RequireEncryptedOp) -> str:
    return _gate("require_encrypted", context, operation)


@renderers.dispatch_for(AllowPlaintextOp)
def _allow_plaintext(context: AutogenContext, operation: AllowPlaintextOp) -> str:
    return _gate("allow_plaintext", context, operation)


@renderers.dispatch_for(ValidateEncryptedOp)
def _validate_encrypted(context: AutogenContext, operation: ValidateEncryptedOp) -> str:
    return _gate("validate_encrypted", context, operation)


def _gate(
    name: str, context: AutogenContext, operation: RequireEncryptedOp | AllowPlaintextOp | ValidateEncryptedOp
) -> str:
    target = render_encrypted(operation.target, context)
    return _call(name, [repr(operation.table), repr(operation.column), target], operation.schema)


@renderers.dispatch_for(CreateCopyTriggersOp)
def _create_copy_triggers(_: AutogenContext, operation: CreateCopyTriggersOp) -> str:
    arguments = [operation.table, operation.column, operation.into, list(operation.bound_to)]
    return _call("create_copy_triggers", [repr(argument) for argument in arguments], operation.schema)


@renderers.dispatch_for(DropCopyTriggersOp)
def _drop_copy_triggers(_: AutogenContext, operation: DropCopyTriggersOp) -> str:
    arguments = [operation.table, operation.column, operation.into]
    return _call("drop_copy_triggers", [repr(argument) for argument in arguments], operation.schema)


@renderers.dispatch_for(RequireCopiedOp)
def _require_copied(_: AutogenContext, operation: RequireCopiedOp) -> str:
    arguments = [operation.table, operation.column, operation.into]
    return _call("require_copied", [repr(argument) for argument in arguments], operation.schema)


@renderers.dispatch_for(CreateAsherahMetastoreOp)
def _create_metastore(_: AutogenContext, __: CreateAsherahMetastoreOp) -> str:
    return "op.create_asherah_metastore()"


@renderers.dispatch_for(DropAsherahMetastoreOp)
def _drop_metastore(_: AutogenContext, operation: DropAsherahMetastoreOp) -> str:
    return f"op.drop_asherah_metastore({'destroy_keys=True' if operation.destroy_keys else ''})"

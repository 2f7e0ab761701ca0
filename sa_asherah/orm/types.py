# SPDX-License-Identifier: Apache-2.0
"""`Encrypted`, the column type, and `Sealed`, the only thing that a statement may send to an encrypted column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy.dialects import mysql
from sqlalchemy.sql import operators
from sqlalchemy.sql.cache_key import NO_CACHE
from sqlalchemy.sql.elements import BindParameter, ColumnElement, Null
from sqlalchemy.types import LargeBinary, TypeDecorator, TypeEngine

from sa_asherah.errors import ConfigurationError, NotAttachedError, UnsupportedOperatorError, UsageError
from sa_asherah.orm.codec import Codec, codec_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine.interfaces import Dialect
    from sqlalchemy.sql.operators import OperatorType

__all__ = ["Encrypted", "Sealed", "is_encrypted"]


class Sealed:
    """A finished cell on its way to the database.

    It shows nothing of itself, so that it may stand in parameters, logs and error texts.

    Attributes:
        cell: The bytes to store.
    """

    __slots__ = ("cell",)

    def __init__(self, cell: bytes) -> None:
        """Keep the cell.

        Args:
            cell: The bytes to store.
        """
        self.cell = cell

    def __repr__(self) -> str:
        """Say what it is, never what it holds."""
        return "<sealed>"

    def __reduce__(self) -> NoReturn:
        """Refuse pickling: a cell leaves the process through the database only."""
        raise UsageError("a sealed value cannot be pickled")


class Encrypted(TypeDecorator[Any]):
    """A column whose values are stored as ciphertext under a key that belongs to the row's owner.

    The type holds names only, never a key, an engine or a session; the engine's `Asherah` does the work. `None`
    stays NULL; everything else, the empty text too, is encrypted. Thread-safe, immutable, usable for many columns.

    Example:
        `ssn: Mapped[str] = mapped_column(Encrypted(String(), owner="clinic_id"))`
    """

    impl = LargeBinary
    cache_ok = True

    # SQLAlchemy takes cache keys from positional-or-keyword arguments only: none may become keyword-only.
    def __init__(
        self,
        inner: TypeEngine[Any] | type[TypeEngine[Any]],
        owner: str | None = None,
        partition: str = "{}",
        label: str | None = None,
    ) -> None:
        """Declare what is encrypted and whose it is.

        Args:
            inner: The type of the plaintext: String, Text, Unicode, LargeBinary, Integer, BigInteger, SmallInteger
                or Boolean. A length is not enforced.
            owner: `key` of the column of the same table that names the row's owner. Without it every use needs a
                `partition_scope` of exactly one partition.
            partition: Template of the partition, `{}` standing for the owner's text. Two owner columns that mean
                different things (tenant 7, user 7) need different templates, e.g. `"tenant-{}"`.
            label: Name that ciphertext is bound to, by default `table.column`. Give the old name to a renamed
                table or column. A value cannot be read under another label.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        self.inner = inner() if isinstance(inner, type) else inner
        self.owner = owner
        self.partition = partition
        self.label = label
        self.codec  # noqa: B018 -- refuses an unsupported inner type where it is declared
        if self.inner._static_cache_key is NO_CACHE:
            raise ConfigurationError(f"the inner type {type(self.inner).__name__} needs cache_ok = True")
        if partition.count("{}") != 1:
            raise ConfigurationError("partition= is a template with exactly one {}, e.g. 'tenant-{}'")
        if label == "" or owner == "":
            raise ConfigurationError("owner= and label= are names or left out; an empty text is neither")
        super().__init__()

    @property
    def codec(self) -> Codec:
        """How values of the inner type become bytes."""
        return codec_for(self.inner)

    @property
    def python_type(self) -> type[Any]:
        """The Python type of the plaintext."""
        return self.inner.python_type

    def __repr__(self) -> str:
        """Give the expression that makes this type; Alembic writes it into migrations."""
        arguments = [repr(self.inner)]
        arguments += [f"{name}={value!r}" for name in ("owner", "label") if (value := getattr(self, name)) is not None]
        arguments += [f"partition={self.partition!r}"] if self.partition != "{}" else []
        return f"{type(self).__name__}({', '.join(arguments)})"

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the storage type: BYTEA, BLOB or LONGBLOB."""
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(mysql.LONGBLOB())
        return dialect.type_descriptor(LargeBinary())

    def bind_processor(self, dialect: Dialect) -> Callable[..., Any]:
        """Pass sealed values and refuse everything else, so that plaintext never reaches the driver."""

        def process(value: Any) -> bytes | None:
            if value is None:
                return None
            if type(value) is Sealed:
                return value.cell
            if getattr(dialect, "_sa_asherah", None) is None:
                raise NotAttachedError("no Asherah is attached to this engine: call asherah.attach(engine) first")
            raise UsageError(
                "an encrypted column would receive a value that was not encrypted: this form of statement is not "
                "supported for encrypted columns; use insert() or update() of the table with plain values"
            )

        return process

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[..., Any]:
        """Read cells that come without their owner: `text()` and other statements that SQLAlchemy does not build."""
        from sa_asherah.orm.reading import Packed  # noqa: PLC0415 -- reading needs this module

        return Packed(self, None, self.label).result_processor(dialect, coltype)

    def literal_processor(self, dialect: Dialect) -> NoReturn:  # noqa: ARG002
        """Refuse literal rendering before SQLAlchemy can quote the value in an error."""
        raise UnsupportedOperatorError(
            "a value of an encrypted column cannot be rendered into SQL text (literal_binds, offline migrations): "
            "run the statement on an attached engine"
        )

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Read the column together with its owner."""
        from sa_asherah.orm.element import pack  # noqa: PLC0415 -- element needs this module

        return pack(column, self)

    def compare_values(self, x: Any, y: Any) -> bool:
        """Compare plaintexts as the inner type does."""
        return self.inner.compare_values(x, y)

    class Comparator(TypeDecorator.Comparator[Any]):
        """Refuses what ciphertext cannot do: only NULL tests and column = column pass (the ORM needs the latter)."""

        def operate(self, op: OperatorType, *other: Any, **kwargs: Any) -> ColumnElement[Any]:
            """Refuse an operator unless it works on ciphertext.

            Args:
                op: The operator.
                *other: The other operand, if any.
                **kwargs: Options of the operator.

            Returns:
                The expression.

            Raises:
                UnsupportedOperatorError: The operator has no meaning on ciphertext.
            """
            operand = other[0] if len(other) == 1 else self
            if op in {operators.is_, operators.is_not, operators.eq, operators.ne}:
                if operand is None or isinstance(operand, Null):
                    return super().operate(op, *other, **kwargs)
                element = operand.__clause_element__() if hasattr(operand, "__clause_element__") else operand
                if isinstance(element, ColumnElement) and not isinstance(element, BindParameter):
                    return super().operate(op, *other, **kwargs)
            raise UnsupportedOperatorError(
                f"{getattr(op, '__name__', 'this operator')} is not possible on the encrypted column {self.expr}: "
                "ciphertext differs each time and has no order. Select by other columns and compare in Python; "
                "IS NULL works"
            )

        def reverse_operate(self, op: OperatorType, other: Any, **kwargs: Any) -> ColumnElement[Any]:
            """Refuse as `operate` does."""
            return self.operate(op, other, **kwargs)

    comparator_factory = Comparator  # pyright: ignore[reportAssignmentType] # declared as a property


def is_encrypted(element: Any) -> bool:
    """Tell whether a SQL element has an encrypted type."""
    return isinstance(getattr(element, "type", None), Encrypted)

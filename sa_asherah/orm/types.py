# SPDX-License-Identifier: Apache-2.0
"""`Encrypted`, the column type, and `Sealed`, the only thing that a statement may send to an encrypted column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BindParameter, ColumnElement, Null
from sqlalchemy.types import JSON, LargeBinary, Text, TypeDecorator, TypeEngine

from sa_asherah.core import cell
from sa_asherah.errors import ConfigurationError, NotAttachedError, UnsupportedOperatorError, UsageError
from sa_asherah.orm.codec import Codec, codec_for, plain_codec_for
from sa_asherah.orm.windows import Windows, check_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine.interfaces import Dialect
    from sqlalchemy.sql.operators import OperatorType

__all__ = ["Encrypted", "Sealed", "is_encrypted"]

_MAX_PAD = 65536
_ARGUMENTS: Final = ("inner", "owner", "partition", "label", "format", "reads", "storage", "bind_row", "pad")
_STORAGES: Final = {
    "cell": {"binary": "binary", "text": "text"},
    "asherah": {"binary": "text", "text": "text", "json": "json"},
}
"""How each format is stored for each `storage=`; the default, `"binary"`, is for a record its text."""


class Sealed:
    """A finished cell or data row record on its way to the database.

    It shows nothing of itself, so that it may stand in parameters, logs and error texts.

    Attributes:
        cell: The bytes of a cell, or the JSON text of a record.
    """

    __slots__ = ("cell",)

    def __init__(self, cell: bytes | str) -> None:
        """Keep the cell.

        Args:
            cell: The bytes of a cell, or the JSON text of a record.
        """
        self.cell = cell

    def __repr__(self) -> str:
        """Say what it is, never what it holds."""
        return "<sealed>"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Pickle as a text that no column accepts: errors with parameters travel between processes, cells do not."""
        return str, (repr(self),)


class Encrypted(TypeDecorator[Any]):
    """A column whose values are stored as ciphertext under a key that belongs to the row's owner.

    The type holds names only, never a key, an engine or a session; the engine's `Asherah` does the work. `None`
    stays NULL; everything else, the empty text too, is encrypted. Thread-safe, immutable, usable for many columns.

    `format="asherah"` stores the JSON record that the other Asherah implementations read and write. It promises less
    than a cell: a record is bound to its owner by its key alone. It can be moved to another row or column of the same
    owner and still reads there, does not commit to its key and shows the length of its value to the byte; when its
    data row key was made is not authenticated. Use it only for columns that other programs share.

    Example:
        `ssn: Mapped[str] = mapped_column(Encrypted(String(), owner="clinic_id"))`
    """

    impl = LargeBinary
    cache_ok = True

    # SQLAlchemy takes cache keys from positional-or-keyword arguments only: none may become keyword-only.
    def __init__(  # noqa: PLR0913, PLR0917 -- see above
        self,
        inner: TypeEngine[Any] | type[TypeEngine[Any]],
        owner: str | None = None,
        partition: str = "{}",
        label: str | None = None,
        format: Literal["cell", "asherah"] = "cell",  # noqa: A002 -- the name in the public signature
        reads: Sequence[str] = (),
        storage: Literal["binary", "text", "json"] = "binary",
        bind_row: str | None = None,
        pad: int = 0,
    ) -> None:
        """Declare what is encrypted and whose it is.

        Args:
            inner: The type of the plaintext; `docs/reference/types.md` lists them. A length is not enforced.
            owner: `key` of the column of the same table that names the row's owner. Without it every use needs a
                `partition_scope` of exactly one partition.
            partition: Template of the partition, `{}` standing for the owner's text. Two owner columns that mean
                different things (tenant 7, user 7) need different templates, e.g. `"tenant-{}"`.
            label: Name that ciphertext is bound to, by default `table.column`. Give the old name to a renamed
                table or column. A value cannot be read under another label. With `format="asherah"` it binds
                nothing and only names the column in errors.
            format: `"cell"`, or `"asherah"` for data row records, which other Asherah implementations read.
            reads: What is read besides `format`, each until the end of a day (UTC), while the column is re-encrypted:
                `("plaintext@2027-06-30",)`; likewise `asherah`, `unpadded` (with `pad=`) and `not-row-bound` (with
                `bind_row=`). Afterwards such a value raises. While plaintext is read, whoever can write to the
                database can plant one.
            storage: `"binary"`, or `"text"` for a column that must stay text: a third longer, starts with `sa1:`. Data
                row records, which are JSON, are stored as `"text"` unless as `"json"` (JSONB on PostgreSQL).
            bind_row: `key` of the primary key column: values are bound to their row too and cannot be moved to
                another row of the same owner. The key must be known before the row is written. A further part of
                the primary key may only be the owner. Cells only.
            pad: Hides the length of values: what is encrypted is filled up to a multiple of this many bytes; 0 does
                not, else 2 to 65536. Cells only.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        self.inner = inner() if isinstance(inner, type) else inner
        self.owner = owner
        self.partition = partition
        self.label = label
        self.format = format
        self.reads = (reads,) if isinstance(reads, str) else tuple(reads)
        self.storage = _storage(format, storage)
        self.bind_row = bind_row
        self.pad = pad
        self.windows = Windows(self.reads)
        self.codec  # noqa: B018 -- refuses an unsupported inner type where it is declared
        self.hashable = self.inner.hashable  # documents and lists are not: what makes rows unique asks
        if partition.count("{}") != 1:
            raise ConfigurationError("partition= is a template with exactly one {}, e.g. 'tenant-{}'")
        if "" in {label, owner, bind_row}:
            raise ConfigurationError("owner=, label= and bind_row= are names or left out; an empty text is neither")
        if format == "asherah" and (bind_row is not None or pad):
            raise ConfigurationError(
                "format='asherah' cannot keep bind_row= or pad=: the record that other implementations read binds a "
                "value to its owner only and has no padding. Leave them out, or use format='cell'"
            )
        if type(pad) is not int or pad == 1 or not 0 <= pad <= _MAX_PAD:
            raise ConfigurationError(f"pad= is a number of bytes: 0 for none, else 2 to {_MAX_PAD}")
        check_windows(self)
        super().__init__()

    @property
    def codec(self) -> Codec:
        """How values of the inner type become bytes."""
        return self.plain_codec if self.format == "asherah" else codec_for(self.inner)

    @property
    def plain_codec(self) -> Codec:
        """How values of the inner type stand in data row records, and text without encryption."""
        return plain_codec_for(self.inner)

    @property
    def encode(self) -> Callable[[Any], bytes]:
        """How a value becomes the plaintext of a cell or record."""
        encode, block = self.codec.encode, self.pad
        return (lambda value: cell.pad(encode(value), block)) if block else encode

    @property
    def decode(self) -> Callable[[bytes], Any]:
        """How the plaintext of a cell or record becomes a value."""
        decode = self.codec.decode
        return (lambda plaintext: decode(cell.unpad(plaintext))) if self.pad else decode

    def decode_as(self, flags: int, plaintext: bytes) -> Any:
        """Make a value of the plaintext of a cell that has other flags than this type writes.

        Args:
            flags: The flags of the cell.
            plaintext: What was in it.
        """
        return self.codec.decode(cell.unpad(plaintext) if flags & cell.PADDED else plaintext)

    @property
    def flags(self) -> int:
        """The flags that every cell of this type must have."""
        return (cell.ROW_BOUND if self.bind_row is not None else 0) | (cell.PADDED if self.pad else 0)

    def variant(self, **changes: Any) -> Encrypted:
        """Make the same declaration with other arguments, and without `reads=`.

        Args:
            **changes: Arguments of `Encrypted`.

        Returns:
            Another type; this one stays as it is.
        """
        arguments: dict[str, Any] = {name: getattr(self, name) for name in _ARGUMENTS}
        arguments.update({"reads": (), **changes})
        return Encrypted(**arguments)

    @property
    def form(self) -> tuple[str, str, int]:
        """Format, storage and flags: what is stored may be copied between columns where all three are the same.

        Not from a column with `reads=`, whose values may be in other forms.
        """
        return self.format, self.storage, self.flags

    @property
    def python_type(self) -> type[Any]:
        """The Python type of the plaintext."""
        return self.inner.python_type

    def __repr__(self) -> str:
        """Give the expression that makes this type; Alembic writes it into migrations."""
        storage = _storage(self.format, "binary")
        defaults: dict[str, object] = {"owner": None, "partition": "{}", "label": None, "format": "cell", "reads": ()}
        defaults |= {"storage": storage, "bind_row": None, "pad": 0}
        arguments = [repr(self.inner)]
        arguments += [f"{name}={value!r}" for name in defaults if (value := getattr(self, name)) != defaults[name]]
        return f"{type(self).__name__}({', '.join(arguments)})"

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the storage type: BYTEA, BLOB or LONGBLOB; TEXT or LONGTEXT; JSON or JSONB."""
        if self.storage == "json":
            return dialect.type_descriptor(postgresql.JSONB() if dialect.name == "postgresql" else JSON())
        is_text = self.storage == "text"
        if dialect.name in {"mysql", "mariadb"}:
            long = mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin") if is_text else mysql.LONGBLOB()
            return dialect.type_descriptor(long)
        # Adapted, Text becomes VARCHAR on PostgreSQL.
        return Text() if is_text else dialect.type_descriptor(LargeBinary())

    def bind_processor(self, dialect: Dialect) -> Callable[..., Any]:
        """Pass sealed values and refuse everything else, so that plaintext never reaches the driver."""
        is_text = self.format == "cell" and self.storage == "text"

        def process(value: Any) -> bytes | str | None:
            if value is None:
                return None
            if type(value) is Sealed:
                return cell.to_text(value.cell) if is_text else value.cell  # type: ignore[arg-type]
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

    def copy_value(self, value: Any) -> Any:
        """Copy a plaintext as the inner type does."""
        return self.inner.copy_value(value)

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


def _storage(format_: str, storage: str) -> str:
    """Choose how a format is stored, if both go together."""
    possible = _STORAGES.get(format_)
    if possible is None:
        raise ConfigurationError("format= is 'cell' or 'asherah'")
    if storage not in possible:
        raise ConfigurationError(
            "storage= of cells is 'binary' or 'text', that of data row records (format='asherah') 'text' or 'json'"
        )
    return possible[storage]


def is_encrypted(element: Any) -> bool:
    """Tell whether a SQL element has an encrypted type."""
    return isinstance(getattr(element, "type", None), Encrypted)

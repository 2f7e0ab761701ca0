# SPDX-License-Identifier: Apache-2.0
"""What a mapper may not do with encrypted columns, refused when it is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import ColumnProperty, RelationshipProperty
from sqlalchemy.schema import Column

from sa_asherah.errors import ConfigurationError, UnsupportedOperatorError
from sa_asherah.orm.refusal import check_condition, check_expression

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Mapper

__all__ = ["check_mapper"]


def check_mapper(mapper: Mapper[Any]) -> None:
    """Refuse a mapping that SQLAlchemy would turn into statements that cannot work.

    Args:
        mapper: A mapper whose properties are configured.

    Raises:
        ConfigurationError: A discriminator, version counter, relationship or `column_property` needs plaintext in the
            database.
    """
    name = mapper.class_.__name__
    _check(f"polymorphic_on of {name}", mapper.polymorphic_on, check_condition)
    _check(f"version_id_col of {name}", mapper.version_id_col, check_condition)
    for prop in mapper.iterate_properties:
        if isinstance(prop, RelationshipProperty):
            for part in (prop.primaryjoin, prop.secondaryjoin, *(prop.order_by or ())):
                _check(f"relationship {prop}", part, check_condition)
        elif isinstance(prop, ColumnProperty) and not isinstance(prop.columns[0], Column):
            _check(f"column_property {prop}", prop.columns[0], check_expression)


def _check(what: str, element: Any, check: Callable[[Any], None]) -> None:
    if element is None:
        return
    try:
        check(element)
    except UnsupportedOperatorError as error:
        raise ConfigurationError(f"{what}: {error}") from None

# SPDX-License-Identifier: Apache-2.0
"""Every error that sa_asherah raises.

One family: `except AsherahError` catches them all. No error text, attribute or pickle holds a value, a key, a token
or a ciphertext. `DontWrapMixin` keeps SQLAlchemy from wrapping an error into a `StatementError`, whose text would
print the plaintext parameters of the row.
"""

from __future__ import annotations

from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.orm.exc import StaleDataError

__all__ = [
    "AsherahError",
    "ConfigurationError",
    "DecryptionError",
    "KeyExpiredError",
    "KeyNotFoundError",
    "KeyRecordError",
    "KmsAuthError",
    "KmsCiphertextError",
    "KmsError",
    "KmsKeyNotFoundError",
    "KmsPermissionError",
    "KmsUnavailableError",
    "MalformedCellError",
    "MetastoreError",
    "MetastoreUnavailableError",
    "NotAttachedError",
    "OwnerChangedError",
    "OwnerErasedError",
    "OwnerRequiredError",
    "ReencryptionError",
    "StaticKeyWarning",
    "UnsupportedOperatorError",
    "UnsupportedValueError",
    "UsageError",
    "WrongPartitionError",
    "WrongPlaceError",
]


class AsherahError(Exception, DontWrapMixin):
    """Base of every error of this package; never raised itself."""


class ConfigurationError(AsherahError):
    """A setting, a column or a table is missing, contradictory or unsafe; the text names it and the remedy."""


class UsageError(AsherahError):
    """The program uses an encrypted column or a session in a way that cannot work."""


class OwnerRequiredError(UsageError):
    """The row's owner is missing, empty, not canonical or out of reach of the statement."""


class OwnerChangedError(UsageError, StaleDataError):
    """The row's owner was changed by someone else between reading the row and writing it."""


class UnsupportedOperatorError(UsageError):
    """The operation cannot be done on ciphertext: comparing, ordering, grouping, calling functions."""


class UnsupportedValueError(UsageError):
    """The value does not fit the inner type of the encrypted column."""


class NotAttachedError(UsageError):
    """The statement ran on an engine to which no `Asherah` is attached."""


class DecryptionError(AsherahError):
    """A stored value could not be opened."""


class MalformedCellError(DecryptionError):
    """The stored bytes are not a cell or a data row record of a known form."""


class WrongPlaceError(DecryptionError):
    """The value was encrypted for another owner, table, column or row than the one it was found in."""


class WrongPartitionError(DecryptionError):
    """The value belongs to a partition other than the session's or outside the `partition_scope`."""


class KeyNotFoundError(DecryptionError):
    """The key record that a value names is not in the key table."""


class OwnerErasedError(KeyNotFoundError):
    """The owner was erased: its keys are destroyed, and it gets no new ones."""


class KmsError(AsherahError):
    """The key management service failed.

    Attributes:
        retryable: Whether the same call may succeed later without a change of configuration.
        operation: What was asked of the service: `encrypt`, `decrypt`, `rewrap` or `login`.
        status: The HTTP status of the answer, `None` where there was none.
    """

    def __init__(
        self, message: str, *, retryable: bool = False, operation: str = "", status: int | None = None
    ) -> None:
        """Keep the message and what it says about the call.

        Args:
            message: Cause and cure, free of secrets.
            retryable: Whether a later attempt may succeed.
            operation: `encrypt`, `decrypt`, `rewrap` or `login`.
            status: HTTP status, if any.
        """
        super().__init__(message)
        self.retryable = retryable
        self.operation = operation
        self.status = status


class KmsUnavailableError(KmsError):
    """The service cannot be reached, is sealed, has no leader or limits the rate."""


class KmsAuthError(KmsError):
    """The service does not accept the credential."""


class KmsPermissionError(KmsError):
    """The credential is accepted but may not do this."""


class KmsKeyNotFoundError(KmsError):
    """The master key does not exist in the service."""


class KmsCiphertextError(KmsError):
    """The service refuses the wrapped key: other service, other key, damaged or disabled version."""


class MetastoreError(AsherahError):
    """The key table cannot be used."""


class MetastoreUnavailableError(MetastoreError):
    """The key table cannot be read or written now; a later attempt may succeed."""


class KeyExpiredError(MetastoreError):
    """No key may encrypt: the newest is expired or revoked and a successor could not be made."""


class KeyRecordError(MetastoreError):
    """A key record is malformed, or was not written for its id, date and parent (`Bind`)."""


class ReencryptionError(AsherahError):
    """A re-encryption cannot go on, or rows are left that a later step needs re-encrypted."""


class StaticKeyWarning(UserWarning):
    """The static master key is in use; it is meant for development and tests."""

"""Classifies PostgreSQL errors: whether to retry, and whether the database is unavailable."""

import psycopg2
from psycopg2 import errorcodes

_RETRIED_CLASSES = ("40", "08", "57P0", "0A000", "26000")
"""Prefixes of SQLSTATEs: conflict between transactions, lost connection, server shutting down or
starting, a table that another program changed under a prepared statement (a new connection has
none), a lost prepared statement (`DISCARD ALL`)."""

_OUTAGE_CLASSES = ("08", "53", "57", "58", "55P03")
"""Prefixes of SQLSTATEs: lost connection, insufficient resources, operator intervention, system
error, lock timeout."""


def is_retryable(error: BaseException) -> bool:
    """See `storage.engine.interface.Engine.is_retryable`."""
    if not isinstance(error, psycopg2.Error):
        return False
    if error.pgcode is None:
        # For a message that could not be sent, the driver raises a plain DatabaseError.
        is_unsent = type(error) is psycopg2.DatabaseError
        return is_unsent or isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    return (
        error.pgcode.startswith(_RETRIED_CLASSES)
        or error.pgcode == errorcodes.IDLE_IN_TRANSACTION_SESSION_TIMEOUT
    )


def is_outage(error: BaseException) -> bool:
    """See `storage.engine.interface.Engine.is_outage`."""
    if not isinstance(error, psycopg2.Error):
        return False
    if error.pgcode is None:
        return is_retryable(error)
    return error.pgcode.startswith(_OUTAGE_CLASSES)

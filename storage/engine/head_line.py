"""The head of the one sequence on PostgreSQL, asked by a connection of its own that the reactor
reads: no thread has to be woken to ask, nor the reactor to hear the answer, which cost several
times what the question does.

psycopg2 asks so on a connection that is made for that and can do nothing else (`async_`).
"""

import os
from select import POLLIN, POLLOUT, poll
from time import monotonic
from typing import Final

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_WRITE, connection

from storage.engine.interface import HeadLineLost
from storage.engine.transaction import POSITION

CONNECTED_WITHIN: Final = 10.0
"""Seconds."""
PREPARE_HEAD: Final = f"PREPARE head AS SELECT value FROM counters WHERE name = '{POSITION}'"
ASK: Final = b"EXECUTE head"


class PostgresHeadLine:
    """See `storage.engine.interface.HeadLine`."""

    def __init__(self, described: str) -> None:
        """Blocks. `described`: where to, in the words of libpq. Raises psycopg2.Error, and OSError
        where there is no descriptor left."""
        self._connection: connection = psycopg2.connect(described, async_=1)
        try:
            until = monotonic() + CONNECTED_WITHIN
            _wait_for(self._connection, until)
            self._cursor = self._connection.cursor()
            self._cursor.execute(PREPARE_HEAD)
            _wait_for(self._connection, until)
            # a descriptor of our own: libpq closes its own when the connection is lost, and whoever
            # watches it must take it out first
            self._descriptor = os.dup(self._connection.fileno())
        except BaseException:
            self._connection.close()
            raise

    def fileno(self) -> int:
        return self._descriptor

    def ask(self) -> None:
        try:
            self._cursor.execute(ASK)
        except psycopg2.Error as error:
            raise HeadLineLost(str(error).strip()) from error

    def take(self) -> int | None:
        try:
            if self._connection.poll() != POLL_OK or self._cursor.description is None:
                return None
            row = self._cursor.fetchone()
        except psycopg2.Error as error:
            raise HeadLineLost(str(error).strip()) from error
        return int(row[0]) if row is not None else 0

    def close(self) -> None:
        self._connection.close()
        os.close(self._descriptor)


def _wait_for(opened: connection, until: float) -> None:
    """Until it has done what was begun. Raises psycopg2.Error."""
    while (state := opened.poll()) != POLL_OK:
        waiting = poll()
        waiting.register(opened.fileno(), POLLOUT if state == POLL_WRITE else POLLIN)
        if not waiting.poll(max(0.0, until - monotonic()) * 1000):
            raise psycopg2.OperationalError("the server does not answer")

"""Faults of a database server at chosen messages of the writer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, cursor

from storage.engine.interface import Connection
from storage.engine.transaction import POSITION

CODES: Final = {
    "conflict": "40001",
    "refused": "P0001",
    "full": "53100",
    "cancelled": "57014",
    "locked": "55P03",
}
FAULTS: Final = [*CODES, "lost before", "lost after", "others"]
UNNOTICED_FAULTS: Final = {"conflict", "others"}
"""Faults that callers do not notice."""


class UnexpectedError(BaseException):
    """An error that no write is expected to raise."""


@dataclass
class Faults:
    """The faults to inject, and the messages of the writer at which to inject them."""

    other: Connection
    plan: dict[int, str] = field(default_factory=dict)
    sent: int = 0
    is_unknown: bool = False
    """Whether a commit succeeded without the writer's knowing."""

    def begin(self, plan: dict[int, str]) -> None:
        """Inject faults from now on: the kinds by the number of the message."""
        self.plan, self.sent, self.is_unknown = plan, 0, False

    def send(self, through: cursor, message: bytes, send: Callable[[bytes], None]) -> None:
        self.sent += 1
        fault = self.plan.get(self.sent)
        if fault in CODES and not message.startswith(b"ROLLBACK"):
            begin, with_it, rest = message.partition(
                b"BEGIN; "
            )  # the error has to leave the transaction function
            failing = (
                b"DO $$ BEGIN RAISE EXCEPTION 'fault' USING ERRCODE = '%b'; END $$; "
                % CODES[fault].encode()
            )
            message = failing + message if not with_it or begin else with_it + failing + rest
        elif (
            fault == "others"
            and through.connection.info.transaction_status == TRANSACTION_STATUS_IDLE
        ):
            counters = self.other.begin_write()
            self.other.commit({POSITION: counters.get(POSITION, 0) + 1})
        elif fault == "lost before":
            self._lose(through)
        send(message)
        if fault == "lost after":
            self.is_unknown |= through.connection.info.transaction_status == TRANSACTION_STATUS_IDLE
            self._lose(through)

    def _lose(self, through: cursor) -> None:
        through.connection.close()
        raise psycopg2.OperationalError("server closed the connection unexpectedly")

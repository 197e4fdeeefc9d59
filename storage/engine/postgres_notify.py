"""Notifications between nodes that share a PostgreSQL database, by LISTEN and NOTIFY.

Some writes must take effect on all nodes before they are acknowledged. The commit of such a write
notifies the other nodes. Each of them responds after it has applied the write. The writing node
waits for the responses, for a limited time. Each node holds an advisory lock while its connection
for notifications is open. The locks show which nodes are running, and thus which responses to wait
for.

Ephemeral messages, such as typing, are sent as notifications only and are not stored.
"""

import os
import secrets
from collections.abc import Sequence
from typing import Final

import msgspec
import psycopg2
from psycopg2.extensions import connection

from storage.engine.interface import NodeChannelLost
from storage.engine.transaction import Transaction

CHANNEL: Final = "mahalla"
LOCK_CLASS: Final = 0x4D61_686E
"""The first key of each node's lock ("Mahn" in ASCII). The second key is the node's number."""
_CHANGED: Final = "changed"
_APPLIED: Final = "heard"
_MESSAGE: Final = "note"


class ConfirmedWrite(msgspec.Struct, frozen=True):
    """The write at this position must take effect on all nodes before it is acknowledged."""

    position: int


class PositionApplied(msgspec.Struct, frozen=True):
    """A node has applied everything up to this position."""

    node: int
    position: int


class EphemeralMessage(msgspec.Struct, frozen=True):
    """An ephemeral message of a node to the others. The receiver parses the body."""

    node: int
    body: str


Notification = ConfirmedWrite | PositionApplied | EphemeralMessage


class PostgresNodeChannel:
    """The connection on which this node receives notifications. See
    `storage.engine.interface.NodeChannel`."""

    def __init__(self, opened: connection) -> None:
        """Blocks. Raises psycopg2.Error."""
        self._connection = opened
        self.node = 0
        with opened.cursor() as cursor:
            is_locked = False
            while not is_locked:
                self.node = 1 + secrets.randbelow(2**31 - 1)
                cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (LOCK_CLASS, self.node))
                row = cursor.fetchone()
                is_locked = row is not None and bool(row[0])
            cursor.execute(f"LISTEN {CHANNEL}")
        # our own descriptor: libpq closes its own when the connection is lost, but the reactor has
        # to remove it first
        self._descriptor = os.dup(opened.fileno())

    def fileno(self) -> int:
        return self._descriptor

    def receive(self) -> Sequence[Notification]:
        try:
            self._connection.poll()
        except psycopg2.Error as error:
            raise NodeChannelLost(str(error).strip()) from error
        calls = [parse_notification(notice.payload) for notice in self._connection.notifies]
        self._connection.notifies.clear()
        return [call for call in calls if call is not None]

    def close(self) -> None:
        self._connection.close()
        os.close(self._descriptor)


def parse_notification(payload: str) -> Notification | None:
    """Parse a notification. Return None for one that this version does not know."""
    match payload.split(" ", 2):
        case [word, position] if word == _CHANGED and _is_number(position):
            return ConfirmedWrite(int(position))
        case [word, node, position] if (
            word == _APPLIED and _is_number(node) and _is_number(position)
        ):
            return PositionApplied(int(node), int(position))
        case [word, node, body] if word == _MESSAGE and _is_number(node):
            return EphemeralMessage(int(node), body)
    return None


def confirmed_write_payload(position: int) -> str:
    """Return the payload that `parse_notification` parses as `ConfirmedWrite`."""
    return f"{_CHANGED} {position}"


def notify_applied(txn: Transaction, node: int, position: int) -> None:
    """Notify the other nodes that this one has applied everything up to this position."""
    txn.query("SELECT pg_notify(?, ?)", (CHANNEL, f"{_APPLIED} {node} {position}"))


def send_ephemeral(txn: Transaction, node: int, bodies: Sequence[str]) -> None:
    """Send ephemeral messages to the other nodes. Each payload, with the node's number and a word,
    has less than 8,000 bytes."""
    for body in bodies:
        txn.query("SELECT pg_notify(?, ?)", (CHANNEL, f"{_MESSAGE} {node} {body}"))


def select_nodes(txn: Transaction) -> set[int]:
    """Return the numbers of the running nodes."""
    rows = txn.query(
        "SELECT l.objid::bigint FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
        " WHERE d.datname = current_database() AND l.locktype = 'advisory'"
        " AND l.classid::bigint = ? AND l.objsubid = 2 AND l.granted",
        (LOCK_CLASS,),
    )
    return {node for (node,) in rows}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20

"""How nodes on one PostgreSQL call one another, for what may not wait until they ask: NOTIFY, heard
by a connection of each node.

A write that has to hold on all nodes before it is acknowledged calls as it commits; each node
answers once it has taken in what was written. Who is there is seen by a lock that each node holds
as long as its connection lives. What is not kept at all, as who types, goes from node to node as
notes.
"""

import os
import secrets
from collections.abc import Sequence
from typing import Final

import msgspec
import psycopg2
from psycopg2.extensions import connection

from storage.engine.interface import NodeCallsLost
from storage.engine.transaction import Transaction

CHANNEL: Final = "mahalla"
LOCK_CLASS: Final = 0x4D61_686E
"""The first key of the lock of each node ("Mahn" in ASCII); the second is the node's number."""
_CHANGED: Final = "changed"
_HEARD: Final = "heard"
_NOTE: Final = "note"


class Changed(msgspec.Struct, frozen=True):
    """What was written at that position must hold everywhere."""

    position: int


class Heard(msgspec.Struct, frozen=True):
    """A node has taken in everything up to that position."""

    node: int
    position: int


class Note(msgspec.Struct, frozen=True):
    """A node tells the others something that is not kept; the body is theirs to read."""

    node: int
    body: str


Call = Changed | Heard | Note


class PostgresNodeCalls:
    """The connection by which this node hears the others. See
    `storage.engine.interface.NodeCalls`."""

    def __init__(self, opened: connection) -> None:
        """Blocks. Raises psycopg2.Error."""
        self._connection = opened
        self.node = 0
        with opened.cursor() as cursor:
            is_mine = False
            while not is_mine:
                self.node = 1 + secrets.randbelow(2**31 - 1)
                cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (LOCK_CLASS, self.node))
                row = cursor.fetchone()
                is_mine = row is not None and bool(row[0])
            cursor.execute(f"LISTEN {CHANNEL}")
        # a descriptor of our own: libpq closes its own when the connection is lost, and whoever
        # watches it must take it out first
        self._descriptor = os.dup(opened.fileno())

    def fileno(self) -> int:
        return self._descriptor

    def take(self) -> Sequence[Call]:
        try:
            self._connection.poll()
        except psycopg2.Error as error:
            raise NodeCallsLost(str(error).strip()) from error
        came = [parse_call(notice.payload) for notice in self._connection.notifies]
        self._connection.notifies.clear()
        return [call for call in came if call is not None]

    def close(self) -> None:
        self._connection.close()
        os.close(self._descriptor)


def parse_call(payload: str) -> Call | None:
    """What a node said; None for what none of this version says."""
    match payload.split(" ", 2):
        case [word, position] if word == _CHANGED and _is_number(position):
            return Changed(int(position))
        case [word, node, position] if word == _HEARD and _is_number(node) and _is_number(position):
            return Heard(int(node), int(position))
        case [word, node, body] if word == _NOTE and _is_number(node):
            return Note(int(node), body)
    return None


def changed_payload(position: int) -> str:
    """What `parse_call` makes a `Changed` of."""
    return f"{_CHANGED} {position}"


def tell_heard(txn: Transaction, node: int, position: int) -> None:
    """Tell the others that this node has taken in everything up to that position."""
    txn.query("SELECT pg_notify(?, ?)", (CHANNEL, f"{_HEARD} {node} {position}"))


def tell_notes(txn: Transaction, node: int, bodies: Sequence[str]) -> None:
    """Tell the others what is not kept: less than 8,000 bytes each, this node's number and a word
    included."""
    for body in bodies:
        txn.query("SELECT pg_notify(?, ?)", (CHANNEL, f"{_NOTE} {node} {body}"))


def select_nodes(txn: Transaction) -> set[int]:
    """The numbers of the nodes that are there."""
    rows = txn.query(
        "SELECT l.objid::bigint FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
        " WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.classid::bigint = ? AND l.objsubid = 2"
        " AND l.granted",
        (LOCK_CLASS,),
    )
    return {node for (node,) in rows}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20

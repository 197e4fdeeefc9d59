"""Events from other servers that wait for what this server lacks: acknowledged, so kept until they are taken in or given up.

A server has so many places here. Events that wait for the word of their room's policy server, and what comes into the room after
them, have some of these only, and in one room fewer yet: a policy server that never has time keeps other rooms out of nothing.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction


class Places(msgspec.Struct, frozen=True):
    """How many events may wait on behalf of one server."""

    all: int = 2000
    unjudged: int = 1000
    """Of these, for the word of policy servers."""
    unjudged_of_room: int = 200


class InboxFull(Exception):
    """So much waits on behalf of this server already that no more is taken from it now."""


class NewInboxRow(msgspec.Struct, frozen=True):
    """An event that is to wait."""

    event_id: str
    pdu: bytes
    """JSON of the whole PDU."""


class InboxRow(msgspec.Struct, frozen=True):
    """An event that waits."""

    inbox_nid: int
    event_id: str
    origin: str
    received_ts: int
    attempts: int
    pdu: bytes


class InboxStore:
    """The table `inbox`."""

    def __init__(self, database: Database, places: Places | None = None) -> None:
        self._database = database
        self._places = places or Places()

    async def add(
        self, room_nid: int, origin: str, rows: Sequence[NewInboxRow], received_ts: int, *, is_unjudged: bool
    ) -> None:
        """Keep events of a room; those that wait already are left alone. Raises InboxFull: then none is kept.

        `is_unjudged`: they wait for the word of the room's policy server. Where others of this server in the room do, it is taken
        for granted: most events follow the ones before.
        """
        await self._database.write("add_to_inbox", self._add, room_nid, origin, list(rows), received_ts, is_unjudged)

    async def get_of_room(self, room_nid: int, limit: int) -> list[InboxRow]:
        """What waits in a room: first what was tried least often, then what came first."""
        return await self._database.read_quickly("get_inbox", _select, room_nid, limit)

    async def get_rooms(self) -> list[int]:
        """The rooms in which something waits."""
        return await self._database.read("get_inbox_rooms", _select_rooms)

    async def count(self) -> int:
        """How much waits in all."""
        return await self._database.read("count_inbox", _count)

    async def remove(self, inbox_nids: Iterable[int]) -> None:
        """These need not wait any longer."""
        await self._database.write("remove_from_inbox", _remove, list(inbox_nids))

    async def note_attempt(self, inbox_nids: Iterable[int]) -> None:
        """It was tried in vain."""
        await self._database.write("note_inbox_attempt", _note_attempt, list(inbox_nids))

    def _add(
        self,
        txn: WriteTransaction,
        room_nid: int,
        origin: str,
        rows: list[NewInboxRow],
        received_ts: int,
        is_unjudged: bool,
    ) -> None:
        (waiting,) = txn.query("SELECT count(*) FROM inbox WHERE origin = ?", (origin,))[0]
        unjudged, of_room = txn.query(
            "SELECT count(*), count(CASE WHEN room_nid = ? THEN 1 END) FROM inbox WHERE origin = ? AND is_unjudged = 1",
            (room_nid, origin),
        )[0]
        is_unjudged = is_unjudged or of_room > 0
        places, more = self._places, len(rows)
        is_full = waiting + more > places.all
        if is_unjudged:
            is_full |= unjudged + more > places.unjudged or of_room + more > places.unjudged_of_room
        if is_full:
            raise InboxFull(origin)
        first = txn.allocate("inbox", len(rows))
        txn.execute_many(
            "INSERT INTO inbox (inbox_nid, room_nid, received_ts, event_id, origin, pdu, is_unjudged)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [
                (first + at, room_nid, received_ts, row.event_id, origin, row.pdu, int(is_unjudged))
                for at, row in enumerate(rows)
            ],
        )


def _select(txn: Transaction, room_nid: int, limit: int) -> list[InboxRow]:
    rows = txn.query(
        "SELECT inbox_nid, event_id, origin, received_ts, attempts, pdu FROM inbox WHERE room_nid = ?"
        " ORDER BY attempts, inbox_nid LIMIT ?",
        (room_nid, limit),
    )
    return [InboxRow(*row) for row in rows]


def _select_rooms(txn: Transaction) -> list[int]:
    return [room_nid for (room_nid,) in txn.query("SELECT DISTINCT room_nid FROM inbox ORDER BY room_nid")]


def _count(txn: Transaction) -> int:
    row = txn.query_one("SELECT count(*) FROM inbox")
    return 0 if row is None else int(row[0])


def _remove(txn: WriteTransaction, inbox_nids: Collection[int]) -> None:
    txn.execute_many("DELETE FROM inbox WHERE inbox_nid = ?", [(nid,) for nid in inbox_nids])


def _note_attempt(txn: WriteTransaction, inbox_nids: Collection[int]) -> None:
    txn.execute_many("UPDATE inbox SET attempts = attempts + 1 WHERE inbox_nid = ?", [(nid,) for nid in inbox_nids])

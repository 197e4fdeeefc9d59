"""Events that were left out of room states because they or their auth chains could not be verified
in time.

They are stored, and their verification is retried
(`federation/rooms/receive/unverified_events.py`). Once an event is verified, it is added to the
current state of the room. Its row is not deleted then, because stored states at earlier events
still lack it. If a new event follows such a state and has the verified event among its auth events,
the verified event is first added to that state. Then the new event is checked.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.events import EventFlag
from storage.persist.room_writer import HeadMoved
from storage.persist.state_effects import StateEffect, apply_effects
from storage.rooms.memberships import count_members
from storage.rooms.partial_rooms import record_completion
from storage.rooms.rooms import RoomHead, RoomRow, move_head
from storage.state.state_tree import StateTreeStore

MAX_PER_ROOM: Final = 50_000
"""The maximum number of recorded events per room; further ones are left out until they are fetched
again."""


class NeededIn(IntEnum):
    """The part of a state or auth chain that such an event belongs to."""

    AUTH_CHAIN = 0
    """Other recorded events need it in their auth chain."""
    EARLIER_STATE = 1
    """A state from before all local users left the room: it is not added, but events with states of
    that time may cite it."""
    SOME_STATE = 2
    """The state at some event, as a server in the room reports it."""
    OUR_STATE = 3
    """The state before our join, as the server that answered `send_join` reports it."""


class UnverifiedEvent(msgspec.Struct, frozen=True):
    """An event that could not be verified."""

    event_id: str
    depth: int
    pdu: bytes
    needed_in: NeededIn


class UnverifiedEventRow(UnverifiedEvent, frozen=True):
    """A recorded event."""

    event_nid: int | None
    """Its number after it has been added to the state."""
    attempts: int


class UnverifiedEventStore:
    """Reads and writes the table `unverified_events`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_rooms(self) -> Mapping[int, int | None]:
        """Return the rooms with recorded events, and when the next one is retried; None: all have
        been added."""
        return await self._database.read_quickly("get_rooms_with_unverified_events", _select_rooms)

    async def get_of_room(self, room_nid: int) -> list[UnverifiedEventRow]:
        """Return the recorded events of a room, the shallowest first."""
        return await self._database.read_quickly("get_unverified_events", _select, room_nid)

    async def find(
        self, room_nid: int, event_ids: Collection[str]
    ) -> Mapping[str, tuple[NeededIn, int | None]]:
        """Return those of the events that are recorded: their set, and their number after they have
        been added."""
        return await self._database.read_quickly(
            "find_unverified_events", _find, room_nid, list(event_ids)
        )

    async def add(
        self, room_nid: int, events: Sequence[UnverifiedEvent], next_attempt: int
    ) -> None:
        """Record events."""
        await self._database.write(
            "add_unverified_events", add_unverified_events, room_nid, events, next_attempt
        )

    async def record_attempt(self, room_nid: int, next_attempts: Mapping[str, int]) -> None:
        """Record failed attempts, and when to retry."""
        await self._database.write(
            "record_unverified_attempt", _record_attempt, room_nid, next_attempts
        )

    async def remove(self, room_nid: int, event_ids: Iterable[str]) -> None:
        """Remove events that are of no use."""
        await self._database.write("remove_unverified_events", _remove, room_nid, list(event_ids))


def add_unverified_events(
    txn: WriteTransaction, room_nid: int, events: Sequence[UnverifiedEvent], next_attempt: int
) -> None:
    """Record events. Those already recorded stay as they are, unless their set is a larger one."""
    row = txn.query_one("SELECT count(*) FROM unverified_events WHERE room_nid = ?", (room_nid,))
    room = MAX_PER_ROOM - (0 if row is None else int(row[0]))
    txn.execute_many(
        "INSERT INTO unverified_events (room_nid, event_id, depth, pdu, needed_in, next_attempt_ts)"
        " VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (room_nid, event_id) DO UPDATE SET needed_in = excluded.needed_in"
        " WHERE unverified_events.needed_in < excluded.needed_in",
        [
            (room_nid, each.event_id, each.depth, each.pdu, int(each.needed_in), next_attempt)
            for each in events[:room]
        ],
    )


def mark_as_earlier_state(txn: WriteTransaction, room_nid: int) -> None:
    """Mark the events of a room as an earlier state: the room is joined again."""
    txn.execute(
        "UPDATE unverified_events SET needed_in = ? WHERE room_nid = ? AND needed_in > ?",
        (int(NeededIn.EARLIER_STATE), room_nid, int(NeededIn.EARLIER_STATE)),
    )


class UnverifiedEventWriter:
    """Adds verified events to room states, inside a write transaction."""

    def __init__(self, trees: StateTreeStore) -> None:
        self._trees = trees

    def add_to_state(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        head: RoomHead,
        recorded: Mapping[str, int],
        entries: Mapping[tuple[str, str], int],
        effects: Collection[tuple[int, StateEffect]],
    ) -> RoomHead:
        """Add entries, by key, to the current state and to the state after the extremities. Raises
        HeadMoved.

        `recorded`: the numbers, by ID, of events that need no further check. Clients get the room
        as one whose state was just completed.
        """
        nid = room.room_nid
        txn.execute_many(
            "UPDATE unverified_events SET event_nid = ? WHERE room_nid = ? AND event_id = ?",
            [(event_nid, nid, event_id) for event_id, event_nid in recorded.items()],
        )
        if not entries:
            return head
        position = txn.next_position()
        roots = txn.query_in(
            "SELECT event_nid, state_root FROM events WHERE event_nid IN {keys}",
            [number for number, _ in head.extremities],
        )
        for event_nid, root in roots:
            before = None if root is None else bytes(root)
            present = self._trees.get_entries_in(txn, nid, before, entries)
            after = self._trees.apply(
                txn,
                nid,
                before,
                {key: number for key, number in entries.items() if key not in present},
            )
            txn.execute(
                "UPDATE events SET state_root = ?, flags = flags | ? WHERE event_nid = ?",
                (after, EventFlag.STATE_ADDED, event_nid),
            )
            txn.announce(Change(position, Topic.OUTLIER_PLACED, detail=event_nid))
        apply_effects(txn, nid, [(event_nid, position, effect) for event_nid, effect in effects])
        joined, invited = count_members(txn, nid)
        root = self._trees.apply(txn, nid, head.state_root, entries)
        new = RoomHead(
            head.version + 1, head.extremities, head.depth, root, joined, invited, head.partial_join
        )
        if not move_head(txn, nid, head.version, new):
            raise HeadMoved(room.room_id)
        completed = record_completion(txn, nid, head.extremities[0][0], position)
        txn.announce(Change(position, Topic.PARTIAL_STATE, room.room_id, detail=completed))
        return new


def _select_rooms(txn: Transaction) -> dict[int, int | None]:
    rows = txn.query(
        "SELECT room_nid, min(CASE WHEN event_nid IS NULL THEN next_attempt_ts END)"
        " FROM unverified_events GROUP BY room_nid"
    )
    return dict(rows)


def _select(txn: Transaction, room_nid: int) -> list[UnverifiedEventRow]:
    rows = txn.query(
        "SELECT event_id, depth, pdu, needed_in, event_nid, attempts FROM unverified_events"
        " WHERE room_nid = ?"
        " ORDER BY depth, event_id",
        (room_nid,),
    )
    return [
        UnverifiedEventRow(event_id, depth, bytes(pdu), NeededIn(needed_in), event_nid, attempts)
        for event_id, depth, pdu, needed_in, event_nid, attempts in rows
    ]


def _find(
    txn: Transaction, room_nid: int, event_ids: Collection[str]
) -> dict[str, tuple[NeededIn, int | None]]:
    rows = txn.query_in(
        "SELECT event_id, needed_in, event_nid FROM unverified_events"
        " WHERE event_id IN {keys} AND room_nid = ?",
        event_ids,
        after=[room_nid],
    )
    return {event_id: (NeededIn(needed_in), event_nid) for event_id, needed_in, event_nid in rows}


def _record_attempt(txn: WriteTransaction, room_nid: int, next_attempts: Mapping[str, int]) -> None:
    txn.execute_many(
        "UPDATE unverified_events SET attempts = attempts + 1, next_attempt_ts = ?"
        " WHERE room_nid = ? AND event_id = ?",
        [(next_attempt, room_nid, event_id) for event_id, next_attempt in next_attempts.items()],
    )


def _remove(txn: WriteTransaction, room_nid: int, event_ids: Collection[str]) -> None:
    txn.execute_many(
        "DELETE FROM unverified_events WHERE room_nid = ? AND event_id = ?",
        [(room_nid, name) for name in event_ids],
    )

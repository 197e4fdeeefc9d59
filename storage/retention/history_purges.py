"""Purges of room history: requests, progress and outcome. The module also records forgotten
rooms, which all local users have left and forgotten.

Laws:
- A room has at most one running purge.
- The progress is written with the purged messages, so after a restart the purge continues from it.
- At its start, a purge stores the number (`event_nid`) of the newest event. It does not touch later
  events.
- The purge of a forgotten room ends if a local user gets a new membership in the room, for example
  by an invite. Each write of the purge checks this first.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.events import IS_SHOWN, EventFlag
from storage.events.relations import ANNOTATION, REFERENCE, REPLACE, THREAD
from storage.retention.purging import BEFORE_FIRST, PurgeableMessage, PurgeCause


class PurgeRunning(Exception):
    """The room has a running purge."""


class HistoryPurge(msgspec.Struct, frozen=True):
    """A purge. Times are milliseconds since 1970."""

    purge_id: str
    room_nid: int
    cause: str
    before_ts: int | None
    """Messages sent before this are purged; None: whenever sent."""
    before_depth: int | None
    """Messages above this depth are purged; None: at any depth."""
    include_local: bool
    """Includes messages of local users."""
    retained_nid: int | None
    """The newest message at the start, which stays; None: none does."""
    after: tuple[int, int]
    """Time and number of the last message that was read."""
    messages: int
    """The number of purged messages."""
    by_user_id: str | None
    created_ts: int
    upto_nid: int
    """The number of the newest event at the start: later ones stay."""
    finished_ts: int | None = None
    error: str | None = None


class PurgeExtent(msgspec.Struct, frozen=True):
    """The newest event and message of a room at one moment, which limit a purge."""

    upto_nid: int
    """The number of the newest event."""
    newest_message: int | None
    """The number of the newest visible message by arrival, without edits and reactions; None if
    there is none."""


class ForgottenBatch(msgspec.Struct, frozen=True):
    """The result of a check of some rooms, in order."""

    upto: int
    """The number of the last room that was checked."""
    count: int
    """The number of checked rooms."""


_COLUMNS: Final = (
    "purge_id, room_nid, cause, before_ts, before_depth, include_local, kept_nid,"
    " after_ts, after_nid,"
    " messages, by_user_id,"
    " created_ts, upto_nid, finished_ts, error"
)
_IS_REMEMBERED: Final = (
    "EXISTS (SELECT 1 FROM memberships AS m"
    " WHERE m.room_nid = r.room_nid AND m.is_local = 1 AND m.forgotten = 0)"
)


class HistoryPurgeStore:
    """Reads and writes the tables `history_purges` and `forgotten_rooms`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, purge: HistoryPurge) -> None:
        """Start a purge. Raises PurgeRunning."""
        await self._database.write("add_history_purge", add_purge, purge)

    async def get(self, purge_id: str) -> HistoryPurge | None:
        """Return a purge, running or finished, or None."""

        def read(txn: Transaction) -> HistoryPurge | None:
            row = txn.query_one(
                f"SELECT {_COLUMNS} FROM history_purges WHERE purge_id = ?", (purge_id,)
            )
            return None if row is None else _purge(row)

        return await self._database.read_quickly("get_history_purge", read)

    async def get_active(self) -> HistoryPurge | None:
        """Return the running purge that has waited longest."""

        def read(txn: Transaction) -> HistoryPurge | None:
            row = txn.query_one(
                f"SELECT {_COLUMNS} FROM history_purges WHERE finished_ts IS NULL"
                " ORDER BY created_ts, purge_id LIMIT 1"
            )
            return None if row is None else _purge(row)

        return await self._database.read_quickly("get_active_history_purge", read)

    async def set_finished(self, purge_id: str, now_ms: int, error: str | None) -> None:
        """Record the end of a purge."""
        await self._database.write("end_history_purge", _set_finished, purge_id, now_ms, error)

    async def remove_finished(self, before_ms: int, limit: int) -> int:
        """Delete at most `limit` purges that ended long ago. Return how many."""
        sql = (
            "DELETE FROM history_purges WHERE purge_id IN (SELECT purge_id FROM history_purges"
            " WHERE finished_ts < ? ORDER BY finished_ts LIMIT ?)"
        )
        return await self._database.write(
            "remove_history_purges", lambda txn: txn.execute(sql, (before_ms, limit))
        )

    async def get_extent(self, room_nid: int, types: Sequence[str]) -> PurgeExtent:
        """Return the extent of a purge of a room. The newest message has one of these types."""

        def read(txn: Transaction) -> PurgeExtent:
            row = txn.query_one(
                "SELECT e.event_nid FROM events AS e"
                f" WHERE e.room_nid = ? AND e.position IS NOT NULL AND {IS_SHOWN}"
                " AND e.state_key IS NULL AND e.redacted_by IS NULL"
                f" AND e.type IN ({', '.join('?' * len(types))})"
                " AND NOT EXISTS (SELECT 1 FROM relations AS r"
                " WHERE r.event_nid = e.event_nid AND r.rel_type IN (?, ?))"
                " ORDER BY e.position DESC LIMIT 1",
                (room_nid, *types, REPLACE, ANNOTATION),
            )
            return PurgeExtent(_select_latest(txn), None if row is None else int(row[0]))

        return await self._database.read("get_history_purge_extent", read)

    async def get_retained(self, retained_nid: int, nids: Sequence[int]) -> frozenset[int]:
        """Return those of the messages that belong to the retained one: itself, its edits,
        reactions and poll votes, and the root of its thread with the root's edits."""

        def read(txn: Transaction) -> frozenset[int]:
            row = txn.query_one(
                "SELECT e.event_id, r.target FROM events AS e"
                " LEFT JOIN relations AS r ON r.event_nid = e.event_nid AND r.rel_type = ?"
                " WHERE e.event_nid = ?",
                (THREAD, retained_nid),
            )
            if row is None:
                return frozenset()
            retained_event_id, root_event_id = row
            retained_relations = {
                (retained_event_id, REPLACE),
                (retained_event_id, ANNOTATION),
                (retained_event_id, REFERENCE),
                (root_event_id, REPLACE),
            }
            rows = txn.query_in(
                "SELECT e.event_nid, e.event_id, r.target, r.rel_type FROM events AS e"
                " LEFT JOIN relations AS r ON r.event_nid = e.event_nid"
                " WHERE e.event_nid IN {keys}",
                nids,
            )
            return frozenset(
                nid
                for nid, event_id, target, rel_type in rows
                if event_id in (retained_event_id, root_event_id)
                or (target is not None and (target, rel_type) in retained_relations)
            )

        return await self._database.read_quickly("get_events_exempt_from_purge", read)

    async def get_redacted(
        self, room_nid: int, nids: Sequence[int]
    ) -> Mapping[int, PurgeableMessage | None]:
        """Return, by redaction among the messages, the redacted message, if it was not purged
        since; None for a state event."""

        def read(txn: Transaction) -> Mapping[int, PurgeableMessage | None]:
            rows = txn.query_in(
                "SELECT x.event_nid, e.state_key, e.event_nid, e.event_id, e.depth,"
                " e.origin_server_ts, e.sender"
                " FROM redactions AS x JOIN events AS e ON e.event_id = x.redacts"
                " AND e.redacted_by = x.event_nid"
                f" WHERE x.event_nid IN {{keys}} AND e.room_nid = ?"
                f" AND (e.flags & {EventFlag.PURGED}) = 0",
                nids,
                after=(room_nid,),
            )
            return {
                nid: PurgeableMessage(target_nid, event_id, depth, sent, sender, b"")
                if state_key is None
                else None
                for nid, state_key, target_nid, event_id, depth, sent, sender in rows
            }

        return await self._database.read_quickly("get_redacted_messages", read)

    async def record_forgotten(self, after: int, limit: int, now_ms: int) -> ForgottenBatch:
        """Check at most `limit` rooms after `after`. Record those that all local users have left
        and forgotten, and delete the records of the others."""

        def write(txn: WriteTransaction) -> ForgottenBatch:
            rooms = txn.query(
                f"SELECT r.room_nid, CASE WHEN {_IS_REMEMBERED} THEN 1 ELSE 0 END FROM rooms AS r"
                " WHERE r.room_nid > ? ORDER BY r.room_nid LIMIT ?",
                (after, limit),
            )
            txn.execute_many(
                "DELETE FROM forgotten_rooms WHERE room_nid = ?",
                [(nid,) for nid, remembered in rooms if remembered],
            )
            txn.execute_many(
                "INSERT INTO forgotten_rooms (room_nid, since_ts) VALUES (?, ?)"
                " ON CONFLICT DO NOTHING",
                [(nid, now_ms) for nid, remembered in rooms if not remembered],
            )
            return ForgottenBatch(rooms[-1][0] if rooms else after, len(rooms))

        return await self._database.write("record_forgotten_rooms", write)

    async def start_forgotten(self, before_ms: int, now_ms: int, make_id: str) -> bool:
        """Start the purge of a room that was recorded as forgotten at or before `before_ms`.
        Return whether a room was found."""

        def write(txn: WriteTransaction) -> bool:
            row = txn.query_one(
                f"SELECT r.room_nid, CASE WHEN {_IS_REMEMBERED} THEN 1 ELSE 0 END"
                " FROM forgotten_rooms AS r"
                " WHERE r.since_ts <= ? AND r.purged_ts IS NULL"
                " AND NOT EXISTS (SELECT 1 FROM history_purges AS p"
                " WHERE p.room_nid = r.room_nid AND p.finished_ts IS NULL)"
                " ORDER BY r.since_ts, r.room_nid LIMIT 1",
                (before_ms,),
            )
            if row is None:
                return False
            room_nid, remembered = row
            if remembered:
                txn.execute("DELETE FROM forgotten_rooms WHERE room_nid = ?", (room_nid,))
                return True
            cause = PurgeCause.FORGOTTEN.value
            upto_nid = _select_latest(txn)
            add_purge(
                txn,
                HistoryPurge(
                    make_id,
                    room_nid,
                    cause,
                    None,
                    None,
                    True,
                    None,
                    BEFORE_FIRST,
                    0,
                    None,
                    now_ms,
                    upto_nid,
                ),
            )
            txn.execute(
                "UPDATE forgotten_rooms SET purged_ts = ? WHERE room_nid = ?", (now_ms, room_nid)
            )
            return True

        return await self._database.write("start_purge_of_forgotten_room", write)


def add_purge(txn: WriteTransaction, purge: HistoryPurge) -> None:
    """Do `add` in a transaction."""
    sql = "SELECT 1 FROM history_purges WHERE room_nid = ? AND finished_ts IS NULL"
    if txn.query_one(sql, (purge.room_nid,)) is not None:
        raise PurgeRunning
    txn.execute(
        f"INSERT INTO history_purges ({_COLUMNS})"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
        (
            purge.purge_id,
            purge.room_nid,
            purge.cause,
            purge.before_ts,
            purge.before_depth,
            int(purge.include_local),
            purge.retained_nid,
            *purge.after,
            purge.messages,
            purge.by_user_id,
            purge.created_ts,
            purge.upto_nid,
        ),
    )


def check_running(txn: WriteTransaction, purge: HistoryPurge, now_ms: int) -> bool:
    """Whether the purge may continue. The purge of a forgotten room ends here if a local user has
    a membership in the room that is not forgotten."""
    if purge.cause != PurgeCause.FORGOTTEN.value:
        return True
    row = txn.query_one(
        f"SELECT CASE WHEN {_IS_REMEMBERED} THEN 1 ELSE 0 END FROM rooms AS r WHERE r.room_nid = ?",
        (purge.room_nid,),
    )
    if row is None or not row[0]:
        return True
    # it may be forgotten again, and is then purged again
    txn.execute("DELETE FROM forgotten_rooms WHERE room_nid = ?", (purge.room_nid,))
    _set_finished(txn, purge.purge_id, now_ms, None)
    return False


def record_progress(
    txn: WriteTransaction, purge: HistoryPurge, after: tuple[int, int], messages: int
) -> None:
    """Record the last message that was read, and the number of newly purged ones. Never moves back
    behind another node."""
    txn.execute(
        "UPDATE history_purges SET messages = messages + ? WHERE purge_id = ?",
        (messages, purge.purge_id),
    )
    txn.execute(
        "UPDATE history_purges SET after_ts = ?, after_nid = ?"
        " WHERE purge_id = ? AND (after_ts, after_nid) < (?, ?)",
        (*after, purge.purge_id, *after),
    )


def _select_latest(txn: Transaction) -> int:
    """Return the number of the newest event; 0 without any."""
    row = txn.query_one("SELECT MAX(event_nid) FROM events")
    return 0 if row is None or row[0] is None else int(row[0])


def _set_finished(txn: WriteTransaction, purge_id: str, now_ms: int, error: str | None) -> None:
    sql = (
        "UPDATE history_purges SET finished_ts = ?, error = ?"
        " WHERE purge_id = ? AND finished_ts IS NULL"
    )
    txn.execute(sql, (now_ms, error, purge_id))


def _purge(row: Row) -> HistoryPurge:
    purge_id, room_nid, cause, ts, depth, include_local, retained, after_ts, after_nid, *rest = row
    return HistoryPurge(
        purge_id,
        room_nid,
        cause,
        ts,
        depth,
        bool(include_local),
        retained,
        (after_ts, after_nid),
        *rest,
    )

"""The history of users' push rules: the notification level of each room, by position.

A notification level says which plain messages of a room notify the user: all, only room mentions
(`@room`), or none. Each change of a user's push rules adds the new levels at the position of the
change. So unread counts treat each event by the rules that applied at its arrival. Only users with
rules of their own have a history.

`MAX_CHANGES` and `MAX_ENDED_ROOMS` limit the history. Events from before a room's oldest stored
level are counted by the level of rooms without levels of their own (`OTHER_ROOMS`).
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from storage.account_data.account_data import GLOBAL
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

OTHER_ROOMS = ""
"""Stands for all rooms without an entry of their own."""
AS_OTHER_ROOMS = -1
"""A room's entry that ends the entries before it."""
ALL = 0
"""The default without any entry."""
MAX_CHANGES = 100
"""The maximum number of stored changes per user and room. With more changes since a user last read
a room, older events are counted as in other rooms."""
MAX_ENDED_ROOMS: Final = 500
"""The maximum number of rooms whose entries ended with `AS_OTHER_ROOMS` and whose changes stay. In
rooms beyond it, events are counted as in other rooms."""


class PushRuleSpan(msgspec.Struct, frozen=True):
    """The notification level that applied after one position, up to another."""

    after: int
    upto: int
    level: int


class PushRuleHistory(msgspec.Struct, frozen=True):
    """The complete history of a user: for each room (id in lower case) the changes in order, as
    (position, notification level)."""

    changes: Mapping[str, tuple[tuple[int, int], ...]] = msgspec.field(default_factory=dict)

    def get_current_level(self, room_id: str) -> int:
        """Return the current level of a room."""
        last = self.changes.get(room_id)
        if room_id != OTHER_ROOMS and (last is None or last[-1][1] == AS_OTHER_ROOMS):
            return self.get_current_level(OTHER_ROOMS)
        return ALL if last is None else last[-1][1]

    def get_level_at(self, room_id: str, position: int) -> int:
        """Return the level of a room that applied to an event at that position."""
        if not self.changes:
            return ALL
        for key in (room_id, OTHER_ROOMS):
            earlier = [level for since, level in self.changes.get(key, ()) if since < position]
            if earlier and earlier[-1] != AS_OTHER_ROOMS:
                return earlier[-1]
        return ALL

    def spans(self, room_id: str, after: int, upto: int) -> list[PushRuleSpan]:
        """Return the levels of a room between two positions, in order; equal neighbours are
        merged."""
        bounds = {
            position for key in (room_id, OTHER_ROOMS) for position, _ in self.changes.get(key, ())
        }
        starts = [after, *sorted(position for position in bounds if after < position < upto)]
        spans: list[PushRuleSpan] = []
        for start, end in zip(starts, [*starts[1:], upto], strict=True):
            level = self.get_level_at(room_id, start + 1)
            if spans and spans[-1].level == level:
                spans[-1] = PushRuleSpan(spans[-1].after, end, level)
            else:
                spans.append(PushRuleSpan(start, end, level))
        return spans


class PushRuleHistoryStore:
    """Reads and writes the table `push_rule_history`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_rules(
        self, user_ids: Iterable[str]
    ) -> Mapping[str, tuple[bytes | None, PushRuleHistory]]:
        """Return the content of users' `m.push_rules` (None if it was never set), with their
        histories. Users who have neither are missing. One query."""
        return await self._database.read_quickly("get_push_rules", _select_rules, list(user_ids))

    async def get_members_with_rules(self, room_nid: int) -> list[str]:
        """Return the joined local users of a room who have push rules of their own."""
        return await self._database.read("get_members_with_rules", _select_members, room_nid)

    async def get_changed_members(self, room_nid: int, since: int) -> Mapping[str, bool]:
        """Return local users whose membership of a room, or whose rules, changed after a position,
        with whether they are joined. Users who never had a membership of the room may be
        missing."""
        return await self._database.read_quickly(
            "get_changed_push_rules", _select_changed, room_nid, since
        )

    def set_levels(
        self, txn: WriteTransaction, user_id: str, position: int, by_room: Mapping[str, int]
    ) -> None:
        """Set the level of rooms from a position on; rooms that are not named are as
        `OTHER_ROOMS`."""
        history = select_histories(txn, [user_id]).get(user_id, PushRuleHistory())
        rows = []
        for room_id in {OTHER_ROOMS, *by_room, *history.changes}:
            changes = history.changes.get(room_id)
            missing = ALL if room_id == OTHER_ROOMS else AS_OTHER_ROOMS
            new = by_room.get(room_id, missing)
            if new != (missing if changes is None else changes[-1][1]):
                rows.append((user_id, room_id, position, new))
                if changes is not None and len(changes) >= MAX_CHANGES:
                    txn.execute(
                        "DELETE FROM push_rule_history"
                        " WHERE user_id = ? AND room_id = ? AND position = ?",
                        (user_id, room_id, changes[0][0]),
                    )
        ended = [
            (changes[-1][0], room_id)
            for room_id, changes in history.changes.items()
            if changes[-1][1] == AS_OTHER_ROOMS
            and room_id != OTHER_ROOMS
            and room_id not in by_room
        ]
        if len(ended) > MAX_ENDED_ROOMS:
            excess = sorted(ended)[: len(ended) - MAX_ENDED_ROOMS]
            txn.execute_many(
                "DELETE FROM push_rule_history WHERE user_id = ? AND room_id = ?",
                [(user_id, room) for _, room in excess],
            )
        if rows:
            txn.execute_many(
                "INSERT INTO push_rule_history (user_id, room_id, position, level)"
                " VALUES (?, ?, ?, ?)",
                rows,
            )


def select_histories(txn: Transaction, user_ids: Iterable[str]) -> dict[str, PushRuleHistory]:
    """Return the histories of users; users without one are missing. One query."""
    rows: Iterable[tuple[str, str, int, int]] = txn.query_in(
        "SELECT user_id, room_id, position, level FROM push_rule_history WHERE user_id IN {keys}",
        user_ids,
    )
    return _histories(rows)


def _select_rules(
    txn: Transaction, user_ids: list[str]
) -> dict[str, tuple[bytes | None, PushRuleHistory]]:
    rows = txn.query_in(
        "SELECT user_id, room_id, position, level, content FROM"
        " (SELECT user_id, room_id, position, level, NULL AS content FROM push_rule_history"
        " UNION ALL SELECT user_id, room_id, 0, 0, content FROM account_data"
        f" WHERE room_id = '{GLOBAL}' AND type = 'm.push_rules' AND deleted = 0) AS own"
        f" WHERE user_id IN {{keys}}",
        user_ids,
    )
    rules = {row[0]: bytes(row[4]) for row in rows if row[4] is not None}
    histories = _histories(row[:4] for row in rows if row[4] is None)
    return {
        user_id: (rules.get(user_id), histories.get(user_id, PushRuleHistory()))
        for user_id in rules | histories
    }


def _histories(rows: Iterable[tuple[str, str, int, int]]) -> dict[str, PushRuleHistory]:
    found: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for user_id, room_id, position, level in rows:
        found.setdefault(user_id, {}).setdefault(room_id, []).append((position, level))
    return {
        user_id: PushRuleHistory(
            {room_id: tuple(sorted(changes)) for room_id, changes in rooms.items()}
        )
        for user_id, rooms in found.items()
    }


def _select_members(txn: Transaction, room_nid: int) -> list[str]:
    rows = txn.query(
        "SELECT m.user_id FROM memberships AS m JOIN account_data AS a ON a.user_id = m.user_id"
        " WHERE m.room_nid = ? AND m.membership = 'join' AND m.is_local = 1"
        f" AND a.room_id = '{GLOBAL}'"
        " AND a.type = 'm.push_rules'",
        (room_nid,),
    )
    return [user_id for (user_id,) in rows]


def _select_changed(txn: Transaction, room_nid: int, since: int) -> dict[str, bool]:
    rows = txn.query(
        "SELECT user_id, membership FROM memberships"
        " WHERE room_nid = ? AND is_local = 1 AND position > ?",
        (room_nid, since),
    )
    rows += txn.query(
        "SELECT m.user_id, m.membership FROM account_data AS a"
        " JOIN memberships AS m ON m.user_id = a.user_id"
        f" AND m.room_nid = ? WHERE a.type = 'm.push_rules' AND a.room_id = '{GLOBAL}'"
        " AND a.position > ?",
        (room_nid, since),
    )
    return {user_id: membership == "join" for user_id, membership in rows}

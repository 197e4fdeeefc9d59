"""A cache of policy servers' verdicts about events of other servers.

An event may be checked more than once before it is stored, so its verdict is cached. After the
event is stored, its flags contain the verdict, and the cached one is no longer needed. So the cache
can be small: only a limited number of the newest verdicts per room stay, for a week.
"""

from collections.abc import Collection, Mapping
from typing import Final

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

MAX_PER_ROOM: Final = 2_000
"""The maximum number of verdicts per room. A gap or a page of history has at most half as many
events."""
MAX_AGE_MS: Final = 7 * 24 * 3600 * 1000


class PolicyVerdictStore:
    """Reads and writes the table `policy_server_verdicts`."""

    def __init__(self, *, database: Database, max_per_room: int = MAX_PER_ROOM) -> None:
        self._database = database
        self._max_per_room = max_per_room

    async def get_verdicts(
        self, room_nid: int, public_key: bytes, event_ids: Collection[str]
    ) -> Mapping[str, bool]:
        """Return the stored verdicts by event: whether it may be shown."""
        read = self._database.read_quickly if len(event_ids) <= 50 else self._database.read
        return await read("get_policy_verdicts", _select, room_nid, public_key, list(event_ids))

    async def add_verdicts(
        self, room_nid: int, public_key: bytes, verdicts: Mapping[str, bool], decided_ts: int
    ) -> None:
        """Store verdicts. Deletes those that are too old, and those beyond the limit of the
        room."""
        await self._database.write(
            "add_policy_verdicts", self._add, room_nid, public_key, dict(verdicts), decided_ts
        )

    def _add(
        self,
        txn: WriteTransaction,
        room_nid: int,
        public_key: bytes,
        verdicts: Mapping[str, bool],
        decided_ts: int,
    ) -> None:
        txn.execute_many(
            "INSERT INTO policy_server_verdicts (room_nid, public_key, event_id, allowed,"
            " decided_ts)"
            " VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (room_nid, public_key, event_id)"
            " DO UPDATE SET allowed = excluded.allowed, decided_ts = excluded.decided_ts",
            [
                (room_nid, public_key, event_id, int(allowed), decided_ts)
                for event_id, allowed in verdicts.items()
            ],
        )
        txn.execute(
            "DELETE FROM policy_server_verdicts WHERE decided_ts < ?", (decided_ts - MAX_AGE_MS,)
        )
        oldest_excess = txn.query_one(
            "SELECT decided_ts FROM policy_server_verdicts WHERE room_nid = ?"
            " ORDER BY decided_ts DESC LIMIT 1 OFFSET ?",
            (room_nid, self._max_per_room),
        )
        if oldest_excess is not None:
            txn.execute(
                "DELETE FROM policy_server_verdicts WHERE room_nid = ? AND decided_ts <= ?",
                (room_nid, oldest_excess[0]),
            )


def _select(
    txn: Transaction, room_nid: int, public_key: bytes, event_ids: Collection[str]
) -> dict[str, bool]:
    rows = txn.query_in(
        "SELECT event_id, allowed FROM policy_server_verdicts"
        " WHERE room_nid = ? AND public_key = ? AND event_id IN {keys}",
        event_ids,
        before=[room_nid, public_key],
    )
    return {event_id: bool(allowed) for event_id, allowed in rows}

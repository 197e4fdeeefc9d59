"""The stream positions at which users left rooms. After a position, the user may not see new state
of the room."""

from collections.abc import Iterable, Sequence

from storage.engine.database import Database
from storage.engine.streams import Change, Stage, Topic
from storage.engine.transaction import Transaction
from storage.rooms.memberships import MembershipRow
from tests.conftest import run_coroutine
from tests.helpers.sync_client import Json, Key


class LeavePositions:
    """Records leaves from the server's change stream. Create it before the first leave."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._joined: set[tuple[int, str]] = set()
        self._left: dict[tuple[int, str], int] = {}
        database.streams.subscribe(self._on_changes, Topic.MEMBERSHIP, stage=Stage.NOTIFY)

    def check(self, user_id: str, rooms: Iterable[tuple[str, dict[Key, Json]]]) -> None:
        """Assert that a user holds no state event that is newer than their leave, except their own
        membership.

        `rooms`: the state that a client of the user holds, by room ID.
        """
        positions: dict[str, tuple[int, int]] = {}

        async def read() -> None:
            positions.update(await self._database.read("get_all_positions", _select_positions))

        run_coroutine(read(), None)
        for room_id, state in rooms:
            for key, event in state.items():
                room_nid, position = positions[event["event_id"]]
                if (room_nid, user_id) in self._joined or key == ("m.room.member", user_id):
                    continue
                assert position <= self._left.get((room_nid, user_id), 0), (
                    room_id,
                    user_id,
                    key,
                    event,
                )

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if not isinstance(row, MembershipRow):
                continue
            key = (row.room_nid, row.user_id)
            if row.membership == "join":
                self._joined.add(key)
            elif key in self._joined:
                self._joined.remove(key)
                self._left[key] = row.position


def _select_positions(txn: Transaction) -> dict[str, tuple[int, int]]:
    rows = txn.query("SELECT event_id, room_nid, COALESCE(position, 0) FROM events")
    return {event_id: (room_nid, position) for event_id, room_nid, position in rows}

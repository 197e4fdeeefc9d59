"""Checks that a user's membership is still one of the expected ones when an event is written.

If the membership has changed meanwhile, authorization may still allow the event. A kick that is
written after a ban would lift the ban. A new display name that is written after a leave would let
the user join a public room again.
"""

from collections.abc import Callable, Collection, Sequence

from federation.protocol.errors import MatrixError
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import RoomID, UserID
from federation.rooms.engine import RoomEngine
from federation.rooms.event_drafts import Check


def check_still(
    engine: RoomEngine,
    room_id: RoomID,
    user_id: UserID,
    expected: Collection[str],
    refuse: Callable[[], MatrixError],
) -> Check:
    """Return a `Draft.check` that raises the error of `refuse` unless the user has one of these
    memberships."""
    key = StateKey("m.room.member", user_id)

    async def check(built: Sequence[Event]) -> None:
        last = next(
            (
                event
                for event in reversed(built)
                if event.state_key is not None and event.key == key
            ),
            None,
        )
        if last is None:
            present = await (await engine.get_snapshot(room_id)).state.get(key)
            last = None if present is None else present.event
        if last is None or last.membership not in expected:
            raise refuse()

    return check

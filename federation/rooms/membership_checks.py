"""Whether somebody is still what they were when something was asked for, just as its turn to be
written has come.

Authorization alone would let it be otherwise: of who was banned a moment ago a removal lifts the
ban, and who has left a public room comes in again by what was to be their new name.
"""

from collections.abc import Callable, Collection, Sequence

from federation.protocol.errors import MatrixError
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import RoomID, UserID
from federation.rooms.drafts import Check
from federation.rooms.engine import RoomEngine


def check_still(
    engine: RoomEngine,
    room_id: RoomID,
    user_id: UserID,
    expected: Collection[str],
    refuse: Callable[[], MatrixError],
) -> Check:
    """For `Draft.check`: raises what `refuse` gives unless the user has one of these
    memberships."""
    key = StateKey("m.room.member", user_id)

    async def check(unwritten: Sequence[Event]) -> None:
        last = next(
            (
                event
                for event in reversed(unwritten)
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

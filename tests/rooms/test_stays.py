"""When former members left, also where forks were resolved."""

from msgspec.structs import replace

from federation.protocol.ids import RoomID
from federation.rooms.current_states import CurrentStates
from federation.rooms.stays import Stays
from storage.database import Database
from storage.memberships import MembershipRow
from tests.helpers.rooms import ALICE, BOB, RoomParts


def make_stays(parts: RoomParts) -> Stays:
    return Stays(parts.visibility, CurrentStates(parts.timelines, parts.events, parts.trees))


async def own(parts: RoomParts, room_id: RoomID) -> MembershipRow:
    """Bob's membership as it is."""
    room = (await parts.engine.get_snapshot(room_id)).room
    return (await parts.memberships.of_user(BOB))[room.room_nid]


async def test_a_stay_ends_once(database: Database) -> None:
    parts = RoomParts(database)
    stays, room_id = make_stays(parts), await parts.create()
    await parts.member(room_id, ALICE, "ban", BOB)
    assert await stays.find_end(await own(parts, room_id)) is None, "he was never in it"
    await parts.member(room_id, ALICE, "leave", BOB)
    await parts.member(room_id, BOB, "join")
    left = await parts.member(room_id, BOB, "leave")
    for membership in ("ban", "leave", "invite"):
        await parts.send(room_id, ALICE, "later")
        assert await stays.find_end(await own(parts, room_id)) == left.position
        await parts.member(room_id, ALICE, membership, BOB)
    assert await stays.find_end(await own(parts, room_id)) == left.position


async def test_a_membership_that_a_resolution_put_into_force(database: Database) -> None:
    parts = RoomParts(database)
    stays, room_id = make_stays(parts), await parts.create()
    await parts.member(room_id, BOB, "join")
    left = await parts.member(room_id, BOB, "leave")
    row = await own(parts, room_id)
    later = await parts.send(room_id, ALICE, "later")
    assert left.position is not None
    assert later.position is not None
    lifted = replace(row, position=later.position + 1)
    assert await stays.find_end(lifted) == left.position, "as when a ban of who had left is no longer in force"
    joined = await parts.member(room_id, BOB, "join")
    assert joined.position is not None
    won = replace(row, position=joined.position + 1)
    assert await stays.find_end(won) == joined.position + 1, "as when a kick wins against who came back"
    reset = replace(await own(parts, room_id), membership="leave", position=joined.position + 5)
    assert await stays.find_end(reset) == joined.position + 5, "as when nothing says that he left"
    await parts.member(room_id, ALICE, "ban", BOB)
    banned = await parts.send(room_id, ALICE, "later")
    assert banned.position is not None
    lost = replace(reset, position=banned.position + 1)
    assert await stays.find_end(lost) == joined.position, "he was out before: nothing says since when"

"""The positions at which membership periods of former members end."""

from federation.protocol.ids import RoomID
from storage.engine.database import Database
from storage.persist.state_effects import StateEffect, apply_effects
from storage.rooms.memberships import NewMembership
from tests.helpers.rooms import ALICE, BOB, RoomParts


async def end(parts: RoomParts, room_id: RoomID) -> int | None:
    """Return the stored end of Bob's last membership period."""
    room = (await parts.engine.get_snapshot(room_id)).room
    remembered = (await parts.memberships.of_user(BOB))[room.room_nid]
    stored = await RoomParts(parts.database).memberships.of_user(BOB)
    assert stored[room.room_nid] == remembered
    return remembered.left_position


async def test_a_membership_period_ends_once(database: Database) -> None:
    parts = RoomParts(database)
    room_id = await parts.create()
    await parts.member(room_id, ALICE, "ban", BOB)
    assert await end(parts, room_id) is None, "he was never in it"
    await parts.member(room_id, ALICE, "leave", BOB)
    await parts.member(room_id, BOB, "join")
    assert await end(parts, room_id) is None
    left = await parts.member(room_id, BOB, "leave")
    for membership in ("ban", "leave", "invite"):
        await parts.send(room_id, ALICE, "later")
        assert await end(parts, room_id) == left.position
        await parts.member(room_id, ALICE, membership, BOB)
    assert await end(parts, room_id) == left.position
    await parts.member(room_id, BOB, "join")
    assert await end(parts, room_id) is None
    left = await parts.member(room_id, ALICE, "ban", BOB)
    assert await end(parts, room_id) == left.position


async def test_a_membership_period_within_one_write(database: Database) -> None:
    parts = RoomParts(database)
    room_id = await parts.create()
    room_nid = (await parts.engine.get_snapshot(room_id)).room.room_nid
    effects = [
        (at, 1000 + at, StateEffect(NewMembership(BOB, membership, BOB, True, None, None)))
        for at, membership in enumerate(("join", "leave", "ban"))
    ]
    await database.write("t", apply_effects, room_nid, effects)
    assert await end(parts, room_id) == 1001

"""Replacing a room is one write: all of it is stored, or nothing."""

from collections.abc import Sequence

import pytest

from federation.protocol.errors import Forbidden
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID
from federation.protocol.room_versions import DEFAULT_ROOM_VERSION
from federation.rooms.event_drafts import Draft
from federation.rooms.room_replacement import RoomReplacement
from federation.rooms.snapshot import RoomSnapshot
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.rooms.rooms import RoomRow, RoomStore
from tests.helpers.rooms import ALICE, BOB, RoomParts

TOMBSTONE = StateKey("m.room.tombstone", "")


def replacements(parts: RoomParts) -> RoomReplacement:
    writer = parts.writer_class(trees=parts.trees, chains=parts.chains)
    return RoomReplacement(
        engine=parts.engine, events=parts.events, writer=writer, now_ms=parts.tick
    )


async def beginning(old: RoomSnapshot) -> Sequence[Draft]:
    content = {"room_version": "12", "predecessor": {"room_id": old.room_id}}
    return [
        Draft("m.room.create", ALICE, content, ""),
        Draft("m.room.member", ALICE, {"membership": "join"}, ALICE),
    ]


async def ending(_old: RoomSnapshot, new_id: RoomID) -> Sequence[Draft]:
    return [
        Draft(TOMBSTONE.type, ALICE, {"body": "gone", "replacement_room": new_id}, ""),
        Draft("m.room.name", BOB, {"name": "not his to say"}, ""),
        Draft("m.room.name", ALICE, {"name": "Old"}, ""),
    ]


def nothing_else(_txn: WriteTransaction, _old: RoomRow, _new: RoomRow) -> None:
    """No more than the events."""


async def none_earlier(_old: RoomSnapshot) -> RoomSnapshot | None:
    return None


async def test_forbidden_last_events_are_omitted(database: Database) -> None:
    parts = RoomParts(database)
    old_id = await parts.create()
    new = await replacements(parts).replace(
        old_id, DEFAULT_ROOM_VERSION, None, beginning, ending, nothing_else, none_earlier
    )
    for reader in (parts, RoomParts(database)):
        old = await reader.engine.get_snapshot(old_id)
        found = await old.state.load([TOMBSTONE, StateKey("m.room.name", "")])
        assert [event.event.content for event in found.values()] == [
            {"body": "gone", "replacement_room": new.room_id},
            {"name": "Old"},
        ]
        assert (
            await (await reader.engine.get_snapshot(new.room_id)).create_event()
        ).sender == ALICE
    assert (await parts.send(old_id, ALICE, "still here")).in_timeline
    assert (await parts.send(new.room_id, ALICE, "and here")).in_timeline


async def test_a_room_that_changes_meanwhile_is_replaced_with_its_latest_state(
    database: Database,
) -> None:
    parts, other = RoomParts(database), RoomParts(database)
    old_id = await parts.create()
    attempts: list[RoomID] = []

    async def interrupted(old: RoomSnapshot, new_id: RoomID) -> Sequence[Draft]:
        attempts.append(new_id)
        if len(attempts) == 1:
            await other.send(old_id, ALICE, "quick")
        return await ending(old, new_id)

    new = await replacements(parts).replace(
        old_id, DEFAULT_ROOM_VERSION, None, beginning, interrupted, nothing_else, none_earlier
    )
    assert len(attempts) == 2
    assert new.room_id == attempts[1]
    old = await parts.engine.get_snapshot(old_id)
    assert len(old.head.extremities) == 1
    assert await parts.bodies(old_id) == ["quick"]
    tombstone = await old.state.get(TOMBSTONE)
    assert tombstone is not None
    assert tombstone.event.content["replacement_room"] == new.room_id
    assert set(await RoomStore(database=database).get_rooms(attempts)) == {new.room_id}


async def test_a_user_who_may_not_end_the_old_room_creates_no_new_one(database: Database) -> None:
    parts = RoomParts(database)
    old_id = await parts.create()
    created: list[RoomID] = []

    async def not_theirs(_old: RoomSnapshot, new_id: RoomID) -> Sequence[Draft]:
        created.append(new_id)
        return [Draft(TOMBSTONE.type, BOB, {"body": "", "replacement_room": new_id}, "")]

    with pytest.raises(Forbidden):
        await replacements(parts).replace(
            old_id, DEFAULT_ROOM_VERSION, None, beginning, not_theirs, nothing_else, none_earlier
        )
    assert not await RoomStore(database=database).get_rooms(created)
    assert (await parts.send(old_id, ALICE, "goes on")).in_timeline

"""Space hierarchies served to other servers, and their storage, on both databases."""

from typing import Any

import pytest

from federation.protocol.errors import NotFound
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, ServerName, UserID
from federation.rooms.event_drafts import Draft
from federation.rooms.serving.spaces import Spaces
from federation.rooms.serving.summaries import SummaryVisibility
from federation.rooms.state_effects import effect_of_absence
from storage.engine.database import Database
from storage.rooms.memberships import MembershipStore
from storage.rooms.spaces import SpaceStore
from storage.rooms.summaries import RoomSummaryStore
from tests.helpers.rooms import ALICE, RoomParts, write_nothing_else

OTHER = ServerName("b.test")
CAROL = UserID("@carol:b.test")


def spaces_of(parts: RoomParts) -> Spaces:
    members = MembershipStore(parts.database)
    previews = SummaryVisibility(
        memberships=parts.memberships, membership_store=members, rooms=parts.rooms
    )
    summaries, store = RoomSummaryStore(parts.database), SpaceStore(parts.database)
    return Spaces(
        summaries=summaries,
        spaces=store,
        membership_store=members,
        events=parts.events,
        previews=previews,
    )


async def create(
    parts: RoomParts,
    join_rules: dict[str, Any] | str,
    *,
    is_space: bool = False,
    federates: bool = True,
) -> RoomID:
    content: dict[str, Any] = {"room_version": "12"}
    if is_space:
        content["type"] = "m.space"
    if not federates:
        content["m.federate"] = False
    rules = {"join_rule": join_rules} if isinstance(join_rules, str) else join_rules
    drafts = [
        Draft("m.room.create", ALICE, content, ""),
        Draft("m.room.member", ALICE, {"membership": "join"}, ALICE),
        Draft("m.room.join_rules", ALICE, rules, ""),
    ]
    version = (await parts.engine.get_snapshot(await parts.create())).version
    snapshot, _ = await parts.engine.create(version, None, drafts, write_nothing_else)
    return snapshot.room_id


async def link(parts: RoomParts, space: RoomID, child: str, **content: Any) -> None:
    await parts.send(space, ALICE, {"via": ["a.test"], **content}, "m.space.child", child)


async def test_children_are_served_in_their_order(database: Database) -> None:
    parts = RoomParts(database)
    store, space = SpaceStore(database), await create(parts, "public", is_space=True)
    room = (await parts.engine.get_snapshot(space)).room
    contents: dict[str, dict[str, Any]] = {
        "c": {},
        "b": {"order": "b"},
        "a": {"order": " "},
        "d": {"suggested": True},
    }
    for child, content in contents.items():
        await link(parts, space, f"!{child}:a.test", **content)
    other = await create(parts, "public", is_space=True)
    await link(parts, other, "!c:a.test")

    async def kept() -> list[tuple[str, bool]]:
        children = await store.get_children([room.room_nid, 99999])
        return [(child.child_id[1], child.suggested) for child in children.get(room.room_nid, ())]

    assert await kept() == [("a", False), ("b", False), ("c", False), ("d", True)]
    other_room = (await parts.engine.get_snapshot(other)).room
    assert await store.get_parents("!c:a.test") == [room.room_nid, other_room.room_nid]
    await link(parts, space, "!a:a.test", order="z")
    moved = await parts.send(space, ALICE, {"via": ["a.test"]}, "m.space.child", "!b:a.test")
    await parts.send(space, ALICE, {}, "m.space.child", "!c:a.test")
    assert await kept() == [("a", False), ("d", True), ("b", False)]
    await parts.redact(space, ALICE, moved.event.event_id)
    assert await kept() == [("a", False), ("d", True)]


async def test_another_server_gets_the_rooms_that_it_may_see(database: Database) -> None:
    parts = RoomParts(database)
    spaces, space = spaces_of(parts), await create(parts, "public", is_space=True)
    public, secret, invited = [await create(parts, rule) for rule in ("public", "invite", "invite")]
    allow = [{"type": "m.room_membership", "room_id": invited}]
    by_invited = await create(parts, {"join_rule": "restricted", "allow": allow})
    confined = await create(parts, "public", federates=False)
    street = await create(parts, "knock", is_space=True)
    rooms = [public, secret, invited, by_invited, confined, street, RoomID("!unknown:c.test")]
    for number, child in enumerate(rooms):
        await link(parts, space, child, order=str(number), suggested=child == street)
    await link(parts, street, public)
    await parts.member(invited, ALICE, "invite", CAROL)

    async def received(**options: bool) -> tuple[list[str], list[str]]:
        answer = await spaces.answer_server(
            OTHER, space, suggested_only=options.get("suggested_only", False)
        )
        assert answer["room"]["room_id"] == space
        assert len(answer["room"]["children_state"]) == (1 if options else len(rooms))
        return [child["room_id"] for child in answer["children"]], answer["inaccessible_children"]

    assert await received() == ([public, invited, street], [secret, by_invited, confined])
    await parts.member(invited, CAROL, "join")
    assert await received() == ([public, invited, by_invited, street], [secret, confined])
    assert await received(suggested_only=True) == ([street], [])
    answer = await spaces.answer_server(OTHER, space, suggested_only=False)
    told_street = answer["children"][-1]
    assert [event["state_key"] for event in told_street["children_state"]] == [public]
    assert set(told_street["children_state"][0]) == {
        "type",
        "state_key",
        "sender",
        "content",
        "origin_server_ts",
    }


async def test_another_server_gets_no_rooms_that_it_may_not_see(database: Database) -> None:
    parts = RoomParts(database)
    spaces = spaces_of(parts)
    secret, left = (
        await create(parts, "invite", is_space=True),
        await create(parts, "public", is_space=True),
    )
    await parts.member(left, ALICE, "leave")
    for room_id in (secret, left, RoomID("!none:a.test")):
        with pytest.raises(NotFound):
            await spaces.answer_server(OTHER, room_id, suggested_only=False)
    await parts.member(secret, ALICE, "invite", CAROL)
    assert (await spaces.answer_server(OTHER, secret, suggested_only=False))["room"][
        "room_id"
    ] == secret
    with pytest.raises(NotFound):
        await spaces.answer_server(ServerName("xb.test"), secret, suggested_only=False)


async def test_a_child_removed_by_state_resolution_is_not_served(database: Database) -> None:
    parts = RoomParts(database)
    space = await create(parts, "public", is_space=True)
    room = (await parts.engine.get_snapshot(space)).room
    event = await parts.send(space, ALICE, {"via": ["a.test"]}, "m.space.child", "!a:a.test")
    await link(parts, space, "!b:a.test")
    writer = parts.writer_class(trees=parts.trees, chains=parts.chains)
    gone = effect_of_absence(event.event, parts.identity)
    await database.write("lose", writer.apply_early_effects, room, [(event.nid, gone)])
    children = (await SpaceStore(database).get_children([room.room_nid]))[room.room_nid]
    assert [child.child_id for child in children] == ["!b:a.test"]


async def test_join_rules_removed_by_state_resolution_do_not_apply(database: Database) -> None:
    parts = RoomParts(database)
    allow = [{"type": "m.room_membership", "room_id": "!club:a.test"}]
    room_id = await create(parts, {"join_rule": "restricted", "allow": allow})
    snapshot = await parts.engine.get_snapshot(room_id)
    store = RoomSummaryStore(database)
    assert (await store.get_summaries_by_id([room_id]))[room_id].allowed_rooms == ("!club:a.test",)
    rules = await snapshot.state.get(StateKey("m.room.join_rules", ""))
    assert rules is not None
    writer = parts.writer_class(trees=parts.trees, chains=parts.chains)
    gone = effect_of_absence(rules.event, parts.identity)
    await database.write("lose", writer.apply_early_effects, snapshot.room, [(rules.nid, gone)])
    row = (await store.get_summaries_by_id([room_id]))[room_id]
    assert (row.join_rule, row.allowed_rooms) == (None, ())

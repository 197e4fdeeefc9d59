"""Space hierarchies of which other servers return parts."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import Forbidden, NotFound
from federation.protocol.ids import RoomID, ServerName
from federation.protocol.signing import SigningKey
from federation.protocol.space_hierarchy import RemoteHierarchy, parse_hierarchy
from federation.rooms.events import StoredEvent
from federation.rooms.snapshot import RoomSnapshot
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter, read_rates
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_lookup import RoomLookupParts
from storage.events.timelines import Direction
from tests.helpers.room_actions import create, join, ok
from tests.helpers.server import TestServer, User
from tests.helpers.spaces import add_child, create_space

FAR = RoomID("!far:other.org")


class ToldHierarchies:
    """Answers with the hierarchies in `answers`; records the rooms that it was asked for."""

    def __init__(self) -> None:
        self.answers: dict[RoomID, dict[str, Any]] = {}
        self.asked: dict[RoomID, Sequence[ServerName]] = {}

    async def get_hierarchies(
        self, rooms: Mapping[RoomID, Sequence[ServerName]], *, suggested_only: bool
    ) -> Mapping[RoomID, RemoteHierarchy]:
        self.asked.update(rooms)
        return {
            room_id: parse_hierarchy(room_id, self.answers[room_id])
            for room_id in rooms
            if room_id in self.answers
        }


class NobodyElse:
    """No other server knows more of a room's past."""

    async def find_nearest(
        self, room: RoomSnapshot, ts: int, direction: Direction, known: StoredEvent | None
    ) -> StoredEvent | None:
        return None


@pytest.fixture
def remote() -> ToldHierarchies:
    return ToldHierarchies()


@pytest.fixture
def parts(server: TestServer, remote: ToldHierarchies) -> RoomLookupParts:
    app = server.app
    identity = ServerIdentity(ServerName(app.config.server_name), SigningKey("a_test", bytes(32)))
    base = Foundation(
        app.config,
        app.clock,
        app.database,
        RateLimiter(clock=app.clock, rates=read_rates(app.config.limits)),
        identity,
        CollectorRegistry(),
    )
    return RoomLookupParts(
        base=base,
        accounts=app.accounts,
        rooms=app.rooms,
        room_reading=app.room_reading,
        services=app.room_services,
        remote_spaces=remote,
        remote_times=NobodyElse(),
    )


def room_entry(room_id: str, **more: Any) -> dict[str, Any]:
    room = {
        "room_id": room_id,
        "num_joined_members": 3,
        "world_readable": False,
        "guest_can_join": False,
    }
    return {**room, "join_rule": "public", **more}


def space(room_id: str, *children: str, **more: Any) -> dict[str, Any]:
    links = [
        {
            "type": "m.space.child",
            "state_key": child,
            "sender": "@olga:other.org",
            "content": {"via": ["other.org"]},
            "origin_server_ts": number,
        }
        for number, child in enumerate(children)
    ]
    return room_entry(room_id, room_type="m.space", children_state=links, **more)


async def page(parts: RoomLookupParts, user: User, room_id: str, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "suggested_only": False,
        "max_depth": None,
        "limit": None,
        "from_": None,
        **more,
    }
    return await parts.hierarchy.get_page(user.user_id, RoomID(room_id), **options)


def ids(answer: dict[str, Any]) -> list[str]:
    return [room["room_id"] for room in answer["rooms"]]


async def test_remote_rooms_are_requested_from_other_servers(
    parts: RoomLookupParts, remote: ToldHierarchies, alice: User
) -> None:
    here, room = create_space(alice), create(alice, preset="public_chat")
    add_child(alice, here, FAR, via=["other.org", "third.org"], order="1")
    add_child(alice, here, room, order="2")
    leaf, hidden, deeper = "!leaf:other.org", "!hidden:other.org", "!deeper:other.org"
    remote.answers[FAR] = {
        "room": space(FAR, leaf, room, hidden, deeper),
        "children": [
            room_entry(leaf, name="Leaf"),
            room_entry(room, name="A lie"),
            room_entry(deeper, room_type="m.space"),
        ],
        "inaccessible_children": [hidden],
    }
    remote.answers[RoomID(deeper)] = {"room": space(deeper, FAR), "children": []}
    answer = await page(parts, alice, here)
    assert ids(answer) == [here, FAR, leaf, room, deeper]
    assert answer["rooms"][2]["name"] == "Leaf"
    assert "name" not in answer["rooms"][3]  # what is known here counts
    assert remote.asked == {FAR: ["other.org", "third.org"], deeper: ["other.org"]}
    found, from_ = [], None
    while True:
        answer = await page(parts, alice, here, limit=2, from_=from_)
        found += ids(answer)
        from_ = answer.get("next_batch")
        if from_ is None:
            break
    assert found == [here, FAR, leaf, room, deeper]


async def test_only_accessible_remote_rooms_are_shown(
    parts: RoomLookupParts, remote: ToldHierarchies, alice: User
) -> None:
    here, club = create_space(alice), create(alice, preset="public_chat")
    bob = alice.server.register("bob")
    add_child(alice, here, FAR)
    rooms: dict[str, dict[str, Any]] = {
        "!invite:other.org": {"join_rule": "invite"},
        "!read:other.org": {"join_rule": "invite", "world_readable": True},
        "!club:other.org": {"join_rule": "restricted", "allowed_room_ids": [club]},
    }
    remote.answers[FAR] = {
        "room": space(FAR, *rooms),
        "children": [room_entry(name, **more) for name, more in rooms.items()],
    }
    assert ids(await page(parts, bob, here)) == [here, FAR, "!read:other.org"]
    join(bob, club)
    assert ids(await page(parts, bob, here)) == [here, FAR, "!read:other.org", "!club:other.org"]
    remote.answers[FAR]["room"]["join_rule"] = "invite"
    assert ids(await page(parts, bob, here)) == [here]


async def test_a_remote_space_is_shown(
    parts: RoomLookupParts, remote: ToldHierarchies, alice: User
) -> None:
    with pytest.raises(Forbidden):
        await page(parts, alice, FAR)
    remote.answers[FAR] = {"room": space(FAR), "children": []}
    assert ids(await page(parts, alice, FAR)) == [FAR]


async def test_the_summary_of_a_remote_room_is_shown(
    parts: RoomLookupParts, remote: ToldHierarchies, alice: User
) -> None:
    caller = Requester(alice.user_id, alice.device_id, 1)
    with pytest.raises(NotFound):
        await parts.previews.get_summary(caller, FAR, [ServerName("other.org")])
    remote.answers[FAR] = {"room": space(FAR, room_version="11")}
    summary = await parts.previews.get_summary(caller, FAR, [ServerName("third.org")])
    assert remote.asked[FAR] == ["third.org"]
    assert (summary["room_id"], summary["membership"], summary["im.nheko.summary.version"]) == (
        FAR,
        "leave",
        "11",
    )
    assert "children_state" not in summary
    assert "membership" not in await parts.previews.get_summary(None, FAR, [])
    remote.answers[FAR]["room"]["join_rule"] = "restricted"
    for asker in (caller, None):
        with pytest.raises(NotFound):
            await parts.previews.get_summary(asker, FAR, [])


async def test_a_remote_summary_replaces_the_outdated_state_of_a_left_room(
    parts: RoomLookupParts, remote: ToldHierarchies, alice: User
) -> None:
    room = RoomID(create(alice, preset="public_chat", name="Old"))
    ok(alice.post(f"/_matrix/client/v3/rooms/{room}/leave"))
    caller = Requester(alice.user_id, alice.device_id, 1)
    assert (await parts.previews.get_summary(caller, room, []))["name"] == "Old"
    remote.answers[room] = {"room": room_entry(room, name="New")}
    assert (await parts.previews.get_summary(caller, room, []))["name"] == "New"

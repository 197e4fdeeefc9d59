"""A server that is not in a room cannot change an earlier invite."""

from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from federation.peers.client import RefusedByRemote
from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.event_signing import hash_and_sign_event
from federation.protocol.events import Event, parse_event
from federation.protocol.ids import RoomID, ServerName
from federation.protocol.room_versions import ROOM_VERSIONS
from storage.rooms.out_of_room_memberships import MAX_QUEUED_INVITES
from tests.helpers.federated_rooms import EAST, NORTH, SOUTH, Side, create_room
from tests.helpers.network import Network
from tests.helpers.room_actions import V3, invite, membership, ok
from tests.helpers.server import User

VERSIONS = ("1", "10")


def inviters(user: User, room_id: str) -> list[str]:
    """By whom the user is invited, as sync says."""
    room = (
        ok(user.get(f"{V3}/sync"))
        .get("rooms", {})
        .get("invite", {})
        .get(room_id, {"invite_state": {"events": []}})
    )
    return [
        event["sender"]
        for event in room["invite_state"]["events"]
        if event.get("content", {}).get("membership") == "invite"
    ]


def made_up(
    side: Side,
    version: str,
    room_id: RoomID,
    target: str,
    what: str,
    cited: list[str] | None = None,
) -> Event:
    """A membership that a stranger makes without knowing the room."""
    known = ROOM_VERSIONS[version]
    names = {"event_id": f"$stranger-{what}:{side.name}"} if version == "1" else {}
    pdu: dict[str, Any] = {
        "type": "m.room.member",
        "room_id": room_id,
        "sender": f"@stranger:{side.name}",
        "state_key": target,
        "content": {"membership": what},
        "depth": 1,
        "origin_server_ts": 1,
        "prev_events": [],
        "auth_events": [[each, {}] for each in cited or []]
        if version == "1"
        else list(cited or []),
        **names,
    }
    return parse_event(
        known, hash_and_sign_event(known, pdu, side.name, side.federation.identity.key)
    )


async def send_invite(side: Side, event: Event) -> None:
    """As another server sends one; raises RefusedByRemote."""
    version = event.version.identifier
    place = f"{quote(event.room_id, safe='')}/{quote(event.event_id, safe='')}"
    api, body = "v2", {"room_version": version, "event": event.pdu, "invite_room_state": []}
    if version == "1":
        api, body = "v1", dict(event.pdu)
    await side.edge.requests.put(
        ServerName(NORTH), f"/_matrix/federation/{api}/invite/{place}", body
    )


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stranger_cannot_replace_an_invite(network: Network, version: str) -> None:
    north, south, east = (Side(network.add(name)) for name in (NORTH, SOUTH, EAST))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(bob, "10", preset="private_chat")
    invite(bob, room_id, alice)

    fake = made_up(east, version, room_id, alice.user_id, "invite")
    await send_invite(east, fake)
    assert inviters(alice, room_id) == [bob.user_id]
    withdrawn = made_up(east, version, room_id, alice.user_id, "leave", [fake.event_id])
    await east.push(NORTH, [withdrawn.pdu])
    assert inviters(alice, room_id) == [bob.user_id]

    ok(membership(bob, room_id, "kick", alice))
    (kick,) = await south.last(room_id)
    assert await south.push(NORTH, [kick.pdu]) == {"pdus": {kick.event_id: {}}}
    assert inviters(alice, room_id) == []


async def test_a_strangers_invite_does_not_change_the_room_version(network: Network) -> None:
    """Another user's invite of another version does not change how the first can be taken back, nor
    is an honest one refused."""
    north, south, east = (Side(network.add(name)) for name in (NORTH, SOUTH, EAST))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    dora, erin = north.server.register("dora"), north.server.register("erin")
    room_id = create_room(bob, "10", preset="private_chat")
    invite(bob, room_id, alice)
    await send_invite(east, made_up(east, "1", room_id, dora.user_id, "invite"))
    assert inviters(dora, room_id) == [f"@stranger:{EAST}"]
    invite(bob, room_id, erin)
    assert inviters(erin, room_id) == inviters(alice, room_id) == [bob.user_id]

    ok(membership(dora, room_id, "leave"))
    ok(membership(bob, room_id, "kick", alice))
    (kick,) = await south.last(room_id)
    assert await south.push(NORTH, [kick.pdu]) == {"pdus": {kick.event_id: {}}}
    assert inviters(alice, room_id) == []
    ok(erin.post(f"{V3}/rooms/{room_id}/join", {}))


async def test_the_inviter_may_invite_again(network: Network) -> None:
    north, south = (Side(network.add(name)) for name in (NORTH, SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(bob, "10", preset="private_chat")
    invite(bob, room_id, alice)
    ok(membership(bob, room_id, "kick", alice))  # which the north does not hear of
    ok(membership(bob, room_id, "invite", alice, reason="come again"))
    state = ok(alice.get(f"{V3}/sync"))["rooms"]["invite"][room_id]["invite_state"]["events"]
    assert [
        event["content"].get("reason") for event in state if event.get("state_key") == alice.user_id
    ] == ["come again"]


async def test_other_members_may_invite_again(network: Network) -> None:
    """Their invite rests upon the first one, whose id strangers do not know."""
    north, south, east = (Side(network.add(name)) for name in (NORTH, SOUTH, EAST))
    alice, bob, carol = (
        north.server.register("alice"),
        south.server.register("bob"),
        east.server.register("carol"),
    )
    room_id = create_room(
        bob, "10", preset="public_chat", power_level_content_override={"invite": 0}
    )
    ok(carol.post(f"{V3}/join/{room_id}?via={SOUTH}", {}))
    invite(bob, room_id, alice)
    (first,) = await south.last(room_id)
    assert await south.push(EAST, [first.pdu]) == {"pdus": {first.event_id: {}}}
    ok(membership(carol, room_id, "invite", alice, reason="from me, too"))
    assert inviters(alice, room_id) == [carol.user_id]


async def test_a_strangers_answer_to_a_knock_has_no_effect(network: Network) -> None:
    north, south, east = (Side(network.add(name)) for name in (NORTH, SOUTH, EAST))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room_id = create_room(bob, "10", preset="private_chat", initial_state=[rule])
    ok(alice.post(f"{V3}/knock/{room_id}?via={SOUTH}", {}))
    await send_invite(east, made_up(east, "1", room_id, alice.user_id, "invite"))
    assert inviters(alice, room_id) == [f"@stranger:{EAST}"], (
        "servers need not refer to the knock that they answer"
    )
    invite(bob, room_id, alice)
    assert inviters(alice, room_id) == [bob.user_id]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_strangers_invite_does_not_keep_others_out(network: Network, version: str) -> None:
    north, south, east = (Side(network.add(name)) for name in (NORTH, SOUTH, EAST))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(bob, "10", preset="private_chat")
    fake = made_up(east, version, room_id, alice.user_id, "invite")
    await send_invite(east, fake)
    invite(bob, room_id, alice)
    assert inviters(alice, room_id) == [f"@stranger:{EAST}"]

    withdrawn = made_up(east, version, room_id, alice.user_id, "leave", [fake.event_id])
    assert await east.push(NORTH, [withdrawn.pdu]) == {"pdus": {withdrawn.event_id: {}}}
    assert inviters(alice, room_id) == [bob.user_id]
    await send_invite(east, made_up(east, version, room_id, alice.user_id, "invite"))
    ok(alice.post(f"{V3}/rooms/{room_id}/join", {}))


@pytest.mark.parametrize("version", VERSIONS)
async def test_all_inviting_servers_are_tried_for_the_join(network: Network, version: str) -> None:
    north, south, east = (Side(network.add(name)) for name in (NORTH, SOUTH, EAST))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(bob, "10", preset="private_chat")
    await send_invite(east, made_up(east, version, room_id, alice.user_id, "invite"))
    invite(bob, room_id, alice)
    ok(alice.post(f"{V3}/rooms/{room_id}/join", {}))


async def test_a_queued_invite_can_be_withdrawn_or_declined(
    network: Network,
) -> None:
    north, south, east = (Side(network.add(name)) for name in (NORTH, SOUTH, EAST))
    alice, dora, bob = (
        north.server.register("alice"),
        north.server.register("dora"),
        south.server.register("bob"),
    )
    room_id = create_room(bob, "10", preset="private_chat")
    for target in (alice, dora):
        fake = made_up(
            east,
            "1",
            room_id,
            target.user_id,
            "invite",
        )
        await send_invite(east, fake)
        invite(bob, room_id, target)
    ok(membership(bob, room_id, "kick", alice))
    (kick,) = await south.last(room_id)
    assert await south.push(NORTH, [kick.pdu]) == {"pdus": {kick.event_id: {}}}
    assert inviters(alice, room_id) == [f"@stranger:{EAST}"]
    for user in (alice, dora):
        ok(membership(user, room_id, "leave"))
        assert inviters(user, room_id) == []


async def test_a_declined_invite_is_declined_for_all_who_invited(network: Network) -> None:
    north, south, east = (Side(network.add(name)) for name in (NORTH, SOUTH, EAST))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(bob, "10", preset="private_chat")
    fake = made_up(east, "10", room_id, alice.user_id, "invite")
    await send_invite(east, fake)
    invite(bob, room_id, alice)
    draft = {key: value for key, value in fake.pdu.items() if key not in ("hashes", "signatures")}
    template = {
        "room_version": "10",
        "event": {**draft, "sender": alice.user_id, "content": {"membership": "leave"}},
    }

    def agree(destination: ServerName, request: WireRequest) -> WireResponse | None:
        """It is no more in the room than the user is."""
        if destination == EAST and "_leave/" in request.uri:
            return WireResponse(
                200, {}, msgspec.json.encode(template if "/make_" in request.uri else {})
            )
        return None

    network.interceptors.append(agree)
    ok(membership(alice, room_id, "leave"))
    assert inviters(alice, room_id) == []
    asked = [to for origin, to, _, uri in network.log if origin == NORTH and "/send_leave/" in uri]
    assert asked == [EAST, SOUTH]
    state = ok(bob.get(f"{V3}/rooms/{room_id}/state/m.room.member/{alice.user_id}"))
    assert state["membership"] == "leave"


@pytest.mark.parametrize("then", ["invited again", "joined"])
async def test_a_user_who_joins_after_declining_stays(network: Network, then: str) -> None:
    """A server that answers slowly would have them leave what they have entered since."""
    north, south, east = (Side(network.add(name)) for name in (NORTH, SOUTH, EAST))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(bob, "10", preset="public_chat")
    fake = made_up(east, "10", room_id, alice.user_id, "invite")
    invite(bob, room_id, alice)
    await send_invite(east, fake)
    draft = {key: value for key, value in fake.pdu.items() if key not in ("hashes", "signatures")}
    left = {**draft, "sender": alice.user_id, "content": {"membership": "leave"}}
    template = msgspec.json.encode({"room_version": "10", "event": left})
    network.forge(
        EAST,
        lambda request, _: WireResponse(200, {}, template if "/make_" in request.uri else b"{}"),
    )

    def do(user: User, action: str, **body: str) -> None:
        """While the east does not answer."""
        done = user.start("POST", f"{V3}/rooms/{room_id}/{action}", body)
        while not done.done:
            network.deliver(
                lambda held: [transfer.destination == EAST for transfer in held].index(False),
                most=1,
            )
        assert done.answer.status == 200

    network.hold()
    do(alice, "leave")
    assert [transfer.destination for transfer in network.held()] == [EAST]
    do(bob, "invite", user_id=alice.user_id)
    if then == "joined":
        do(alice, "join")
    network.deliver()
    assert [to for _, to, _, uri in network.log if "/send_leave/" in uri] == [SOUTH]


async def test_the_number_of_queued_invites_is_bounded(network: Network) -> None:
    north, south = (Side(network.add(name)) for name in (NORTH, SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(bob, "10", preset="private_chat")
    strangers = [
        Side(network.add(f"s{number}.example")) for number in range(MAX_QUEUED_INVITES + 2)
    ]
    for side in strangers[:-1]:
        for _ in range(2):  # of one server, one
            await send_invite(side, made_up(side, "10", room_id, alice.user_id, "invite"))
    with pytest.raises(RefusedByRemote, match="other invites"):
        await send_invite(
            strangers[-1], made_up(strangers[-1], "10", room_id, alice.user_id, "invite")
        )

"""Servers that lie about rooms: invalid responses to joins and invites are refused, and nothing
of them is stored."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.event_signing import hash_and_sign_event
from federation.protocol.ids import RoomID, ServerName, UserID
from federation.protocol.room_versions import ROOM_VERSIONS
from tests.helpers.federated_rooms import Side, two_users
from tests.helpers.network import Network
from tests.helpers.remote_membership import (
    NORTH,
    SOUTH,
    WEST,
    is_known,
    join_via,
    members,
    rooms_in_sync,
)
from tests.helpers.room_actions import V3, create, get_state, invite, ok, refused
from tests.helpers.server import User

Change = Callable[[Any], Any]


def pair(network: Network) -> tuple[User, User, str]:
    """Somebody on each of two servers, and a room of the first one's."""
    alice, bob = two_users(network)
    return alice, bob, create(alice, preset="public_chat", room_version="11", name="tea")


def forging(what: str, change: Change) -> Callable[[WireRequest, WireResponse], WireResponse]:
    """Changes the answers to some requests."""

    def forge(request: WireRequest, answer: WireResponse) -> WireResponse:
        if what not in request.uri:
            return answer
        return WireResponse(
            200, answer.headers, json.dumps(change(json.loads(answer.body))).encode()
        )

    return forge


def in_event(**fields: Any) -> Change:
    return lambda answer: {**answer, "event": {**answer["event"], **fields}}


def in_state(change: Callable[[list[dict[str, Any]]], list[Any]]) -> Change:
    """Changes the events of state and auth chain alike."""
    return lambda answer: {
        **answer,
        "state": change(answer["state"]),
        "auth_chain": change(answer["auth_chain"]),
    }


def without(type: str) -> Change:
    return in_state(lambda events: [event for event in events if event["type"] != type])


def unsigned(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**event, "signatures": {NORTH: {"ed25519:a_test": "A" * 86}}} for event in events]


TEMPLATES: dict[str, Change] = {
    "another room": in_event(room_id="!other:" + NORTH),
    "another user": in_event(state_key="@mallory:" + SOUTH),
    "another sender": in_event(sender="@mallory:" + SOUTH),
    "another type": in_event(type="m.room.message"),
    "another membership": in_event(content={"membership": "leave"}),
    "no auth events": in_event(auth_events=None),
    "auth events that are none": in_event(auth_events=[1, {}]),
    "too many": in_event(prev_events=["$" + "a" * 43] * 21),
    "depth": in_event(depth="deep"),
    "no event": lambda answer: {**answer, "event": []},
    "unknown auth events": in_event(auth_events=["$" + "a" * 43]),
}
STATES: dict[str, Change] = {
    "no create event": without("m.room.create"),
    "no join rules": without("m.room.join_rules"),
    "no signatures": in_state(unsigned),
    "no state": lambda answer: {**answer, "state": []},
    "no lists": lambda answer: {**answer, "state": {}, "auth_chain": None},
    "no events": in_state(lambda _: [1, "x"]),
    "empty events": in_state(lambda events: [{} for _ in events]),
    "another version": in_state(
        lambda events: [
            {**event, "content": {**event["content"], "room_version": "10"}}
            if event["type"] == "m.room.create"
            else event
            for event in events
        ]
    ),
    "a list": lambda answer: [answer],
}


@pytest.mark.parametrize("change", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_templates_of_other_events_are_not_signed(network: Network, change: Change) -> None:
    alice, bob, room_id = pair(network)
    network.forge(NORTH, forging("/make_join/", change))

    assert refused(join_via(bob, room_id, NORTH))[0] in (403, 502)
    assert not is_known(bob, room_id)
    assert members(alice, room_id) == {alice.user_id: "join"}


async def test_no_local_user_authorises_a_join_without_their_servers_check(
    network: Network,
) -> None:
    """Bob may let people in. A server says that he vouches for Carol, whom he may not vouch for:
    her join would have his server's signature."""
    alice, bob, lobby = pair(network)
    carol = bob.server.register("carol")
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": lobby}]}
    state = [{"type": "m.room.join_rules", "state_key": "", "content": rule}]
    room_id = create(
        alice, room_version="11", initial_state=state, power_level_content_override={"invite": 0}
    )
    invite(alice, room_id, bob)
    ok(bob.post(f"{V3}/join/{room_id}"))
    content = {"membership": "join", "join_authorised_via_users_server": bob.user_id}
    north, carol_id = Side(alice.server), UserID(carol.user_id)
    made = await north.build_next(RoomID(room_id), carol_id, "m.room.member", content, carol_id)
    event = {
        name: value for name, value in made.pdu.items() if name not in ("hashes", "signatures")
    }
    forged = WireResponse(200, {}, json.dumps({"room_version": "11", "event": event}).encode())
    network.interceptors.append(lambda _, request: forged if "/make_join/" in request.uri else None)

    with pytest.raises(MatrixError):
        await bob.server.app.federated_rooms.remote_memberships.join_through(
            RoomID(room_id), carol_id, {"membership": "join"}, [NORTH]
        )

    assert carol.user_id not in members(alice, room_id)


def test_a_room_of_an_unknown_version_is_not_joined(network: Network) -> None:
    _, bob, room_id = pair(network)
    network.forge(
        NORTH, forging("/make_join/", lambda answer: {**answer, "room_version": "org.example.99"})
    )

    assert refused(answer := join_via(bob, room_id, NORTH)) == (400, "M_UNSUPPORTED_ROOM_VERSION")
    assert "org.example.99" in answer.json["error"]


@pytest.mark.parametrize("change", STATES.values(), ids=STATES.keys())
def test_impossible_states_are_refused(network: Network, change: Change) -> None:
    alice, bob, room_id = pair(network)
    network.forge(NORTH, forging("/send_join/", change))

    assert refused(join_via(bob, room_id, NORTH)) == (502, "M_UNKNOWN")

    assert not is_known(bob, room_id)
    if (
        change is not STATES["no lists"]
        and change is not STATES["a list"]
        and change is not STATES["no events"]
    ):
        # the other server believes that Bob is in the room: he has left again
        assert get_state(alice, room_id, "m.room.member", bob.user_id)["membership"] == "leave"
    network.forge(NORTH, lambda _, answer: answer)
    ok(join_via(bob, room_id, NORTH))
    assert get_state(bob, room_id, "m.room.name") == {"name": "tea"}


def test_a_false_room_version_is_forgotten(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat", room_version="10", name="tea")
    network.forge(NORTH, forging("/make_join/", lambda answer: {**answer, "room_version": "8"}))
    assert refused(join_via(bob, room_id, NORTH)) == (502, "M_UNKNOWN")
    network.forge(NORTH, lambda _, answer: answer)

    ok(join_via(bob, room_id, NORTH))

    assert get_state(bob, room_id, "m.room.name") == {"name": "tea"}


@pytest.mark.parametrize("is_invited", [False, True])
async def test_an_invite_by_a_non_member_does_not_set_the_room_version(
    network: Network, *, is_invited: bool
) -> None:
    alice, bob = two_users(network)
    mallory = network.add(WEST).register("mallory")
    room_id = create(alice, preset="public_chat", room_version="11")
    west, version = Side(mallory.server), ROOM_VERSIONS["6"]
    event = await west.build(
        version,
        RoomID(room_id),
        [],
        {},
        mallory.user_id,
        "m.room.member",
        {"membership": "invite"},
        bob.user_id,
    )
    path = f"/_matrix/federation/v2/invite/{quote(room_id)}/{quote(event.event_id)}"
    body = {"event": event.pdu, "room_version": "6", "invite_room_state": []}
    await west.edge.requests.put(ServerName(SOUTH), path, body)
    assert room_id in rooms_in_sync(bob, "invite")

    if is_invited:
        invite(alice, room_id, bob)
    ok(join_via(bob, room_id, NORTH))

    assert members(bob, room_id)[bob.user_id] == members(alice, room_id)[bob.user_id] == "join"


@pytest.mark.parametrize("version", ["11", "12"])
def test_events_of_another_room_are_dropped(network: Network, version: str) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat", room_version=version)
    other = create(alice, preset="public_chat", room_version=version, name="poison")
    answers: list[Any] = []

    def remember(answer: Any) -> Any:
        answers.append(answer)
        return answer

    network.forge(NORTH, forging("/send_join/", remember))
    ok(join_via(network.add(WEST).register("carol"), other, NORTH))
    names = [event for event in answers[0]["state"] if event["type"] == "m.room.name"]
    assert len(names) == 1
    network.forge(NORTH, forging("/send_join/", in_state(lambda events: [*events, *names])))

    ok(join_via(bob, room_id, NORTH))

    assert get_state(bob, room_id, "m.room.name") is None
    assert "poison" not in str(bob.get(f"/_matrix/client/v3/rooms/{room_id}/state").body)


@pytest.mark.parametrize("version", ["6", "11", "12"])
@pytest.mark.parametrize(
    "fields",
    [
        {"prev_events": ["$" + "a" * 43]},
        {"sender": f"@mallory:{WEST}"},
        {"content": {"room_version": "1"}},
    ],
    ids=["with a past", "of another", "of another version"],
)
def test_an_impossible_create_event_is_refused(
    network: Network, version: str, fields: dict[str, Any]
) -> None:
    """The server made it and signed it well; it is none all the same."""
    north = network.add(NORTH)
    alice, bob = north.register("alice"), network.add(SOUTH).register("bob")
    room_id = create(alice, preset="public_chat", room_version=version)
    identity = north.app.federation.identity

    def remake(event: dict[str, Any]) -> dict[str, Any]:
        bare = {
            name: value for name, value in event.items() if name not in ("hashes", "signatures")
        }
        return hash_and_sign_event(
            ROOM_VERSIONS[version], {**bare, **fields}, identity.server_name, identity.key
        )

    def forged(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [remake(event) if event["type"] == "m.room.create" else event for event in events]

    network.forge(NORTH, forging("/send_join/", in_state(forged)))

    assert refused(join_via(bob, room_id, NORTH)) == (502, "M_UNKNOWN")
    assert not is_known(bob, room_id)


def test_a_join_of_another_user_in_the_response_is_refused(network: Network) -> None:
    alice, bob, room_id = pair(network)
    change = in_event(state_key=alice.user_id, sender=alice.user_id, content={"membership": "ban"})
    network.forge(NORTH, forging("/send_join/", change))

    ok(join_via(bob, room_id, NORTH))

    assert (
        members(bob, room_id)
        == members(alice, room_id)
        == {alice.user_id: "join", bob.user_id: "join"}
    )


def test_an_unsigned_room_name_is_not_shown(network: Network) -> None:
    _, bob, room_id = pair(network)

    def forged(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**each, "content": {"name": "poison"}} if each["type"] == "m.room.name" else each
            for each in events
        ]

    network.forge(NORTH, forging("/send_join/", in_state(forged)))

    join_via(bob, room_id, NORTH)

    assert "poison" not in str(bob.get(f"/_matrix/client/v3/rooms/{room_id}/state").body)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[" * 5000, b'"text"', b"null", b'{"a": NaN}'])
def test_malformed_responses_are_refused(network: Network, body: bytes) -> None:
    _, bob, room_id = pair(network)
    network.forge(
        NORTH,
        lambda request, answer: WireResponse(200, {}, body) if "_join/" in request.uri else answer,
    )

    assert refused(join_via(bob, room_id, NORTH)) == (502, "M_UNKNOWN")


def test_a_join_through_a_server_that_stops_can_be_retried(network: Network) -> None:
    _, bob, room_id = pair(network)

    def die(request: WireRequest, answer: WireResponse) -> WireResponse:
        if "/send_join/" in request.uri:
            network.cut(NORTH, SOUTH)
            raise RemoteError(NORTH, "the connection was lost", retryable=True)
        return answer

    network.forge(NORTH, die)
    assert refused(join_via(bob, room_id, NORTH)) == (502, "M_UNKNOWN")
    assert not is_known(bob, room_id)
    network.mend(NORTH, SOUTH)
    network.forge(NORTH, lambda _, answer: answer)

    ok(join_via(bob, room_id, NORTH))
    assert members(bob, room_id)[bob.user_id] == "join"


def test_a_lying_server_does_not_prevent_a_join_through_another(network: Network) -> None:
    _, bob, room_id = pair(network)
    ok(join_via(network.add(WEST).register("carol"), room_id, NORTH))
    network.forge(WEST, forging("/send_join/", without("m.room.create")))

    ok(join_via(bob, room_id, WEST, NORTH))

    assert get_state(bob, room_id, "m.room.name") == {"name": "tea"}


def test_an_invite_without_the_invited_servers_signature_is_invalid(network: Network) -> None:
    alice, bob, room_id = pair(network)
    bad = {NORTH: {}, SOUTH: {"ed25519:a_test": "A" * 86}}
    network.forge(SOUTH, forging("/invite/", in_event(signatures=bad)))

    assert refused(
        alice.post(f"/_matrix/client/v3/rooms/{room_id}/invite", {"user_id": bob.user_id})
    ) == (
        502,
        "M_UNKNOWN",
    )
    assert members(alice, room_id) == {alice.user_id: "join"}


def test_changes_to_an_invite_in_the_response_are_ignored(network: Network) -> None:
    alice, bob, room_id = pair(network)
    network.forge(
        SOUTH, forging("/invite/", in_event(content={"membership": "ban"}, state_key=alice.user_id))
    )

    invite(alice, room_id, bob)

    assert members(alice, room_id) == {alice.user_id: "join", bob.user_id: "invite"}

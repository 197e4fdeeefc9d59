"""Serving make_* and send_* requests, of honest and of malicious servers."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import pytest

from federation.peers.client import RefusedByRemote, make_path
from federation.protocol.event_signing import hash_and_sign_event
from federation.protocol.events import Event, parse_event
from federation.protocol.ids import RoomID, ServerName, UserID
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.protocol.signing import SigningKey, encode_base64, sign_json
from federation.rooms.joins.send_join_response import MAX_SMALL_MEMBERS, MAX_SMALL_SERVERS
from federation.rooms.membership_templates import fill_template
from federation.rooms.serving import streamed_events
from storage.events.events import EventStore
from storage.rooms import served_states
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
from tests.helpers.room_actions import create, get_state, invite, ok, room_path, set_state
from tests.helpers.server import TestServer, User

TO = ServerName(NORTH)
V11 = ROOM_VERSIONS["11"]


def world(network: Network, **requested: Any) -> tuple[User, TestServer, str]:
    """Alice, a server that asks, and her room."""
    alice, south = network.add(NORTH).register("alice"), network.add(SOUTH)
    return (
        alice,
        south,
        create(
            alice, **{"preset": "public_chat", "room_version": "11", "name": "tea", **requested}
        ),
    )


def get(server: TestServer, path: str, *values: str, **query: str) -> Any:
    return server.app.peers.requests.get(TO, make_path(path, *values), list(query.items()))


def put(
    server: TestServer, path: str, *values: str, body: Mapping[str, Any], query: str = ""
) -> Any:
    return server.app.peers.requests.put(
        TO, make_path(path, *values), body, [("omit_members", query)] * bool(query)
    )


async def refusal(answer: Any) -> tuple[int, str]:
    with pytest.raises(RefusedByRemote) as caught:
        await answer
    return caught.value.status, caught.value.errcode


async def make(
    server: TestServer, room_id: str, user: str, action: str = "join", version: str = "11"
) -> Event:
    """A signed event from a template."""
    template = await get(
        server, f"/_matrix/federation/v1/make_{action}/{{}}/{{}}", room_id, user, ver=version
    )
    assert template["room_version"] == version
    identity = server.app.federation.identity
    content = template["event"]["content"]
    return fill_template(
        ROOM_VERSIONS[version],
        template["event"],
        identity,
        RoomID(room_id),
        UserID(user),
        content,
        1_700_000_000_000,
    )


def changed(server: TestServer, event: Event, **fields: Any) -> Event:
    """The event with other fields, signed again."""
    identity = server.app.federation.identity
    pdu = hash_and_sign_event(
        event.version, {**event.pdu, **fields}, identity.server_name, identity.key
    )
    return parse_event(event.version, pdu)


async def send(
    server: TestServer, event: Event, what: str = "v2/send_join", query: str = ""
) -> Any:
    path = f"/_matrix/federation/{what}/{{}}/{{}}"
    return await put(server, path, event.room_id, event.event_id, body=event.pdu, query=query)


async def test_templates_are_only_for_the_servers_own_users_and_known_versions(
    network: Network,
) -> None:
    _, south, room_id = world(network)
    path = "/_matrix/federation/v1/make_join/{}/{}"

    assert await refusal(get(south, path, room_id, f"@eve:{WEST}", ver="11")) == (
        403,
        "M_FORBIDDEN",
    )
    assert await refusal(get(south, path, "!none:" + NORTH, f"@bob:{SOUTH}", ver="11")) == (
        404,
        "M_NOT_FOUND",
    )
    with pytest.raises(RefusedByRemote) as caught:
        await get(south, path, room_id, f"@bob:{SOUTH}", ver="10")
    assert (caught.value.status, caught.value.errcode) == (400, "M_INCOMPATIBLE_ROOM_VERSION")
    assert caught.value.body["room_version"] == "11"
    assert await refusal(get(south, path, room_id, f"@bob:{SOUTH}")) == (
        400,
        "M_INCOMPATIBLE_ROOM_VERSION",
    )


async def test_a_template_of_a_forbidden_event_is_refused(network: Network) -> None:
    _, south, room_id = world(network)
    for action in ("leave", "knock"):
        path = f"/_matrix/federation/v1/make_{action}/{{}}/{{}}"
        assert await refusal(get(south, path, room_id, f"@bob:{SOUTH}", ver="11")) == (
            403,
            "M_FORBIDDEN",
        )


async def test_send_join_returns_the_state_before_the_join(network: Network) -> None:
    alice, south, room_id = world(network)

    answer = await send(south, await make(south, room_id, f"@bob:{SOUTH}"))

    state = {(pdu["type"], pdu["state_key"]): pdu for pdu in answer["state"]}
    assert state["m.room.name", ""]["content"] == {"name": "tea"}
    assert ("m.room.member", f"@bob:{SOUTH}") not in state
    assert len(state) == len(answer["state"])
    assert {pdu["type"] for pdu in answer["auth_chain"]} == {
        "m.room.create",
        "m.room.member",
        "m.room.power_levels",
        "m.room.join_rules",
    }
    assert answer["event"]["state_key"] == f"@bob:{SOUTH}"
    assert answer["members_omitted"] is False
    assert answer["servers_in_room"] == [NORTH]
    assert answer["origin"] == NORTH
    assert get_state(alice, room_id, "m.room.member", f"@bob:{SOUTH}")["membership"] == "join"


async def test_members_are_omitted_on_request(network: Network) -> None:
    alice, south, room_id = world(network)
    for number in range(MAX_SMALL_MEMBERS):
        ok(join_via(network.servers[NORTH].register(f"user{number}"), room_id))

    answer = await send(south, await make(south, room_id, f"@bob:{SOUTH}"), query="true")

    assert answer["members_omitted"] is True
    assert [pdu for pdu in answer["state"] if pdu["type"] == "m.room.member"] == []
    # who made the room has to be known to judge the rest
    chain = [pdu["state_key"] for pdu in answer["auth_chain"] if pdu["type"] == "m.room.member"]
    assert chain == [alice.user_id]
    assert answer["servers_in_room"] == [NORTH]
    known = {parse_event(V11, pdu).event_id for pdu in (*answer["state"], *answer["auth_chain"])}
    for pdu in (*answer["state"], *answer["auth_chain"], answer["event"]):
        assert known.issuperset(parse_event(V11, pdu).auth_events)


async def test_the_response_for_a_nameless_room_has_its_heroes(network: Network) -> None:
    _, south, room_id = world(network, name=None)
    for number in range(MAX_SMALL_MEMBERS):
        ok(join_via(network.servers[NORTH].register(f"user{number}"), room_id))

    answer = await send(south, await make(south, room_id, f"@bob:{SOUTH}"), query="true")

    assert len([pdu for pdu in answer["state"] if pdu["type"] == "m.room.member"]) == 5


async def test_few_members_are_never_omitted(network: Network) -> None:
    alice, south, room_id = world(network)

    answer = await send(south, await make(south, room_id, f"@bob:{SOUTH}"), query="true")

    assert answer["members_omitted"] is False
    assert [pdu["state_key"] for pdu in answer["state"] if pdu["type"] == "m.room.member"] == [
        alice.user_id
    ]


async def test_few_members_of_many_servers_are_omitted(
    network: Network,
) -> None:
    alice, south, room_id = world(network)
    for number in range(MAX_SMALL_SERVERS):
        ok(alice.post(room_path(room_id, "ban"), {"user_id": f"@eve:server{number}.example"}))

    answer = await send(south, await make(south, room_id, f"@bob:{SOUTH}"), query="true")

    assert answer["members_omitted"] is True


async def test_a_large_state_comes_in_pieces_and_whole(network: Network) -> None:
    alice, south, room_id = world(network)
    for number in range(1100):
        set_state(alice, room_id, "org.example.note", {"text": "x" * (number % 700)}, f"{number}")

    answer = await send(south, await make(south, room_id, f"@bob:{SOUTH}"))

    assert len([pdu for pdu in answer["state"] if pdu["type"] == "org.example.note"]) == 1100


async def test_a_few_long_events_come_in_pieces(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, south, room_id = world(network)
    for number in range(10):
        set_state(alice, room_id, "org.example.note", {"text": "x" * 3_000}, f"{number}")
    monkeypatch.setattr(served_states, "MAX_PDU_BYTES", 10_000)
    monkeypatch.setattr(streamed_events, "BYTES_AT_ONCE", 10_000)
    read_at_once: list[int] = []
    get_pdus = EventStore.get_pdus

    async def note(store: EventStore, event_nids: Iterable[int]) -> Mapping[int, bytes]:
        pdus = await get_pdus(store, event_nids)
        read_at_once.append(sum(map(len, pdus.values())))
        return pdus

    monkeypatch.setattr(EventStore, "get_pdus", note)

    answer = await send(south, await make(south, room_id, f"@bob:{SOUTH}"))

    assert len([pdu for pdu in answer["state"] if pdu["type"] == "org.example.note"]) == 10
    assert sum(read_at_once) > 30_000
    assert max(read_at_once) <= 10_000


async def test_version_1_endpoints_answer_in_pairs(network: Network) -> None:
    alice, south, room_id = world(network, room_version="1")
    bob = f"@bob:{SOUTH}"

    status, answer = await send(south, await make(south, room_id, bob, version="1"), "v1/send_join")
    assert status == 200
    assert len(answer["state"]) > 4
    assert await send(south, await make(south, room_id, bob, "leave", "1"), "v1/send_leave") == [
        200,
        {},
    ]
    assert get_state(alice, room_id, "m.room.member", bob)["membership"] == "leave"


async def test_only_joins_of_the_servers_own_users_are_accepted(network: Network) -> None:
    alice, south, room_id = world(network)
    join = await make(south, room_id, f"@bob:{SOUTH}")
    wrong: list[dict[str, Any]] = [
        {"type": "m.room.message"},
        {"content": {"membership": "invite"}},
        {"content": {"membership": "leave"}},
        {"content": {}},
        {"state_key": f"@carol:{SOUTH}"},
        {"sender": f"@eve:{WEST}", "state_key": f"@eve:{WEST}"},
        {"room_id": f"!other:{NORTH}"},
    ]
    for fields in wrong:
        bad = changed(south, join, **fields)
        path = "/_matrix/federation/v2/send_join/{}/{}"
        answer = put(south, path, room_id, bad.event_id, body=bad.pdu)
        assert await refusal(answer) == (400, "M_INVALID_PARAM"), fields
    assert members(alice, room_id) == {alice.user_id: "join"}


async def test_a_join_without_a_valid_signature_and_hash_is_refused(network: Network) -> None:
    alice, south, room_id = world(network)
    join = await make(south, room_id, f"@bob:{SOUTH}")
    path = "/_matrix/federation/v2/send_join/{}/{}"
    forged = {**join.pdu, "signatures": {SOUTH: {"ed25519:a_test": "A" * 86}}}
    altered = {**join.pdu, "content": {"membership": "join", "displayname": "Eve"}}

    assert await refusal(put(south, path, room_id, join.event_id, body=forged)) == (
        400,
        "M_INVALID_PARAM",
    )
    assert await refusal(put(south, path, room_id, join.event_id, body=altered)) == (
        400,
        "M_INVALID_PARAM",
    )
    assert await refusal(put(south, path, room_id, "$" + "a" * 43, body=join.pdu)) == (
        400,
        "M_INVALID_PARAM",
    )
    assert await refusal(put(south, path, room_id, join.event_id, body={})) == (400, "M_BAD_JSON")
    assert members(alice, room_id) == {alice.user_id: "join"}


async def test_a_ban_between_template_and_join_counts(network: Network) -> None:
    alice, south, room_id = world(network)
    join = await make(south, room_id, f"@bob:{SOUTH}")
    set_state(alice, room_id, "m.room.member", {"membership": "ban"}, f"@bob:{SOUTH}")

    assert await refusal(send(south, join)) == (403, "M_FORBIDDEN")
    assert members(alice, room_id)[f"@bob:{SOUTH}"] == "ban"


async def test_no_user_authorises_a_join_that_the_rule_does_not_allow(network: Network) -> None:
    alice, south, room_id = world(network)
    lobby = create(alice, preset="public_chat")
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": lobby}]}
    join = await make(south, room_id, f"@bob:{SOUTH}")
    set_state(alice, room_id, "m.room.join_rules", rule)
    claimed = {"membership": "join", "join_authorised_via_users_server": alice.user_id}

    assert await refusal(send(south, changed(south, join, content=claimed))) == (403, "M_FORBIDDEN")
    assert await refusal(send(south, join)) == (403, "M_FORBIDDEN")


async def test_repeated_requests_change_nothing(network: Network) -> None:
    _, south, room_id = world(network)
    join = await make(south, room_id, f"@bob:{SOUTH}")

    first, second = await send(south, join), await send(south, join)

    assert first == second


def invitation(server: TestServer, room_id: str, version: str, target: str, **fields: Any) -> Event:
    """An invite that stands upon whatever it likes."""
    identity = server.app.federation.identity
    pdu = {
        "type": "m.room.member",
        "room_id": room_id,
        "sender": f"@bob:{SOUTH}",
        "state_key": target,
        "content": {"membership": "invite"},
        "prev_events": [],
        "auth_events": [],
        "depth": 5,
        "origin_server_ts": 1_700_000_000_000,
        **fields,
    }
    room_version = ROOM_VERSIONS[version]
    return parse_event(
        room_version, hash_and_sign_event(room_version, pdu, identity.server_name, identity.key)
    )


async def send_invite(
    server: TestServer, event: Event, version: str = "11", state: Any = ()
) -> Any:
    body = {"event": event.pdu, "room_version": version, "invite_room_state": list(state)}
    path = "/_matrix/federation/v2/invite/{}/{}"
    return await put(server, path, event.room_id, event.event_id, body=body)


NAME = {
    "type": "m.room.name",
    "state_key": "",
    "sender": f"@bob:{SOUTH}",
    "content": {"name": "tea"},
}


async def test_an_invite_is_signed(network: Network) -> None:
    alice, south, _ = world(network)
    event = invitation(south, f"!r:{SOUTH}", "11", alice.user_id)

    answer = await send_invite(south, event, state=[NAME, {"type": 1}, "x"])

    assert set(answer["event"]["signatures"]) == {NORTH, SOUTH}
    assert {**answer["event"], "signatures": 0} == {**event.pdu, "signatures": 0}
    shown = rooms_in_sync(alice, "invite")[f"!r:{SOUTH}"]["invite_state"]["events"]
    assert NAME in shown


async def test_an_invite_into_a_room_that_is_closed_to_us_is_refused(network: Network) -> None:
    alice, south, _ = world(network)
    event = invitation(south, f"!r:{SOUTH}", "11", alice.user_id)
    create = {
        "type": "m.room.create",
        "state_key": "",
        "sender": f"@bob:{SOUTH}",
        "content": {"m.federate": False},
    }

    assert await refusal(send_invite(south, event, state=[create])) == (403, "M_FORBIDDEN")
    assert not is_known(alice, f"!r:{SOUTH}")


async def test_an_invite_by_version_1_of_the_endpoint_is_signed(network: Network) -> None:
    alice, south, _ = world(network)
    event_id = f"$invite:{SOUTH}"
    event = invitation(south, f"!r:{SOUTH}", "1", alice.user_id, event_id=event_id)
    body = {**event.pdu, "unsigned": {"invite_room_state": [NAME]}}

    status, answer = await put(
        south, "/_matrix/federation/v1/invite/{}/{}", event.room_id, event_id, body=body
    )

    assert status == 200
    assert set(answer["event"]["signatures"]) == {NORTH, SOUTH}
    assert NAME in rooms_in_sync(alice, "invite")[f"!r:{SOUTH}"]["invite_state"]["events"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"content": {"membership": "join"}}, (400, "M_INVALID_PARAM")),
        ({"type": "m.room.message"}, (400, "M_INVALID_PARAM")),
        ({"state_key": f"@bob:{SOUTH}"}, (400, "M_INVALID_PARAM")),
        ({"state_key": "alice"}, (400, "M_INVALID_PARAM")),
        ({"state_key": f"@nobody:{NORTH}"}, (404, "M_NOT_FOUND")),
        ({"sender": f"@eve:{WEST}"}, (400, "M_INVALID_PARAM")),
    ],
)
async def test_an_event_that_is_not_an_invite_is_not_signed(
    network: Network, fields: dict[str, Any], expected: tuple[int, str]
) -> None:
    alice, south, _ = world(network)
    event = invitation(south, f"!r:{SOUTH}", "11", alice.user_id, **fields)

    assert await refusal(send_invite(south, event)) == expected
    assert not is_known(alice, f"!r:{SOUTH}")


async def test_an_invite_into_a_room_of_an_unknown_version_is_refused(network: Network) -> None:
    alice, south, _ = world(network)
    event = invitation(south, f"!r:{SOUTH}", "11", alice.user_id)

    assert await refusal(send_invite(south, event, "99")) == (400, "M_INCOMPATIBLE_ROOM_VERSION")


async def test_the_create_event_has_to_prove_a_new_rooms_id(network: Network) -> None:
    alice, south, _ = world(network)
    event = invitation(south, "!" + "a" * 43, "12", alice.user_id)

    assert await refusal(send_invite(south, event, "12", [NAME])) == (400, "M_INVALID_PARAM")
    assert await refusal(send_invite(south, event, "12")) == (400, "M_INVALID_PARAM")


async def test_too_much_stripped_state_is_refused(network: Network) -> None:
    alice, south, _ = world(network)
    event = invitation(south, f"!r:{SOUTH}", "11", alice.user_id)

    assert await refusal(send_invite(south, event, state=[NAME] * 101)) == (400, "M_INVALID_PARAM")
    many = [
        {**NAME, "type": f"org.example.{number}", "content": {"x": "y" * 15_000}}
        for number in range(99)
    ]
    await send_invite(south, event, state=[NAME, *many])
    shown = rooms_in_sync(alice, "invite")[f"!r:{SOUTH}"]["invite_state"]["events"]
    assert NAME in shown
    assert len(msgspec.json.encode(shown)) <= 300_000


async def test_an_invite_of_a_member_is_refused(network: Network) -> None:
    alice, south, room_id = world(network)
    bob = south.register("bob")
    ok(join_via(bob, room_id, NORTH))
    event = invitation(south, room_id, "11", alice.user_id)

    assert await refusal(send_invite(south, event)) == (403, "M_FORBIDDEN")
    assert members(alice, room_id)[alice.user_id] == "join"


async def test_invites_by_remote_users_are_rate_limited(network: Network) -> None:
    limit = (
        "rc_invites: {per_room: *unlimited, per_issuer: *unlimited, per_user: {per_second:"
        " 0.1,"
        " burst_count: 2}}\n"
    )
    alice = network.add(NORTH, limit).register("alice")
    bob = network.add(SOUTH).register("bob")
    for _ in range(2):
        invite(bob, create(bob), alice)

    answer = bob.post(f"/_matrix/client/v3/rooms/{create(bob)}/invite", {"user_id": alice.user_id})
    assert (answer.status, answer.errcode) == (429, "M_LIMIT_EXCEEDED")
    assert len(rooms_in_sync(alice, "invite")) == 2


async def test_a_third_party_invite_is_exchanged_for_a_remote_user(network: Network) -> None:
    alice, south, room_id = world(network)
    bob = south.register("bob")
    key = SigningKey("0", b"k" * 32)
    promise = {
        "display_name": "b...@...",
        "public_key": encode_base64(key.public_key),
        "key_validity_url": "https://id",
    }
    set_state(alice, room_id, "m.room.third_party_invite", promise, "t")
    signed = sign_json(
        {"mxid": bob.user_id, "token": "t", "sender": alice.user_id}, "id.example", key
    )
    content = {
        "membership": "invite",
        "third_party_invite": {"display_name": "whoever", "signed": signed},
    }
    body = {
        "type": "m.room.member",
        "room_id": room_id,
        "state_key": bob.user_id,
        "sender": alice.user_id,
        "content": content,
    }
    path = "/_matrix/federation/v1/exchange_third_party_invite/{}"

    other = {**body, "state_key": f"@eve:{WEST}"}
    assert await refusal(put(south, path, room_id, body=other)) == (403, "M_FORBIDDEN")
    unknown = {
        **body,
        "content": {
            "membership": "invite",
            "third_party_invite": {"signed": {**signed, "token": "u"}},
        },
    }
    assert await refusal(put(south, path, room_id, body=unknown)) == (403, "M_FORBIDDEN")
    assert await refusal(put(south, path, room_id, body={})) == (400, "M_INVALID_PARAM")
    for wrong in (
        {"type": "m.room.name"},
        {"room_id": "!other:x"},
        {"content": {**content, "membership": "join"}},
    ):
        assert await refusal(put(south, path, room_id, body={**body, **wrong})) == (
            400,
            "M_INVALID_PARAM",
        )
    assert await refusal(put(south, path, room_id, body={**body, "sender": f"@eve:{NORTH}"})) == (
        403,
        "M_FORBIDDEN",
    )
    assert bob.user_id not in members(alice, room_id)

    assert await put(south, path, room_id, body=body) == {}

    assert members(alice, room_id)[bob.user_id] == "invite"
    assert room_id in rooms_in_sync(bob, "invite")
    ok(join_via(bob, room_id))


async def test_remote_joins_count_for_the_rooms_rate_limit(network: Network) -> None:
    limits = "rc_joins_per_room: {per_second: 0.1, burst_count: 3}\n"
    alice, south = network.add(NORTH, limits).register("alice"), network.add(SOUTH)
    room_id = create(alice, preset="public_chat", room_version="11")
    events = [await make(south, room_id, f"@bob{number}:{SOUTH}") for number in range(4)]
    for event in (*events[:2], *events[:2]):  # a joined member is not counted again
        await send(south, event)
    await send(south, events[2])

    assert await refusal(send(south, events[3])) == (429, "M_LIMIT_EXCEEDED")
    assert events[3].sender not in members(alice, room_id)

    network.clock.advance(11)
    await send(south, events[3])
    assert members(alice, room_id)[events[3].sender] == "join"


async def test_refused_joins_do_not_block_others(network: Network) -> None:
    limits = "rc_joins_per_room: {per_second: 0.1, burst_count: 2}\n"
    north, south = network.add(NORTH, limits), network.add(SOUTH)
    alice, carl = north.register("alice"), north.register("carl")
    room_id = create(alice, preset="public_chat", room_version="11")
    come = await make(south, room_id, f"@bob:{SOUTH}")
    await send(south, come)
    await send(south, await make(south, room_id, f"@bob:{SOUTH}", "leave"), "v2/send_leave")
    uninvited = [await make(south, room_id, f"@bob{number}:{SOUTH}") for number in range(3)]
    set_state(alice, room_id, "m.room.join_rules", {"join_rule": "invite"})
    for event in uninvited:
        assert await refusal(send(south, event)) == (403, "M_FORBIDDEN")
    for _ in range(3):
        await send(south, come)  # which was here before

    invite(alice, room_id, carl)
    ok(join_via(carl, room_id))

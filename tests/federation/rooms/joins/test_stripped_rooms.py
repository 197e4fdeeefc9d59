"""Stripped state in invites and responses to knocks: in new room versions it has to be signed.

spec: server-server-api#put_matrixfederationv2inviteroomideventid,
server-server-api#put_matrixfederationv1send_knockroomideventid
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.event_signing import hash_and_sign_event
from federation.protocol.ids import ServerName
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.protocol.signing import SigningKey
from tests.helpers.federated_rooms import EAST, NORTH, SOUTH, Side, create_room
from tests.helpers.network import Network
from tests.helpers.remote_membership import knock_via, rooms_in_sync
from tests.helpers.room_actions import membership, ok
from tests.helpers.server import User

V12 = ROOM_VERSIONS["12"]
KNOCK = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}


def altered(state: list[dict[str, Any]], way: str) -> list[dict[str, Any]]:
    """A room's state of which the name was changed."""
    (name,) = (event for event in state if event["type"] == "m.room.name")
    others = [event for event in state if event is not name]
    if way == "unsigned":
        return [*others, {**name, "content": {"name": "a lie"}, "depth": 1}]
    if way == "another content":
        return [*others, {**name, "content": {"name": "a lie"}}]
    if way == "no keys":
        unsigned = {
            key: value for key, value in name.items() if key not in ("hashes", "signatures")
        }
        draft = {**unsigned, "sender": f"@x:{EAST}", "content": {"name": "a lie"}}
        return [
            *others,
            hash_and_sign_event(V12, draft, ServerName(EAST), SigningKey("0", b"x" * 32)),
        ]
    assert way == "malformed"
    return [
        *others,
        {
            "type": "m.room.name",
            "content": {"name": "a lie"},
            "state_key": "",
            "sender": f"@x:{EAST}",
        },
    ]


def name_told(user: User, section: str, room_id: str) -> object:
    """Return the room's name in the stripped state that the user gets."""
    state = rooms_in_sync(user, section)[room_id][f"{section}_state"]["events"]
    assert "m.room.create" in [event["type"] for event in state]
    return [event["content"] for event in state if event["type"] == "m.room.name"]


@pytest.mark.parametrize(
    ("way", "shown"),
    [("unsigned", None), ("malformed", None), ("another content", [{}]), ("no keys", [])],
)
async def test_the_stripped_state_of_an_invite_is_verified(
    network: Network, way: str, shown: object
) -> None:
    north, south = Side(network.add(NORTH)), Side(network.add(SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(bob, "12", name="tea")
    put = south.edge.requests.put

    async def answer_with_forgery(
        destination: ServerName, path: str, body: Any, *args: Any, **more: Any
    ) -> Any:
        if "/invite/" in path:
            body = {**body, "invite_room_state": altered(body["invite_room_state"], way)}
        return await put(destination, path, body, *args, **more)

    south.edge.requests.put = answer_with_forgery  # type: ignore[method-assign]
    answer = membership(bob, room_id, "invite", alice)

    if shown is None:
        assert answer.status == 502
        assert room_id not in rooms_in_sync(alice, "invite")
    else:
        ok(answer)
        assert name_told(alice, "invite", room_id) == shown


@pytest.mark.parametrize(
    ("way", "shown"),
    [("unsigned", []), ("malformed", []), ("another content", [{}]), ("no keys", [])],
)
async def test_the_stripped_state_of_a_knock_is_verified(
    network: Network, way: str, shown: object
) -> None:
    north, south = Side(network.add(NORTH)), Side(network.add(SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(bob, "12", preset="private_chat", name="tea", initial_state=[KNOCK])

    def answer_with_forgery(request: WireRequest, answer: WireResponse) -> WireResponse:
        if "/send_knock/" not in request.uri:
            return answer
        received: Mapping[str, Any] = msgspec.json.decode(answer.body)
        body = msgspec.json.encode(
            {"knock_room_state": altered(list(received["knock_room_state"]), way)}
        )
        return WireResponse(answer.status, answer.headers, body)

    network.forge(SOUTH, answer_with_forgery)
    ok(knock_via(alice, room_id, SOUTH))
    assert name_told(alice, "knock", room_id) == shown


@pytest.mark.parametrize(("version", "asked"), [("1", 2), ("2", 2), ("10", 1)])
async def test_version_1_of_the_invite_endpoint_is_tried_only_in_old_rooms(
    network: Network, version: str, asked: int
) -> None:
    north, south = Side(network.add(NORTH)), Side(network.add(SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(bob, version)

    def old(destination: ServerName, request: WireRequest) -> WireResponse | None:
        if destination == NORTH and "/v2/invite/" in request.uri:
            return WireResponse(
                404,
                {"content-type": "application/json"},
                b'{"errcode":"M_NOT_FOUND","error":"What?"}',
            )
        return None

    network.interceptors.append(old)
    answer = membership(bob, room_id, "invite", alice)
    assert len([uri for _, to, _, uri in network.log if to == NORTH and "/invite/" in uri]) == asked
    assert answer.status == (200 if asked == 2 else 404)

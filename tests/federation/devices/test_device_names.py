"""Device names of remote users are shown to clients, in whatever response or update their server
sends them."""

from typing import Any

import msgspec
import pytest

from federation.peers.wire import WireResponse
from tests.helpers.encrypted_rooms import encrypted_room
from tests.helpers.federated_rooms import NORTH, SOUTH
from tests.helpers.keys import identity_keys, query, sync
from tests.helpers.network import Network
from tests.helpers.server import User


def shown_name(asking: User, user: User) -> Any:
    """spec: client-server-api#post_matrixclientv3keysquery_response-200_unsigned-device-info"""
    device = query(asking, user)["device_keys"][user.user_id][user.device_id]
    return device["unsigned"].get("device_display_name")


@pytest.mark.parametrize(
    ("beside", "inside", "shown"),
    [
        ({"device_display_name": "Mobile"}, {}, "Mobile"),
        ({"device_display_name": "Mobile"}, {"unsigned": {"device_display_name": "Old"}}, "Mobile"),
        ({}, {"unsigned": {"device_display_name": "Mobile"}}, "Mobile"),
        ({"device_display_name": None}, {}, None),
        ({"device_display_name": ["Mobile"]}, {"unsigned": "none"}, None),
        ({"device_display_name": "M\0" * 400}, {}, "M" * 128),
    ],
)
@pytest.mark.parametrize("how", ["asked", "told"])
async def test_the_device_name_that_a_server_sends_is_shown(
    network: Network, how: str, beside: dict[str, Any], inside: dict[str, Any], shown: str | None
) -> None:
    """spec: server-server-api#get_matrixfederationv1userdevicesuserid_response-200_user-device,
    server-server-api#definition-mdevice_list_update"""
    room = await encrypted_room(network)
    keys = {**identity_keys(room.bob, 2)[1], **inside}
    if how == "asked":
        device = {"device_id": room.bob.device_id, "keys": keys, **beside}
        answer = msgspec.json.encode(
            {"user_id": room.bob.user_id, "stream_id": 7, "devices": [device]}
        )
        network.interceptors.append(
            lambda _, request: (
                WireResponse(200, {}, answer) if "/user/devices/" in request.uri else None
            )
        )
    else:
        assert shown_name(room.alice, room.bob) is None, "and the list is stored from now on"
        content = {
            "user_id": room.bob.user_id,
            "device_id": room.bob.device_id,
            "stream_id": 1 << 40,
            "keys": keys,
        }
        list_ = await room.south.server.app.federation_sender.own_devices.get_list(room.bob.user_id)
        content |= {"prev_id": [list_["stream_id"]], **beside}
        await room.south.push(NORTH, [], [{"edu_type": "m.device_list_update", "content": content}])
    assert shown_name(room.alice, room.bob) == shown


async def test_a_new_device_name_is_announced_to_clients(network: Network) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    list_ = await room.south.server.app.federation_sender.own_devices.get_list(room.bob.user_id)
    since = sync(room.alice)["next_batch"]
    for number, name in enumerate(("Mobile", "Telephone"), 1):
        content = {
            "user_id": room.bob.user_id,
            "device_id": room.bob.device_id,
            "stream_id": list_["stream_id"] + number,
            "prev_id": [list_["stream_id"] + number - 1],
            "keys": identity_keys(room.bob, 2)[1],
            "device_display_name": name,
        }
        await room.south.push(NORTH, [], [{"edu_type": "m.device_list_update", "content": content}])
        received = sync(room.alice, since)
        assert received["device_lists"]["changed"] == [room.bob.user_id]
        since = received["next_batch"]
        assert shown_name(room.alice, room.bob) == name
    asked = [uri for _, to, _, uri in network.log if to == SOUTH and "/user/devices/" in uri]
    assert len(asked) == 1

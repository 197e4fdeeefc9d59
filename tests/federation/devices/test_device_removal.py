"""Removal of devices by their owner: repeated requests, and unknown devices, are not announced."""

import msgspec

from tests.helpers.encrypted_rooms import encrypted_room
from tests.helpers.federated_rooms import NORTH
from tests.helpers.keys import V3, identity_keys, query, sync, upload
from tests.helpers.logins import another_device, password_auth
from tests.helpers.network import Fate, Network, Transfer
from tests.helpers.server import User


def remove(user: User, *device_ids: str) -> None:
    auth = password_auth(user.user_id)
    answer = user.post(f"{V3}/delete_devices", {"devices": list(device_ids), "auth": auth})
    assert answer.status == 200, answer.body


async def test_the_removal_of_a_device_is_announced_once(network: Network) -> None:
    room = await encrypted_room(network)
    second = another_device(room.bob)
    upload(second, device_keys=identity_keys(second, 3)[1])
    network.settle()
    query(room.alice, room.bob)
    received: list[tuple[str, bool]] = []

    def look(transfer: Transfer) -> Fate:
        if (
            transfer.destination == NORTH
            and "/v1/send/" in transfer.request.uri
            and transfer.request.body
        ):
            contents = [
                edu["content"] for edu in msgspec.json.decode(transfer.request.body).get("edus", [])
            ]
            received.extend((each["device_id"], each["deleted"]) for each in contents)
        return Fate.ARRIVES

    network.choose_fate = look
    since = sync(room.bob)["next_batch"]
    remove(room.bob, "NONE", second.device_id, second.device_id)
    network.settle()
    assert received == [(second.device_id, True)]
    answer = sync(room.bob, since)
    assert answer["device_lists"]["changed"] == [room.bob.user_id]
    remove(room.bob, second.device_id)
    network.settle()
    assert len(received) == 1, "the response may have been lost"
    assert sync(room.bob, answer["next_batch"])["device_lists"]["changed"] == []
    assert query(room.alice, room.bob)["device_keys"][room.bob.user_id].keys() == {
        room.bob.device_id
    }

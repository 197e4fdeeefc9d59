"""An encrypted room of two servers whose members have keys, and to-device messages with numbers."""

from typing import Any

from tests.helpers.federated_rooms import Shared, shared
from tests.helpers.http import Pending
from tests.helpers.keys import V3, identity_keys, one_time_keys, sync, upload
from tests.helpers.network import Network
from tests.helpers.room_actions import set_state
from tests.helpers.server import User

ENCRYPTED = {"algorithm": "m.megolm.v1.aes-sha2"}
ENCRYPTION_EVENT = {"type": "m.room.encryption", "state_key": "", "content": ENCRYPTED}
"""An entry of `initial_state` that makes a new room encrypted."""
ALGORITHM = "signed_curve25519"


async def encrypted_room(network: Network) -> Shared:
    """Create a shared encrypted room. Both users have published keys, and all queues are empty."""
    room = await shared(network)
    network.start_sending()
    set_state(room.alice, room.room_id, "m.room.encryption", ENCRYPTED)
    for user, seed in ((room.alice, 1), (room.bob, 2)):
        upload(
            user,
            device_keys=identity_keys(user, seed)[1],
            one_time_keys=one_time_keys(user.device_id + "1"),
        )
    network.settle()
    return room


def begin_claim(room: Shared) -> Pending:
    """Let Alice claim a key of Bob's; she waits ten seconds for it."""
    claims = {room.bob.user_id: {room.bob.device_id: ALGORITHM}}
    return room.alice.start("POST", f"{V3}/keys/claim", {"one_time_keys": claims})


def send_number(user: User, number: int, messages: dict[str, Any]) -> None:
    """Send to-device messages; `number` is also the transaction ID."""
    answer = user.put(f"{V3}/sendToDevice/org.example.number/{number}", {"messages": messages})
    assert answer.status == 200, answer.body


def receive_numbers(user: User, since: str | None = None) -> tuple[list[Any], str]:
    """Return the numbers of the messages that arrived for a device, and the next token."""
    response = sync(user, since)
    return numbers_in(response), response["next_batch"]


def numbers_in(response: Any) -> list[Any]:
    """Return the numbers of the messages in a response of `/sync`."""
    return [event["content"]["n"] for event in response.get("to_device", {}).get("events", [])]

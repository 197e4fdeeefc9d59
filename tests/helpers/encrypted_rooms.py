"""An encrypted room of two servers whose members have keys, and to-device messages with numbers."""

from typing import Any

from tests.helpers.federated_rooms import Shared, shared
from tests.helpers.http import Pending
from tests.helpers.keys import V3, identity_keys, one_time_keys, sync, upload
from tests.helpers.network import Network
from tests.helpers.room_actions import set_state
from tests.helpers.server import User

ENCRYPTED = {"algorithm": "m.megolm.v1.aes-sha2"}
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


def another_device(user: User) -> User:
    """Sign the user in on a new device."""
    identifier = {"type": "m.id.user", "user": user.user_id}
    body = {"type": "m.login.password", "identifier": identifier, "password": "wonderland"}
    answer = user.server.post(f"{V3}/login", body)
    assert answer.status == 200, answer.body
    return User(user.server, answer.json)


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
    answer = sync(user, since)
    events = answer.get("to_device", {}).get("events", [])
    return [event["content"]["n"] for event in events], answer["next_batch"]

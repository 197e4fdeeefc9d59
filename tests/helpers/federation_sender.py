"""A room whose northern server sends to the southern one: restarts, to-device messages, metrics."""

from typing import Any

from tests.helpers.encrypted_rooms import send_number
from tests.helpers.federated_rooms import NORTH, Shared, shared
from tests.helpers.keys import identity_keys, upload
from tests.helpers.network import Network
from tests.helpers.server import User, move_user

SLOW_TO_DEVICE = "rc_federation: {to_device_bytes: {per_second: 1000, burst_count: 30000}}\n"
LARGE_TEXT = "x" * 8000
DESTINATIONS = "/_synapse/admin/v1/federation/destinations"


async def shared_room_with_keys(network: Network) -> Shared:
    """Create a shared room whose users have published keys. All queues are empty."""
    room = await shared(network)
    network.start_sending()
    for user, seed in ((room.alice, 1), (room.bob, 2)):
        upload(user, device_keys=identity_keys(user, seed)[1])
    network.settle()
    return room


def restart_north(network: Network, user: User, config: str = "") -> User:
    """Restart the northern server; return the user's session on it."""
    server = network.rebuild(NORTH, config)
    network.settle()
    return move_user(server, user)


def send_number_to(user: User, to: User, number: int) -> None:
    """Send a numbered to-device message to one device."""
    send_number(user, number, {to.user_id: {to.device_id: {"n": number}}})


def delivery_metrics(network: Network) -> Any:
    """Return the delivery metrics of the northern server."""
    return network.servers[NORTH].app.federation_sender.deliveries.get_metrics()

"""Random histories of the federation sender: any responses, and restarts at any time.

To-device messages arrive once and in order, nothing is dropped, and a transaction id never stands
for different content. `MAHALLA_SENDING_RUNS=1000` makes a thousand such histories. spec:
server-server-api#put_matrixfederationv1sendtxnid
"""

import os
from random import Random

import msgspec
import pytest

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.ids import ServerName
from tests.helpers.encrypted_rooms import encrypted_room, receive_numbers, send_number
from tests.helpers.federated_rooms import SOUTH
from tests.helpers.federation_sender import delivery_metrics, restart_north
from tests.helpers.network import Fate, Network, Transfer
from tests.helpers.recording_wire import SEND
from tests.helpers.room_actions import say

RUNS = int(os.environ.get("MAHALLA_SENDING_RUNS", "10"))
MOODS = (
    "well",
    "busy",
    "busy, it knows not how long",
    "has little room",
    "no room for keys",
    "broken",
    "gone",
    "lost",
)


class South:
    """As it answers transactions now."""

    def __init__(self, network: Network, chance: Random) -> None:
        self._chance = chance
        self._contents: dict[str, bytes] = {}
        self.calm()
        network.interceptors.append(self._answer)
        network.choose_fate = self._fate

    def calm(self) -> None:
        self._mood, self._seconds, self._room = "well", 0, 0

    def change(self) -> None:
        """Its mood, how long it asks to be left alone, and for how many things it has room."""
        self._mood = self._chance.choice(MOODS)
        self._seconds, self._room = (
            self._chance.choice([1, 30, 700, 4000]),
            self._chance.choice([1, 2, 5]),
        )

    def _answer(self, destination: ServerName, request: WireRequest) -> WireResponse | None:
        if destination != SOUTH or not request.uri.startswith(SEND):
            return None
        assert self._contents.setdefault(request.uri, request.body) == request.body
        transaction = msgspec.json.decode(request.body)
        size = len(transaction["edus"]) + len(transaction["pdus"])
        is_too_much = {
            "busy": True,
            "has little room": size > self._room,
            "no room for keys": b"m.direct_to_device" in request.body,
        }
        if is_too_much.get(self._mood):
            return WireResponse(429, {"retry-after": f"{self._seconds}"}, b"{}")
        statuses = {"busy, it knows not how long": 429, "broken": 500 if size else 200, "gone": 502}
        status = statuses.get(self._mood, 200)
        return None if status == 200 else WireResponse(status, {}, b"{}")

    def _fate(self, transfer: Transfer) -> Fate:
        is_lost = (
            self._mood == "lost" and transfer.destination == SOUTH and SEND in transfer.request.uri
        )
        return Fate.ANSWER_IS_LOST if is_lost else Fate.ARRIVES


@pytest.mark.parametrize("seed", range(RUNS))
async def test_every_event_arrives_exactly_once(network: Network, seed: int) -> None:
    chance = Random(seed)
    room = await encrypted_room(network)
    _, since = receive_numbers(room.bob)
    south = South(network, chance)
    sent = 0
    for step in range(chance.randint(5, 40)):
        for part in range(chance.choice([0, 0, 1, 3, 12])):
            if chance.random() < 0.6:
                send_number(room.alice, sent, {room.bob.user_id: {room.bob.device_id: {"n": sent}}})
                sent += 1
            else:
                say(room.alice, room.room_id, f"w{step}.{part}")
        if chance.random() < 0.3:
            south.change()
        if chance.random() < 0.1:
            room.alice = restart_north(network, room.alice)
        if chance.random() < 0.1:
            say(room.bob, room.room_id, f"alik {step}")
        network.clock.advance(chance.choice([0, 1, 5, 30, 300, 1800, 4000]))
        network.settle()
    south.calm()
    for _ in range(4):
        network.clock.advance(3600)
        network.settle()
    came: list[int] = []
    while (page := receive_numbers(room.bob, since))[0]:
        came, since = came + page[0], page[1]
    assert came == [*range(sent)]
    standing = delivery_metrics(network)
    assert (standing["dropped"], standing["failing"], standing["catching_up"]) == (0, 0, 0)

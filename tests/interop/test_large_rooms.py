"""With Synapse: rooms with so many servers that joins use partial state and a resync."""

import pytest

from federation.rooms.joins.send_join_response import MAX_SMALL_SERVERS
from tests.helpers.interop import until
from tests.interop.conftest import Pair

ELSEWHERE = MAX_SMALL_SERVERS + 5
"""The number of servers of banned users: more than our `send_join` response lists
(`federation/rooms/joins/send_join_response.py`)."""


@pytest.mark.parametrize("we_are_host", [True, False], ids=["our-room", "their-room"])
@pytest.mark.parametrize("version", ["10", "12"])
def test_a_partial_join_is_completed_later(pair: Pair, version: str, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = host.create(preset="public_chat", room_version=version, name="tea")
    for number in range(ELSEWHERE):
        assert host.room(room_id, "ban", user_id=f"@eve:server{number}.invalid").status == 200
    assert guest.join(room_id, host.server.name).status == 200

    said = guest.say(room_id, "salom")

    until(lambda: said in [event["event_id"] for event in host.history(room_id)])
    answer = host.say(room_id, "va alaykum")
    until(lambda: answer in [event["event_id"] for event in guest.history(room_id)])
    until(
        lambda: guest.members(room_id) == host.members(room_id),
        instead=lambda: guest.members(room_id),
    )
    assert len(host.members(room_id)) == ELSEWHERE + 2

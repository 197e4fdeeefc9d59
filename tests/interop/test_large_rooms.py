"""With Synapse: rooms with so many people that they are entered in part, and completed afterwards."""

import pytest

from tests.helpers.interop import until
from tests.interop.conftest import Pair

PEOPLE = 25
"""More than our server tells of at once (`federation/rooms/join_answers.py`)."""


@pytest.mark.parametrize("we_are_host", [True, False], ids=["our-room", "their-room"])
@pytest.mark.parametrize("version", ["10", "12"])
def test_it_is_entered_at_once_and_known_whole_later(pair: Pair, version: str, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = host.create(preset="public_chat", room_version=version, name="tea")
    for number in range(PEOPLE):
        name = f"many{version}{'ours' if we_are_host else 'theirs'}{number}"
        assert host.server.register(name).join(room_id).status == 200
    assert guest.join(room_id, host.server.name).status == 200

    said = guest.say(room_id, "salom")

    until(lambda: said in [event["event_id"] for event in host.history(room_id)])
    answer = host.say(room_id, "va alaykum")
    until(lambda: answer in [event["event_id"] for event in guest.history(room_id)])
    members = until(lambda: guest.members(room_id))
    assert members == host.members(room_id)
    assert len(members) == PEOPLE + 2

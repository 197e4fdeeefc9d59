"""With Synapse: the past of a room, as somebody reads it who came later."""

from urllib.parse import quote

import pytest

from tests.helpers.interop import until
from tests.interop.conftest import Pair

SIDES = pytest.mark.parametrize("we_are_host", [True, False], ids=["our-room", "their-room"])


@SIDES
@pytest.mark.parametrize(("version", "count"), [("6", 120), ("12", 500)])
def test_a_newcomer_reads_back_to_the_beginning(pair: Pair, version: str, count: int, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = host.create(preset="public_chat", room_version=version)
    texts = [f"{number}" for number in range(count)]
    for text in texts:
        host.say(room_id, text)
    assert guest.join(room_id, host.server.name).status == 200
    until(lambda: host.members(room_id).get(guest.user_id) == "join")

    theirs = until(lambda: [event["event_id"] for event in guest.history(room_id)])

    assert guest.said(room_id) == texts[::-1] == host.said(room_id)
    assert theirs == [event["event_id"] for event in host.history(room_id)]


@SIDES
def test_an_event_of_before_is_found_by_its_time_and_with_its_surroundings(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = host.create(preset="public_chat")
    said = [host.say(room_id, f"{number}") for number in range(60)]
    at = host.event(room_id, said[5])["origin_server_ts"]
    assert guest.join(room_id, host.server.name).status == 200

    path = f"/_matrix/client/v1/rooms/{quote(room_id)}/timestamp_to_event?dir=f&ts={at}"

    def find() -> str | None:
        event_id = guest.ask_at("GET", path).json.get("event_id")
        # while the other server is slow to answer, the nearest that is known here counts
        return str(event_id) if event_id and host.event(room_id, event_id)["origin_server_ts"] == at else None

    found = until(find)
    around = until(lambda: guest.ask("GET", f"/rooms/{quote(room_id)}/context/{quote(found)}?limit=4").json)
    assert around["event"]["event_id"] == found

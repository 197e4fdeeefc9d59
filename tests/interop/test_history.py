"""With Synapse: history of a room, read by a user who joined later."""

from urllib.parse import quote

import pytest

from tests.helpers.interop import Person, until
from tests.interop.conftest import Pair

SIDES = pytest.mark.parametrize("we_are_host", [True, False], ids=["our-room", "their-room"])


@SIDES
@pytest.mark.parametrize(("version", "count"), [("6", 120), ("12", 500)])
def test_a_new_member_reads_all_history(
    pair: Pair, version: str, count: int, we_are_host: bool
) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = host.create(preset="public_chat", room_version=version)
    texts = [f"{number}" for number in range(count)]
    for text in texts:
        host.say(room_id, text)
    assert guest.join(room_id, host.server.name).status == 200
    until(lambda: host.members(room_id).get(guest.user_id) == "join")

    def history(who: Person) -> list[str]:
        return [event["event_id"] for event in who.history(room_id)]

    until(lambda: history(guest) == history(host), instead=lambda: guest.said(room_id))
    assert guest.said(room_id) == texts[::-1] == host.said(room_id)


@SIDES
def test_an_older_event_is_found_by_timestamp_and_with_its_context(
    pair: Pair, we_are_host: bool
) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = host.create(preset="public_chat")
    said = [host.say(room_id, f"{number}") for number in range(60)]
    at = host.event(room_id, said[5])["origin_server_ts"]
    assert guest.join(room_id, host.server.name).status == 200

    path = f"/_matrix/client/v1/rooms/{quote(room_id)}/timestamp_to_event?dir=f&ts={at}"

    def find() -> str | None:
        event_id = guest.ask_at("GET", path).json.get("event_id")
        # if the other server is slow, the nearest local event is returned
        return (
            str(event_id)
            if event_id and host.event(room_id, event_id)["origin_server_ts"] == at
            else None
        )

    found = until(find)
    around = until(
        lambda: guest.ask("GET", f"/rooms/{quote(room_id)}/context/{quote(found)}?limit=4").json
    )
    assert around["event"]["event_id"] == found


@pytest.mark.parametrize("version", ["1", "10", "12"])
def test_expired_events_federate_without_content(pair: Pair, version: str) -> None:
    alice, bob = pair.people()
    room_id = alice.create(preset="public_chat", room_version=version)
    said = [alice.say(room_id, f"secret {number}") for number in range(20)]
    alice.set_state(room_id, "m.room.retention", {"max_lifetime": 1})
    until(lambda: alice.said(room_id) == [])
    assert bob.join(room_id, alice.server.name).status == 200

    def read() -> list[str]:
        return [
            event["event_id"] for event in bob.history(room_id) if event["type"] == "m.room.message"
        ]

    until(lambda: read() == said[::-1])
    assert "secret" not in repr(bob.history(room_id))
    alice.set_state(room_id, "m.room.retention", {"max_lifetime": 3_600_000})
    answer = bob.say(room_id, "and now?")
    until(lambda: alice.event(room_id, answer))
    repeated = alice.say(room_id, "now this")
    until(lambda: bob.event(room_id, repeated))


def test_expired_events_of_another_server_are_not_shown(pair: Pair) -> None:
    alice, bob = pair.people()
    room_id = bob.create(preset="public_chat")
    for number in range(20):
        bob.say(room_id, f"secret {number}")
    bob.set_state(room_id, "m.room.retention", {"max_lifetime": 1})
    assert alice.join(room_id, bob.server.name).status == 200
    until(lambda: any(event["type"] == "m.room.create" for event in alice.history(room_id)))
    assert alice.said(room_id) == []
    assert len(bob.said(room_id)) == 20

"""With Synapse: servers are killed and connections are cut while users continue to send. Nothing is
lost.

Connections are cut for seven minutes, which the servers' clocks skip.
`MAHALLA_PARTITION_SECONDS=300 pytest tests/interop/test_outages.py` cuts them for that long in real
time.
"""

import os
import time
from functools import partial
from typing import Any

import pytest

from tests.helpers.encrypted_rooms import ENCRYPTION_EVENT
from tests.helpers.interop import (
    Person,
    create_shared_room,
    publish_keys,
    state_event_ids,
    topic_of,
    until,
)
from tests.interop.conftest import Pair

SIDES = pytest.mark.parametrize("we_are_host", [True, False], ids=["our-room", "their-room"])
SECONDS = float(os.environ.get("MAHALLA_PARTITION_SECONDS", "0"))
PAUSE = 0.1
"""Seconds in which a server does its due work after its clock has been advanced."""
TO_RECOVER = 180.0


def level(host: Person, guest: Person, room_id: str) -> None:
    users = dict(host.state(room_id, "m.room.power_levels")["users"])
    host.set_levels(room_id, users={**users, guest.user_id: 60})
    until(lambda: guest.state(room_id, "m.room.power_levels")["users"].get(guest.user_id) == 60)


def has_all(who: Person, room_id: str, said: set[str]) -> bool:
    return said <= set(who.said(room_id))


def what_lacks(who: Person, room_id: str, said: set[str]) -> str:
    return f"{who.user_id} lacks {sorted(said - set(who.said(room_id)))}"


def same(host: Person, guest: Person, room_id: str, said: set[str]) -> None:
    """Wait until both users see all messages exactly once, and the same state."""
    for who in (host, guest):
        until(
            partial(has_all, who, room_id, said),
            TO_RECOVER,
            partial(what_lacks, who, room_id, said),
        )
        texts = [text for text in who.said(room_id) if text in said]
        assert len(texts) == len(said), texts
    until(lambda: state_event_ids(host, room_id) == state_event_ids(guest, room_id), TO_RECOVER)


@SIDES
@pytest.mark.parametrize("we_are_killed", [True, False], ids=["we-die", "they-die"])
def test_a_killed_server_loses_nothing(pair: Pair, we_are_host: bool, we_are_killed: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = create_shared_room(host, guest)
    level(host, guest, room_id)
    victim, survivor = (pair.ours, pair.theirs) if we_are_killed else (pair.theirs, pair.ours)
    there, here = (host, guest) if host.server is victim else (guest, host)
    said: set[str] = set()

    def say(who: Person, text: str) -> None:
        who.say(room_id, text)
        said.add(text)

    for number in range(5):
        say(there, f"before {number}")
        say(here, f"too {number}")
    victim.kill()
    for number in range(60):
        say(here, f"meanwhile {number}")
    here.set_state(room_id, "m.room.topic", {"topic": "meanwhile"})
    victim.start()
    say(there, "back again")
    say(here, "at last")

    assert survivor.ask("GET", "/_matrix/client/versions").status == 200
    same(host, guest, room_id, said)
    assert topic_of(host, room_id) == topic_of(guest, room_id) == "meanwhile"


@SIDES
def test_a_network_partition_heals(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = create_shared_room(host, guest, initial_state=[ENCRYPTION_EVENT])
    level(host, guest, room_id)
    publish_keys(host, 9)
    since = guest.sync()["next_batch"]
    said: set[str] = set()
    for gate in (pair.ours.gate, pair.theirs.gate):
        gate.cut()
    number, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end or number < 40:
        for who in (host, guest):
            text = f"{number} of {who.user_id}"
            who.say(room_id, text)
            said.add(text)
            if number % 10 == 5:
                who.set_state(room_id, "m.room.topic", {"topic": text})
        number += 1
        if SECONDS:
            time.sleep(SECONDS / 40)
        else:
            pair.ours.pass_time()
            pair.theirs.pass_time()
            time.sleep(PAUSE)
    host.set_state(room_id, "org.example.of_host", {"number": number})
    guest.set_state(room_id, "org.example.of_guest", {"number": number})
    for count in range(5):
        messages = {guest.user_id: {guest.device_id: {"count": count}}}
        host.ok(
            "PUT",
            f"/sendToDevice/org.example.count/{host.device_id}{count}",
            {"messages": messages},
        )
    publish_keys(host.another_device(), 10)

    for gate in (pair.ours.gate, pair.theirs.gate):
        gate.mend()
    for who in (host, guest):
        who.say(room_id, f"healed {who.user_id}")
        said.add(f"healed {who.user_id}")

    same(host, guest, room_id, said)
    for who in (host, guest):
        times = [
            event["origin_server_ts"]
            for event in who.history(room_id)
            if event["sender"] == who.user_id
        ]
        assert max(times) - min(times) > (SECONDS or 300) * 1000
        assert who.state(room_id, "org.example.of_host") == {"number": number}
        assert who.state(room_id, "org.example.of_guest") == {"number": number}
    assert topic_of(host, room_id) == topic_of(guest, room_id)
    came: list[int] = []
    lists: set[str] = set()

    def look() -> Any:
        nonlocal since
        answer = guest.sync(since)
        since = answer["next_batch"]
        came.extend(
            event["content"]["count"] for event in answer.get("to_device", {}).get("events", [])
        )
        lists.update(answer.get("device_lists", {}).get("changed", []))
        return len(came) >= 5 and host.user_id in lists

    until(look, TO_RECOVER, lambda: (came, lists))
    assert came == list(range(5))

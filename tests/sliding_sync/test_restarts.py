"""Sliding sync: a server that has a connection cached and one that was restarted send a client the
same, whatever the client has. This includes rooms that are only in its `pos`, and their later
changes."""

from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest

from storage.engine.database import Database
from tests.helpers.room_actions import create, say
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import UNSTABLE, SlidingClient, a_list, act

V3 = "/_matrix/client/v3"
EXTENSIONS = {name: {"enabled": True} for name in ("account_data", "receipts")}
STEPS = 25


def happen(
    chance: Random,
    alice: User,
    bob: User,
    rooms: list[str],
    events: dict[str, list[str]],
    number: int,
) -> None:
    """Mostly somebody says something."""
    user, room_id = chance.choice([alice, bob]), chance.choice(rooms)
    room, alices = f"{V3}/rooms/{room_id}", f"{V3}/user/{alice.user_id}"
    what = chance.randrange(22)
    if what == 0:
        alice.post(f"{room}/leave")
    elif what == 1:
        alice.post(f"{room}/leave")
        alice.post(f"{room}/forget")
    elif what in (2, 3, 4, 5):
        bob.post(
            f"{room}/{('kick', 'ban', 'unban', 'invite')[what - 2]}", {"user_id": alice.user_id}
        )
    elif what in (6, 7):
        alice.post(f"{room}/join")
    elif what == 8:
        alice.put(f"{alices}/account_data/m.direct", {bob.user_id: chance.sample(rooms, 2)})
    elif what == 9:
        alice.put(f"{alices}/rooms/{quote(room_id)}/account_data/org.example.kept", {"n": number})
    elif what == 10 and room_id in events:
        bob.post(f"{room}/receipt/m.read/{chance.choice(events[room_id])}")
    else:
        answer = user.put(
            f"{room}/send/m.room.message/{number}", {"msgtype": "m.text", "body": f"{number}"}
        )
        if answer.status == 200:
            events.setdefault(room_id, []).append(answer.json["event_id"])


@pytest.mark.parametrize("seed", range(5))
def test_a_restarted_server_sends_the_same_as_one_with_a_cached_connection(
    tmp_path: Path, sqlite_database: Database, seed: int
) -> None:
    chance = Random(seed)
    server = TestServer(tmp_path, sqlite_database)
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [
        create(alice if at % 2 else bob, preset="public_chat", name=f"{at}") for at in range(7)
    ]
    for room_id in rooms[::2]:
        assert alice.post(f"{V3}/rooms/{room_id}/join").status == 200
    for room_id in rooms[1::2]:
        assert bob.post(f"{V3}/rooms/{room_id}/join").status == 200
    state = chance.choice([[["*", "*"]], [], [["m.room.member", "$ME"]]])
    lists = {"all": a_list([0, chance.randrange(2)], limit=2, state=state)}
    events: dict[str, list[str]] = {}

    def ask(of: TestServer, pos: str | None) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """The `pos`, what of account data, and the rest."""
        alice.server = of
        path = UNSTABLE if pos is None else f"{UNSTABLE}?pos={pos}"
        answer = alice.post(path, {"lists": lists, "extensions": EXTENSIONS})
        assert answer.status == 200, answer.body
        body = answer.json
        return body.pop("pos"), body["extensions"].pop("account_data"), body

    pos, _, _ = ask(server, None)
    named = 0
    for step in range(STEPS):
        alice.server = bob.server = server
        for number in range(chance.choice([1, 1, 1, 2])):
            happen(chance, alice, bob, rooms, events, 10 * step + number)
        restarted = TestServer(tmp_path, sqlite_database, seed=2 + step, clock=server.clock)
        answers = [ask(each, pos) for each in (restarted, server)]
        (_, kept_again, sent_again), (_, kept, received) = answers
        assert sent_again == received
        # who does not remember may tell again what is kept
        assert kept["rooms"].items() <= kept_again["rooms"].items()
        assert all(entry in kept_again["global"] for entry in kept["global"])
        if chance.random() < 0.9:  # else the answers got lost
            pos = answers[chance.random() < 0.7][0]
        named += "." in pos
        server = chance.choice([server] * 7 + [restarted])
    assert named


def test_the_leave_of_a_room_that_is_only_in_the_pos_is_sent(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database)
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create(bob, preset="public_chat", name=f"{at}") for at in range(4)]
    for room_id in rooms:
        act(alice, room_id, "join")
    client = SlidingClient(alice, lists={"all": a_list([0, 0], limit=2)})
    client.sync()
    say(bob, rooms[0], "hello")
    assert list(client.sync()["rooms"]) == [rooms[0]]
    assert client.pos is not None
    assert "." in client.pos
    act(bob, rooms[0], "kick", user_id=alice.user_id)
    client.user.server = TestServer(tmp_path, sqlite_database, seed=2)
    (received,) = client.sync()["rooms"].items()
    assert (received[0], [event["type"] for event in received[1]["timeline"]]) == (
        rooms[0],
        ["m.room.member"],
    )
    assert rooms[0] not in client.sync()["rooms"]

"""Messages to a device arrive once and in order, whatever else happens, however often the client
repeats requests, and over restarts."""

from pathlib import Path
from random import Random

import pytest

from homeserver.services.sync import device_sections
from storage.engine.database import Database
from tests.helpers.encrypted_rooms import numbers_in
from tests.helpers.room_actions import create, say, set_state
from tests.helpers.server import TestServer
from tests.helpers.sliding_client import act
from tests.helpers.sync_requests import sync

V3 = "/_matrix/client/v3"


@pytest.mark.parametrize("seed", range(4))
def test_messages_arrive_once_in_order(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(device_sections, "MESSAGES_PER_RESPONSE", 3)
    random = Random(seed)
    server = TestServer(tmp_path, database)
    alice, bob = server.register("alice"), server.register("bob")
    room = create(bob, preset="public_chat")
    act(alice, room, "join")
    sent, received = 0, 0
    token = sync(alice)["next_batch"]
    before: tuple[str, int] | None = None

    def send(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            body = {
                "messages": {alice.user_id: {random.choice(["*", alice.device_id]): {"n": sent}}}
            }
            assert bob.put(f"{V3}/sendToDevice/org.example/{sent}", body).status == 200
            sent += 1

    for step in range(60):
        what = random.choice(
            [
                "send",
                "send",
                "many",
                "say",
                "state",
                "sync",
                "sync",
                "sync",
                "again",
                "back",
                "restart",
            ]
        )
        if what == "send":
            send(1)
        elif what == "many":
            send(random.randrange(2, 8))
        elif what == "say":
            say(bob, room, f"s{step}")
        elif what == "state":
            set_state(bob, room, "m.room.topic", {"topic": f"t{step}"})
        elif what == "restart":
            server = TestServer(tmp_path, database, seed=step + 1, now=server.clock.seconds() + 1)
            alice.server = bob.server = server
        elif what == "back" and before is not None:
            since, had = before
            answer = sync(alice, since)
            got = numbers_in(answer)
            begin = got[0] if got else received
            assert begin in (had, received), (
                "earlier messages are removed only if the device used the token after them"
            )
            assert got == list(range(begin, min(sent, begin + 3)))
        else:
            answer = sync(alice, token)
            got = numbers_in(answer)
            assert got == list(range(received, min(sent, received + 3)))
            if what == "sync":
                before = (token, received)
                token, received = answer["next_batch"], received + len(got)
    while received < sent:
        answer = sync(alice, token)
        got = numbers_in(answer)
        assert got == list(range(received, min(sent, received + 3)))
        token, received = answer["next_batch"], received + len(got)
    assert numbers_in(sync(alice, token)) == []

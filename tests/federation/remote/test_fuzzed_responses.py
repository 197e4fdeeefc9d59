"""Random, almost valid responses and requests of other servers: no client gets an internal error,
and none is logged.

What an honest server answers or sends is taken, and something in it, anywhere, is replaced by
something else, or left out. `MAHALLA_FUZZ_RUNS=2000 pytest
tests/federation/remote/test_fuzzed_responses.py` makes as many tries.
"""

import copy
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from federation.peers.client import RefusedByRemote
from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.errors import BadJson, RemoteError
from federation.protocol.ids import RoomID
from storage.engine.database import Database
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.federated_rooms import NORTH, SOUTH, Shared, shared
from tests.helpers.keys import identity_keys, one_time_keys, upload
from tests.helpers.network import Network
from tests.helpers.room_actions import say, set_state
from tests.helpers.server import User

RUNS = int(os.environ.get("MAHALLA_FUZZ_RUNS", "10"))
V1, V3 = "/_matrix/client/v1", "/_matrix/client/v3"
ENCRYPTED = {"algorithm": "m.megolm.v1.aes-sha2"}
JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**53,
    2**70,
    1.5,
    "",
    "x" * 70_000,
    "\0",
    "\ud800",
    "@x:y",
    "!x:y",
    "$x",
    [],
    {},
    [None],
    {"": None},
    [[]] * 3000,
)
SEEDS = st.integers(0, 2**32)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a value."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        container = waiting.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list):
                waiting.append(container[key])
    return found


def spoil(random: Random, value: Any) -> Any:
    """A copy in which one to three things are something else, or gone."""
    whole = [copy.deepcopy(value)]
    for _ in range(random.randint(1, 3)):
        container, key = random.choice(places(whole))
        if container is not whole and isinstance(container, dict) and random.random() < 0.2:
            del container[key]
        elif container is not whole and isinstance(container, list) and random.random() < 0.2:
            container.append(container[key])
        else:
            container[key] = copy.deepcopy(random.choice(JUNK))
    return whole[0]


@contextmanager
def nothing_logged() -> Iterator[None]:
    """Fails when a failure is logged meanwhile: it is how the server tells of its own bugs."""
    with capturedLogs() as logged:
        yield
    failures = [event["log_failure"] for event in logged if "log_failure" in event]
    assert not failures, failures[0].getTraceback()


@contextmanager
def a_network(template: Path) -> Iterator[Network]:
    with TemporaryDirectory() as directory:
        path = Path(directory)
        databases: list[Database] = []

        def open_another() -> Database:
            databases.append(open_inline(copy_sqlite(template, path)))
            return databases[-1]

        network = Network(path, open_another)
        network.start_sending()
        yield network
        for database in databases:
            Deferred.fromCoroutine(database.close())


def act(user: User, method: str, path: str, body: Any = None) -> None:
    """Ask for something, and wait for an hour: any answer is good but an internal error."""
    pending = user.start(method, path, body)
    for _ in range(12):
        if pending.done:
            break
        user.server.clock.advance(300)
    assert pending.done, path
    assert pending.answer.status != 500, (path, pending.answer.body)


def use_everything(room: Shared, other_room: str, event_id: str) -> None:
    """Bob in the south does whatever makes his server ask the north."""
    bob, alice = room.bob, quote(room.alice.user_id)
    room_id, other = quote(str(room.room_id)), quote(other_room)
    act(bob, "GET", f"{V3}/profile/{alice}")
    act(bob, "GET", f"{V3}/directory/room/%23tea:{NORTH}")
    act(bob, "GET", f"{V3}/publicRooms?server={NORTH}")
    act(bob, "POST", f"{V3}/publicRooms?server={NORTH}", {"filter": {"generic_search_term": "tea"}})
    act(bob, "POST", f"{V3}/keys/query", {"device_keys": {room.alice.user_id: []}})
    requested = {room.alice.user_id: {room.alice.device_id: "signed_curve25519"}}
    act(bob, "POST", f"{V3}/keys/claim", {"one_time_keys": requested})
    act(bob, "GET", f"{V1}/rooms/{other}/hierarchy")
    act(bob, "GET", f"{V1}/room_summary/{other}?via={NORTH}")
    act(bob, "GET", f"{V1}/rooms/{room_id}/timestamp_to_event?dir=b&ts=1")
    act(bob, "GET", f"{V3}/rooms/{room_id}/messages?dir=b&limit=100")
    act(bob, "GET", f"{V3}/rooms/{room_id}/context/{quote(event_id)}")
    act(bob, "POST", f"{V3}/join/{other}?via={NORTH}", {})
    act(bob, "POST", f"{V3}/knock/{other}?via={NORTH}", {})
    act(bob, "POST", f"{V3}/rooms/{room_id}/invite", {"user_id": f"@carol:{NORTH}"})
    act(bob, "GET", f"{V3}/sync")


async def prepared(network: Network, version: str) -> tuple[Shared, str, str]:
    room = await shared(network, version)
    room.north.server.register("carol")
    upload(
        room.alice, device_keys=identity_keys(room.alice)[1], one_time_keys=one_time_keys("AAAAAQ")
    )
    requested = {
        "preset": "public_chat",
        "room_version": version,
        "room_alias_name": "tea",
        "visibility": "public",
    }
    other: str = room.alice.post(f"{V3}/createRoom", requested).json["room_id"]
    set_state(room.alice, RoomID(other), "m.space.child", {"via": [NORTH]}, room.room_id)
    first = say(room.alice, room.room_id, "first")
    network.settle()
    return room, other, first


@settings(max_examples=RUNS, deadline=None, suppress_health_check=list(HealthCheck))
@example(seed=1259085, version="6")
@given(seed=SEEDS, version=st.sampled_from(["6", "10", "11", "12"]))
async def test_fuzzed_responses_cause_no_500(
    sqlite_template: Path, seed: int, version: str
) -> None:
    random = Random(seed)
    with a_network(sqlite_template) as network:
        room, other, first = await prepared(network, version)
        network.cut(NORTH, SOUTH)
        for number in range(3):
            said = say(room.alice, room.room_id, f"missed {number}")
            set_state(room.alice, room.room_id, "m.room.topic", {"topic": f"{number}"})
        network.mend(NORTH, SOUTH)

        def forge(request: WireRequest, answer: WireResponse) -> WireResponse:
            if "/key/" in request.uri or answer.status != 200 or random.random() < 0.3:
                return answer
            try:
                return WireResponse(
                    200, answer.headers, json.dumps(spoil(random, json.loads(answer.body))).encode()
                )
            except RecursionError as error:
                raise RemoteError(NORTH, "it is gone", retryable=True) from error

        network.forge(NORTH, forge)
        with nothing_logged():
            await room.north.push(SOUTH, [await room.north.pdu(room.room_id, said)])
            use_everything(room, other, first)
            network.clock.advance(3600)
            network.settle()
        network.forge(NORTH, lambda _, answer: answer)
        said = say(room.alice, room.room_id, "the truth")
        network.clock.advance(3600)
        network.settle()
        assert await room.south.find(room.room_id, said) is not None


@settings(max_examples=RUNS, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=SEEDS, version=st.sampled_from(["6", "10", "11", "12"]))
async def test_fuzzed_transactions_cause_no_500(
    sqlite_template: Path, seed: int, version: str
) -> None:
    random = Random(seed)
    with a_network(sqlite_template) as network:
        room, _, first = await prepared(network, version)
        bob, alice = room.bob, room.alice
        edus: list[Any] = [
            {
                "edu_type": "m.typing",
                "content": {"room_id": room.room_id, "user_id": bob.user_id, "typing": True},
            },
            {
                "edu_type": "m.receipt",
                "content": {
                    room.room_id: {
                        "m.read": {
                            bob.user_id: {
                                "event_ids": [first],
                                "data": {"ts": 1, "thread_id": "main"},
                            }
                        }
                    }
                },
            },
            {
                "edu_type": "m.presence",
                "content": {"push": [{"user_id": bob.user_id, "presence": "online"}]},
            },
            {
                "edu_type": "m.direct_to_device",
                "content": {
                    "sender": bob.user_id,
                    "type": "org.example.x",
                    "message_id": "1",
                    "messages": {alice.user_id: {alice.device_id: {"a": 1}, "*": {"b": 2}}},
                },
            },
            {
                "edu_type": "m.device_list_update",
                "content": {
                    "user_id": bob.user_id,
                    "device_id": bob.device_id,
                    "stream_id": 9,
                    "prev_id": [],
                    "keys": identity_keys(bob)[1],
                },
            },
            {
                "edu_type": "m.signing_key_update",
                "content": {"user_id": bob.user_id, "master_key": {}},
            },
        ]
        network.cut(NORTH, SOUTH)
        pdus = [
            await room.south.pdu(room.room_id, say(bob, room.room_id, f"{number}"))
            for number in range(3)
        ]
        network.mend(NORTH, SOUTH)
        before = await room.north.state(room.room_id)
        with nothing_logged():
            for _ in range(6):
                body = spoil(random, {"pdus": pdus, "edus": edus})
                if (
                    isinstance(body, dict)
                    and isinstance(body.get("pdus"), list)
                    and isinstance(body.get("edus"), list)
                ):
                    status = 200
                    in_flight = Deferred.fromCoroutine(
                        room.south.push(NORTH, body["pdus"], body["edus"])
                    )
                    network.settle()  # others have their turns while a long one is read
                    try:
                        await in_flight
                    except BadJson:
                        continue  # nobody could have signed that
                    except RefusedByRemote as refusal:
                        status = refusal.status
                    assert status < 500
            network.clock.advance(60)
            network.settle()
        assert await room.north.state(room.room_id) == before
        assert alice.get(f"{V3}/sync").status == 200
        await room.south.push(NORTH, pdus)
        for pdu in pdus:
            assert pdu["content"]["body"] in str(
                alice.get(f"{V3}/rooms/{room.room_id}/messages?dir=b").body
            )

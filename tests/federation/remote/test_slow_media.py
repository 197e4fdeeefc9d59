"""Servers that send files slowly, or never, delay no downloads from others."""

from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.errors import RemoteError
from federation.protocol.ids import ServerName
from homeserver.services.media.download_slots import (
    CHECK_SECONDS,
    MAX_FAST,
    MAX_FAST_PER_SERVER,
    MAX_FAST_PER_USER,
    MAX_SLOW,
    MAX_SLOW_PER_SERVER,
    MAX_WAITING_PER_USER,
    MIN_FAST_BYTES,
)
from storage.engine.database import Database
from tests.helpers.federated_media import DOWNLOAD, METADATA, SIGNED
from tests.helpers.http import Pending
from tests.helpers.server import TestServer, User

HEADERS = {"content-type": "multipart/mixed; boundary=x"}
BEGINNING = b"--x\r\n" + METADATA + b"\r\n--x\r\n\r\n"
MANY = 10


class SlowServers:
    """The wire to servers of which those named `slow` send as much of their files as a test says,
    and the others at once."""

    def __init__(self) -> None:
        self.begins = True
        self.open_bodies: dict[tuple[str, str], Callable[[bytes], None]] = {}
        self.asked: list[str] = []
        self.ends: dict[tuple[str, str], Deferred[None]] = {}

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireResponse:
        if request.take is None or not request.uri.startswith(SIGNED):
            raise RemoteError(destination, "there is no such server", retryable=True)
        self.asked.append(destination)
        if not destination.startswith("slow"):
            give = request.take(200, HEADERS)
            assert give is not None
            give(BEGINNING + b"good\r\n--x--")
            return WireResponse(200, HEADERS, b"")
        key = (destination, request.uri.rpartition("/")[2].partition("?")[0])
        self.ends[key] = Deferred()
        if self.begins:
            give = request.take(200, HEADERS)
            assert give is not None
            give(BEGINNING)
            self.open_bodies[key] = give
        try:
            await self.ends[key]
        finally:
            self.open_bodies.pop(key, None)
            del self.ends[key]
        return WireResponse(200, HEADERS, b"")

    def under_way(self) -> list[str]:
        """The servers that are sending, or being waited for."""
        return [server for server, _ in self.ends]


@pytest.fixture
def wire() -> SlowServers:
    return SlowServers()


@pytest.fixture
def bob(tmp_path: Path, sqlite_database: Database, wire: SlowServers) -> User:
    return TestServer(tmp_path, sqlite_database, "max_upload_size: 500M\n", wire=wire).register(
        "bob"
    )


def ask(user: User, server: str, media_id: str, timeout_ms: int = 20_000) -> Pending:
    return user.start("GET", f"{DOWNLOAD}/{server}/{media_id}?timeout_ms={timeout_ms}")


@pytest.mark.parametrize("begins", [True, False])
def test_a_few_slow_servers_do_not_delay_others(bob: User, wire: SlowServers, begins: bool) -> None:
    wire.begins = begins
    others = [bob.server.register(f"user{number}") for number in range(MANY)]
    for server, user in enumerate(others):
        for number in range(MAX_FAST_PER_SERVER + 3):
            ask(user, f"slow{server}.example", f"f{number}")
    assert len(wire.under_way()) == MAX_FAST
    good = ask(bob, "good.example", "a")
    bob.server.clock.advance(CHECK_SECONDS)
    assert (good.answer.status, good.answer.body) == (200, b"good")
    # from now on there is room at once, however much the others are asked
    for _ in range(4):
        for server, user in enumerate(others):
            ask(user, f"slow{server}.example", f"g{len(wire.asked)}")
        assert ask(bob, "good.example", f"a{len(wire.asked)}").answer.body == b"good"
        bob.server.clock.advance(CHECK_SECONDS)
    of_each = [wire.under_way().count(f"slow{server}.example") for server in range(MANY)]
    assert max(of_each) == MAX_SLOW_PER_SERVER


def test_a_user_who_downloads_from_many_slow_servers_does_not_delay_others(
    bob: User, wire: SlowServers
) -> None:
    mallory = bob.server.register("mallory")
    asked = [
        ask(mallory, f"slow{number}.example", "f")
        for number in range(MAX_FAST_PER_USER + MAX_WAITING_PER_USER + 1)
    ]
    assert len(wire.under_way()) == MAX_FAST_PER_USER
    assert [each.answer.errcode for each in asked if each.done] == ["M_LIMIT_EXCEEDED"]
    assert ask(bob, "good.example", "a").answer.body == b"good"
    bob.server.clock.advance(CHECK_SECONDS)
    assert len(wire.under_way()) == 2 * MAX_FAST_PER_USER  # half of them slow
    assert ask(bob, "good.example", "b").answer.body == b"good"


def test_all_files_of_a_slow_server_arrive(bob: User, wire: SlowServers) -> None:
    """Ten photographs over a narrow line: all come, a few at a time, and none is given up for
    another."""
    asked = [ask(bob, "slow.example", f"f{number}", 60_000) for number in range(MANY)]
    began = bob.server.clock.seconds()
    received = dict.fromkeys(range(MANY), 0)
    while not all(each.done for each in asked) and bob.server.clock.seconds() < began + 120:
        for (server, media_id), give in list(wire.open_bodies.items()):
            number = int(media_id.removeprefix("f"))
            give(b"x" * 400_000)
            received[number] += 400_000
            if received[number] == 2_000_000:
                give(b"\r\n--x--")
                wire.ends[server, media_id].callback(None)
        assert len(wire.under_way()) <= MAX_SLOW_PER_SERVER
        bob.server.clock.advance(CHECK_SECONDS)
    assert [len(each.answer.body) for each in asked] == [2_000_000] * MANY


def test_a_slow_server_delays_only_its_own_files(bob: User, wire: SlowServers) -> None:
    first = [
        ask(bob, "slow.example", f"f{number}", 60_000) for number in range(MAX_SLOW_PER_SERVER)
    ]
    assert len(wire.under_way()) == MAX_FAST_PER_SERVER
    bob.server.clock.advance(CHECK_SECONDS)
    ask(bob, "slow.example", "late", 60_000)
    assert ("slow.example", "late") not in wire.open_bodies
    wire.open_bodies["slow.example", "f1"](b"x" * 5000 + b"\r\n--x--")
    wire.ends["slow.example", "f1"].callback(None)
    assert len(first[1].answer.body) == 5000
    assert ("slow.example", "late") in wire.open_bodies


def fill_the_slow_places(bob: User, wire: SlowServers) -> list[Pending]:
    """By many servers, for many users; how the requests of the first server stand."""
    servers, began = MAX_SLOW // MAX_SLOW_PER_SERVER, bob.server.clock.seconds()
    users = [bob.server.register(f"user{number}") for number in range(servers)]
    asked = [
        [
            ask(user, f"slow{number}.example", f"f{each}", 60_000)
            for each in range(MAX_SLOW_PER_SERVER)
        ]
        for number, user in enumerate(users)
    ]
    while len(wire.asked) < MAX_SLOW and bob.server.clock.seconds() < began + 60:
        bob.server.clock.advance(CHECK_SECONDS)
    bob.server.clock.advance(CHECK_SECONDS)
    assert len(wire.under_way()) == MAX_SLOW
    return asked[0]


def test_slow_downloads_above_the_limit_continue_while_nobody_waits(
    bob: User, wire: SlowServers
) -> None:
    fill_the_slow_places(bob, wire)
    for number in range(MAX_FAST_PER_USER):
        ask(bob, f"slow{number}.more.example", "f", 60_000)
    bob.server.clock.advance(CHECK_SECONDS)
    assert len(wire.under_way()) == MAX_SLOW + MAX_FAST_PER_USER
    good = ask(bob, "good.example", "a")  # has no place: he has all that he may
    assert not good.done
    bob.server.clock.advance(CHECK_SECONDS)
    assert good.answer.body == b"good"
    assert len(wire.under_way()) == MAX_SLOW + MAX_FAST_PER_USER - 1
    alice = bob.server.register("alice")
    assert ask(alice, "good.example", "b").answer.body == b"good"


@pytest.mark.parametrize("begins", [True, False])
def test_a_download_that_was_aborted_for_others_can_be_retried(
    bob: User, wire: SlowServers, begins: bool
) -> None:
    wire.begins = begins
    asked = fill_the_slow_places(bob, wire)
    for number in range(MAX_FAST_PER_USER):
        ask(bob, f"slow{number}.more.example", "f", 60_000)
    for key, give in wire.open_bodies.items():
        if key != ("slow0.example", "f0"):
            give(b"x" * 1000)
    ask(bob, "good.example", "a")
    bob.server.clock.advance(CHECK_SECONDS)
    assert [number for number, each in enumerate(asked) if each.done] == [0]
    assert (asked[0].answer.status, asked[0].answer.errcode) == (504, "M_NOT_YET_UPLOADED")
    assert ("slow0.example", "f0") not in wire.ends
    ask(bob, "slow0.example", "f0")
    bob.server.clock.advance(CHECK_SECONDS)
    assert ("slow0.example", "f0") in wire.ends


def test_many_slow_servers_do_not_delay_others(bob: User, wire: SlowServers) -> None:
    servers, began = MAX_SLOW // MAX_FAST_PER_SERVER + 10, bob.server.clock.seconds()
    for server in range(servers):
        for number in range(MAX_FAST_PER_SERVER):
            ask(bob, f"slow{server}.example", f"f{number}")
    while (
        len(wire.asked) < servers * MAX_FAST_PER_SERVER and bob.server.clock.seconds() < began + 60
    ):
        bob.server.clock.advance(CHECK_SECONDS)
    assert len(wire.asked) == servers * MAX_FAST_PER_SERVER, "all were asked"
    assert len(wire.under_way()) <= MAX_SLOW + MAX_FAST_PER_USER
    alice = bob.server.register("alice")
    assert ask(alice, "good.example", "a").answer.body == b"good"


def test_a_fast_download_is_not_aborted(bob: User, wire: SlowServers) -> None:
    long = ask(bob, "slow.example", "long")
    for _ in range(10):
        for _ in range(MIN_FAST_BYTES >> 20):
            wire.open_bodies["slow.example", "long"](b"x" * (1 << 20) + b"y")
        bob.server.clock.advance(CHECK_SECONDS)
    for number in range(MAX_FAST_PER_SERVER - 1):
        ask(bob, "slow.example", f"f{number}")
    ask(bob, "slow.example", "waiting")
    assert len(wire.under_way()) == MAX_FAST_PER_SERVER  # it is one of these
    wire.open_bodies["slow.example", "long"](b"\r\n--x--")
    wire.ends["slow.example", "long"].callback(None)
    assert len(long.answer.body) > 10 * MIN_FAST_BYTES

"""Unresponsive destinations do not delay the others, and one that is back is sent to soon."""

from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.errors import RemoteError
from federation.protocol.ids import ServerName
from federation.sender.send_slots import MANY_RUNNING, MAX_SLOT_SECONDS
from tests.helpers.clocks import settle
from tests.helpers.databases import open_inline
from tests.helpers.recording_wire import RecordingWire, pretend_member
from tests.helpers.server import TestServer, User

HONEST = ServerName("honest.example")
SILENT = [ServerName(f"s{number}.silent.example") for number in range(300)]


class SilentWire(RecordingWire):
    """Some servers keep the connection open and say nothing, until the time of the request is
    over."""

    def __init__(self) -> None:
        super().__init__()
        self.silent: set[str] = set(SILENT)
        self.clock = Clock()
        self.open = self.most_open = 0

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireResponse:
        if destination not in self.silent:
            return await super().exchange(destination, request)
        self.requests.append((destination, request))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        over: Deferred[None] = Deferred()
        self.clock.callLater(request.seconds, over.callback, None)
        await over
        self.open -= 1
        raise RemoteError(destination, "no answer in time", retryable=True)


class Home:
    """A server, and alice with a room."""

    def __init__(self, folder: Path, sqlite: object) -> None:
        self.wire = SilentWire()
        self.server = TestServer(folder, open_inline(sqlite), "", wire=self.wire)  # type: ignore[arg-type]
        self.wire.clock = self.server.clock
        self.server.app.federation_sender.sender.start()
        settle(self.server)
        self.alice = self.server.register("alice")

    async def room_with(self, servers: list[ServerName]) -> tuple[User, str]:
        room_id = str(
            self.alice.post("/_matrix/client/v3/createRoom", {"preset": "public_chat"}).json[
                "room_id"
            ]
        )
        for server in servers:
            await pretend_member(self.server, room_id, f"@x:{server}")
        self.pass_time(0)
        return self.alice, room_id

    def say(self, room: tuple[User, str], text: str) -> None:
        user, room_id = room
        path = f"/_matrix/client/v3/rooms/{room_id}/send/m.room.message/{text}"
        assert user.put(path, {"msgtype": "m.text", "body": text}).status == 200

    def pass_time(self, seconds: float) -> None:
        self.server.clock.advance(seconds)
        settle(self.server)

    def hears_from(self, server: ServerName) -> None:
        self.server.app.federation_sender.sender.record_activity(server)

    def seconds_until_told(self, text: str) -> int:
        """How long it takes until the honest server has a message."""
        waited = 0
        while text not in self.wire.texts(HONEST):
            assert waited < 3600
            self.pass_time(1)
            waited += 1
        return waited


@pytest.fixture
def home(tmp_path: Path, sqlite: object) -> Home:
    return Home(tmp_path, sqlite)


async def test_unresponsive_servers_do_not_delay_others(home: Home) -> None:
    silent, honest = await home.room_with(SILENT), await home.room_with([HONEST])
    home.say(silent, "to_nobody")
    home.pass_time(0)
    home.say(honest, "first")
    assert home.seconds_until_told("first") <= 5, (
        "their first tries take a second each of 64 places"
    )
    assert home.wire.most_open <= 64 * 60 / 5

    for number in range(10):
        for server in SILENT:
            home.hears_from(server)
        home.say(silent, f"more_{number}")
        home.pass_time(13)
        home.say(honest, f"later_{number}")
        assert home.seconds_until_told(f"later_{number}") <= 1


async def test_an_active_server_that_does_not_answer_is_tried_less_and_less_often(
    home: Home,
) -> None:
    room = await home.room_with([SILENT[0]])
    home.say(room, "to_nobody")
    for _ in range(1800):
        home.hears_from(SILENT[0])
        home.pass_time(1)
    tries = len(home.wire.transactions(SILENT[0]))
    assert 10 <= tries <= 22, "a try takes a minute, and the pause another"


async def test_a_server_that_answers_again_is_sent_to_within_a_minute(home: Home) -> None:
    room = await home.room_with([SILENT[0]])
    home.say(room, "missed")
    for _ in range(3600):
        home.hears_from(SILENT[0])
        home.pass_time(1)
    while home.wire.open:
        home.pass_time(1)
    home.wire.silent.clear()
    home.hears_from(SILENT[0])
    home.pass_time(60)
    assert home.wire.texts(SILENT[0])[-1] == "missed"
    home.say(room, "now")
    home.pass_time(0)
    assert home.wire.texts(SILENT[0])[-1] == "now"


async def test_a_server_that_becomes_active_after_a_long_silence_is_sent_to_at_once(
    home: Home,
) -> None:
    silent, back = await home.room_with(SILENT), SILENT[0]
    home.say(silent, "missed")
    for _ in range(240):
        home.pass_time(60)
    home.wire.silent.remove(back)
    home.wire.requests.clear()
    home.hears_from(back)
    waited = 0
    while "missed" not in home.wire.texts(back):
        assert waited < 60
        home.pass_time(1)
        waited += 1


async def test_the_number_of_requests_without_a_slot_is_bounded(home: Home) -> None:
    servers = [ServerName(f"t{number}.silent.example") for number in range(1000)]
    home.wire.silent.update(servers)
    home.say(await home.room_with(servers), "to_nobody")
    for _ in range(60):
        home.pass_time(1)
    assert home.wire.most_open <= MANY_RUNNING + 64 * 60 / MAX_SLOT_SECONDS


async def test_a_server_that_becomes_active_gets_the_next_slot(home: Home) -> None:
    home.say(await home.room_with(SILENT), "missed")
    for _ in range(240):
        home.pass_time(60)
    home.wire.requests.clear()
    home.pass_time(3600 * 2)  # all of them are to be tried at once
    back = [server for server in SILENT if not home.wire.transactions(server)][-1]
    home.wire.silent.remove(back)

    home.hears_from(back)
    home.pass_time(1)

    assert home.wire.texts(back) == ["missed"]

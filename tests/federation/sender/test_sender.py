"""The federation sender: events in order, once, also after outages and restarts, and at no cost
for local rooms."""

from collections.abc import Callable
from pathlib import Path

import pytest

from federation.peers.federation_policy import make_rules
from federation.protocol.ids import ServerName
from federation.sender.sender import BATCH_SIZE
from storage.engine.database import Database, PostgresConfig
from tests.helpers.clocks import settle
from tests.helpers.databases import open_inline
from tests.helpers.federation_sender import DESTINATIONS
from tests.helpers.recording_wire import RecordingWire, pretend_member
from tests.helpers.server import TestServer, User, make_admin

PEER, OTHER = "peer.example", "other.example"
BOB = f"@bob:{PEER}"


class Home:
    """A server with a recording wire, and alice with a room."""

    def __init__(
        self, folder: Path, open_database: Callable[[], Database], config: str = ""
    ) -> None:
        self._config = config
        self.wire = RecordingWire()
        self._open_database = open_database
        self._folder = folder
        self._seed = 0
        self.server = self._build()
        self.alice = self.server.register("alice")
        self.room_id = str(
            self.alice.post("/_matrix/client/v3/createRoom", {"preset": "public_chat"}).json[
                "room_id"
            ]
        )

    def _build(self) -> TestServer:
        self._seed += 1
        folder = self._folder / f"run{self._seed}"
        folder.mkdir()
        server = TestServer(
            folder, self._open_database(), self._config, seed=self._seed, wire=self.wire
        )
        server.app.federation_sender.sender.start()
        settle(server)
        return server

    def restart(self) -> None:
        """As after kill -9, at a later time: a new process on the same database."""
        later = self.server.clock.seconds() + 1
        self.server.app.federation_sender.deliveries.stop()
        self.server = self._build()
        self.server.clock.advance(later - self.server.clock.seconds())
        self.alice = User(
            self.server,
            {"user_id": self.alice.user_id, "access_token": self.alice.token, "device_id": "X"},
        )

    def another_node(self) -> TestServer:
        """On the same database, while the first goes on sending."""
        first, now = self.server, self.server.clock.seconds()
        node = self._build()
        node.clock.advance(now - node.clock.seconds())
        self.server = first
        return node

    def say(self, text: str, room_id: str | None = None) -> str:
        path = f"/_matrix/client/v3/rooms/{room_id or self.room_id}/send/m.room.message/{text}"
        answer = self.alice.put(path, {"msgtype": "m.text", "body": text})
        assert answer.status == 200, answer.body
        return str(answer.json["event_id"])

    def settle(self) -> None:
        settle(self.server)


@pytest.fixture
def home(tmp_path: Path, sqlite: object) -> Home:
    return Home(tmp_path, lambda: open_inline(sqlite))  # type: ignore[arg-type]


async def test_a_message_goes_to_each_server_in_the_room_once(home: Home) -> None:
    await pretend_member(home.server, home.room_id, BOB)
    await pretend_member(home.server, home.room_id, f"@carol:{PEER}")
    await pretend_member(home.server, home.room_id, f"@dan:{OTHER}")

    home.say("hello")
    home.settle()

    assert home.wire.texts(PEER) == home.wire.texts(OTHER) == ["hello"]
    assert {server for server, _ in home.wire.requests} == {PEER, OTHER}


async def test_a_local_room_causes_no_query_of_the_stream(home: Home) -> None:
    home.settle()
    home.say("hello")

    calls = home.server.clock.getDelayedCalls()
    assert [call for call in calls if call.getTime() <= home.server.clock.seconds()] == []
    home.settle()
    assert home.wire.requests == []


async def test_waiting_items_share_a_transaction(home: Home) -> None:
    await pretend_member(home.server, home.room_id, BOB)
    for number in range(70):
        home.say(f"m{number}")
    home.settle()

    transactions = home.wire.transactions(PEER)
    assert [len(body["pdus"]) for _, body in transactions] == [50, 20]
    assert home.wire.texts(PEER) == [f"m{number}" for number in range(70)]
    assert transactions[0][0] != transactions[1][0]


async def test_a_burst_is_sent_completely_and_in_order(home: Home) -> None:
    await pretend_member(home.server, home.room_id, BOB)
    for number in range(BATCH_SIZE + 20):
        home.say(f"m{number}")
    home.settle()

    assert home.wire.texts(PEER) == [f"m{number}" for number in range(BATCH_SIZE + 20)]


async def test_a_server_that_has_left_receives_no_more_events(home: Home) -> None:
    await pretend_member(home.server, home.room_id, BOB)
    home.say("one")
    home.settle()
    await pretend_member(home.server, home.room_id, BOB, "leave")
    home.say("two")
    home.settle()

    assert home.wire.texts(PEER) == ["one"]


async def test_a_banned_users_server_receives_the_ban(home: Home) -> None:
    answer = home.alice.post(f"/_matrix/client/v3/rooms/{home.room_id}/ban", {"user_id": BOB})
    assert answer.status == 200, answer.body
    home.settle()

    ((_, body),) = home.wire.transactions(PEER)
    assert [
        (pdu["type"], pdu["state_key"], pdu["content"]["membership"]) for pdu in body["pdus"]
    ] == [("m.room.member", BOB, "ban")]


async def test_a_failed_transaction_is_repeated_as_it_was(home: Home) -> None:
    await pretend_member(home.server, home.room_id, BOB)
    home.wire.down.add(PEER)
    home.say("one")
    home.settle()
    home.say("two")
    home.settle()
    assert len(home.wire.transactions(PEER)) == 1, "no try before its time"
    assert home.server.app.federation_sender.sender.is_failing(PEER)  # type: ignore[arg-type]

    home.wire.down.clear()
    home.server.clock.advance(5)
    home.settle()

    first, repeated, caught_up = home.wire.transactions(PEER)
    assert first == repeated
    assert [pdu["content"]["body"] for pdu in caught_up[1]["pdus"]] == ["two"]


async def test_backoff_grows_to_at_most_an_hour(home: Home) -> None:
    assert await pauses_of(home, 9) == [5, 15, 45, 135, 405, 1215, 3600, 3600, 3600]


async def test_the_backoff_is_configurable(tmp_path: Path, sqlite: object) -> None:
    config = (
        "federation: {destination_min_retry_interval: 20s, destination_retry_multiplier: 2.5,"
        " destination_max_retry_interval: 2m}\n"
    )
    home = Home(tmp_path, lambda: open_inline(sqlite), config)  # type: ignore[arg-type]
    assert await pauses_of(home, 5) == [20, 50, 120, 120, 120]


async def pauses_of(home: Home, count: int) -> list[int]:
    """After how many seconds, each time, a server is tried again that does not answer."""
    await pretend_member(home.server, home.room_id, BOB)
    home.wire.down.add(PEER)
    home.say("one")
    home.settle()
    tried = []
    for _ in range(count):
        before = len(home.wire.requests)
        waited = 0
        while len(home.wire.requests) == before and waited < 4000:
            home.server.clock.advance(5)
            waited += 5
            home.settle()
        tried.append(waited)
    return tried


async def test_an_active_server_is_retried_at_once(home: Home) -> None:
    await pretend_member(home.server, home.room_id, BOB)
    home.wire.down.add(PEER)
    home.say("one")
    for _ in range(20):
        home.settle()
        home.server.clock.advance(400)

    home.server.clock.advance(2)
    home.wire.down.clear()
    home.wire.requests.clear()
    home.server.app.federation_sender.sender.record_activity(PEER)  # type: ignore[arg-type]
    home.settle()

    assert home.wire.texts(PEER) == ["one"]
    assert not home.server.app.federation_sender.sender.is_failing(PEER)  # type: ignore[arg-type]


@pytest.mark.parametrize("heard_after", [0, 0.3, 5])
async def test_a_server_that_was_active_once_is_retried_soon(
    home: Home, heard_after: float
) -> None:
    await pretend_member(home.server, home.room_id, BOB)
    home.wire.down.add(PEER)
    home.say("one")
    for _ in range(4):
        home.settle()
        home.server.clock.advance(1000)
    home.settle()
    before = len(home.wire.requests)
    while len(home.wire.requests) == before:
        home.server.clock.advance(1)
        home.settle()
    home.wire.down.clear()  # the way is there again just after a try in vain
    home.wire.requests.clear()

    home.server.clock.advance(heard_after)
    home.server.app.federation_sender.sender.record_activity(PEER)  # type: ignore[arg-type]
    home.server.clock.advance(1)
    home.settle()

    assert home.wire.texts(PEER) == ["one"]


async def test_an_outage_ends_in_few_transactions(home: Home) -> None:
    quiet = str(
        home.alice.post("/_matrix/client/v3/createRoom", {"preset": "public_chat"}).json["room_id"]
    )
    for room_id in (home.room_id, quiet):
        await pretend_member(home.server, room_id, BOB)
    home.wire.down.add(PEER)
    home.say("quiet", quiet)
    for number in range(200):
        home.say(f"m{number}")
        home.settle()
    for _ in range(4):
        home.server.clock.advance(3600)
        home.settle()
    home.server.clock.advance(2)

    home.wire.down.clear()
    home.wire.requests.clear()
    home.server.app.federation_sender.sender.record_activity(PEER)  # type: ignore[arg-type]
    home.settle()

    assert len(home.wire.transactions(PEER)) <= 3
    texts = home.wire.texts(PEER)
    assert texts.count("quiet") == 1
    assert texts[-1] == "m199", "the forward extremity is what the rest is found from"
    home.say("live")
    home.settle()
    assert home.wire.texts(PEER)[-1] == "live"
    assert len(home.wire.texts(PEER)) == len(set(home.wire.texts(PEER)))


async def test_a_restart_loses_nothing_that_was_not_sent(home: Home) -> None:
    await pretend_member(home.server, home.room_id, BOB)
    home.say("sent")
    home.settle()
    home.say("written_only")  # the process ends before it looks

    home.restart()
    home.settle()

    assert home.wire.texts(PEER).count("written_only") == 1


async def test_a_restart_in_an_outage_loses_nothing(home: Home) -> None:
    await pretend_member(home.server, home.room_id, BOB)
    home.wire.down.add(PEER)
    home.say("one")
    home.settle()
    home.say("two")
    home.settle()
    home.server.clock.advance(30)

    home.restart()
    home.say("three")
    home.settle()
    home.wire.requests.clear()
    home.wire.down.clear()
    home.server.clock.advance(3600)
    home.settle()

    assert home.wire.texts(PEER) == ["one", "two", "three"]
    ids = [txn_id for txn_id, _ in home.wire.transactions(PEER)]
    assert len(set(ids)) == len(ids)


async def test_an_operator_sees_the_state_of_a_destination(home: Home) -> None:
    await pretend_member(home.server, home.room_id, BOB)
    await pretend_member(home.server, home.room_id, f"@dan:{OTHER}")
    admin = make_admin(home.server)
    home.say("one")
    home.settle()
    home.server.clock.advance(10)
    received = home.server.app.database.streams.current()
    well = {
        "destination": PEER,
        "retry_last_ts": 0,
        "retry_interval": 0,
        "failure_ts": None,
        "last_successful_stream_ordering": received,
        "error": None,
        "asked_until_ts": None,
        "refused": None,
        "rooms_missed": 0,
        "device_lists_missed": 0,
        "messages_to_devices": 0,
    }
    both = [{**well, "destination": OTHER}, well]
    assert admin.get(DESTINATIONS).json == {"destinations": both, "total": 2}

    home.wire.down.add(PEER)
    home.say("two")
    home.settle()
    now = int(home.server.clock.seconds() * 1000)
    trouble = {
        **well,
        "retry_last_ts": now,
        "retry_interval": 5000,
        "failure_ts": now,
        "error": f"{PEER}: the server is down",
        "rooms_missed": 1,
    }
    assert admin.get(f"{DESTINATIONS}/{PEER}").json == trouble
    assert admin.get(f"{DESTINATIONS}?destination=peer").json == {
        "destinations": [trouble],
        "total": 1,
    }
    page = admin.get(f"{DESTINATIONS}?order_by=failure_ts&dir=b&limit=1").json
    assert page == {"destinations": [trouble], "total": 2, "next_token": "1"}
    rooms = admin.get(f"{DESTINATIONS}/{PEER}/rooms").json
    (row,) = rooms["rooms"]
    assert (row["room_id"], row["is_behind"], row["stream_ordering"] > received) == (
        home.room_id,
        True,
        True,
    )

    home.wire.down.clear()
    home.server.clock.advance(5)
    home.settle()
    home.server.clock.advance(10)
    well = {**well, "last_successful_stream_ordering": home.server.app.database.streams.current()}
    assert admin.get(f"{DESTINATIONS}/{PEER}").json == well

    home.server.app.peers.policy.change(make_rules(None, [PEER]))
    assert "blocked" in admin.get(f"{DESTINATIONS}/{PEER}").json["refused"]
    home.server.app.peers.policy.change(make_rules(None, [PEER], is_simulation=True))
    assert admin.get(f"{DESTINATIONS}/{PEER}").json == well


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{DESTINATIONS}/nobody.example", 404),
        (f"{DESTINATIONS}/nobody.example/rooms", 404),
        (f"{DESTINATIONS}?limit=0", 400),
        (f"{DESTINATIONS}?from=-1", 400),
        (f"{DESTINATIONS}?order_by=colour", 400),
    ],
)
async def test_requests_for_unknown_destinations_and_by_users_are_refused(
    home: Home, path: str, status: int
) -> None:
    admin = make_admin(home.server)
    assert admin.get(path).status == status
    assert home.alice.get(DESTINATIONS).status == 403


@pytest.mark.parametrize("has_spoken_in_vain", [False, True])
async def test_an_operator_retries_a_server_at_once(home: Home, has_spoken_in_vain: bool) -> None:
    await pretend_member(home.server, home.room_id, BOB)
    admin = make_admin(home.server)
    home.wire.down.add(PEER)
    home.say("one")
    home.settle()
    for _ in range(5):
        home.server.clock.advance(3600)
        home.settle()
    for _ in range(200 if has_spoken_in_vain else 0):
        home.server.app.federation_sender.sender.record_activity(PEER)  # type: ignore[arg-type]
        home.server.clock.advance(1)
        home.settle()
    home.wire.down.clear()
    home.wire.requests.clear()
    home.server.clock.advance(2 if has_spoken_in_vain else 60)
    assert home.wire.texts(PEER) == []

    assert admin.post(f"{DESTINATIONS}/{PEER}/reset_connection").status == 200
    home.server.clock.advance(1)
    home.settle()

    assert home.wire.texts(PEER) == ["one"]


async def test_activity_seen_by_another_node_makes_the_sending_node_retry(
    tmp_path: Path, postgresql: PostgresConfig
) -> None:
    home = Home(tmp_path, lambda: open_inline(postgresql))
    await pretend_member(home.server, home.room_id, BOB)
    home.wire.down.add(PEER)
    home.say("one")
    home.settle()
    for _ in range(5):
        home.server.clock.advance(1000)
        home.settle()
    other = home.another_node()
    home.wire.down.clear()
    home.wire.requests.clear()

    other.app.federation_sender.sender.record_activity(ServerName(PEER))
    for node in (other, home.server):
        node.clock.advance(10)
        settle(node)
    home.server.clock.advance(1)
    home.settle()

    assert home.wire.texts(PEER) == ["one"]


async def test_a_server_removed_during_an_outage_receives_the_removal_and_nothing_later(
    home: Home,
) -> None:
    await pretend_member(home.server, home.room_id, BOB)
    home.wire.down.add(PEER)
    home.say("before")
    home.settle()
    for _ in range(8):  # the transaction of the first try is given up
        home.server.clock.advance(3600)
        home.settle()
    answer = home.alice.post(f"/_matrix/client/v3/rooms/{home.room_id}/ban", {"user_id": BOB})
    assert answer.status == 200, answer.body
    home.settle()
    home.say("after")
    home.settle()
    home.wire.down.clear()
    home.wire.requests.clear()
    home.server.clock.advance(3600)
    home.settle()

    pdus = [pdu for _, body in home.wire.transactions(PEER) for pdu in body["pdus"]]
    assert [pdu["content"].get("body", pdu["content"].get("membership")) for pdu in pdus] == [
        "before",
        "ban",
    ]


async def test_nothing_is_sent_to_blocked_servers(
    tmp_path: Path, sqlite_database: Database
) -> None:
    wire = RecordingWire()
    server = TestServer(
        tmp_path, sqlite_database, f"federation_domain_whitelist: [{OTHER}]\n", wire=wire
    )
    server.app.federation_sender.sender.start()
    alice = server.register("alice")
    room_id = alice.post("/_matrix/client/v3/createRoom", {"preset": "public_chat"}).json["room_id"]
    await pretend_member(server, room_id, BOB)
    await pretend_member(server, room_id, f"@dan:{OTHER}")
    alice.put(
        f"/_matrix/client/v3/rooms/{room_id}/send/m.room.message/1",
        {"msgtype": "m.text", "body": "hi"},
    )
    settle(server)

    assert wire.texts(OTHER) == ["hi"]
    assert wire.transactions(PEER) == []

"""Sliding sync: what one client makes the server remember has an end, by number and by bytes."""

from pathlib import Path

import pytest

from federation.protocol.endpoint import Requester
from federation.protocol.ids import DeviceID, UserID
from homeserver.services.sliding_sync.connections import EMPTY, Connection
from homeserver.services.sliding_sync.empty_answers import EmptyAnswers
from homeserver.services.sliding_sync.request import ListFilters, ListRequest, RequiredState, RoomConfig, SlidingRequest
from homeserver.services.stream_tokens import SyncToken
from storage.database import Database
from storage.sliding_connections import MOST_OF_A_DEVICE, ConnectionKey
from tests.helpers.server import TestServer
from tests.http.sliding import UNSTABLE, SlidingClient, a_list, create

NOW = SyncToken(5, 0)
CONFIG = RoomConfig(1, RequiredState())


def asked(device: str, conn_id: str, *tags: str) -> tuple[SlidingRequest, Connection]:
    alice = UserID("@alice:example.org")
    filters = ListFilters(tags=frozenset(tags))
    request = SlidingRequest(
        Requester(alice, DeviceID(device), 1), conn_id, None, 0, False, {"all": ListRequest(None, CONFIG, filters)}
    )
    return request, Connection(ConnectionKey(alice, device, conn_id), NOW, 1, EMPTY)


def test_answers_without_news_are_kept_for_as_many_connections_as_a_device_may_have() -> None:
    answers = EmptyAnswers(capacity=1 << 30)
    for number in range(MOST_OF_A_DEVICE + 1):
        answers.keep(*asked("PHONE", str(number)), NOW, {"rooms": {}})
    answers.keep(*asked("TABLET", "0"), NOW, {"rooms": {}})
    assert answers.find(*asked("PHONE", "0"), NOW) is None
    assert answers.find(*asked("PHONE", "1"), NOW) == answers.find(*asked("TABLET", "0"), NOW) == {"rooms": {}}
    assert answers.find(*asked("PHONE", "1", "u.work"), NOW) is None
    weight = answers.weight
    answers.keep(*asked("TABLET", "0"), NOW, {"rooms": {}})
    assert answers.weight == weight


def test_answers_without_news_are_bounded_by_the_bytes_of_what_was_asked() -> None:
    answers = EmptyAnswers(capacity=100_000)
    for number in range(10):
        answers.keep(*asked(f"D{number}", "", *(f"u.{number}.{n}".ljust(200, "x") for n in range(100))), NOW, {})
        assert 20_000 < answers.weight <= 100_000
    answers.keep(*asked("D9", "", "u.work"), NOW, {})
    answers.keep(*asked("HUGE", "", *("x" * 1000 + str(n) for n in range(200))), NOW, {})
    assert answers.weight == 0


def test_a_device_has_so_many_connections_in_memory_too(server: TestServer) -> None:
    alice = server.register("alice")
    create(alice)
    clients = [SlidingClient(alice, str(number), lists={"all": a_list([0, 1])}) for number in range(18)]
    for client in clients:
        client.sync()
        server.clock.advance(1)
    answers = [alice.post(client.path(), client.body) for client in clients]
    assert [answer.status for answer in answers] == [400] * 2 + [200] * MOST_OF_A_DEVICE
    assert answers[0].errcode == "M_UNKNOWN_POS"


def test_what_is_asked_of_rooms_weighs_too(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "caches: {global_factor: 0.01}\n")
    connections = server.app.rooms.sliding.connections
    alice = server.register("alice")
    create(alice)
    state = [[f"org.example.{number}".ljust(255, "x"), ""] for number in range(200)]
    clients = [SlidingClient(alice, str(n), lists={"all": a_list([0, 1], state=state)}) for n in range(15)]
    for client in clients:
        client.sync()
    assert 5 < len(connections) < 12
    for client in clients:
        client.sync()  # the others are read again
    assert 5 < len(connections) < 12


@pytest.mark.parametrize(
    "body",
    [
        {"lists": {"a": a_list([0, 1], tags=["x"] * 501)}},
        {"lists": {"a": a_list([0, 1], spaces=["x" * 256])}},
        {"lists": {"a": a_list([0, 1], room_name_like="x" * 256)}},
        {"extensions": {"receipts": {"enabled": True, "rooms": ["x"] * 501}}},
        {"extensions": {"typing": {"enabled": True, "lists": ["x" * 256]}}},
    ],
)
def test_names_have_an_end(server: TestServer, body: dict[str, object]) -> None:
    answer = server.register("alice").post(UNSTABLE, body)
    assert (answer.status, answer.errcode) == (400, "M_BAD_JSON")

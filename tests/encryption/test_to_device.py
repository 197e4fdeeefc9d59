"""To-device messages: in order, once, kept until they have arrived, and bounded.

spec: client-server-api#send-to-device-messaging
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from homeserver.services.encryption.to_device import MAX_MESSAGES
from homeserver.services.sync.to_device_cache import MAX_BYTES, ToDeviceCache
from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.to_device import DELETE_CHUNK, LOG_RETENTION_MS, MIN_LOGGED, ToDeviceAdded
from storage.engine.database import Database, SQLiteConfig, WriteTransaction
from storage.engine.streams import Change, Streams, Topic
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.encrypted_rooms import numbers_in
from tests.helpers.keys import V3, sync
from tests.helpers.logins import another_device, password_auth
from tests.helpers.server import TestServer, User

pytestmark = pytest.mark.usefixtures("compared")


def test_messages_arrive_once_in_order_and_until_acknowledged(alice: User, bob: User) -> None:
    since = sync(bob)["next_batch"]
    for number in range(3):
        body = {"messages": {bob.user_id: {bob.device_id: {"n": number}}}}
        for _ in range(2):
            assert alice.put(f"{V3}/sendToDevice/m.test/{number}", body).status == 200
    expected = [
        {"type": "m.test", "sender": alice.user_id, "content": {"n": number}} for number in range(3)
    ]
    first = sync(bob, since)
    assert first["to_device"]["events"] == expected
    repeated = sync(bob, since)
    assert repeated["to_device"]["events"] == expected, "the response may have been lost"
    assert sync(bob, repeated["next_batch"])["to_device"]["events"] == []
    assert sync(bob, repeated["next_batch"])["to_device"]["events"] == []


def test_messages_survive_a_restart_in_between(
    tmp_path: Path, server: TestServer, sqlite_database: Database, alice: User, bob: User
) -> None:
    since = sync(bob)["next_batch"]

    def send(numbers: range) -> None:
        for number in numbers:
            body = {"messages": {bob.user_id: {bob.device_id: {"n": number}}}}
            assert alice.put(f"{V3}/sendToDevice/m.test/{number}", body).status == 200

    send(range(3))
    received = sync(bob, since)
    assert len(received["to_device"]["events"]) == 3
    restarted = TestServer(tmp_path, sqlite_database, seed=2, now=server.clock.seconds() + 1)
    alice.server = bob.server = restarted
    send(range(2, 6))
    repeated = sync(bob, since)["to_device"]["events"]
    assert [event["content"]["n"] for event in repeated] == list(range(6)), (
        "the response may have been lost"
    )
    rest = sync(bob, received["next_batch"])
    assert [event["content"]["n"] for event in rest["to_device"]["events"]] == [3, 4, 5], (
        "and a retry is not sent twice"
    )
    assert sync(bob, rest["next_batch"])["to_device"]["events"] == []


def test_many_messages_come_in_several_responses(alice: User, bob: User) -> None:
    since = sync(bob)["next_batch"]
    for number in range(250):
        body = {"messages": {bob.user_id: {"*": {"n": number}}}}
        assert alice.put(f"{V3}/sendToDevice/m.test/{number}", body).status == 200
    numbers: list[int] = []
    for expected in (100, 100, 50, 0):
        answer = sync(bob, since)
        numbers += [event["content"]["n"] for event in answer["to_device"]["events"]]
        assert len(answer["to_device"]["events"]) == expected
        since = answer["next_batch"]
    assert numbers == list(range(250))


def test_many_messages_come_in_several_responses_from_the_first_sync(
    alice: User, bob: User
) -> None:
    send_numbers(alice, bob, range(250))
    numbers: list[int] = []
    since = None
    for expected in (100, 100, 52, 0):
        answer = sync(bob, since)
        assert len(answer["to_device"]["events"]) == expected
        numbers += [event["content"]["n"] for event in answer["to_device"]["events"]]
        since = answer["next_batch"]
        if expected == 100:
            send_numbers(alice, bob, range(900 + len(numbers), 901 + len(numbers)))
    assert numbers == [*range(250), 1000, 1100]


def test_a_first_sync_whose_response_was_lost_is_repeated_completely(
    alice: User, bob: User
) -> None:
    send_numbers(alice, bob, range(250))
    for _ in range(2):
        first = sync(bob)
        assert [event["content"]["n"] for event in first["to_device"]["events"]] == list(range(100))
    second = sync(bob, first["next_batch"])
    assert [event["content"]["n"] for event in second["to_device"]["events"]] == list(
        range(100, 200)
    )


def test_all_endpoints_accept_a_token_from_within_a_long_backlog(alice: User, bob: User) -> None:
    room_id = bob.post(f"{V3}/createRoom").json["room_id"]
    send_numbers(alice, bob, range(150))
    token = sync(bob)["next_batch"]
    bob.put(f"{V3}/rooms/{room_id}/send/m.room.message/1", {"body": "later", "msgtype": "m.text"})
    page = bob.get(f"{V3}/rooms/{room_id}/messages?dir=f&from={token}").json
    assert [event["content"]["body"] for event in page["chunk"]] == ["later"]
    assert bob.get(f"{V3}/keys/changes?from={token}&to={token}").json == {"changed": [], "left": []}
    second = sync(bob, token)
    assert [event["content"]["n"] for event in second["to_device"]["events"]] == list(
        range(100, 150)
    )
    assert [
        event["content"] for event in second["rooms"]["join"][room_id]["timeline"]["events"]
    ] == [{"body": "later", "msgtype": "m.text"}]
    assert sync(bob, second["next_batch"])["to_device"]["events"] == []


def test_messages_that_arrive_during_a_long_backlog_come_after_it_and_once(
    alice: User, bob: User
) -> None:
    send_numbers(alice, bob, range(350))
    since, numbers, next_number = sync(bob)["next_batch"], list(range(100)), 350
    while events := sync(bob, since)["to_device"]["events"]:
        repeated = sync(bob, since)
        assert repeated["to_device"]["events"] == events
        numbers += [event["content"]["n"] for event in events]
        since = repeated["next_batch"]
        if len(numbers) < 400:
            send_numbers(alice, bob, range(next_number, next_number + 1))
            next_number += 1
    assert numbers == list(range(next_number))


def test_a_message_may_be_as_large_as_an_event(alice: User, bob: User) -> None:
    for to in (bob.user_id, "@far:elsewhere.example"):
        body = {
            "messages": {
                to: {bob.device_id: {"text": "x" * 70_000}},
                alice.user_id: {alice.device_id: {}},
            }
        }
        answer = alice.put(f"{V3}/sendToDevice/m.test/large-{to[1:4]}", body)
        assert (answer.status, answer.errcode) == (413, "M_TOO_LARGE")
    assert sync(alice)["to_device"]["events"] == [], "no message of a refused request is sent"


def test_one_request_reaches_a_bounded_number_of_devices(
    server: TestServer, alice: User, bob: User
) -> None:
    devices = DeviceStore(server.app.database)

    def add(txn: WriteTransaction, numbers: range) -> None:
        for number in numbers:
            devices.add_device(txn, DeviceRow(bob.user_id, f"D{number}", None, 0))

    server.run(server.app.database.write("add", add, range(1, MAX_MESSAGES)))
    body: dict[str, Any] = {"messages": {bob.user_id: {"*": {"n": 0}}}}
    assert alice.put(f"{V3}/sendToDevice/m.test/1", body).status == 200
    server.run(server.app.database.write("add", add, range(MAX_MESSAGES, MAX_MESSAGES + 1)))
    assert alice.put(f"{V3}/sendToDevice/m.test/2", body).errcode == "M_INVALID_PARAM"
    assert len(sync(bob)["to_device"]["events"]) == 1, "no message of the refused request"


def test_a_wildcard_means_the_existing_devices(server: TestServer, alice: User, bob: User) -> None:
    login = password_auth(bob.user_id)
    second = User(server, server.post(f"{V3}/login", login).json)
    body = {"messages": {bob.user_id: {"*": {"n": 1}}, alice.user_id: {"*": {"n": 2}}}}
    assert alice.put(f"{V3}/sendToDevice/m.test/1", body).status == 200
    later = User(server, server.post(f"{V3}/login", login).json)
    got = [
        [event["content"]["n"] for event in sync(user)["to_device"]["events"]]
        for user in (bob, second, later, alice)
    ]
    assert got == [[1], [1], [], [2]]


def send_numbers(sender: User, to: User, numbers: range) -> None:
    for number in numbers:
        body = {"messages": {to.user_id: {to.device_id: {"n": number}}}}
        assert sender.put(f"{V3}/sendToDevice/m.test/{number}", body).status == 200


def test_messages_for_a_deleted_device_are_deleted(
    server: TestServer, alice: User, bob: User
) -> None:
    login = {**password_auth(bob.user_id), "device_id": bob.device_id}
    body: dict[str, Any] = {"messages": {bob.user_id: {"NOSUCHDEVICE": {}, bob.device_id: {}}}}
    assert alice.put(f"{V3}/sendToDevice/m.test/1", body).status == 200
    assert bob.post(f"{V3}/logout", {}).status == 200
    new_session = User(server, server.post(f"{V3}/login", login).json)
    assert sync(new_session)["to_device"]["events"] == [], (
        "a new device with the old ID is a new device"
    )


SLIDING_SYNC = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"


def to_device_of(user: User, since: str | None) -> list[int]:
    """Return the messages of a sliding sync response."""
    wanted = {"enabled": True} | ({} if since is None else {"since": since})
    answer = user.post(SLIDING_SYNC, {"lists": {}, "extensions": {"to_device": wanted}})
    assert answer.status == 200, answer.body
    return [event["content"]["n"] for event in answer.json["extensions"]["to_device"]["events"]]


@pytest.mark.parametrize("ends", ["logout", "logout/all"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_new_session_gets_no_message_of_its_devices_old_session(
    nodes: list[TestServer], elsewhere: bool, ends: str
) -> None:
    """Not from the cache either, on the node that sent it, wherever the old session ended."""
    here, there = nodes[0], nodes[elsewhere]
    alice, bob = here.register("alice"), here.register("bob")
    since = sync(bob)["next_batch"]
    since = sync(bob, since)["next_batch"]
    assert to_device_of(bob, None) == []
    send_numbers(alice, bob, range(3))
    bob.server = there
    assert bob.post(f"{V3}/{ends}", {}).status == 200
    login = {**password_auth(bob.user_id), "device_id": bob.device_id}
    new = User(here, here.post(f"{V3}/login", login).json)
    assert (new.device_id, to_device_of(new, None)) == (bob.device_id, [])
    assert to_device_of(new, since.split("_")[0].lstrip("s")) == []
    assert numbers_in(sync(new, since)) == []
    send_numbers(alice, new, range(5, 7))
    assert to_device_of(new, None) == [5, 6]
    assert numbers_in(sync(new, since)) == [5, 6]


def test_a_session_started_on_a_node_without_notice_gets_no_message_of_the_old_one(
    nodes: list[TestServer],
) -> None:
    """Its first response is read from the database, which is right before the change of the other
    node arrives."""
    here, there = nodes
    alice, bob = here.register("alice"), here.register("bob")
    assert to_device_of(bob, None) == []
    send_numbers(alice, bob, range(3))
    bob.server = there
    assert bob.post(f"{V3}/logout", {}).status == 200
    login = {**password_auth(bob.user_id), "device_id": bob.device_id}
    new = User(here, there.post(f"{V3}/login", login).json)
    assert to_device_of(new, None) == []
    assert numbers_in(sync(new)) == []


def test_a_device_that_keeps_up_needs_no_query(tmp_path: Path, sqlite: SQLiteConfig) -> None:
    counter = QueryCounter()
    database = open_inline(sqlite, counter)
    server = TestServer(tmp_path, database)
    alice, bob = server.register("alice"), server.register("bob")
    since = sync(bob)["next_batch"]
    for number in range(4):
        send_numbers(alice, bob, range(number * 2, number * 2 + 2))
        counter.clear()
        answer = sync(bob, since)
        assert numbers_in(answer) == [number * 2, number * 2 + 1]
        assert dict(counter.queries) == ({"remove_to_device": 2} if number else {}), (
            "except to remove acknowledged messages"
        )
        since = answer["next_batch"]
    counter.clear()
    assert numbers_in(sync(bob, since)) == []
    assert dict(counter.queries) == {"remove_to_device": 2}
    rows = server.run(
        database.read("count", lambda txn: txn.query("SELECT count(*) FROM to_device_messages"))
    )
    assert rows == [(0,)]
    Deferred.fromCoroutine(database.close())


def test_a_wake_is_answered_from_memory_and_a_later_token_removes(
    server: TestServer, alice: User, bob: User
) -> None:
    since = sync(bob)["next_batch"]
    pending = server.client.start("GET", f"{V3}/sync?since={since}&timeout=30000", token=bob.token)
    assert not pending.done
    send_numbers(alice, bob, range(1))
    server.clock.advance(0)
    woken = pending.answer.json
    assert numbers_in(woken) == [0]
    assert numbers_in(sync(bob, since)) == [0], "the response may have been lost"
    assert numbers_in(sync(bob, woken["next_batch"])) == []
    assert numbers_in(sync(bob)) == [], "it has arrived"


def test_equal_contents_count_once_in_memory() -> None:
    streams = Streams()
    recent = ToDeviceCache(streams=streams, max_bytes=1000)

    def send(first: int, *contents: bytes) -> None:
        bobs = [("@bob:example.org", f"D{n}", n) for n in range(len(contents))]
        new = ToDeviceAdded(first, b"", bobs, contents)
        streams.publish(
            [Change(new.last, Topic.TO_DEVICE, user_ids=("@bob:example.org",), detail=new)],
            new.last,
        )

    alike = b"a" * 600
    send(1, *[alike] * 80)
    assert [position for position, _, _ in recent.since(("@bob:example.org", "D79"), 0) or ()] == [
        80
    ]
    send(81, b"b" * 200, b"c" * 200)
    assert [position for position, _, _ in recent.since(("@bob:example.org", "D1"), 0) or ()] == [
        2,
        82,
    ]
    send(83, b"d")
    assert recent.since(("@bob:example.org", "D1"), 0) is None, "the oldest was evicted"
    assert [position for position, _, _ in recent.since(("@bob:example.org", "D1"), 80) or ()] == [
        82
    ]


def test_messages_beyond_the_cache_are_read_from_the_database(alice: User, bob: User) -> None:
    """Half a megabyte more than the cache holds: read from the database and from memory, they come
    once, in order."""
    since = sync(bob)["next_batch"]
    filler = "x" * 60_000
    sent = (MAX_BYTES + (1 << 19)) // len(filler)
    for number in range(sent):
        body = {"messages": {bob.user_id: {bob.device_id: {"n": number, "filler": filler}}}}
        assert alice.put(f"{V3}/sendToDevice/m.test/{number}", body).status == 200
    received: list[int] = []
    while found := numbers_in(answer := sync(bob, since)):
        received += found
        since = answer["next_batch"]
    assert received == list(range(sent))


def test_an_acknowledged_backlog_is_left_to_the_job_while_later_messages_are_removed(
    server: TestServer, alice: User, bob: User
) -> None:
    database = server.app.database

    def stored() -> int:
        rows = server.run(
            database.read("count", lambda txn: txn.query("SELECT count(*) FROM to_device_messages"))
        )
        return int(rows[0][0])

    waiting = DELETE_CHUNK + 50
    to_device = server.app.accounts.stores.to_device

    def send(txn: WriteTransaction) -> None:
        (device,) = to_device.get_devices(txn, [bob.user_id])[bob.user_id].values()
        to_device.add_messages(txn, b'{"content":', [device] * waiting, [b'{"n":0}'] * waiting, 0)

    server.run(database.write("send", send))
    while server.run(to_device.sweep(200, LOG_RETENTION_MS + 1)):
        pass
    since = sync(bob, sync(alice)["next_batch"])["next_batch"]
    assert stored() == waiting, "a floor is set"
    send_numbers(alice, bob, range(1, 3))
    answer = sync(bob, since)
    assert numbers_in(answer) == [1, 2]
    assert numbers_in(sync(bob, answer["next_batch"])) == []
    assert stored() == waiting, "the two were removed, and nothing else in the same statement"
    while server.run(to_device.sweep(200, 0)):
        pass
    assert stored() == 0
    assert numbers_in(sync(bob, answer["next_batch"])) == []


def logged_rows(server: TestServer) -> int:
    rows = server.run(
        server.app.database.read(
            "count", lambda txn: txn.query("SELECT count(*) FROM to_device_log")
        )
    )
    return int(rows[0][0])


def test_messages_to_many_devices_arrive_once_in_order_and_until_acknowledged(
    tmp_path: Path, server: TestServer, sqlite_database: Database, alice: User, bob: User
) -> None:
    """With messages to one device before and after, over a restart, and with the cleanup job."""
    others = [another_device(bob) for _ in range(MIN_LOGGED)]
    since = sync(bob)["next_batch"]
    send_numbers(alice, bob, range(1))
    everybody = {"*": {"n": 1}, bob.device_id: {"n": 2}, "NOSUCHDEVICE": {"n": -1}}
    each = {user.device_id: {"n": number} for number, user in enumerate([bob, *others], 3)}
    for txn_id, messages in (("all", everybody), ("each", each), ("all", everybody)):
        body = {"messages": {bob.user_id: messages}}
        assert alice.put(f"{V3}/sendToDevice/m.test/{txn_id}", body).status == 200
    send_numbers(alice, bob, range(100, 101))
    assert logged_rows(server) == 2
    first = sync(bob, since)
    assert numbers_in(first) == [0, 1, 2, 3, 100]
    assert [numbers_in(sync(user)) for user in others] == [
        [1, number] for number in range(4, 4 + len(others))
    ]
    restarted = TestServer(tmp_path, sqlite_database, seed=2, now=server.clock.seconds() + 1)
    bob.server = alice.server = restarted
    repeated = sync(bob, since)
    assert repeated["to_device"]["events"] == first["to_device"]["events"], (
        "the response may have been lost"
    )
    assert repeated["to_device"]["events"][1] == {
        "type": "m.test",
        "sender": alice.user_id,
        "content": {"n": 1},
    }
    assert numbers_in(sync(bob, repeated["next_batch"])) == []
    assert numbers_in(sync(bob)) == [], "it has arrived"
    others[0].server = restarted
    token = sync(others[0])["next_batch"]
    later = int(restarted.clock.seconds() * 1000) + LOG_RETENTION_MS + 1
    while restarted.run(restarted.app.accounts.stores.to_device.sweep(50, later)):
        pass
    assert logged_rows(restarted) == 0
    assert numbers_in(sync(bob)) == []
    assert numbers_in(sync(others[0])) == [1, 4], "it was not acknowledged"
    assert numbers_in(sync(others[0], token)) == []


def test_a_session_unknown_to_a_node_gets_messages_sent_there(nodes: list[TestServer]) -> None:
    """The sending node may have cached the user's devices before the session started on another
    node."""
    here, there = nodes
    alice, bob = here.register("alice"), here.register("bob")
    send_numbers(alice, bob, range(2))
    second = another_device(bob, server=there)
    body: dict[str, Any] = {"messages": {bob.user_id: {second.device_id: {"n": 2}}}}
    assert alice.put(f"{V3}/sendToDevice/m.test/second", body).status == 200
    there.run(there.app.database.catch_up())
    assert numbers_in(sync(second)) == [2]
    bob.server = there
    assert bob.post(f"{V3}/logout", {}).status == 200
    new_session = another_device(second, bob.device_id)
    body = {"messages": {bob.user_id: {bob.device_id: {"n": 3}, "*": {"n": 4}}}}
    assert alice.put(f"{V3}/sendToDevice/m.test/again", body).status == 200
    there.run(there.app.database.catch_up())
    assert [numbers_in(sync(user)) for user in (new_session, second)] == [[3, 4], [2, 4]]


@pytest.fixture
def nodes(tmp_path: Path, sqlite: SQLiteConfig) -> Iterator[list[TestServer]]:
    """Two nodes on one database."""
    databases = [open_inline(sqlite), open_inline(sqlite)]
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    yield [
        TestServer(*place, seed=seed)
        for seed, place in enumerate(zip(folders, databases, strict=True), 1)
    ]
    for database in databases:
        Deferred.fromCoroutine(database.close())


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.sampled_from(["send", "many", "sync", "again", "first", "elsewhere"]), max_size=16)
)
def test_messages_arrive_in_order_and_once_from_either_node(
    nodes: list[TestServer], steps: list[str]
) -> None:
    """Either node serves a request. A used token works again, as after a lost response."""
    alice, bob = nodes[0].register(f"alice{uuid4().hex}"), nodes[0].register(f"bob{uuid4().hex}")
    sent, arrived, here = 0, 0, 0
    others = [another_device(bob, server=nodes[0]).device_id for _ in range(MIN_LOGGED)]
    nodes[1].run(nodes[1].app.database.catch_up())
    since = sync(bob)["next_batch"]
    received: list[int] = []
    for step in [*steps, "sync", "sync"]:
        node = alice.server = bob.server = nodes[here]
        match step:
            case "send":
                send_numbers(alice, bob, range(sent, sent + 1))
                sent += 1
            case "many":
                messages = {
                    bob.user_id: {device_id: {"n": sent} for device_id in (bob.device_id, *others)}
                }
                assert (
                    alice.put(f"{V3}/sendToDevice/m.test/{sent}", {"messages": messages}).status
                    == 200
                )
                sent += 1
            case "sync":
                arrived = len(received)
                answer = sync(bob, since)
                received += numbers_in(answer)
                since = answer["next_batch"]
            case "again":
                assert numbers_in(sync(bob, since)) == list(range(len(received), sent))
                arrived = len(received)
            case "first":
                assert numbers_in(sync(bob)) == list(range(arrived, sent)), (
                    "the messages that were not acknowledged"
                )
            case _:
                here = 1 - here
                node = nodes[here]
                node.run(node.app.database.catch_up())
        assert received == list(range(len(received)))
    assert received == list(range(sent))

"""Of several nodes on one database only one sends pushes, for writes of all. Another one takes over
when it is gone."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from homeserver.services.pushers.pusher_users import PusherUsers
from storage.engine.database import DatabaseUnavailable, PostgresConfig
from storage.engine.interface import NodeChannel
from storage.engine.transaction import WriteTransaction
from storage.push.pushers import PusherRow
from storage.retention.purging import PurgeCause, PurgingStore
from tests.helpers.clocks import settle
from tests.helpers.keys import sync
from tests.helpers.leases import kill_part, set_node
from tests.helpers.logins import password_auth
from tests.helpers.node_pair import SeparateNodes
from tests.helpers.push_gateway import PushGateway, set_pusher
from tests.helpers.server import TestServer, User, move_user
from tests.helpers.sync_requests import poll, token

V3 = "/_matrix/client/v3"


class PushingNodes(SeparateNodes):
    """Two nodes with separate push gateways, a room, and Alice, who has a pusher."""

    def __init__(self, folder: Path, config: PostgresConfig) -> None:
        self.gateways = [PushGateway(), PushGateway()]
        super().__init__(folder, config, [{"web": each} for each in self.gateways])
        for server in self.servers:
            server.app.pushers.start()
        self.alice, self.bob = self.servers[0].register("alice"), self.servers[0].register("bob")
        self.room_id = str(
            self.bob.post(f"{V3}/createRoom", {"preset": "public_chat"}).json["room_id"]
        )
        assert self.alice.post(f"{V3}/join/{self.room_id}").status == 200

    def on(self, node: int, user: User) -> User:
        return move_user(self.servers[node], user)

    def say(self, node: int, text: str) -> str:
        path = f"{V3}/rooms/{self.room_id}/send/m.room.message/{text}"
        answer = self.on(node, self.bob).put(path, {"msgtype": "m.text", "body": text})
        assert answer.status == 200, answer.body
        return str(answer.json["event_id"])

    def wait(self, seconds: int = 1, nodes: tuple[int, ...] = (0, 1)) -> None:
        for _ in range(seconds):
            for number in nodes:
                self.servers[number].clock.advance(1)
                settle(self.servers[number])

    def texts(self) -> list[list[str]]:
        return [
            [
                each.notification["content"]["body"]
                for each in gateway.taken
                if "content" in each.notification
            ]
            for gateway in self.gateways
        ]


def purge(server: TestServer, event_id: str) -> None:
    """Purge the content of an event."""
    store = PurgingStore(server.app.database)

    def write(txn: WriteTransaction) -> int:
        row = txn.query_one(
            "SELECT event_nid, room_nid, pdu FROM events WHERE event_id = ?", (event_id,)
        )
        assert row is not None
        bare = {**json.loads(row[2]), "content": {}}
        return store.purge(txn, row[1], {row[0]: json.dumps(bare).encode()}, PurgeCause.PURGE, 0)

    assert server.run(server.app.database.write("purge", write)) == 1


@pytest.fixture
def nodes(tmp_path: Path, postgresql: PostgresConfig) -> Iterator[PushingNodes]:
    made = PushingNodes(tmp_path, postgresql)
    yield made
    made.close()


async def test_the_first_node_pushes_for_both_and_the_second_takes_over(
    nodes: PushingNodes,
) -> None:
    assert set_pusher(nodes.on(1, nodes.alice)).status == 200, "set on the node that does not push"
    nodes.wait()
    nodes.say(0, "one")
    nodes.say(1, "two")
    nodes.wait()
    assert nodes.texts() == [["one", "two"], []]

    await nodes.servers[0].app.pushers.stop()
    nodes.say(0, "three")
    nodes.wait(12)
    nodes.say(0, "four")
    nodes.wait()
    assert nodes.texts() == [["one", "two"], ["three", "four"]]


async def test_a_read_receipt_on_the_other_node_sets_the_badge(nodes: PushingNodes) -> None:
    set_pusher(nodes.alice)
    nodes.wait()
    event_id = nodes.say(1, "one")
    nodes.wait()
    alice = nodes.on(1, nodes.alice)
    assert alice.post(f"{V3}/rooms/{nodes.room_id}/receipt/m.read.private/{event_id}").status == 200
    nodes.wait(5)
    assert nodes.gateways[0].badges == [0]


async def test_a_pusher_deleted_on_the_other_node_gets_no_pushes(
    nodes: PushingNodes,
) -> None:
    set_pusher(nodes.alice)
    nodes.wait()
    nodes.say(0, "one")
    nodes.wait()
    assert nodes.on(1, nodes.alice).post(f"{V3}/logout").status == 200
    nodes.wait()
    nodes.say(0, "two")
    nodes.wait()
    assert nodes.texts() == [["one"], []]


async def test_a_node_that_vanishes_is_replaced_when_its_lease_ends(nodes: PushingNodes) -> None:
    set_pusher(nodes.alice)
    nodes.wait(12)
    nodes.gateways[0].held = []
    nodes.say(0, "one")
    nodes.wait()
    nodes.wait(45, nodes=(1,))
    assert nodes.texts() == [[], ["one"]]


def register(nodes: PushingNodes, number: int, seconds: int = 12) -> NodeChannel:
    """Register a node as one that is connected to the others. It counts as alive until the returned
    connection is closed."""
    calls = nodes.databases[number].engine.open_node_channel()
    assert calls is not None
    set_node(nodes.servers[number].app.pushers.reading, lambda: calls.node)
    nodes.wait(seconds, nodes=(number,))
    return calls


def kill(nodes: PushingNodes, number: int, calls: NodeChannel) -> None:
    """Kill a node: it does nothing any more."""
    pushers = nodes.servers[number].app.pushers
    kill_part(pushers.reading)
    pushers.deliveries.stop()
    calls.close()
    other = nodes.servers[1 - number]
    while calls.node in other.run(other.app.database.get_nodes()):
        time.sleep(0.01)


async def test_a_killed_node_that_restarts_continues_at_once(
    nodes: PushingNodes, tmp_path: Path
) -> None:
    set_pusher(nodes.alice)
    nodes.wait()
    calls = register(nodes, 0)
    await nodes.servers[1].app.pushers.stop()
    kill(nodes, 0, calls)
    nodes.say(0, "one")
    nodes.gateways[0].taken.clear()
    text = "database: {name: psycopg2, args: {}}\n"
    now = nodes.servers[0].clock.seconds()
    restarted = TestServer(
        tmp_path / "0", nodes.databases[0], text, seed=3, now=now, web=nodes.gateways[0]
    )
    restarted.app.pushers.start()
    settle(restarted)
    assert nodes.texts() == [["one"], []]


async def test_only_a_dead_node_is_replaced_before_its_lease_ends(
    nodes: PushingNodes,
) -> None:
    set_pusher(nodes.alice)
    nodes.wait()
    calls = register(nodes, 0)
    nodes.gateways[0].held = []
    nodes.say(0, "one")
    nodes.wait()
    nodes.wait(20, nodes=(1,))
    assert nodes.texts() == [[], []], "it seems alive, and its lease has not ended"
    nodes.wait(10, nodes=(0,))
    kill(nodes, 0, calls)
    nodes.wait(10, nodes=(1,))
    assert nodes.texts() == [[], []], "it has one round to announce its new number"
    nodes.wait(10, nodes=(1,))
    assert nodes.texts() == [[], ["one"]]


async def test_a_node_killed_in_its_first_seconds_is_replaced_as_soon(
    nodes: PushingNodes,
) -> None:
    """It had no node number yet when it took the lease."""
    calls = register(nodes, 0, seconds=1)
    set_pusher(nodes.alice)
    nodes.gateways[0].held = []
    nodes.say(0, "one")
    nodes.wait()
    kill(nodes, 0, calls)
    nodes.wait(20, nodes=(1,))
    assert nodes.texts() == [[], ["one"]]


async def test_a_node_that_lost_its_connection_continues_under_another_number(
    nodes: PushingNodes,
) -> None:
    set_pusher(nodes.alice)
    nodes.wait()
    register(nodes, 0).close()
    nodes.wait(10, nodes=(1,))
    calls = register(nodes, 0)
    nodes.wait(20)
    nodes.say(0, "one")
    nodes.wait()
    assert nodes.texts() == [["one"], []]
    calls.close()


@pytest.mark.parametrize("how", ["leave", "redact", "purge"])
async def test_unread_counts_changed_through_the_other_node_set_the_badge(
    nodes: PushingNodes, how: str
) -> None:
    set_pusher(nodes.alice)
    nodes.wait()
    event_id = nodes.say(0, "one")
    nodes.wait(5)
    assert nodes.texts() == [["one"], []]
    if how == "leave":
        assert nodes.on(1, nodes.alice).post(f"{V3}/rooms/{nodes.room_id}/leave").status == 200
    elif how == "redact":
        path = f"{V3}/rooms/{nodes.room_id}/redact/{event_id}/one"
        assert nodes.on(1, nodes.bob).put(path, {}).status == 200
    else:
        purge(nodes.servers[1], event_id)
    nodes.wait(5)
    assert nodes.gateways[0].badges == [0]


async def test_a_pusher_enabled_through_the_other_node_gets_the_badge(
    nodes: PushingNodes,
) -> None:
    set_pusher(nodes.alice)
    nodes.wait()
    event_id = nodes.say(0, "one")
    nodes.wait(70)
    set_pusher(nodes.on(1, nodes.alice), **{"org.matrix.msc3881.enabled": False})
    await nodes.servers[0].app.pushers.stop()
    nodes.wait(12)
    alice = nodes.on(0, nodes.alice)
    assert (
        alice.post(f"{V3}/rooms/{nodes.room_id}/receipt/m.read.private/{event_id}", {}).status
        == 200
    )
    nodes.wait(5)
    set_pusher(alice, **{"org.matrix.msc3881.enabled": True})
    nodes.wait(5)
    assert [gateway.badges for gateway in nodes.gateways] == [[], [0]]


@pytest.mark.parametrize("how", ["accept", "ignore", "take_no_invites"])
async def test_an_invite_answered_through_the_other_node_is_no_longer_counted(
    nodes: PushingNodes, how: str
) -> None:
    set_pusher(nodes.alice)
    nodes.wait()
    room_id = nodes.bob.post(
        f"{V3}/createRoom", {"preset": "private_chat", "invite": [nodes.alice.user_id]}
    ).json["room_id"]
    nodes.wait(5)
    assert [push.notification["counts"] for push in nodes.gateways[0].taken] == [{"unread": 1}]
    alice, bob_id = nodes.on(1, nodes.alice), nodes.bob.user_id
    kept = f"{V3}/user/{alice.user_id}/account_data"
    if how == "accept":
        assert alice.post(f"{V3}/join/{room_id}").status == 200
    elif how == "ignore":
        assert (
            alice.put(f"{kept}/m.ignored_user_list", {"ignored_users": {bob_id: {}}}).status == 200
        )
    else:
        content = {"ignored_users": [bob_id]}
        assert (
            alice.put(f"{kept}/org.matrix.msc4155.invite_permission_config", content).status == 200
        )
    nodes.wait(5)
    assert nodes.gateways[0].badges == [0]


async def test_a_badge_changed_by_the_other_node_is_pushed_when_the_database_is_back(
    nodes: PushingNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_pusher(nodes.alice)
    nodes.wait()
    body = {"preset": "private_chat", "invite": [nodes.alice.user_id]}
    room_id = nodes.bob.post(f"{V3}/createRoom", body).json["room_id"]
    nodes.wait(5)

    async def be_away(
        _: PusherUsers, _user_ids: Iterable[str]
    ) -> Mapping[str, Sequence[PusherRow]]:
        raise DatabaseUnavailable("the database is down")

    with monkeypatch.context() as patched:
        patched.setattr(PusherUsers, "get", be_away)
        assert nodes.on(1, nodes.alice).post(f"{V3}/rooms/{room_id}/leave").status == 200
        nodes.wait(12)
        stored = await nodes.databases[0].read(
            "get_position",
            lambda txn: txn.query_one("SELECT position FROM leases WHERE name = 'push'"),
        )
        assert stored is not None
        assert stored[0] < nodes.databases[0].streams.current()
    nodes.wait(15)
    assert nodes.gateways[0].badges == [0]


async def test_a_node_does_not_skip_a_badge_that_it_sent_before_the_other_node(
    nodes: PushingNodes,
) -> None:
    """The first node sends 1, the second 2; then the first must send 1 again."""
    set_pusher(nodes.alice)
    nodes.wait()
    nodes.say(0, "one")
    nodes.wait(5)
    await nodes.servers[0].app.pushers.stop()
    nodes.wait(12)
    body = {"preset": "private_chat", "invite": [nodes.alice.user_id]}
    invited = nodes.bob.post(f"{V3}/createRoom", body).json["room_id"]
    nodes.wait(5)
    nodes.servers[0].app.pushers.start()
    await nodes.servers[1].app.pushers.stop()
    nodes.wait(12)
    assert nodes.alice.post(f"{V3}/rooms/{invited}/leave").status == 200
    nodes.wait(5)
    received = [
        [push.notification["counts"]["unread"] for push in gateway.taken]
        for gateway in nodes.gateways
    ]
    assert received == [[1, 1], [2]]


async def test_events_purged_through_the_other_node_are_no_longer_counted(
    nodes: PushingNodes,
) -> None:
    event_id = nodes.say(0, "one")
    nodes.wait()
    alice = nodes.on(0, nodes.alice)
    before = sync(alice)
    pending = alice.start("GET", f"{V3}/sync?since={before['next_batch']}&timeout=30000")
    purge(nodes.servers[1], event_id)
    nodes.wait()
    assert pending.done
    room = pending.answer.json["rooms"]["join"][nodes.room_id]
    assert room["unread_notifications"]["notification_count"] == 0
    assert before["rooms"]["join"][nodes.room_id]["unread_notifications"]["notification_count"] == 1
    assert "rooms" not in sync(alice, pending.answer.json["next_batch"])


def test_a_user_who_reads_at_the_pushing_node_gets_no_push_for_a_receipt_on_any_node(
    nodes: PushingNodes,
) -> None:
    """The pushing node does not know that a user reads through the other node, and pushes at
    once."""
    set_pusher(nodes.alice)
    body = password_auth(nodes.alice.user_id)
    desk = User(nodes.servers[0], nodes.servers[0].post(f"{V3}/login", body).json)

    def read(event_id: str) -> None:
        path = f"{V3}/rooms/{nodes.room_id}/receipt/m.read/{event_id}"
        assert nodes.on(1, desk).post(path, {}).status == 200

    nodes.wait(3)
    first = nodes.say(1, "first")
    nodes.wait(3)
    read(first)
    nodes.wait(3)
    poll(desk, token(desk), timeout=300_000)
    held = nodes.say(1, "held")
    nodes.wait(2)
    read(held)
    nodes.wait(20)
    assert nodes.texts() == [["first"], []]
    elsewhere = nodes.on(1, desk)
    poll(elsewhere, token(elsewhere), timeout=300_000)
    nodes.say(1, "at_once")
    nodes.wait(2)
    assert nodes.texts() == [["first", "at_once"], []]

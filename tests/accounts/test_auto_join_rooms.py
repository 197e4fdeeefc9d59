"""Auto-join rooms of new accounts, and retries after a restart."""

from pathlib import Path

import pytest

from homeserver.services.accounts.auto_join_rooms import LEASE_MS
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from tests.helpers.network import Fate, Network
from tests.helpers.remote_membership import NORTH, SOUTH
from tests.helpers.room_actions import V3, create, ok
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import sync

CONFIG = (
    'auto_join_rooms: ["#everyone:example.org", "#missing:example.org",'
    ' "#closed:example.org",'
    ' "#news:example.org"]\n'
)


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database, CONFIG)


def rooms_of(user: User) -> set[str]:
    return set(ok(user.get(f"{V3}/joined_rooms"))["joined_rooms"])


def test_new_accounts_join_the_rooms_at_registration(server: TestServer) -> None:
    alice = server.register("alice")
    assert rooms_of(alice) == set()
    everyone, news_room = [
        create(alice, preset="public_chat", room_alias_name=name) for name in ("everyone", "news")
    ]
    create(alice, preset="private_chat", room_alias_name="closed")
    bob = server.register("bob")
    assert rooms_of(bob) == {everyone, news_room}
    assert set(sync(bob)["rooms"]["join"]) == {everyone, news_room}


def test_guests_join_no_rooms(server: TestServer) -> None:
    alice = server.register("alice")
    open_to_guests = [{"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}]
    create(alice, preset="public_chat", room_alias_name="everyone", initial_state=open_to_guests)
    guest = User(server, ok(server.post(f"{V3}/register?kind=guest", {})))
    assert rooms_of(guest) == set()


async def make_pending_join(server: TestServer) -> tuple[User, str]:
    """Return a user with a pending join, leased by a node that has just stopped, and the room."""
    alice = server.register("alice")
    everyone = create(alice, preset="public_chat", room_alias_name="everyone")
    carol = server.register("carol")
    ok(carol.post(f"{V3}/rooms/{everyone}/leave"))
    due_ts = int(server.clock.seconds() * 1000) + LEASE_MS
    database = server.app.database
    await database.write(
        "stopped", AccountStore(database).add_pending_auto_join, carol.user_id, due_ts
    )
    return carol, everyone


async def test_pending_joins_are_retried_at_the_start(
    server: TestServer,
) -> None:
    carol, everyone = await make_pending_join(server)
    server.app.room_services.auto_join_rooms.start()
    assert rooms_of(carol) == {everyone}
    assert await server.app.room_services.auto_join_rooms.do_resume(50, at_start=True) == 0


@pytest.mark.parametrize("name", ["sqlite3", "psycopg2"])
async def test_only_a_single_node_retries_leased_joins_at_the_start(
    tmp_path: Path, sqlite_database: Database, name: str
) -> None:
    args = "{database: x}" if name == "sqlite3" else "{}"
    server = TestServer(
        tmp_path, sqlite_database, f"database: {{name: {name}, args: {args}}}\n{CONFIG}"
    )
    carol, everyone = await make_pending_join(server)
    server.app.background.start()
    assert rooms_of(carol) == ({everyone} if name == "sqlite3" else set())


async def test_joins_of_a_stopped_node_are_retried_after_the_lease(
    server: TestServer,
) -> None:
    carol, everyone = await make_pending_join(server)
    server.app.jobs.start()
    for _ in range(LEASE_MS // 60_000 - 2):
        server.clock.advance(60)
        assert rooms_of(carol) == set(), "the lease has not expired"
    for _ in range(3):
        server.clock.advance(60)
    assert rooms_of(carol) == {everyone}
    assert await server.app.room_services.auto_join_rooms.do_resume(50, at_start=True) == 0


async def test_a_node_stops_when_its_lease_expires(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    carol, everyone = await make_pending_join(server)
    database, accounts = server.app.database, AccountStore(server.app.database)
    await database.write("stopped", accounts.add_pending_auto_join, "@a:example.org", 0)
    remove = AccountStore.remove_pending_auto_join

    def remove_slowly(self: AccountStore, txn: WriteTransaction, user_id: str) -> None:
        server.clock.advance(LEASE_MS / 1000)
        remove(self, txn, user_id)

    monkeypatch.setattr(AccountStore, "remove_pending_auto_join", remove_slowly)
    assert await server.app.room_services.auto_join_rooms.do_resume(50, at_start=True) == 1
    assert rooms_of(carol) == set()
    assert await server.app.room_services.auto_join_rooms.do_resume(50) == 1
    assert rooms_of(carol) == {everyone}


def test_unresponsive_servers_delay_a_registration_only_briefly(network: Network) -> None:
    alice = network.add(NORTH).register("alice")
    square = create(alice, preset="public_chat", room_alias_name="square")
    south = network.add(
        SOUTH,
        f"enable_registration: true\nenable_registration_without_verification: true\n"
        f'auto_join_rooms: ["#hall:gone.example", "#square:{NORTH}"]\n',
    )
    network.choose_fate = lambda transfer: (
        Fate.IS_NOT_ANSWERED if transfer.destination.startswith("gone") else Fate.ARRIVES
    )
    body = {"username": "bob", "password": "wonderland", "auth": {"type": "m.login.dummy"}}

    registration = south.client.start("POST", f"{V3}/register", json=body)
    network.clock.advance(15)

    bob = User(south, ok(registration.answer))
    assert rooms_of(bob) == set()
    network.clock.advance(30)
    assert rooms_of(bob) == {square}

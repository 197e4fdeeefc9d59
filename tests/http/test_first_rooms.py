"""Rooms that every new account joins."""

from pathlib import Path

import pytest

from homeserver.services.first_rooms import FirstRooms
from storage.accounts import AccountStore
from storage.database import Database
from tests.helpers.handshakes import NORTH, SOUTH
from tests.helpers.network import Fate, Network
from tests.helpers.server import TestServer, User
from tests.helpers.syncing import sync
from tests.helpers.talk import V3, create, ok

CONFIG = (
    'auto_join_rooms: ["#everyone:example.org", "#missing:example.org", "#closed:example.org", "#news:example.org"]\n'
)


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database, CONFIG)


def rooms_of(user: User) -> set[str]:
    return set(ok(user.get(f"{V3}/joined_rooms"))["joined_rooms"])


def test_new_accounts_are_in_them_from_the_start(server: TestServer) -> None:
    alice = server.register("alice")
    assert rooms_of(alice) == set()
    everyone, news = [create(alice, preset="public_chat", room_alias_name=name) for name in ("everyone", "news")]
    create(alice, preset="private_chat", room_alias_name="closed")
    bob = server.register("bob")
    assert rooms_of(bob) == {everyone, news}
    assert set(sync(bob)["rooms"]["join"]) == {everyone, news}


def test_guests_are_not(server: TestServer) -> None:
    alice = server.register("alice")
    open_to_guests = [{"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}]
    create(alice, preset="public_chat", room_alias_name="everyone", initial_state=open_to_guests)
    guest = User(server, ok(server.post(f"{V3}/register?kind=guest", {})))
    assert rooms_of(guest) == set()


async def test_who_had_not_joined_when_the_server_stopped_does_after_the_start(server: TestServer) -> None:
    alice = server.register("alice")
    everyone = create(alice, preset="public_chat", room_alias_name="everyone")
    database = server.app.database
    accounts = AccountStore(database)
    await database.write("stopped", accounts.add_arriving_account, alice.user_id)
    server.register("bob")
    assert await accounts.get_arriving_accounts() == [alice.user_id]
    carol = server.register("carol")
    ok(carol.post(f"{V3}/rooms/{everyone}/leave"))
    await database.write("stopped", accounts.add_arriving_account, carol.user_id)
    await FirstRooms(database, accounts, server.app.rooms.room_memberships, [everyone], server.clock).resume()
    assert rooms_of(carol) == {everyone}
    assert await accounts.get_arriving_accounts() == []


def test_servers_that_do_not_answer_keep_nobody_waiting_for_an_account(network: Network) -> None:
    alice = network.add(NORTH).register("alice")
    square = create(alice, preset="public_chat", room_alias_name="square")
    south = network.add(
        SOUTH,
        f"enable_registration: true\nenable_registration_without_verification: true\n"
        f'auto_join_rooms: ["#hall:gone.example", "#square:{NORTH}"]\n',
    )
    network.weather = lambda letter: Fate.IS_NOT_ANSWERED if letter.destination.startswith("gone") else Fate.ARRIVES
    body = {"username": "bob", "password": "wonderland", "auth": {"type": "m.login.dummy"}}

    making = south.client.start("POST", f"{V3}/register", json=body)
    network.clock.advance(15)

    bob = User(south, ok(making.answer))
    assert rooms_of(bob) == set()
    network.clock.advance(30)
    assert rooms_of(bob) == {square}

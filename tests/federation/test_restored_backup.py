"""A server whose database was restored from a backup: its messages arrive, it receives others,
and nobody encrypts for lost devices."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from storage.engine.database import Database
from storage.engine.sqlite import SQLiteEngine
from storage.maintenance.after_restore import repair_after_restore
from tests.helpers.databases import open_inline, sqlite_config
from tests.helpers.encrypted_rooms import encrypted_room, receive_numbers, send_number
from tests.helpers.federated_rooms import NORTH, Shared
from tests.helpers.keys import claim, identity_keys, one_time_keys, query, sync, upload
from tests.helpers.logins import another_device
from tests.helpers.network import Network
from tests.helpers.server import TestServer
from tests.helpers.sliding_client import SlidingClient

ROOM_KEYS = "/_matrix/client/v3/room_keys"


class Backup:
    """A copy of the database of a server, made while that runs."""

    def __init__(self, network: Network, name: str, path: Path) -> None:
        self._network = network
        self._name = name
        self._path = path
        self._opened: list[Database] = []
        source = sqlite3.connect(_path_of(network.servers[name].app.database))
        target = sqlite3.connect(path)
        source.backup(target)
        source.close()
        target.close()

    def restore(self, *, settles: bool = True) -> TestServer:
        """The server begins again upon the copy. `settles`: after the command."""
        self._network.clock.advance(60)
        self._opened.append(open_inline(sqlite_config(self._path)))
        if settles:
            Deferred.fromCoroutine(
                self._opened[-1].write("repair_after_restore", repair_after_restore)
            )
        return self._network.rebuild(self._name, database=self._opened[-1])

    def close(self) -> None:
        for database in self._opened:
            Deferred.fromCoroutine(database.close())


def _path_of(database: Database) -> Path:
    assert isinstance(database.engine, SQLiteEngine)
    return database.engine.path


@pytest.fixture
def backups() -> Iterator[list[Backup]]:
    """The backups that a test makes."""
    made: list[Backup] = []
    yield made
    for backup in made:
        backup.close()


async def restored(network: Network, room: Shared, backup: Backup, *, settles: bool = True) -> None:
    """North again, upon the backup; nothing is on its way."""
    room.north.server = room.alice.server = backup.restore(settles=settles)
    network.settle()


async def test_transactions_after_a_restore_are_not_taken_for_earlier_ones(
    network: Network, tmp_path: Path, backups: list[Backup]
) -> None:
    """Transactions are known by their ids: one that was used again would be answered, and nothing
    of it taken in."""
    room = await encrypted_room(network)
    _, since = receive_numbers(room.bob)
    network.clock.advance(60)  # that everything was sent is recorded
    backups.append(Backup(network, NORTH, tmp_path / "backup.db"))
    room.alice.server = network.rebuild(NORTH)
    send_number(room.alice, 1, {room.bob.user_id: {room.bob.device_id: {"n": 1}}})
    network.settle()
    found, since = receive_numbers(room.bob, since)
    assert found == [1]
    await restored(network, room, backups[0], settles=False)
    send_number(room.alice, 2, {room.bob.user_id: {room.bob.device_id: {"n": 2}}})
    network.settle()
    assert receive_numbers(room.bob, since)[0] == [2]


async def test_no_one_time_key_is_claimed_again_after_a_restore(
    network: Network, tmp_path: Path, backups: list[Backup]
) -> None:
    """The device has used it, and could not read what is sent with it."""
    room = await encrypted_room(network)
    fallback = {"signed_curve25519:FALLBACK": {"key": "fallback", "fallback": True}}
    upload(room.alice, one_time_keys=one_time_keys(*"ABCDE"), fallback_keys=fallback)
    backups.append(Backup(network, NORTH, tmp_path / "backup.db"))
    before = [claim(room.bob, room.alice) for _ in range(3)]
    await restored(network, room, backups[0])
    assert claim(room.bob, room.alice) == fallback
    answer = sync(room.alice)
    assert answer["device_one_time_keys_count"] == {"signed_curve25519": 1}, (
        "some clients take zero for unchanged"
    )
    assert answer["device_unused_fallback_key_types"] == []
    upload(room.alice, one_time_keys=one_time_keys("F", "G"))
    after = [claim(room.bob, room.alice) for _ in range(3)]
    assert after == [{name: key} for name, key in (one_time_keys("F", "G") | fallback).items()]
    assert not [key for key in before if key in after]


async def test_device_lists_are_fetched_again_after_a_restore(
    network: Network, tmp_path: Path, backups: list[Backup]
) -> None:
    """Nobody tells it again, as it was acknowledged."""
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    query(room.bob, room.alice)
    network.clock.advance(60)
    backups.append(Backup(network, NORTH, tmp_path / "backup.db"))
    theirs, ours = another_device(room.bob), another_device(room.alice)
    for seed, device in enumerate((theirs, ours), 3):
        upload(device, device_keys=identity_keys(device, seed)[1])
    network.settle()
    tokens = [sync(user)["next_batch"] for user in (room.alice, room.bob)]
    assert query(room.alice, room.bob)["device_keys"][room.bob.user_id].keys() == {
        room.bob.device_id,
        theirs.device_id,
    }
    assert query(room.bob, room.alice)["device_keys"][room.alice.user_id].keys() == {
        room.alice.device_id,
        ours.device_id,
    }
    await restored(network, room, backups[0])
    received = sync(room.alice, tokens[0])
    assert received["device_lists"]["changed"] == sorted([room.alice.user_id, room.bob.user_id])
    assert query(room.alice, room.bob)["device_keys"][room.bob.user_id].keys() == {
        room.bob.device_id,
        theirs.device_id,
    }
    assert sync(room.bob, tokens[1])["device_lists"]["changed"] == [room.alice.user_id]
    assert query(room.bob, room.alice)["device_keys"][room.alice.user_id].keys() == {
        room.alice.device_id
    }


async def test_a_client_from_before_the_restore_misses_nothing(
    network: Network, tmp_path: Path, backups: list[Backup]
) -> None:
    room = await encrypted_room(network)
    backups.append(Backup(network, NORTH, tmp_path / "backup.db"))
    for number in range(20):
        send_number(room.alice, number, {room.alice.user_id: {room.alice.device_id: {"n": number}}})
    found, since = receive_numbers(room.alice)
    assert found == [*range(20)]
    await restored(network, room, backups[0])
    for number in range(20, 40):
        send_number(room.alice, number, {room.alice.user_id: {room.alice.device_id: {"n": number}}})
    assert receive_numbers(room.alice, since)[0] == [*range(20, 40)]


async def test_a_key_backup_continues_with_its_version(
    network: Network, tmp_path: Path, backups: list[Backup]
) -> None:
    """Clients keep the number with the key to it: under another one they would read nothing of it,
    and some would put nothing in."""
    alice = (await encrypted_room(network)).alice
    definition = {
        "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
        "auth_data": {"public_key": "abc"},
    }
    version = alice.post(f"{ROOM_KEYS}/version", definition).json["version"]

    def put(session: str) -> dict[str, Any]:
        key = {
            "first_message_index": 0,
            "forwarded_count": 0,
            "is_verified": False,
            "session_data": {"of": session},
        }
        answer = alice.put(f"{ROOM_KEYS}/keys/!room:north.test/{session}?version={version}", key)
        assert answer.status == 200, answer.body
        return key

    kept = put("kept")
    backups.append(Backup(network, NORTH, tmp_path / "backup.db"))
    put("lost")
    alice.server = backups[0].restore()
    assert alice.get(f"{ROOM_KEYS}/version").json == {
        **definition,
        "version": version,
        "etag": "1",
        "count": 1,
    }
    later = put("later")
    found = alice.get(f"{ROOM_KEYS}/keys/!room:north.test?version={version}").json
    assert found == {"sessions": {"kept": kept, "later": later}}


async def test_a_sliding_sync_connection_starts_again(
    network: Network, tmp_path: Path, backups: list[Backup]
) -> None:
    """The number of its state may be another's by now; messages to devices have a token of their
    own, which is good."""
    room = await encrypted_room(network)
    backups.append(Backup(network, NORTH, tmp_path / "backup.db"))
    extensions: dict[str, Any] = {"to_device": {"enabled": True}, "e2ee": {"enabled": True}}
    client = SlidingClient(room.alice, "encryption", extensions=extensions)
    client.sync()
    send_number(room.alice, 1, {room.alice.user_id: {room.alice.device_id: {"n": 1}}})
    received = client.sync()["extensions"]["to_device"]
    assert [event["content"] for event in received["events"]] == [{"n": 1}]
    extensions["to_device"]["since"] = received["next_batch"]
    await restored(network, room, backups[0])
    # as many states as there were
    for name in ("one", "two", "three"):
        SlidingClient(room.alice, name).sync()
    send_number(room.alice, 2, {room.alice.user_id: {room.alice.device_id: {"n": 2}}})
    refused = room.alice.post(client.path(), client.body)
    assert (refused.status, refused.errcode) == (400, "M_UNKNOWN_POS")
    client.pos = None
    received = client.sync()["extensions"]["to_device"]
    assert [event["content"] for event in received["events"]] == [{"n": 2}]

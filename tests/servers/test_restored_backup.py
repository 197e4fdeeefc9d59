"""A server whose database was restored from a backup: what it sends and what it is sent arrives, and nobody encrypts for what is no more."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from storage.database import Database
from storage.sqlite import SQLiteEngine
from tests.helpers.databases import open_inline, sqlite_config
from tests.helpers.federated import NORTH, Shared
from tests.helpers.network import Network
from tests.servers.test_devices_between import bodies, send, sending


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

    def restore(self) -> Any:
        """The server begins again upon the copy."""
        self._network.clock.advance(60)
        self._opened.append(open_inline(sqlite_config(self._path)))
        return self._network.rebuild(self._name, database=self._opened[-1])

    def close(self) -> None:
        for database in self._opened:
            Deferred.fromCoroutine(database.close())


def _path_of(database: Database) -> Path:
    assert isinstance(database.engine, SQLiteEngine)
    return database.engine.path


@pytest.fixture
def backups() -> Iterator[list[Backup]]:
    """Those that a test makes."""
    made: list[Backup] = []
    yield made
    for backup in made:
        backup.close()


async def restored(network: Network, room: Shared, backup: Backup) -> None:
    """North again, upon the backup; nothing is on its way."""
    room.north.server = room.alice.server = backup.restore()
    network.settle()


async def test_what_is_sent_after_a_restore_is_not_taken_for_what_was_sent_before(
    network: Network, tmp_path: Path, backups: list[Backup]
) -> None:
    """Transactions are known by their ids: one that was used again would be answered, and nothing of it taken in."""
    room = await sending(network)
    _, since = bodies(room.bob)
    network.clock.advance(60)  # that all has been told is noted
    backups.append(Backup(network, NORTH, tmp_path / "backup.db"))
    room.alice.server = network.rebuild(NORTH)
    send(room.alice, 1, {room.bob.user_id: {room.bob.device_id: {"n": 1}}})
    network.settle()
    found, since = bodies(room.bob, since)
    assert found == [1]
    await restored(network, room, backups[0])
    send(room.alice, 2, {room.bob.user_id: {room.bob.device_id: {"n": 2}}})
    network.settle()
    assert bodies(room.bob, since)[0] == [2]

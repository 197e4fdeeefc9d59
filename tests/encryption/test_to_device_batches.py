"""To-device messages when many writes share one transaction: a repeated request, a deleted device,
a failed write."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from storage.encryption import to_device_log
from storage.encryption.to_device import LOG_RETENTION_MS, MIN_LOGGED
from storage.engine.database import Database, PostgresConfig, SQLiteConfig, WriteTransaction
from tests.helpers.databases import open_inline
from tests.helpers.executors import ManualExecutor
from tests.helpers.http import Pending
from tests.helpers.keys import V3
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User


class World:
    """A server whose writes wait until the test runs them."""

    def __init__(self, folder: Path, config: SQLiteConfig | PostgresConfig) -> None:
        self.writer = ManualExecutor()
        self.database: Database = open_inline(config, writer=self.writer)
        self.server = TestServer(folder, self.database)

    def do(self, path: str, body: Any, token: str | None = None, method: str = "POST") -> Any:
        pending = self.server.client.start(method, path, json=body, token=token)
        self.writer.run()
        assert pending.answer.status == 200, pending.answer.body
        return pending.answer.json

    def person(self, name: str) -> User:
        body = {"username": name, "password": "wonderland", "auth": {"type": "m.login.dummy"}}
        return User(self.server, self.do(f"{V3}/register", body))

    def another(self, user: User) -> User:
        login = password_auth(user.user_id)
        return User(self.server, self.do(f"{V3}/login", login))

    def send(self, by: User, txn_id: str, messages: Any) -> Pending:
        return by.start("PUT", f"{V3}/sendToDevice/m.test/{txn_id}", {"messages": messages})

    def numbers(self, user: User) -> list[int]:
        answer = self.do(f"{V3}/sync", None, user.token, "GET")
        return [event["content"]["n"] for event in answer["to_device"]["events"]]


@pytest.fixture
def world(tmp_path: Path, database_config: SQLiteConfig | PostgresConfig) -> Iterator[World]:
    found = World(tmp_path, database_config)
    yield found
    closed = Deferred.fromCoroutine(found.database.close())
    found.writer.run()
    assert closed.called


@pytest.mark.parametrize("is_known", [True, False])
def test_each_write_of_a_batch_sees_the_earlier_ones(world: World, is_known: bool) -> None:
    """`is_known`: whether Bob's devices are cached."""
    alice, bob = world.person("alice"), world.person("bob")
    others = [world.another(bob) for _ in range(MIN_LOGGED)]
    everybody = {bob.user_id: {"*": {"n": 1}}}
    if is_known:
        for txn_id in ("first", "second"):
            pending = world.send(alice, txn_id, {bob.user_id: {"*": {"n": 0}}})
            world.writer.run()
            assert pending.answer.status == 200
    before = [0, 0] if is_known else []
    store = world.server.app.accounts.stores.to_device

    def fail(txn: WriteTransaction) -> None:
        to = list(store.get_devices(txn, [bob.user_id])[bob.user_id].values())
        store.add_messages(txn, b'{"content":', to, [b'{"n":-1}'] * len(to), 0)
        raise ValueError("undone")

    sent = [world.send(alice, "x", everybody), world.send(alice, "x", everybody)]
    failed: list[Failure] = []
    Deferred.fromCoroutine(world.database.write("fail", fail)).addErrback(failed.append)
    gone = others[0].start("POST", f"{V3}/logout", {})
    sent += [world.send(alice, "y", {bob.user_id: {"*": {"n": 2}, others[0].device_id: {"n": 3}}})]
    sent += [
        world.send(alice, "x", everybody),
        world.send(alice, "y", {bob.user_id: {"*": {"n": 2}}}),
    ]
    world.writer.run()
    assert failed
    assert failed[0].check(ValueError)
    assert [pending.answer.status for pending in (*sent, gone)] == [200] * 6
    new_session = world.another(bob)
    for user in (bob, *others[1:]):
        assert world.numbers(user) == [*before, 1, 2]
    assert world.numbers(new_session) == []
    at = int(world.server.clock.seconds() * 1000)
    for later in (LOG_RETENTION_MS, LOG_RETENTION_MS, LOG_RETENTION_MS):
        Deferred.fromCoroutine(store.sweep(5000, at + later))
        world.writer.run()
    left: list[int] = []
    Deferred.fromCoroutine(world.database.write("count", to_device_log.count_logged)).addCallback(
        left.append
    )
    world.writer.run()
    assert left == [0], "the failed write does not count for ever"
    restarted = TestServer(
        Path(world.server.config.folder),
        world.database,
        seed=3,
        now=world.server.clock.seconds() + 1,
    )
    world.server = restarted
    for user in (bob, *others[1:]):
        assert world.numbers(user) == [*before, 1, 2]

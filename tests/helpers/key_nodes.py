"""Nodes that serve key claims step by step, with failures between their database statements."""

from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import pytest
from twisted.internet.defer import Deferred

from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.device_keys import DeviceKeyStore, KeyCounts, NewKeys
from storage.encryption.one_time_keys import KeyRequest
from storage.engine.database import (
    Database,
    DatabaseUnavailable,
    PostgresConfig,
    SQLiteConfig,
    WriteTransaction,
)
from storage.engine.interface import Connection
from tests.conftest import run_coroutine
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.executors import ManualExecutor

T = TypeVar("T")

ALICE, ALGORITHM = "@alice:example.org", "signed_curve25519"
STATEMENTS = {
    "query",
    "query_in",
    "query_each",
    "query_each_changing",
    "query_with",
    "execute_later",
    "execute_in_later",
    "savepoint",
}


class Losing:
    """A database connection that can be lost after a commit, and of which one statement or the
    commit can fail."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.loses = False
        self.fails_at = 0
        """The number of the call that fails, counted from now. 0: none."""
        self.failure: Exception = ZeroDivisionError()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._connection, name)
        return partial(self._count, call) if self.fails_at and name in STATEMENTS else call

    def commit(self, *args: Any) -> None:
        self._count(self._connection.commit, *args)
        if self.loses:
            raise DatabaseUnavailable("the connection was lost")

    def _count(self, call: Callable[..., Any], *args: Any) -> Any:
        self.fails_at -= 1
        if self.fails_at == 0:
            raise self.failure
        return call(*args)


class Node:
    """A node, and its database statements."""

    def __init__(
        self, config: SQLiteConfig | PostgresConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._config, self._monkeypatch = config, monkeypatch
        self.counter = QueryCounter()
        self.writer = ManualExecutor()
        self.database: Database = open_inline(config, self.counter, self.writer)
        self.store = DeviceKeyStore(self.database)
        engine = self.database.engine
        connect = engine.connect_writer
        self.connections: list[Losing] = []

        def connect_losing() -> Losing:
            self.connections.append(Losing(connect()))
            return self.connections[-1]

        monkeypatch.setattr(engine, "connect_writer", connect_losing)

    def restarted(self) -> "Node":
        """Replace this node by a new process."""
        self.close()
        return Node(self._config, self._monkeypatch)

    def close(self) -> None:
        run_coroutine(self.database.close(), None)

    def run(self, *coroutines: Coroutine[Any, Any, T]) -> list[T]:
        """Return the results of these calls, whose writes are one batch."""
        waiting = [Deferred.fromCoroutine(each) for each in coroutines]
        self.writer.run()
        found: list[T] = []
        for each in waiting:
            each.addCallback(found.append)
            run_coroutine(as_coroutine(each), None)
        return found

    def upload(
        self,
        device_id: str,
        names: list[str],
        algorithm: str = ALGORITHM,
        *,
        identity: bytes | None = None,
        fail: bool = False,
    ) -> int:
        """Upload keys; return the count in the response."""
        (left,) = self.run(
            self.do_upload(device_id, names, algorithm, identity=identity, fail=fail)
        )
        return left

    async def do_upload(
        self,
        device_id: str,
        names: list[str],
        algorithm: str = ALGORITHM,
        *,
        identity: bytes | None = None,
        fail: bool = False,
    ) -> int:
        def put(txn: WriteTransaction) -> KeyCounts:
            DeviceStore(self.database).add_device(txn, DeviceRow(ALICE, device_id, None, 0))
            keys = {(algorithm, name): content(name) for name in names}
            counts = self.store.upload_keys(txn, ALICE, device_id, NewKeys(identity, keys, {}), 0)
            if fail:
                raise ZeroDivisionError
            return counts

        counts = await self.database.write("upload", put)
        return counts.one_time.get(algorithm, 0)

    def write(self, times: int) -> None:
        """Make unrelated writes."""
        for _ in range(times):
            self.run(self.database.write("other", lambda txn: txn.next_position()))

    def remove(self, device_id: str) -> None:
        self.run(
            self.database.write(
                "remove", lambda txn: self.store.remove_devices(txn, ALICE, [device_id])
            )
        )

    def claim(self, *device_ids: str, algorithm: str = ALGORITHM) -> list[str | None]:
        (given,) = self.run(self.store.claim_in_chunks(requests_for(device_ids, algorithm), 1000))
        return names_of(given)

    def count(self, device_id: str, algorithm: str = ALGORITHM) -> int:
        """Return the one-time key count that the device gets."""
        ((counts, _),) = self.run(self.store.get_counts(ALICE, device_id))
        return counts.one_time.get(algorithm, 0)

    def claim_together(self, requests: Sequence[KeyRequest]) -> list[list[str | None]]:
        """Claim twice, with a failing write in between, all in one batch."""
        claims = [self.store.claim_in_chunks(requests, 1000) for _ in range(2)]
        return list(
            map(names_of, self.run(claims[0], self.expect_failure(requests), claims[1])[::2])
        )

    def fail_to_claim(self, requests: Sequence[KeyRequest]) -> None:
        """Fail a claim, so that its write is rolled back."""
        self.run(self.expect_failure(requests))

    async def expect_failure(self, requests: Sequence[KeyRequest]) -> list[bytes | None]:
        def fail(txn: WriteTransaction) -> None:
            self.store.claim_keys(txn, requests, 1000)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await self.database.write("fail", fail)
        return []

    def claim_and_lose(self, requests: Sequence[KeyRequest]) -> None:
        """Claim with a commit that succeeds while the connection is lost."""
        self.run(self.database.write("connect", lambda _: None))
        self.connections[-1].loses = True
        with pytest.raises(DatabaseUnavailable):
            self.run(self.store.claim_in_chunks(requests, 1000))

    def run_failing(
        self, fails_at: int, failure: Exception, *coroutines: Coroutine[Any, Any, Any]
    ) -> list[Any]:
        """Run calls like `run` while one statement fails; None for those that failed by it."""

        async def attempt(coroutine: Coroutine[Any, Any, T]) -> T | None:
            try:
                return await coroutine
            except (ZeroDivisionError, DatabaseUnavailable):
                return None

        if self.connections:
            self.connections[-1].fails_at, self.connections[-1].failure = fails_at, failure
        try:
            return self.run(*map(attempt, coroutines))
        finally:
            for connection in self.connections:
                connection.fails_at = 0


async def as_coroutine(deferred: Deferred[Any]) -> None:
    await deferred


def requests_for(device_ids: Iterable[str], algorithm: str = ALGORITHM) -> list[KeyRequest]:
    return [(ALICE, device_id, algorithm) for device_id in device_ids]


def names_of(given: Iterable[bytes | None]) -> list[str | None]:
    """Return the IDs of the given keys, which must be as uploaded."""
    keys = [None if key is None else parse_named(key) for key in given]
    assert all(key is None or key[1] == content(key[0]) for key in keys)
    return [None if key is None else key[0] for key in keys]


def content(text: str) -> bytes:
    return b'{"key":"%b"}' % text.encode()


def parse_named(key: bytes) -> tuple[str, bytes]:
    """Return the ID of a key, and its stored content."""
    ((key_id, raw),) = msgspec.json.decode(b"{%b}" % key, type=dict[str, msgspec.Raw]).items()
    return key_id, bytes(raw)

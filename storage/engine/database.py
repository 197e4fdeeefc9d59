"""The two operations on the database: `read`, which has cheaper variants, and `write`.

Laws:
- Callers pass a function `fn(txn, …)`, not a coroutine. It must not wait for anything. It may run
  more than once, after a lost connection or a conflict.
- Writes of many callers run in one database transaction, each in its own savepoint. A write that
  fails does not affect the others. A write is acknowledged after the commit.
- A write announces its changes with `txn.announce`. After the commit, `Streams` passes them to its
  subscribers, in order of position (`storage/engine/streams.py`).
- All changes take their positions from one sequence, and become visible in this order. A reader at
  position N sees everything up to N.
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from storage.engine.executors import Executor, ThreadExecutor
from storage.engine.interface import (
    Connection,
    DatabaseUnavailable,
    Engine,
    NodeChannel,
    Row,
    SQLValue,
)
from storage.engine.migrate import migrate
from storage.engine.observer import NullObserver, Observer
from storage.engine.postgres import PostgresEngine
from storage.engine.postgres_config import PostgresConfig
from storage.engine.postgres_notify import notify_applied, select_nodes, send_ephemeral
from storage.engine.sqlite import SQLiteConfig, SQLiteEngine
from storage.engine.streams import Streams
from storage.engine.transaction import Transaction, WriteTransaction, select_head
from storage.engine.writer import QueuedWrite, Writer

__all__ = [
    "Database",
    "DatabaseUnavailable",
    "PostgresConfig",
    "Row",
    "SQLValue",
    "SQLiteConfig",
    "Transaction",
    "WriteTransaction",
    "make_engine",
    "open_database",
]

P = ParamSpec("P")
T = TypeVar("T")

DatabaseConfig = SQLiteConfig | PostgresConfig


class Database:
    """An open database whose migrations are done. Created by `open_database`."""

    def __init__(
        self,
        *,
        engine: Engine,
        streams: Streams,
        readers: Executor,
        writer: Executor,
        observer: Observer,
        clock: Callable[[], float] = time.perf_counter,
        open_readers: Iterable[Connection] = (),
    ) -> None:
        """`writer` must run one job at a time. `open_readers` are read connections that are already
        open."""
        self.engine = engine
        self.streams = streams
        self._readers = readers
        self._writer = Writer(
            engine=engine, executor=writer, streams=streams, observer=observer, clock=clock
        )
        self._observer = observer
        self._clock = clock
        self._idle = deque(open_readers)
        """Read connections that are not in use. A thread that needs one takes it."""
        self._closed = False
        self._wait_for_nodes: Callable[[int], Awaitable[None]] | None = None

    async def read(
        self,
        name: str,
        fn: Callable[Concatenate[Transaction, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a read in the thread pool. `name` (fixed, snake_case) appears in metrics and the slow
        log.

        All queries of `fn` see the database at one moment.
        """
        return await self._read_in_pool(name, partial(fn, **kwargs) if kwargs else fn, args, True)

    async def read_without_snapshot(
        self,
        name: str,
        fn: Callable[Concatenate[Transaction, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Like `read`, without a transaction: for a function with one query, or whose queries may
        each see the current database."""
        return await self._read_in_pool(name, partial(fn, **kwargs) if kwargs else fn, args, False)

    async def read_quickly(
        self,
        name: str,
        fn: Callable[Concatenate[Transaction, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Like `read`, for a few point reads by key. On SQLite they run on the calling thread,
        which costs less than the switch to another.

        Each query sees the database at its own moment.
        """
        if not self.engine.reads_on_calling_thread:
            return await self._read_in_pool(
                name, partial(fn, **kwargs) if kwargs else fn, args, False
            )
        if self._closed:
            raise DatabaseUnavailable("the database is closed")
        started = self._clock()
        connection = self._take_reader()
        txn = Transaction(connection)
        try:
            return fn(txn, *args, **kwargs)
        finally:
            self._idle.append(connection)
            self._observer.read_done(name, 0.0, self._clock() - started, txn.queries)

    async def write(
        self,
        name: str,
        fn: Callable[Concatenate[WriteTransaction, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Queue a write for the next group commit. Returns its result once it is durable. Raises
        what `fn` raised.

        Raises DatabaseUnavailable if the database could not do it. In that case it is certainly not
        done, unless the connection was lost during the commit.
        """
        if self._closed:
            raise DatabaseUnavailable("the database is closed")
        write = QueuedWrite(name, fn, args, kwargs, copy_context(), self._clock(), Deferred())
        self._writer.add(write)
        result: T = await write.deferred
        if write.required_position and self._wait_for_nodes is not None:
            await self._wait_for_nodes(write.required_position)
        return result

    def set_node_barrier(self, wait: Callable[[int], Awaitable[None]]) -> None:
        """Set the function that waits until the other nodes have applied everything up to a
        position. From now on a write that must hold on all nodes is acknowledged after it."""
        self._wait_for_nodes = wait

    async def open_node_channel(self) -> NodeChannel | None:
        """See `storage.engine.interface.Engine.open_node_channel`. Raises DatabaseUnavailable."""
        try:
            return await self._read_in_pool(
                "open_node_channel", lambda _txn: self.engine.open_node_channel(), (), False
            )
        except self.engine.errors as error:
            raise DatabaseUnavailable(
                f"cannot receive notifications of other nodes: {error}"
            ) from error

    async def get_nodes(self) -> set[int]:
        """Return the numbers of the running nodes that share this database."""
        return await self.read_quickly("get_nodes", select_nodes)

    async def notify_applied(self, node: int, position: int) -> None:
        """Notify the other nodes that this one has applied everything up to that position."""
        await self.read_quickly("notify_applied", notify_applied, node, position)

    async def send_ephemeral(self, node: int, bodies: Sequence[str]) -> None:
        """Send ephemeral messages to the other nodes. See
        `storage.engine.postgres_notify.send_ephemeral`."""
        await self.read_quickly("send_ephemeral", send_ephemeral, node, bodies)

    async def truncate_log(self) -> bool:
        """Remove old writes from SQLite's write-ahead log, as after a purge. Does nothing on
        PostgreSQL, whose log is the operator's. Return False if other connections prevented that;
        it can be tried again."""
        return await self._read_in_pool(
            "empty_log", lambda _txn: self.engine.truncate_log(), (), False
        )

    async def catch_up(self) -> int:
        """Let the streams publish what other processes wrote. Return the position up to which
        everything can be read."""
        await self.write("catch_up", _write_nothing)
        return self.streams.current()

    async def get_head(self) -> int:
        """Return the position of the latest commit of any node. Raises DatabaseUnavailable."""
        return await self.read_quickly("get_head", select_head)

    async def poll(self) -> None:
        """Like `catch_up`, if there is something new. Cheap enough to call often."""
        if await self.get_head() > self.streams.current():
            await self.catch_up()

    async def close(self) -> None:
        """Finish the queued writes, then close. Later calls raise DatabaseUnavailable."""
        if self._closed:
            return
        self._closed = True
        await self._writer.close()
        await self._readers.close()
        while self._idle:
            self._idle.pop().close()

    async def _read_in_pool(
        self, name: str, fn: Callable[..., T], args: tuple[Any, ...], snapshot: bool
    ) -> T:
        if self._closed:
            raise DatabaseUnavailable("the database is closed")
        work = partial(self._run_read, partial(copy_context().run, fn), args, snapshot)
        read = _QueuedRead(
            name=name, work=work, readers=self._readers, observer=self._observer, clock=self._clock
        )
        self._readers.submit(read.run)
        result: T = await read.deferred
        return result

    def _run_read(
        self, fn: Callable[..., T], args: tuple[Any, ...], snapshot: bool
    ) -> tuple[T, int]:
        """Run a read on a reading thread. If it loses its connection, it runs once more on a new
        one."""
        try:
            return self._run_read_once(fn, args, snapshot)
        except self.engine.errors as error:
            if not (self.engine.is_retryable(error) or self.engine.is_outage(error)):
                raise
        # Whatever ended one connection has ended the idle ones too. The second try needs a new one.
        while self._idle:
            self._close_idle()
        try:
            return self._run_read_once(fn, args, snapshot)
        except self.engine.errors as error:
            if not (self.engine.is_retryable(error) or self.engine.is_outage(error)):
                raise
            raise DatabaseUnavailable(f"the read could not be done: {error}") from error

    def _close_idle(self) -> None:
        """Close one idle connection, if there is one. Other threads take them at the same time."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return
        connection.close()

    def _take_reader(self) -> Connection:
        """Return an idle read connection, or open one. It belongs to the caller until it is back
        among the idle ones."""
        try:
            return self._idle.pop()
        except IndexError:
            return self.engine.connect_reader()

    def _run_read_once(
        self, fn: Callable[..., T], args: tuple[Any, ...], snapshot: bool
    ) -> tuple[T, int]:
        connection = self._take_reader()
        try:
            txn = Transaction(connection)
            if not snapshot:
                return fn(txn, *args), txn.queries
            connection.begin_snapshot()
            try:
                return fn(txn, *args), txn.queries
            finally:
                connection.end()
        finally:
            if connection.is_usable():
                self._idle.append(connection)
            else:
                connection.close()


class _QueuedRead:
    """A read in the thread pool, and its result."""

    __slots__ = (
        "_clock",
        "_name",
        "_observer",
        "_queries",
        "_queued",
        "_readers",
        "_result",
        "_took",
        "_waited",
        "_work",
        "deferred",
    )

    def __init__(
        self,
        *,
        name: str,
        work: Callable[[], tuple[Any, int]],
        readers: Executor,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        """`work` returns the result and the number of queries."""
        self.deferred: Deferred[Any] = Deferred()
        self._name = name
        self._work = work
        self._readers = readers
        self._observer = observer
        self._clock = clock
        self._queued = clock()

    def run(self) -> None:
        """Run on a reading thread."""
        started = self._clock()
        self._waited = started - self._queued
        try:
            self._result, self._queries = self._work()
        except BaseException as error:  # any error goes to the caller; the thread goes on
            self._result, self._queries = Failure(error), 0
        self._took = self._clock() - started
        self._readers.deliver(self._finish)

    def _finish(self) -> None:
        """Deliver the result on the reactor thread."""
        self._observer.read_done(self._name, self._waited, self._took, self._queries)
        self.deferred.callback(self._result)


def _write_nothing(txn: WriteTransaction) -> None:
    """Write nothing. Beginning a write is enough to learn of the writes of other nodes."""


def make_engine(config: DatabaseConfig) -> SQLiteEngine | PostgresEngine:
    """Return the engine for a configuration. Does not connect yet."""
    return SQLiteEngine(config) if isinstance(config, SQLiteConfig) else PostgresEngine(config)


def open_database(
    config: DatabaseConfig, reactor: ReactorBase, observer: Observer | None = None
) -> Database:
    """Open and migrate the database, and start its threads. Blocks, so call it at start-up.

    Raises the errors of `storage.engine.migrate.migrate`. Their texts tell the operator what to do.
    """
    engine = make_engine(config)
    position = migrate(engine)
    return Database(
        engine=engine,
        streams=Streams(position),
        readers=ThreadExecutor(
            reactor=reactor, name="database-reader", threads=engine.reader_threads
        ),
        writer=ThreadExecutor(reactor=reactor, name="database-writer", threads=1),
        observer=observer or NullObserver(),
        open_readers=[engine.connect_reader() for _ in range(engine.readers_at_start)],
    )

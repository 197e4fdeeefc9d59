"""The writer of a node: writes of many callers share a transaction and its fsync (group commit).

Writes queue up while a batch runs. The next batch takes all queued writes. On an idle server a
write is committed immediately.

Laws:
- A batch is one transaction. On PostgreSQL it holds an advisory lock from begin to commit. So
  positions are committed in order on all nodes, and the counters that a write reads do not change
  until the commit.
- Each write has a savepoint. If a write raises, or the database refuses its statement, only this
  write is undone. The undone write takes no positions or other numbers, publishes nothing, and does
  not affect other writes. If the batch is committed, the caller of the undone write gets its error.
- A write is acknowledged on the reactor thread after the commit. Before that, its changes are
  published to the subscribers, and its callbacks are called. So only durable writes are
  acknowledged.
- A batch that fails before its COMMIT is sent has changed nothing. After a conflict or a lost
  connection it runs again, at most MAX_ATTEMPTS times. So a write function may run more than once.
- When the COMMIT fails, its outcome is unknown. The batch never runs again, and its callers get
  `DatabaseUnavailable`. There is one exception: PostgreSQL may report that a statement that was
  sent together with the COMMIT failed. Then nothing was committed, so the batch counts as failed
  before its COMMIT.
- When a batch fails and does not run again, the callers of all its writes get
  `DatabaseUnavailable`. This includes writes that raised an error of their own, because another
  write, which is undone now, may have caused that error.
- When a transaction cannot begin (no connection, or another process holds the lock for too long),
  all queued writes get `DatabaseUnavailable`, because the same would happen to them.
- After a failed batch the next one uses a new connection.
- The writer's thread survives any exception that a write raises.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import Context
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from storage.engine.executors import Executor
from storage.engine.interface import Connection, DatabaseUnavailable, Engine
from storage.engine.observer import Observer
from storage.engine.streams import Change, Streams
from storage.engine.transaction import POSITION, WriteTransaction

MAX_BATCH_WRITES = 256
"""The most writes in a batch."""

MAX_BATCH_SECONDS = 0.05
"""Seconds after which a batch takes no further write, so that its writes do not wait long for their
commit."""

MAX_ATTEMPTS = 3
"""The number of times that a batch runs if its error may be temporary."""

RETRY_SECONDS = 0.1
"""Seconds before the second try; twice as many before the third. A restarting PostgreSQL is back
sooner."""


class QueuedWrite(msgspec.Struct):
    """A write in the queue, and its result after it has run."""

    name: str
    fn: Callable[..., Any]
    """Called with the transaction, and then `args` and `kwargs`."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    context: Context
    queued: float
    deferred: Deferred[Any]
    result: Any = None
    failure: Failure | None = None
    changes: Sequence[Change] = ()
    callbacks: Sequence[Callable[[], None]] = ()
    required_position: int = 0
    queries: int = 0
    waited: float = 0.0
    took: float = 0.0

    def fail(self, error: BaseException) -> None:
        """Drop the result and everything the write would publish."""
        self.failure = Failure(error)
        self.result = None
        self.changes = self.callbacks = ()

    def fail_unavailable(self, cause: BaseException) -> None:
        """Fail because the database could not do its work."""
        error = DatabaseUnavailable(f"the write {self.name} could not be done: {cause}")
        error.__cause__ = cause
        self.fail(error)


class Writer:
    """Runs queued writes in batches, on an executor with a single thread."""

    _log = Logger()

    def __init__(
        self,
        *,
        engine: Engine,
        executor: Executor,
        streams: Streams,
        observer: Observer,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._executor = executor
        self._streams = streams
        self._observer = observer
        self._clock = clock
        self._queued: deque[QueuedWrite] = deque()
        self._lock = threading.Lock()
        self._busy = False
        self._connection: Connection | None = None

    def add(self, write: QueuedWrite) -> None:
        """Queue a write. Its Deferred fires after the commit. On the reactor thread."""
        with self._lock:
            self._queued.append(write)
            if self._busy:
                return
            self._busy = True
        self._executor.submit(self._run)

    def close(self) -> Deferred[None]:
        """Run the queued writes, then close the connection."""
        self._executor.submit(self._disconnect)
        return self._executor.close()

    # ------------------------------------------------------------------------------------------
    # On the writer's thread

    def _run(self) -> None:
        while True:
            self._run_batch()
            with self._lock:
                if not self._queued:
                    self._busy = False
                    return

    def _run_batch(self) -> None:
        """Run one batch and deliver its outcome."""
        started = self._clock()
        batch: list[QueuedWrite] = []
        attempt = 1
        while True:
            is_begun = is_committing = False
            try:
                connection = self._connection or self._connect()
                before = connection.begin_write()
                is_begun = True
                counters = self._run_writes(connection, before, batch, started)
                ran_at = self._clock()
                is_committing = True
                connection.commit(
                    {name: value for name, value in counters.items() if value != before.get(name)}
                )
                break
            except BaseException as error:  # the thread survives any error
                is_rolled_back = not is_committing or connection.transaction_has_failed()
                may_succeed = self._may_succeed(error)
                self._disconnect()
                if not (is_rolled_back and may_succeed) or attempt == MAX_ATTEMPTS:
                    self._fail(batch, error, with_queued=not is_begun)
                    return
            time.sleep(RETRY_SECONDS * attempt)
            attempt += 1
        began_at, head = before.get(POSITION, 0), counters.get(POSITION, 0)
        ended = self._clock()
        self._executor.deliver(
            partial(self._publish, batch, began_at, head, ended - started, ended - ran_at)
        )

    def _run_writes(
        self,
        connection: Connection,
        counters: dict[str, int],
        batch: list[QueuedWrite],
        started: float,
    ) -> dict[str, int]:
        """Run each write of the batch, which also takes writes that arrive meanwhile. Return the
        counters after them."""
        for write in self._take_writes(batch, started):
            counters = self._run_write(connection, counters, write)
        return counters

    def _take_writes(self, batch: list[QueuedWrite], started: float) -> Iterator[QueuedWrite]:
        """Yield the writes of a batch that runs again, then the queued writes, each added to the
        batch before it runs."""
        yield from tuple(batch)
        while (
            self._queued
            and len(batch) < MAX_BATCH_WRITES
            and (not batch or self._clock() - started < MAX_BATCH_SECONDS)
        ):
            batch.append(self._queued.popleft())
            yield batch[-1]

    def _run_write(
        self, connection: Connection, counters: dict[str, int], write: QueuedWrite
    ) -> dict[str, int]:
        """Run one write. Return the counters after it. Raises errors that end the whole
        transaction."""
        began = self._clock()
        txn = WriteTransaction(connection=connection, counters=dict(counters))
        write.failure = None
        write.waited = began - write.queued
        try:
            write.result = write.context.run(write.fn, txn, *write.args, **write.kwargs)
            connection.savepoint()
        except BaseException as error:  # any error goes to the caller
            if self._may_succeed(error) or not connection.transaction_is_open():
                raise
            connection.rollback_to_savepoint()
            if self._engine.is_outage(error):
                write.fail_unavailable(error)
            else:
                write.fail(error)
        else:
            counters = txn.counters
            write.changes, write.callbacks, write.required_position = (
                txn.changes,
                txn.callbacks,
                txn.required_position,
            )
        write.queries = txn.queries
        write.took = self._clock() - began
        return counters

    def _may_succeed(self, error: BaseException) -> bool:
        """Return whether a batch that failed with this error may succeed when it runs again."""
        is_disconnected = self._connection is not None and not self._connection.is_usable()
        return is_disconnected or self._engine.is_retryable(error)

    def _connect(self) -> Connection:
        self._connection = self._engine.connect_writer()
        return self._connection

    def _disconnect(self) -> None:
        """Close the connection, which rolls its transaction back."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.close()
        except self._engine.errors as error:
            self._log.warn("Could not close the writer's connection: {error}", error=error)

    def _fail(self, batch: list[QueuedWrite], error: BaseException, *, with_queued: bool) -> None:
        while with_queued and self._queued and len(batch) < MAX_BATCH_WRITES:
            batch.append(self._queued.popleft())
        self._log.error("A batch of {count} writes failed: {error}", count=len(batch), error=error)
        for write in batch:
            write.fail_unavailable(error)
        self._executor.deliver(partial(self._acknowledge, batch))

    # ------------------------------------------------------------------------------------------
    # On the reactor thread

    def _publish(
        self, batch: list[QueuedWrite], began_at: int, head: int, took: float, committing: float
    ) -> None:
        self._streams.advance_to(began_at)
        self._streams.publish([change for write in batch for change in write.changes], head)
        for write in batch:
            for callback in write.callbacks:
                try:
                    callback()
                except Exception:
                    self._log.failure(
                        "A callback after the commit of {name} failed.", name=write.name
                    )
        self._observer.batch_done(len(batch), len(self._queued), took, committing)
        self._acknowledge(batch)

    def _acknowledge(self, batch: list[QueuedWrite]) -> None:
        for write in batch:
            self._observer.write_done(write.name, write.waited, write.took, write.queries)
            if write.failure is not None:
                write.deferred.errback(write.failure)
            else:
                write.deferred.callback(write.result)

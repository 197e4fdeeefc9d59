"""The one writer: many callers' writes in one transaction.

Writes queue up while a batch runs; the next batch takes all that wait. So the fsync of a commit is
shared by as many writes as came in the meantime, and by those of requests that came together; an
idle server still commits a lone write at once.

Laws:
- Whose writes were acknowledged together are likely to come again together, and whose writes take
  turns may as well: where they are few, the next batch waits a moment for them (`FEW`), until as
  many are there as were. Where that was in vain, several batches do not.
- A batch is one transaction. Each write has a savepoint (but for a write that is alone), and one
  that raises is undone alone.
- Statements of which nothing is needed wait, those of one write together with those of the next:
  PostgreSQL may get a whole batch as one message. So does what is taken for granted
  (`WriteTransaction.change_one`). Where any of it is refused, or a write fails before that is
  known, the batch is run again without such trust: each write's statements are sent for themselves,
  and nothing is taken for granted.
- A statement that is refused, or given up by the server, fails the write whose it is; where that
  one cannot be told, all of the batch is run again in the same way. But where the transaction could
  not begin (`NotBegun`), all who wait by then have waited long enough.
- A write is acknowledged after the commit, on the reactor's thread, after the streams and the
  write's own callbacks have been told. All that a batch has to tell costs one wake-up of the
  reactor.
- A batch that fails as a whole before its commit is run again where that makes sense, as where its
  connection was lost, which one looks for just before the commit; when a commit fails, nothing is
  known of it, and so it is never run again: the callers get `DatabaseUnavailable`. But where the
  transaction is open after that, it was not the commit but a statement that went with it
  (`WriteTransaction.execute_later`): then all is as if it had failed before.
- Whatever a write raises, the writer's thread goes on.
- Of a batch that fails, a write that had failed by itself has failed with it: it may have met what
  another of these had done.
- Between begin and commit no other node writes: positions are committed in their order.
- What a batch is told of counters holds (where none of its writes asks anything: of those that they
  looked at), or the batch is run again: PostgreSQL may find only at its first statement, or with
  the commit, that other nodes have written (`OthersWrote`). A function that fails before its first
  statement has failed by what it knew without the database.
- A batch finds the position where this process left it, or a new stretch begins
  (`WriteTransaction.stretch`). Whatever undoes a write, or hides whether it was done, has run its
  `undoings` before anything else is written.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import Context
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from storage.engine.executors import Executor, InLull, call_at_once
from storage.engine.interface import Connection, DatabaseUnavailable, Engine, NotBegun, OthersWrote
from storage.engine.observer import Observer
from storage.engine.streams import Change, Streams
from storage.engine.transaction import POSITION, Latest, WriteTransaction

MOST_WRITES = 256
"""How many writes a batch takes at most."""

LONGEST_BATCH = 0.05
"""Seconds after which a batch takes no further write, so that those in it do not wait long for
their commit."""

TRIES = 3
"""How often a batch is run, when what stopped it may pass."""

FEW = 4
"""Writes of a batch and that came while it ran, up to which the next waits for more: of more, each
has little of what a commit costs."""

A_MOMENT = 0.001
"""Seconds after a batch, for which one waits for those that were in it."""

MOST_REST = 256
"""Batches that do not wait after some that did in vain."""

LONG_ENOUGH = 8
"""Batches in a row before which nobody else had written: then it is likely to stay so for some."""

MOST_LATEST = 20_000
"""Names of rows that came lately: those of requests, which clients repeat within minutes. To find
so that a row is there is an error to PostgreSQL, and its log has statements that failed."""

PAUSE = 0.1
"""Seconds before the second try, twice as many before the third: a restarting PostgreSQL is back in
less."""


class QueuedWrite(msgspec.Struct):
    """A write that waits for its batch, and its result once there is one."""

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
    looked_at: Collection[str] = ()
    undoings: Sequence[Callable[[], None]] = ()
    changes: Sequence[Change] = ()
    callbacks: Sequence[Callable[[], None]] = ()
    everywhere: int = 0
    assumed: bool = False
    queries: int = 0
    waited: float = 0.0
    took: float = 0.0

    def undo(self) -> None:
        """What it did is undone, as far as anybody knows."""
        undoings, self.undoings = self.undoings, ()
        for callback in undoings:
            callback()

    def fail(self, error: BaseException) -> None:
        """The write is undone: whatever it had to tell is dropped."""
        self.undo()
        self.failure = Failure(error)
        self.result = None
        self.changes = self.callbacks = ()


class _Refused(Exception):
    """What was sent in good faith was refused."""


class Writer:
    """Runs queued writes in batches, on an executor with a single thread."""

    _log = Logger()

    def __init__(
        self,
        engine: Engine,
        executor: Executor,
        streams: Streams,
        observer: Observer,
        clock: Callable[[], float] = time.perf_counter,
        pause: Callable[[float], None] = time.sleep,
        in_lull: InLull = call_at_once,
    ) -> None:
        """`in_lull`: when a batch begins that is the first, or waits for more."""
        self._engine = engine
        self._executor = executor
        self._streams = streams
        self._observer = observer
        self._clock = clock
        self._pause = pause
        self._in_lull = in_lull
        self._waiting: deque[QueuedWrite] = deque()
        self._lock = threading.Lock()
        self._busy = False
        # Whether it waits for a lull to begin; for more writes than how many, and how many batches
        # do not wait for more.
        self._begins = False
        self._hopes_for_more_than = 0
        self._rests = 0
        self._rested = 1
        self._is_closing = False
        # How many writes the latest batch had, with those that came while it ran, and when it
        # ended.
        self._met = 0
        self._ended = 0.0
        self._latest = Latest(MOST_LATEST)
        self._connection: Connection | None = None
        # The position as the latest batch left it, the number of the stretch, and how many batches
        # it has.
        self._left_at: int | None = None
        self._stretch = 0
        self._batches = 0

    def add(self, write: QueuedWrite) -> None:
        """Queue a write; its Deferred fires after the commit. On the reactor's thread."""
        with self._lock:
            self._waiting.append(write)
            if not self._busy:
                self._busy = self._begins = True
                patient = write.queued - self._ended < A_MOMENT and self._hopes()
            elif self._hopes_for_more_than and len(self._waiting) == self._met:
                patient = False  # it begins at once now
            else:
                return
        self._in_lull(self._begin, patient=patient)

    def close(self) -> Deferred[None]:
        """Run what still waits, then let go of the database."""
        with self._lock:
            self._is_closing = True
        self._begin()
        self._executor.submit(self._disconnect)
        return self._executor.close()

    def _begin(self) -> None:
        with self._lock:
            begins, self._begins = self._begins, False
        if begins:
            self._executor.submit(self._run)

    def _begin_soon(self) -> None:
        self._in_lull(self._begin, patient=True)

    def _hopes(self) -> bool:
        """Whether the next batch waits for more, until as many are there as were: not for who was
        alone, and may have been answered and have come again by now. With the lock."""
        if not len(self._waiting) < self._met <= FEW or self._is_closing:
            return False
        if self._rests:
            self._rests -= 1
            return False
        self._hopes_for_more_than = len(self._waiting)
        return True

    def _note_hope(self) -> None:
        """Whether it was in vain. With the lock."""
        if self._hopes_for_more_than:
            if len(self._waiting) > self._hopes_for_more_than:
                self._rested = max(self._rested // 2, 1)
            else:
                self._rests = self._rested = min(self._rested * 4, MOST_REST)
            self._hopes_for_more_than = 0

    # ------------------------------------------------------------------------------- from here on
    # the writer's thread

    def _run(self) -> None:
        with self._lock:
            self._note_hope()
        while True:
            self._run_batch()
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    return
                if self._hopes():
                    self._begins = True
                    break
        self._executor.deliver(self._begin_soon)

    def _run_batch(self) -> None:
        started = self._clock()
        batch: list[QueuedWrite] = []
        attempt, trusting = 1, True
        while True:
            committing = False
            try:
                connection = self._connection or self._connect()
                before = connection.begin_write()
                self._note_begin(before.get(POSITION, 0))
                counters: dict[str, int] = {}
                self._run_writes(connection, before, counters, batch, started, trusting)
                is_there = connection.transaction_is_open()
                if is_there:
                    connection.check_session()
                committed = self._clock()
                committing = True
                if not is_there or not self._commit(connection, counters, batch, trusting):
                    counters = {}  # the only write was undone
            except BaseException as error:
                # Whatever it is, the writer's thread goes on.
                for write in batch:
                    write.undo()
                is_undone = (
                    not committing or isinstance(error, OthersWrote) or self._transaction_is_open()
                )
                may_succeed = self._is_lost() or self._may_succeed(error)
                self._give_up_transaction(error)
                if isinstance(error, _Refused):
                    trusting = False
                    continue
                if is_undone and attempt < TRIES and may_succeed:
                    if not isinstance(error, OthersWrote):
                        self._pause(PAUSE * attempt)
                    attempt += 1
                    continue
                self._fail(batch, error)
                return
            break
        ended = self._clock()
        self._met, self._ended = len(batch) + len(self._waiting), ended
        began_at = before.get(POSITION, 0)
        self._left_at = head = counters.get(POSITION, began_at)
        self._executor.deliver(
            partial(self._publish, batch, began_at, head, ended - started, ended - committed)
        )

    def _note_begin(self, position: int) -> None:
        """A batch begins there."""
        if position == self._left_at:
            self._batches += 1
        else:
            self._left_at, self._batches = position, 0
            self._stretch += 1

    def _run_writes(
        self,
        connection: Connection,
        before: Mapping[str, int],
        counters: dict[str, int],
        batch: list[QueuedWrite],
        started: float,
        trusting: bool,
    ) -> None:
        """Fill the batch with what waits, running each; or, when it is filled already, run it
        again."""
        if batch:
            for write in batch:
                self._run_write(connection, before, counters, write, len(batch) == 1, trusting)
            return
        while (
            self._waiting
            and len(batch) < MOST_WRITES
            and (not batch or self._clock() - started < LONGEST_BATCH)
        ):
            write = self._waiting.popleft()
            batch.append(write)
            alone = len(batch) == 1 and not self._waiting
            self._run_write(connection, before, counters, write, alone, trusting)
            if alone:
                return

    def _run_write(
        self,
        connection: Connection,
        before: Mapping[str, int],
        counters: dict[str, int],
        write: QueuedWrite,
        alone: bool,
        trusting: bool,
    ) -> None:
        """Run one write. Raises only what ends the whole transaction."""
        began = self._clock()
        write.failure = None
        write.waited = began - write.queued
        is_alone = self._batches >= LONG_ENOUGH
        trusts = self._latest if trusting and is_alone else None
        txn = WriteTransaction(connection, before, counters, self._stretch, is_alone, trusts)
        write.undoings, write.looked_at = txn.undoings, txn.looked_at
        if not alone:
            connection.save(checked=not trusting)
        try:
            write.result = write.context.run(write.fn, txn, *write.args, **write.kwargs)
            if not connection.transaction_is_whole():
                raise DatabaseUnavailable(
                    f"the write {write.name} went on after a statement had failed"
                )
            if not alone:
                connection.keep(checked=not trusting)
        except BaseException as error:
            # Whatever it is, the caller gets it.
            if (
                isinstance(error, NotBegun)
                or not connection.is_usable()
                or self._may_succeed(error)
            ):
                raise
            is_outage = isinstance(error, Exception) and self._engine.is_outage(error)
            may_be_spoilt = trusting and (not alone or (txn.assumed and not is_outage))
            is_spoilt = may_be_spoilt and not connection.transaction_is_whole()
            if is_spoilt or (txn.assumed and connection.is_trusting()):
                raise _Refused from error
            if not connection.transaction_is_open() and (is_outage or not alone):
                raise
            if is_outage:
                unavailable = DatabaseUnavailable(
                    f"the write {write.name} could not be done: {error}"
                )
                unavailable.__cause__ = error
                write.fail(unavailable)
            else:
                write.fail(error)
            if alone:
                connection.rollback()
            else:
                connection.undo()
        else:
            write.changes = txn.changes
            write.callbacks = txn.callbacks
            write.everywhere = txn.everywhere
        write.queries, write.assumed = txn.queries, txn.assumed
        write.took = self._clock() - began

    def _commit(
        self,
        connection: Connection,
        counters: dict[str, int],
        batch: list[QueuedWrite],
        trusting: bool,
    ) -> bool:
        """Commit; False where the only write had left a statement for now that breaks a rule, and
        is undone. Raises what else goes wrong."""
        try:
            connection.commit(counters, {name for write in batch for name in write.looked_at})
        except self._engine.errors as error:
            if not connection.transaction_is_open() or self._engine.is_worth_retrying(error):
                raise
            is_outage = self._engine.is_outage(error)
            if trusting and (len(batch) > 1 or (batch[0].assumed and not is_outage)):
                raise _Refused from error
            if len(batch) > 1 or is_outage:
                raise
            batch[0].fail(error)
            connection.rollback()
            return False
        return True

    def _may_succeed(self, error: BaseException) -> bool:
        """Whether what failed so may succeed when all of it is run again."""
        return isinstance(error, OthersWrote) or (
            isinstance(error, Exception) and self._engine.is_worth_retrying(error)
        )

    def _is_lost(self) -> bool:
        """Whether there was a connection, and is none any more."""
        return self._connection is not None and not self._connection.is_usable()

    def _transaction_is_open(self) -> bool:
        return self._connection is not None and self._connection.transaction_is_open()

    def _connect(self) -> Connection:
        self._connection = self._engine.connect_writer()
        self._left_at = None  # who knows whether it is the same server
        return self._connection

    def _give_up_transaction(self, reason: BaseException) -> None:
        """Undo what can be undone; the next batch gets a new connection, whatever befell this one,
        but for what befalls none."""
        if self._connection is not None:
            try:
                self._connection.rollback()
                if isinstance(reason, OthersWrote | _Refused):
                    return
            except self._engine.errors as error:
                self._log.warn("The writer's connection was lost: {error}", error=error)
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.close()
        except self._engine.errors:
            self._log.warn("Could not close the writer's connection.")

    def _fail(self, batch: list[QueuedWrite], error: BaseException) -> None:
        if not batch or isinstance(error, NotBegun):
            # The transaction could not even begin: those who wait must not wait for ever, nor as
            # long once more.
            while self._waiting and len(batch) < MOST_WRITES:
                batch.append(self._waiting.popleft())
        self._log.error("A batch of {count} writes failed: {error}", count=len(batch), error=error)
        for write in batch:
            unavailable = DatabaseUnavailable(f"the write {write.name} could not be done: {error}")
            unavailable.__cause__ = error
            write.fail(unavailable)
        self._executor.deliver(partial(self._acknowledge, batch))

    # ------------------------------------------------------------------------------ from here on
    # the reactor's thread

    def _publish(
        self, batch: list[QueuedWrite], began_at: int, head: int, took: float, committing: float
    ) -> None:
        self._streams.advance_to(began_at)
        alone = len(batch) == 1
        changes = (
            batch[0].changes if alone else [change for write in batch for change in write.changes]
        )
        self._streams.publish(changes, head)
        for write in batch:
            for callback in write.callbacks:
                try:
                    callback()
                except Exception:
                    self._log.failure("What {name} does after its commit failed.", name=write.name)
        self._observer.batch_done(len(batch), len(self._waiting), took, committing)
        self._acknowledge(batch)

    def _acknowledge(self, batch: list[QueuedWrite]) -> None:
        for write in batch:
            self._observer.write_done(write.name, write.waited, write.took, write.queries)
            if write.failure is not None:
                write.deferred.errback(write.failure)
            else:
                write.deferred.callback(write.result)

"""Sends transactions to destinations, one at a time for each, and schedules retries.

A destination that does not respond is retried after a pause that grows, by default up to an hour.
After a request from it, it is retried early: immediately, or within a minute if early retries have
failed. Retries have their own slots (`send_slots.py`), so they do not delay other destinations.

A destination that responds 429 is reachable, and requests a pause. We retry after this pause or our
usual one, whichever is longer. A requested pause above our longest one is shortened to it. Requests
from the destination do not shorten the requested pause. spec: client-server-api#rate-limiting

If a destination refuses the content of a transaction (400, 413, 422), the content is sent in ever
smaller parts (`refused_items.py`). An item that is refused on its own is dropped, but only if the
destination accepts an empty transaction right after it. A destination that refuses the empty
transaction too, like a proxy that has lost its backend, counts as unresponsive. If a destination
still answers 500 when the pause has grown to ten minutes, the content is sent in parts too. Then an
item is dropped only if other items of the same kind (events, or EDUs of one type) are accepted.

A destination that the federation policy blocks is not retried until the policy or the signed member
list changes. The rooms in which it misses events are stored.
"""

from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Final

import msgspec
from msgspec.structs import asdict
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.client import RefusedByRemote, get_retry_after_ms
from federation.peers.federation_policy import FederationPolicy
from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.ids import ServerName
from federation.remote.transactions import FederationTransaction, TransactionClient
from federation.sender.destination import NO_ANSWER_MS, Destination, PendingTransaction
from federation.sender.refused_items import (
    describe_item,
    get_kinds,
    is_about_content,
    is_single_item,
    is_to_device,
    split_transaction,
)
from federation.sender.send_slots import SendSlots
from federation.sender.transaction_builder import TransactionBuilder
from storage.encryption.outgoing_to_device import OutgoingToDeviceStore
from storage.engine.database import Database, DatabaseUnavailable
from storage.engine.transaction import WriteTransaction
from storage.federation.destinations import Backlog, DestinationRow, DestinationStore

DATABASE_PAUSE_MS: Final = 5_000
DROP_TRANSACTION_PAUSE_MS: Final = 600_000
"""From this pause on a failed transaction is dropped; the catch-up sends its content later. But a
transaction that is being sent in parts is kept. Otherwise the search for the refused parts would
start from the beginning."""
MAX_RETAINED_TRANSACTIONS: Final = 100
"""Split transactions that stay in memory. Each may hold a megabyte."""
EARLY_RETRY_MS: Final = 1_000
"""Shortest time from the last try to a retry that the activity of a destination causes."""
EARLY_RETRY_FACTOR, MAX_EARLY_RETRY_MS = 3, 60_000
"""Each such retry that fails multiplies this time, up to one minute."""
MAX_CONCURRENT: Final = 64
"""Transactions that may start at once, to destinations whose last try succeeded."""
MAX_CONCURRENT_RETRIES: Final = 16
"""Transactions that may start at once, to destinations whose last try failed."""
MAX_REFUSED_PARTS: Final = 3
"""Parts that a destination may refuse alone without accepting one in between. From this one on each
is followed by a pause, as after a try without an answer."""
FAILING_PARTS_FACTOR, MAX_FAILING_PARTS_STEPS = 4, 3
"""Parts tried alone when a destination answers 500 and accepts none. The number is multiplied for
the next try, as all of one room or sender may fail there. After `MAX_FAILING_PARTS_STEPS` steps it
covers all parts of a transaction."""
MAX_ERROR_CHARS: Final = 500


class SendCounts(msgspec.Struct):
    """Counters of sent transactions and their content, for metrics."""

    transactions: int = 0
    failures: int = 0
    events: int = 0
    refused_events: int = 0
    edus: int = 0
    dropped: int = 0


class TransactionSender:
    """Sends to all destinations. Holds those that have unsent data or have failed. Use this class
    only on the reactor thread."""

    log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: DestinationStore,
        to_device: OutgoingToDeviceStore,
        contents: TransactionBuilder,
        transactions: TransactionClient,
        policy: FederationPolicy,
        now_ms: Callable[[], int],
        schedule: BackoffSchedule,
    ) -> None:
        self._clock = clock
        self._database = database
        self._schedule = schedule
        self._server_error_pause_ms = min(DROP_TRANSACTION_PAUSE_MS, schedule.max_ms)
        """From this pause on a 500 is taken as a failure on the content of the transaction."""
        self._store = store
        self._to_device = to_device
        self._contents = contents
        self._transactions = transactions
        self._policy = policy
        self._now_ms = now_ms
        self._destinations: dict[ServerName, Destination] = {}
        self._slots = SendSlots(clock=clock, size=MAX_CONCURRENT)
        self._retry_slots = SendSlots(clock=clock, size=MAX_CONCURRENT_RETRIES)
        self._run = self._started_ms = self._number = 0
        self._active = False
        self.counts = SendCounts()
        policy.subscribe(self._on_policy_change)

    def __iter__(self) -> Iterator[Destination]:
        return iter(self._destinations.values())

    def get_metrics(self) -> Mapping[str, int]:
        """Return the counters and the number of destinations in each state, for metrics."""
        return {
            **asdict(self.counts),
            "active": len(self._destinations),
            "failing": sum(1 for destination in self if destination.is_unreachable),
            "rate_limiting": sum(1 for destination in self if destination.retry_after_ts),
            "catching_up": sum(1 for destination in self if destination.is_behind),
        }

    def get_or_create(self, server: ServerName) -> Destination:
        """Return the destination, or create it. Call `wake` when something was added to it."""
        destination = self._destinations.get(server)
        if destination is None:
            destination = self._destinations[server] = Destination(server)
        return destination

    def peek(self, server: ServerName) -> Destination | None:
        """Return the destination if it exists."""
        return self._destinations.get(server)

    def start(
        self,
        run: int,
        rows: Mapping[str, DestinationRow],
        backlogs: Mapping[str, Backlog],
        to_device: set[str],
    ) -> None:
        """Restore the destinations from the database.

        `run`: a number that no earlier run had, as far as the database knows.
        """
        self._destinations = {}
        self._run, self._started_ms, self._number = run, self._now_ms(), 0
        self._active = True
        for server, row in rows.items():
            if row.failing_since_ts is not None:
                destination = self.get_or_create(ServerName(server))
                destination.failing_since_ts, destination.error = row.failing_since_ts, row.error
                destination.last_attempt_ts, destination.backoff_ms = (
                    row.last_attempt_ts,
                    row.backoff_ms,
                )
                destination.retry_after_ts = row.retry_after_ts
        for server, backlog in backlogs.items():
            destination = self.get_or_create(ServerName(server))
            destination.is_behind = True
            destination.missed_rooms.update(backlog.rooms)
            destination.users.update(backlog.users)
        for server in to_device:
            self.get_or_create(ServerName(server)).has_to_device = True
        for destination in list(self):
            self._schedule_retry(destination)

    def stop(self) -> None:
        """Cancel all retries and send nothing any more."""
        self._active = False
        for destination in self:
            _cancel_retry(destination)

    def wake(self, destination: Destination) -> None:
        """Start sending to the destination, unless it is being sent to or waits for a retry."""
        if self._active and not destination.is_running and destination.retry is None:
            destination.is_running = True
            Deferred.fromCoroutine(self._work(destination))

    def record_activity(self, server: ServerName) -> None:
        """Record that the server sent us something. Schedules a retry if it was unreachable."""
        destination = self._destinations.get(server)
        if destination is None:
            return
        destination.last_activity_ts = now = self._now_ms()
        if not destination.failed_after_activity:
            self._slots.prioritize(server)
            self._retry_slots.prioritize(server)
        if destination.failing_since_ts is not None and not destination.is_running:
            self._schedule_retry_in(destination, _early_retry_ts(destination) - now)

    def reset_activity_backoff(self, server: ServerName) -> None:
        """Let the next activity of the server cause a retry at once, even after a 429."""
        destination = self._destinations.get(server)
        if destination is not None:
            destination.failed_after_activity = destination.retry_after_ts = 0

    def record_no_answer(self, server: ServerName, seconds: float) -> None:
        """Record that the server did not answer another request, which took this long."""
        destination = self._destinations.get(server)
        if destination is not None and destination.failing_since_ts is not None:
            destination.last_attempt_ts, destination.is_not_answering = (
                self._now_ms(),
                seconds * 1000 >= NO_ANSWER_MS,
            )

    def remove(self, server: ServerName) -> None:
        """Remove the destination after its rows were deleted, unless memory holds unsent data."""
        destination = self._destinations.get(server)
        if (
            destination is not None
            and not destination.is_running
            and destination.get_lowest_unstored_position() is None
        ):
            _cancel_retry(destination)
            del self._destinations[server]

    def get_lowest_unstored_position(self) -> int | None:
        """Return the lowest stream position of data that only memory holds."""
        positions = [
            position
            for destination in self
            if (position := destination.get_lowest_unstored_position()) is not None
        ]
        return min(positions, default=None)

    async def _work(self, destination: Destination) -> None:
        try:
            while self._active and await self._step(destination):
                continue
        except DatabaseUnavailable as error:
            self.log.warn(
                "sending to {server} waits for the database: {error}",
                server=destination.server,
                error=error,
            )
            self._pause(destination, DATABASE_PAUSE_MS)
        except Exception:  # unexpected: keep serving the other destinations, and retry this one
            self.log.failure("sending to {server} failed unexpectedly", server=destination.server)
            self._pause(destination, self._schedule.max_ms)
        finally:
            destination.is_running = False
            if destination.is_idle and self._destinations.get(destination.server) is destination:
                del self._destinations[destination.server]
            elif (
                destination.retry is None
                and (destination.pending is not None or destination.has_unsent)
                and self._policy.allows(destination.server)
            ):
                self._schedule_retry(destination)

    async def _step(self, destination: Destination) -> bool:
        """Send one transaction. Return whether to go on with the next one."""
        if not self._policy.allows(destination.server):
            await self._store_blocked(destination)
            return False
        if destination.pending is None:
            if destination.is_behind and not destination.missed_rooms and not destination.users:
                destination.is_behind, destination.is_backlog_stored = False, True
            destination.pending = await self._contents.build_next(
                destination, self._make_id(), self._database.streams.current()
            )
        pending = destination.pending
        if pending is None:
            return False
        is_sent = bool(pending.transaction.pdus or pending.transaction.edus)
        failure: RemoteError | MatrixError | None = None
        if pending.parts or pending.failing_parts:
            slots = self._slots if destination.failing_since_ts is None else self._retry_slots
            try:
                await slots.run(destination.server, lambda: self._send(destination, pending))
            except (RemoteError, MatrixError) as error:
                failure = error
        if not pending.parts and not pending.failing_parts:
            await self._on_success(destination, pending, is_reached=is_sent and failure is None)
        if failure is not None:
            await self._on_failure(destination, failure)
        return failure is None

    def _make_id(self) -> str:
        """Return a transaction ID that was never used before.

        It must also differ from IDs used after the backup from which a database was restored. A
        destination would take a transaction with a repeated ID for a retransmission and ignore it.
        spec: server-server-api#transactions
        """
        self._number += 1
        return f"{self._run}.{self._started_ms}.{self._number}"

    async def _send(self, destination: Destination, pending: PendingTransaction) -> None:
        """Send the remaining parts.

        Raises RemoteError or MatrixError if the destination needs a pause.
        """
        is_after_activity = (
            destination.failing_since_ts is not None
            and destination.last_activity_ts >= destination.last_attempt_ts
        )
        destination.last_attempt_ts = self._now_ms()
        pending.accepted_kinds.clear()  # earlier successes say nothing about failures at this try
        self._policy.check_destination(destination.server)
        try:
            while pending.parts and self._active:
                await self._send_part(destination, pending)
            if pending.failing_parts and self._active:
                await self._retry_broken(destination, pending)
        except (RemoteError, MatrixError):
            destination.failed_after_activity += is_after_activity
            if pending.failing_parts and not pending.accepted_kinds:
                destination.failing_tries = (destination.failing_tries + 1) % (
                    MAX_FAILING_PARTS_STEPS + 1
                )
            raise

    async def _send_part(self, destination: Destination, pending: PendingTransaction) -> None:
        part = pending.parts[0]
        try:
            refused = await self._transactions.send(destination.server, part)
        except RefusedByRemote as error:
            if is_about_content(error.status, part):
                await self._on_refusal(destination, pending, error)
            elif (
                error.status == HTTPStatus.INTERNAL_SERVER_ERROR
                and destination.backoff_ms >= self._server_error_pause_ms
            ):
                await self._on_server_error(destination, pending, error)
            else:
                if (
                    get_retry_after_ms(error)
                    and error.retry_after_ms
                    and any(map(is_to_device, part.edus))
                ):
                    # by then it may accept some of the to-device messages, and not all
                    self._halve(pending)
                raise
            return
        pending.parts.popleft()
        destination.refused_parts = 0
        self._count_accepted(destination, pending, part, refused)

    def _count_accepted(
        self,
        destination: Destination,
        pending: PendingTransaction,
        part: FederationTransaction,
        refused: int,
    ) -> None:
        if destination.failing_since_ts is not None:
            pending.accepted_kinds.update(get_kinds(part))
        if destination.retry_after_ts:
            destination.backoff_ms = 0
        destination.failing_tries = 0
        self.counts.transactions += 1
        self.counts.events += len(part.pdus)
        self.counts.refused_events += refused
        self.counts.edus += len(part.edus)

    async def _on_refusal(
        self, destination: Destination, pending: PendingTransaction, error: RefusedByRemote
    ) -> None:
        """Split the refused part for the next try, or drop it if it holds a single item.

        Raises RemoteError or MatrixError if the destination refuses an empty transaction too, or if
        it has refused too many parts.
        """
        part = pending.parts[0]
        if is_single_item(part) or not pending.is_split:
            # a destination that refuses an empty transaction too does not refuse the content
            await self._transactions.send(
                destination.server, FederationTransaction(self._make_id(), self._now_ms(), (), ())
            )
        if self._halve(pending):
            return
        pending.parts.popleft()
        self._drop(destination, part, error)
        if destination.refused_parts >= MAX_REFUSED_PARTS:
            raise error

    def _halve(self, pending: PendingTransaction) -> bool:
        """Split the next part into halves. Return False if it holds a single item."""
        if is_single_item(pending.parts[0]):
            return False
        halves = split_transaction(pending.parts.popleft(), self._make_id)
        pending.parts.extendleft(reversed(halves))
        return True

    def _drop(
        self, destination: Destination, part: FederationTransaction, error: RefusedByRemote
    ) -> None:
        destination.refused_parts += 1
        self.counts.dropped += 1
        self.log.warn(
            "{server} refuses a part, which is dropped: {part}: {error}",
            server=destination.server,
            part=describe_item(part),
            error=error.reason,
        )

    async def _on_server_error(
        self, destination: Destination, pending: PendingTransaction, error: RefusedByRemote
    ) -> None:
        """Split the part on which the destination answers 500 again and again.

        A single item is moved behind all others. Raises RemoteError or MatrixError if splitting
        does not seem to help.
        """
        if not pending.is_split:
            await self._transactions.send(
                destination.server, FederationTransaction(self._make_id(), self._now_ms(), (), ())
            )
        if self._halve(pending):
            return
        pending.failing_parts.append(pending.parts.popleft())
        limit = MAX_REFUSED_PARTS * FAILING_PARTS_FACTOR**destination.failing_tries
        if len(pending.failing_parts) >= limit and not pending.accepted_kinds:
            raise error

    async def _retry_broken(self, destination: Destination, pending: PendingTransaction) -> None:
        """Retry the items on which the destination answered 500.

        An item is dropped if the destination has accepted others of the same kind. Otherwise the
        destination may have failed for a reason of its own, such as a full disk.

        Raises RemoteError or MatrixError.
        """
        for _ in range(len(pending.failing_parts)):
            part = pending.failing_parts[0]
            try:
                refused = await self._transactions.send(destination.server, part)
            except RefusedByRemote as error:
                if (
                    error.status != HTTPStatus.INTERNAL_SERVER_ERROR
                    or not get_kinds(part) <= pending.accepted_kinds
                ):
                    raise
                self._drop(destination, part, error)
            else:
                self._count_accepted(destination, pending, part, refused)
            pending.failing_parts.popleft()

    async def _store_blocked(self, destination: Destination) -> None:
        """Store what a blocked server misses, until the policy allows it again."""
        destination.ephemeral_edus.clear()
        destination.presence.clear()
        if not (destination.is_behind and destination.is_backlog_stored):
            self.log.info(
                "the policy blocks {server}: unsent data waits in the database",
                server=destination.server,
            )
            await self._store.add_backlogs({destination.server: destination.fall_behind()})
            destination.is_backlog_stored = True
        destination.requeue_pending()

    def _on_policy_change(self) -> None:
        """Wake the destinations that the changed policy allows."""
        for destination in list(self):
            if self._policy.allows(destination.server):
                self.wake(destination)

    async def _on_success(
        self, destination: Destination, pending: PendingTransaction, *, is_reached: bool
    ) -> None:
        """Finish the pending transaction. `is_reached`: the server has answered with success."""
        was_failing = is_reached and destination.failing_since_ts is not None
        await self._record_delivered(destination, pending, was_failing=was_failing)
        if was_failing:
            self.log.info("{server} accepts transactions again", server=destination.server)
        if is_reached:
            destination.failing_since_ts, destination.error, destination.backoff_ms = None, None, 0
            destination.failed_after_activity = destination.retry_after_ts = 0
        destination.pending = None

    async def _record_delivered(
        self, destination: Destination, pending: PendingTransaction, *, was_failing: bool = False
    ) -> None:
        """Record the delivered content in the database. `was_failing`: the server is back."""
        now, was_behind = self._now_ms(), destination.is_behind
        # changes that came meanwhile stay in the backlog
        rooms = {nid: destination.missed_rooms.get(nid) for nid in pending.rooms}
        users = {user_id: destination.users.get(user_id) for user_id in pending.users}

        def write(txn: WriteTransaction) -> None:
            if was_behind:
                self._store.set_delivered(txn, destination.server, rooms, users)
            if pending.to_device_upto is not None:
                self._to_device.remove_messages(txn, destination.server, pending.to_device_upto)
            if was_failing:
                self._store.set_reached(txn, destination.server, now)

        if was_behind or was_failing or pending.to_device_upto is not None:
            await self._database.write("record_delivered_transaction", write)

    async def _on_failure(
        self, destination: Destination, failure: RemoteError | MatrixError
    ) -> None:
        self.counts.failures += 1
        now, error = self._now_ms(), str(failure)
        requested_ms = min(get_retry_after_ms(failure), self._schedule.max_ms)
        if destination.failing_since_ts is None or bool(requested_ms) is destination.is_unreachable:
            state = "asks us to wait" if requested_ms else "cannot be reached"
            self.log.info(
                "{server} {state}: {error}", server=destination.server, state=state, error=error
            )
            destination.failing_since_ts = now
        destination.retry_after_ts = now + requested_ms if requested_ms else 0
        destination.ephemeral_edus.clear()
        destination.error = error[:MAX_ERROR_CHARS].replace("\0", "")
        backoff_ms = self._schedule.after(destination.backoff_ms)
        # before the first await: from now on new events go to the backlog
        backlog = (
            Backlog()
            if destination.is_behind and destination.is_backlog_stored
            else destination.fall_behind()
        )
        since_ts, retry_after_ts = destination.failing_since_ts, destination.retry_after_ts
        row = DestinationRow(
            destination.server, since_ts, now, backoff_ms, destination.error, retry_after_ts
        )
        was_active = destination.last_activity_ts >= destination.last_attempt_ts
        destination.is_not_answering = now - destination.last_attempt_ts >= NO_ANSWER_MS
        self._pause(destination, backoff_ms)
        if was_active:
            # it became active during the failed try, and may send us nothing more for a long time
            self._schedule_retry_in(destination, _early_retry_ts(destination) - now)
        await self._store.add_failure(row, backlog)
        destination.is_backlog_stored = True
        pending = destination.pending
        if pending is not None and pending.failing_parts:
            # record the kinds that were delivered completely, so that later ones of them are sent
            delivered, left = pending.split_delivered()
            await self._record_delivered(destination, delivered)
            destination.pending = left
        if pending is not None and (
            pending.failing_parts
            or (backoff_ms >= DROP_TRANSACTION_PAUSE_MS and not self._is_retained(pending))
        ):
            destination.requeue_pending()

    def _is_retained(self, pending: PendingTransaction) -> bool:
        """Return whether the transaction stays in memory however long the pause is."""
        if not pending.is_split:
            return False
        pauses = (
            each.backoff_ms for each in self if each.pending is not None and each.pending.is_split
        )
        return (
            sum(1 for backoff_ms in pauses if backoff_ms >= DROP_TRANSACTION_PAUSE_MS)
            <= MAX_RETAINED_TRANSACTIONS
        )

    def _pause(self, destination: Destination, backoff_ms: int) -> None:
        destination.last_attempt_ts, destination.backoff_ms = self._now_ms(), backoff_ms
        self._schedule_retry(destination)

    def _schedule_retry(self, destination: Destination) -> None:
        due_ts = max(
            destination.last_attempt_ts + destination.backoff_ms, destination.retry_after_ts
        )
        self._schedule_retry_in(destination, due_ts - self._now_ms())

    def _schedule_retry_in(self, destination: Destination, milliseconds: int) -> None:
        if self._active:
            _cancel_retry(destination)
            destination.retry = self._clock.callLater(
                max(0, milliseconds) / 1000, self._retry, destination
            )

    def _retry(self, destination: Destination) -> None:
        destination.retry = None
        self.wake(destination)


def _early_retry_ts(destination: Destination) -> int:
    """Return the time of the retry that activity of the destination causes, in milliseconds."""
    delay = EARLY_RETRY_MS * int(EARLY_RETRY_FACTOR ** min(destination.failed_after_activity, 10))
    backoff_ms = min(delay, MAX_EARLY_RETRY_MS, destination.backoff_ms)
    return max(destination.last_attempt_ts + backoff_ms, destination.retry_after_ts)


def _cancel_retry(destination: Destination) -> None:
    if destination.retry is not None:
        destination.retry.cancel()
        destination.retry = None

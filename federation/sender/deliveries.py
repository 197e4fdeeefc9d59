"""Carries transactions to their destinations, one at a time for each, and says when to try again.

A destination that does not answer is tried again after a pause that grows, to an hour as a rule.
When it asks something of us, or sends something, it is back, and is tried at once; later, if it has
spoken so before and was tried in vain. Such tries have a lane of their own (`send_slots.py`), so
that destinations which do not answer keep none waiting that do.

One that answers 429 is there, and says when to come again: it is not tried before that, though it
speaks to us, nor sooner than after our own pause; and after the longest of our pauses at the
latest. spec: client-server-api#rate-limiting

A transaction that its destination refuses for what is in it is sent in ever smaller parts
(`refusals.py`), and what is refused alone is given up, once an empty one has been taken right after
it: who refuses that too refuses everything, as a proxy may that has lost its server, and is one
that does not answer.

One that the policy refuses is behind, without any tries, until the policy or the list of members
changes.
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
from federation.peers.policy import Policy
from federation.peers.requests import RefusedByRemote, asked_wait_ms
from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.ids import ServerName
from federation.remote.transactions import Transaction, Transactions
from federation.sender.destination import SILENT_MS, Destination, Pending
from federation.sender.refusals import (
    describe,
    is_alone,
    is_of_content,
    is_to_device,
    kinds_of,
    split,
)
from federation.sender.send_slots import Lane
from federation.sender.transaction_contents import Contents
from storage.encryption.outgoing_to_device import OutgoingToDeviceStore
from storage.engine.database import Database, DatabaseUnavailable
from storage.engine.transaction import WriteTransaction
from storage.federation.destinations import Backlog, DestinationRow, DestinationStore

DATABASE_PAUSE_MS: Final = 5_000
KEPT_TRANSACTION_PAUSE_MS: Final = 600_000
"""From this pause on the transaction that failed is given up: its content is told in what catches
up. One that is sent in parts is kept: else all that the server has refused alone would be found
anew."""
MOST_KEPT: Final = 100
"""So many of these, as each may hold a megabyte."""
SOONEST_RETRY_MS: Final = 1_000
"""After the last try, when a destination is heard from."""
SOONEST_RETRY_GROWTH, LATEST_SOONEST_RETRY_MS = 3, 60_000
"""With each such try in vain that is later, but no more than a minute."""
MAX_CONCURRENT: Final = 64
"""Transactions that may begin at once, to destinations that have not failed the last time."""
RETRIES_AT_ONCE: Final = 16
"""The same, to those that have."""
GIVEN_UP_AT_ONCE: Final = 3
"""Parts that a destination refuses alone, with none between that it takes; from that one on each is
followed by a pause, as if it did not answer."""
BROKEN_GROWTH, GROWN_MOST = 4, 3
"""Of a destination that breaks down at so many alone, and takes nothing in, so many times more are
tried the next time: it may lack all of a room, or of a sender. After so many times that is all that
a transaction holds."""
MAX_ERROR_CHARS: Final = 500


class Counts(msgspec.Struct):
    """What has been sent, for metrics."""

    transactions: int = 0
    failures: int = 0
    events: int = 0
    refused_events: int = 0
    edus: int = 0
    given_up: int = 0


class Deliveries:
    """All destinations that there is something to know of. For the reactor thread."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        store: DestinationStore,
        to_device: OutgoingToDeviceStore,
        contents: Contents,
        transactions: Transactions,
        policy: Policy,
        now_ms: Callable[[], int],
        schedule: BackoffSchedule,
    ) -> None:
        self._clock = clock
        self._database = database
        self._schedule = schedule
        self._breakdown_pause_ms = min(KEPT_TRANSACTION_PAUSE_MS, schedule.longest_ms)
        """After a pause of so long, it breaks down at what is in a transaction, or it is not
        there."""
        self._store = store
        self._to_device = to_device
        self._contents = contents
        self._transactions = transactions
        self._policy = policy
        self._now_ms = now_ms
        self._destinations: dict[ServerName, Destination] = {}
        self._lane = Lane(clock, MAX_CONCURRENT)
        self._lane_of_retries = Lane(clock, RETRIES_AT_ONCE)
        self._run = self._begun_ms = self._number = 0
        self._active = False
        self.counts = Counts()
        policy.subscribe(self._heed_policy)

    def __iter__(self) -> Iterator[Destination]:
        return iter(self._destinations.values())

    def get_figures(self) -> Mapping[str, int]:
        """What has been sent, and how many destinations stand how: for metrics."""
        return {
            **asdict(self.counts),
            "active": len(self._destinations),
            "failing": sum(1 for destination in self if destination.is_unreachable),
            "asked_to_wait": sum(1 for destination in self if destination.asked_until_ts),
            "behind": sum(1 for destination in self if destination.is_behind),
        }

    def find(self, server: ServerName) -> Destination:
        """The destination, a new one if nothing is known of it; `wake` it once there is something
        to tell."""
        destination = self._destinations.get(server)
        if destination is None:
            destination = self._destinations[server] = Destination(server)
        return destination

    def peek(self, server: ServerName) -> Destination | None:
        """The destination, if something is known of it."""
        return self._destinations.get(server)

    def start(
        self,
        run: int,
        rows: Mapping[str, DestinationRow],
        backlogs: Mapping[str, Backlog],
        to_device: set[str],
    ) -> None:
        """Go on from what the database knows. `run`: a number that was never given before, as far
        as the database knows."""
        self._destinations = {}
        self._run, self._begun_ms, self._number = run, self._now_ms(), 0
        self._active = True
        for server, row in rows.items():
            if row.failing_since_ts is not None:
                destination = self.find(ServerName(server))
                destination.failing_since_ts, destination.error = row.failing_since_ts, row.error
                destination.tried_ts, destination.pause_ms = row.tried_ts, row.pause_ms
                destination.asked_until_ts = row.asked_until_ts
        for server, backlog in backlogs.items():
            destination = self.find(ServerName(server))
            destination.is_behind = True
            destination.missed.update(backlog.rooms)
            destination.users.update(backlog.users)
        for server in to_device:
            self.find(ServerName(server)).has_to_device = True
        for destination in list(self):
            self._try_later(destination)

    def stop(self) -> None:
        """Try nothing any more."""
        self._active = False
        for destination in self:
            _cancel_retry(destination)

    def wake(self, destination: Destination) -> None:
        """There is something to tell."""
        if self._active and not destination.is_running and destination.retry is None:
            destination.is_running = True
            Deferred.fromCoroutine(self._work(destination))

    def heard_from(self, server: ServerName) -> None:
        """The server has spoken to us: if it could not be reached, it may be now."""
        destination = self._destinations.get(server)
        if destination is None:
            return
        destination.heard_ts = now = self._now_ms()
        if not destination.in_vain_on_its_word:
            self._lane.hurry(server)
            self._lane_of_retries.hurry(server)
        if destination.failing_since_ts is not None and not destination.is_running:
            self._try_in(destination, _soonest_retry(destination) - now)

    def forget_vain_words(self, server: ServerName) -> None:
        """The next word of the server is believed as its first was, though it has asked us to
        wait."""
        destination = self._destinations.get(server)
        if destination is not None:
            destination.in_vain_on_its_word = destination.asked_until_ts = 0

    def note_silence(self, server: ServerName, seconds: float) -> None:
        """The server has not answered something else that we asked, which took so long."""
        destination = self._destinations.get(server)
        if destination is not None and destination.failing_since_ts is not None:
            destination.tried_ts, destination.is_silent = (
                self._now_ms(),
                seconds * 1000 >= SILENT_MS,
            )

    def forget(self, server: ServerName) -> None:
        """The database has nothing of that server any more, so there is nothing to try. What only
        memory knows, stays."""
        destination = self._destinations.get(server)
        if destination is not None and not destination.is_running and destination.lowest() is None:
            _cancel_retry(destination)
            del self._destinations[server]

    def lowest(self) -> int | None:
        """The lowest position of what only memory knows."""
        positions = [
            position for destination in self if (position := destination.lowest()) is not None
        ]
        return min(positions, default=None)

    async def _work(self, destination: Destination) -> None:
        try:
            while self._active and await self._step(destination):
                continue
        except DatabaseUnavailable as error:
            self.log.warn(
                "sending to {server} waits: {error}", server=destination.server, error=error
            )
            self._pause(destination, DATABASE_PAUSE_MS)
        except Exception:  # a bug of ours: others are served on, and this one is tried again
            self.log.failure("sending to {server} broke", server=destination.server)
            self._pause(destination, self._schedule.longest_ms)
        finally:
            destination.is_running = False
            if destination.is_idle and self._destinations.get(destination.server) is destination:
                del self._destinations[destination.server]
            elif (
                destination.retry is None
                and (destination.pending is not None or destination.has_news)
                and self._policy.allows(destination.server)
            ):
                self._try_later(destination)

    async def _step(self, destination: Destination) -> bool:
        """One transaction; whether to go on."""
        if not self._policy.allows(destination.server):
            await self._hold(destination)
            return False
        if destination.pending is None:
            if destination.is_behind and not destination.missed and not destination.users:
                destination.is_behind, destination.is_noted = False, True
            destination.pending = await self._contents.take(
                destination, self._make_id(), self._database.streams.current()
            )
        pending = destination.pending
        if pending is None:
            return False
        is_sent = bool(pending.transaction.pdus or pending.transaction.edus)
        failure: RemoteError | MatrixError | None = None
        if pending.parts or pending.broken:
            lane = self._lane if destination.failing_since_ts is None else self._lane_of_retries
            try:
                await lane.run(destination.server, lambda: self._send(destination, pending))
            except (RemoteError, MatrixError) as error:
                failure = error
        if not pending.parts and not pending.broken:
            await self._note_success(destination, pending, is_reached=is_sent and failure is None)
        if failure is not None:
            await self._note_failure(destination, failure)
        return failure is None

    def _make_id(self) -> str:
        """An id that no transaction has had, not even one of which a database that was restored
        from a backup knows nothing: to whoever got that, it would be the same transaction again,
        and what is in it would be lost. spec: server-server-api#transactions"""
        self._number += 1
        return f"{self._run}.{self._begun_ms}.{self._number}"

    async def _send(self, destination: Destination, pending: Pending) -> None:
        """Send the parts that are left. Raises RemoteError, MatrixError where the server is to be
        left alone for a while."""
        is_on_its_word = (
            destination.failing_since_ts is not None
            and destination.heard_ts >= destination.tried_ts
        )
        destination.tried_ts = self._now_ms()
        pending.taken.clear()  # what was taken long ago says nothing of what it breaks down at now
        self._policy.check_destination(destination.server)
        try:
            while pending.parts and self._active:
                await self._send_part(destination, pending)
            if pending.broken and self._active:
                await self._send_broken(destination, pending)
        except (RemoteError, MatrixError):
            destination.in_vain_on_its_word += is_on_its_word
            if pending.broken and not pending.taken:
                destination.breakdowns = (destination.breakdowns + 1) % (GROWN_MOST + 1)
            raise

    async def _send_part(self, destination: Destination, pending: Pending) -> None:
        part = pending.parts[0]
        try:
            refused = await self._transactions.send(destination.server, part)
        except RefusedByRemote as error:
            if is_of_content(error.status, part):
                await self._heed_refusal(destination, pending, error)
            elif (
                error.status == HTTPStatus.INTERNAL_SERVER_ERROR
                and destination.pause_ms >= self._breakdown_pause_ms
            ):
                await self._heed_breakdown(destination, pending, error)
            else:
                if (
                    asked_wait_ms(error)
                    and error.told_wait_ms
                    and any(map(is_to_device, part.edus))
                ):
                    self._halve(
                        pending
                    )  # it may have room for some messages to devices by then, and not for all
                raise
            return
        pending.parts.popleft()
        destination.given_up = 0
        self._note_taken(destination, pending, part, refused)

    def _note_taken(
        self, destination: Destination, pending: Pending, part: Transaction, refused: int
    ) -> None:
        if destination.failing_since_ts is not None:
            pending.taken.update(kinds_of(part))
        if destination.asked_until_ts:
            destination.pause_ms = 0
        destination.breakdowns = 0
        self.counts.transactions += 1
        self.counts.events += len(part.pdus)
        self.counts.refused_events += refused
        self.counts.edus += len(part.edus)

    async def _heed_refusal(
        self, destination: Destination, pending: Pending, error: RefusedByRemote
    ) -> None:
        """From now on the next part is sent in halves, or not at all if it is one thing. Raises
        RemoteError, MatrixError."""
        part = pending.parts[0]
        if is_alone(part) or not pending.is_split:
            # whoever refuses this too does not speak of what is in the part
            await self._transactions.send(
                destination.server, Transaction(self._make_id(), self._now_ms(), (), ())
            )
        if self._halve(pending):
            return
        pending.parts.popleft()
        self._give_up(destination, part, error)
        if destination.given_up >= GIVEN_UP_AT_ONCE:
            raise error

    def _halve(self, pending: Pending) -> bool:
        """Send the next part in halves from now on; False where it is one thing."""
        if is_alone(pending.parts[0]):
            return False
        pending.parts.extendleft(reversed(split(pending.parts.popleft(), self._make_id)))
        return True

    def _give_up(self, destination: Destination, part: Transaction, error: RefusedByRemote) -> None:
        destination.given_up += 1
        self.counts.given_up += 1
        self.log.warn(
            "{server} refuses what it is not sent any more: {part}: {error}",
            server=destination.server,
            part=describe(part),
            error=error.reason,
        )

    async def _heed_breakdown(
        self, destination: Destination, pending: Pending, error: RefusedByRemote
    ) -> None:
        """It breaks down again and again: from now on the next part is sent in halves, or after all
        others if it is one thing. Raises RemoteError, MatrixError where that seems to be of no
        use."""
        if not pending.is_split:
            await self._transactions.send(
                destination.server, Transaction(self._make_id(), self._now_ms(), (), ())
            )
        if self._halve(pending):
            return
        pending.broken.append(pending.parts.popleft())
        most = GIVEN_UP_AT_ONCE * BROKEN_GROWTH**destination.breakdowns
        if len(pending.broken) >= most and not pending.taken:
            raise error

    async def _send_broken(self, destination: Destination, pending: Pending) -> None:
        """Try once more at what the server broke down, alone. It is given up where the server has
        taken in other things of its kind: else it may just have nowhere to write. Raises
        RemoteError, MatrixError."""
        for _ in range(len(pending.broken)):
            part = pending.broken[0]
            try:
                refused = await self._transactions.send(destination.server, part)
            except RefusedByRemote as error:
                if (
                    error.status != HTTPStatus.INTERNAL_SERVER_ERROR
                    or not kinds_of(part) <= pending.taken
                ):
                    raise
                self._give_up(destination, part, error)
            else:
                self._note_taken(destination, pending, part, refused)
            pending.broken.popleft()

    async def _hold(self, destination: Destination) -> None:
        """The policy refuses the server: note what it misses, and let it wait for another
        policy."""
        destination.notices.clear()
        destination.presence.clear()
        if not (destination.is_behind and destination.is_noted):
            self.log.info(
                "the policy refuses {server}: what it misses waits", server=destination.server
            )
            await self._store.add_backlogs({destination.server: destination.fall_behind()})
            destination.is_noted = True
        destination.give_up_pending()

    def _heed_policy(self) -> None:
        """It has changed: who waited for that is told what there is."""
        for destination in list(self):
            if self._policy.allows(destination.server):
                self.wake(destination)

    async def _note_success(
        self, destination: Destination, pending: Pending, *, is_reached: bool
    ) -> None:
        """There is nothing left of what was pending. `is_reached`: the server has answered well."""
        was_failing = is_reached and destination.failing_since_ts is not None
        await self._note_told(destination, pending, was_failing=was_failing)
        if was_failing:
            self.log.info("{server} takes what it is sent again", server=destination.server)
        if is_reached:
            destination.failing_since_ts, destination.error, destination.pause_ms = None, None, 0
            destination.in_vain_on_its_word = destination.asked_until_ts = 0
        destination.pending = None

    async def _note_told(
        self, destination: Destination, pending: Pending, *, was_failing: bool = False
    ) -> None:
        """The server has what was pending. `was_failing`: it can be reached again."""
        now, was_behind = self._now_ms(), destination.is_behind
        # what was missed since goes on to be missed
        rooms = {nid: destination.missed.get(nid) for nid in pending.rooms}
        users = {user_id: destination.users.get(user_id) for user_id in pending.users}

        def write(txn: WriteTransaction) -> None:
            if was_behind:
                self._store.set_told(txn, destination.server, rooms, users)
            if pending.to_device_upto is not None:
                self._to_device.remove_messages(txn, destination.server, pending.to_device_upto)
            if was_failing:
                self._store.set_reached(txn, destination.server, now)

        if was_behind or was_failing or pending.to_device_upto is not None:
            await self._database.write("transaction_sent", write)

    async def _note_failure(
        self, destination: Destination, failure: RemoteError | MatrixError
    ) -> None:
        self.counts.failures += 1
        now, error = self._now_ms(), str(failure)
        asked_ms = min(asked_wait_ms(failure), self._schedule.longest_ms)
        if destination.failing_since_ts is None or bool(asked_ms) is destination.is_unreachable:
            how = "asks us to wait" if asked_ms else "cannot be reached"
            self.log.info(
                "{server} {how}: {error}", server=destination.server, how=how, error=error
            )
            destination.failing_since_ts = now
        destination.asked_until_ts = now + asked_ms if asked_ms else 0
        destination.notices.clear()
        destination.error = error[:MAX_ERROR_CHARS].replace("\0", "")
        pause_ms = self._schedule.after(destination.pause_ms)
        # before anything is waited for: what comes from now on goes to the backlog
        backlog = (
            Backlog()
            if destination.is_behind and destination.is_noted
            else destination.fall_behind()
        )
        since_ts, asked_until_ts = destination.failing_since_ts, destination.asked_until_ts
        row = DestinationRow(
            destination.server, since_ts, now, pause_ms, destination.error, asked_until_ts
        )
        was_heard = destination.heard_ts >= destination.tried_ts
        destination.is_silent = now - destination.tried_ts >= SILENT_MS
        self._pause(destination, pause_ms)
        if (
            was_heard
        ):  # it came back while it was tried in vain, and may have no more to say for long
            self._try_in(destination, _soonest_retry(destination) - now)
        await self._store.add_failure(row, backlog)
        destination.is_noted = True
        pending = destination.pending
        if (
            pending is not None and pending.broken
        ):  # of the kinds that it takes it gets what follows
            told, left = pending.told_and_left()
            await self._note_told(destination, told)
            destination.pending = left
        if pending is not None and (
            pending.broken or (pause_ms >= KEPT_TRANSACTION_PAUSE_MS and not self._keeps(pending))
        ):
            destination.give_up_pending()

    def _keeps(self, pending: Pending) -> bool:
        """Whether the transaction is kept in memory, however long its destination is left alone."""
        if not pending.is_split:
            return False
        pauses = (
            each.pause_ms for each in self if each.pending is not None and each.pending.is_split
        )
        return sum(1 for pause_ms in pauses if pause_ms >= KEPT_TRANSACTION_PAUSE_MS) <= MOST_KEPT

    def _pause(self, destination: Destination, pause_ms: int) -> None:
        destination.tried_ts, destination.pause_ms = self._now_ms(), pause_ms
        self._try_later(destination)

    def _try_later(self, destination: Destination) -> None:
        due_ts = max(destination.tried_ts + destination.pause_ms, destination.asked_until_ts)
        self._try_in(destination, due_ts - self._now_ms())

    def _try_in(self, destination: Destination, milliseconds: int) -> None:
        if self._active:
            _cancel_retry(destination)
            destination.retry = self._clock.callLater(
                max(0, milliseconds) / 1000, self._retry, destination
            )

    def _retry(self, destination: Destination) -> None:
        destination.retry = None
        self.wake(destination)


def _soonest_retry(destination: Destination) -> int:
    """When it is tried again if it is heard from."""
    grown = SOONEST_RETRY_MS * int(SOONEST_RETRY_GROWTH ** min(destination.in_vain_on_its_word, 10))
    pause_ms = min(grown, LATEST_SOONEST_RETRY_MS, destination.pause_ms)
    return max(destination.tried_ts + pause_ms, destination.asked_until_ts)


def _cancel_retry(destination: Destination) -> None:
    if destination.retry is not None:
        destination.retry.cancel()
        destination.retry = None

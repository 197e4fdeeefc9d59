"""Queues the pushes of each pusher and sends them to its gateway.

Laws:
- Each pusher has one push in flight at a time, in the order of the stream. A push that is held,
  because its user is reading there, delays no other push.
- Dropped are pushes for events that were read meanwhile or redacted, for rooms that the user has
  left, for senders whom the user ignores by then, and pushes older than a day.
- After a failed push the pusher retries after a pause that grows to an hour. The pusher stays
  unless its gateway rejects the pushkey (`rejected`). A push that its gateway refuses for its
  content delays no other push; several such refusals in a row count as a failure, without a retry
  of the refused pushes.
- What waits behind a failure is stored with the pusher as a position: it does not hold back the
  lease's position, and a message writes no row.

spec: push-gateway-api#homeserver-behaviour
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.backoff_schedule import BackoffSchedule
from federation.protocol.ids import UserID
from federation.rooms.events import RoomEvents
from federation.rooms.memberships import Memberships
from homeserver.services.push.actions import Actions
from homeserver.services.push.decisions import PushDecisions
from homeserver.services.pushers.active_readers import WAIT_SECONDS, ActiveReaders, rings
from homeserver.services.pushers.badges import BadgeCounts, SentBadges
from homeserver.services.pushers.display_names import EventNames, EventToPush
from homeserver.services.pushers.gateways import Gateways, PushFailed
from homeserver.services.pushers.notification import encode_badge, encode_event
from homeserver.services.pushers.queues import ChangedQueues, PendingPush, PusherQueue, url_of
from storage.engine.database import DatabaseUnavailable
from storage.push.pushers import PusherRow, PusherState, PusherStore
from storage.rooms.receipts import UNTHREADED

MAX_WAITING: Final = 50
"""Events that wait for one pusher; see `PusherQueue.drop_one`."""
MAX_AGE_MS: Final = 24 * 3600_000
"""A push is retried for this long."""
RETRIES: Final = BackoffSchedule(5_000, 3_600_000, factor=3)
BADGE_SECONDS: Final = 2.0
"""A change of the badge waits this long for further ones: a client that reads sends several
receipts.
"""
MAX_COUNTED: Final = 500
"""Badges counted in one round, to see whether they must wait for an unreachable gateway."""
MAX_ERROR_CHARS: Final = 300


class Draws(Protocol):
    """Returns random numbers."""

    def __call__(self) -> float:
        """Return a random number in [0, 1)."""
        ...


class QueueJob(msgspec.Struct, frozen=True):
    """The turn of one pusher's queue at its gateway."""

    deliveries: "PushDeliveries"
    line: PusherQueue
    turn: int

    async def send(self) -> None:
        if self.turn == self.line.turn:
            await self.deliveries.send(self.line)


class PushDeliveries:
    """The queues of all pushers. For the reactor thread."""

    log = Logger()

    # More than ten: it runs all steps from the event to the gateway; two are options.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        store: PusherStore,
        events: RoomEvents,
        memberships: Memberships,
        decisions: PushDecisions,
        names: EventNames,
        badges: BadgeCounts,
        readers: ActiveReaders,
        gateways: Gateways,
        now_ms: Callable[[], int],
        draw: Draws,
        with_content: bool,
        jitter_seconds: float,
    ) -> None:
        """`with_content`: send the content of events to gateways. `jitter_seconds`: each push is
        delayed by a random time up to this."""
        self._clock = clock
        self._store = store
        self._events = events
        self._memberships = memberships
        self._decisions = decisions
        self._names = names
        self._badges = badges
        self._readers = readers
        self._gateways = gateways
        self._now_ms = now_ms
        self._draw = draw
        self._with_content = with_content
        self._jitter_seconds = jitter_seconds
        self._lines: dict[int, PusherQueue] = {}
        self._by_user: dict[str, dict[int, PusherQueue]] = {}
        self._shown = SentBadges()
        self._standings: dict[int, PusherState] = {}
        self._urgent: set[int] = set()
        """Pushers whose state is stored without delay: they have begun or ceased to fail."""
        self._touched = ChangedQueues(clock=clock, wake=self._wake)
        self._active = False
        self._floor = 0
        self.is_behind = False
        """Whether events that failing pushers missed are still being read. Until then these pushers
        count as failing, else events read later would not be pushed."""

    def get_figures(self) -> Mapping[str, int]:
        """Return the sizes of the queues, for metrics."""
        lines = self._lines.values()
        return {
            "waiting": sum(len(line.waiting) + (line.in_flight is not None) for line in lines),
            "pushers_waiting": sum(1 for line in lines if line.first is not None),
            "pushers_failing": sum(1 for line in lines if line.failing_since_ts is not None),
            "gateways_failing": self._gateways.count_failing(),
        }

    # ----------------------------------------------------------------------------------------------
    # queueing

    def start(self, failing: Iterable[PusherRow], floor: int) -> None:
        """Start to push. `failing`: pushers that failed at the last attempt; their missed events
        are still to be read, until `catch_up` is called. All other pushers have received everything
        up to `floor`."""
        self._active = self.is_behind = True
        self._floor = floor
        for row in failing:
            line = self._find(row)
            line.failing_since_ts, line.backoff_ms, line.error = (
                row.failing_since_ts,
                row.backoff_ms,
                row.error,
            )
            line.last_attempt_ts, line.is_stored = row.last_attempt_ts, True
            self._pause(line, max(0, row.last_attempt_ts + row.backoff_ms - self._now_ms()))

    def catch_up(self) -> None:
        """Note that all events that failing pushers missed were read. Their badges may have
        changed, too."""
        self.is_behind = False
        for line in self._lines.values():
            if line.is_stored:
                self.set_badge_due(line.row, None)
            self._touched.add(line)

    def stop(self) -> None:
        """Stop to push and clear all queues."""
        self._active = False
        self._gateways.stop()
        for line in self._lines.values():
            line.cancel()
        self._lines.clear()
        self._by_user.clear()
        self._shown.clear()
        self._standings.clear()
        self._urgent.clear()
        self._touched.clear()

    def add(self, row: PusherRow, told: EventToPush, actions: Actions) -> None:
        """Queue an event. It is sent after `wake_changed`, when the receipts that follow it are
        known."""
        line = self._find(row)
        self._touched.add(line)
        if told.position <= line.last_position:
            return  # this part of the stream is read a second time after an error
        line.last_position = told.position
        push = PendingPush(told, actions, is_held=self._readers.is_reading(row, told, actions))
        line.waiting.append(push)
        if push.is_held:
            self._clock.callLater(WAIT_SECONDS, self._release, line, push)
        elif not rings(told, actions):
            line.release(told)
        if len(line.waiting) > MAX_WAITING:
            line.drop_one()

    def skip(self, row: PusherRow, position: int) -> None:
        """Skip an event from before the pusher was set or enabled: it may only change the badge."""
        if self._shown.get(row.pusher_nid) is not None:
            self.set_badge_due(row, position)

    def set_badge_due(self, row: PusherRow, position: int | None) -> None:
        """Mark the badge as changed by what is at this position of the stream."""
        if not row.no_counts:
            line = self._find(row)
            self._touched.add(line)
            line.set_badge_due(position)

    def mark_read(
        self, user_id: str, room_nid: int, thread: str | None, position: int, *, everything: bool
    ) -> None:
        """Record that the user has read a room up to a position: all of it, or one thread (None:
        the main timeline)."""
        self._readers.record_read(user_id, room_nid, UNTHREADED if everything else thread, position)
        for line in self._by_user.get(user_id, {}).values():
            for push in (*line.waiting, *([line.in_flight] if line.in_flight is not None else [])):
                told = push.event
                if (
                    told.room_nid == room_nid
                    and told.position <= position
                    and (everything or told.thread == thread)
                ):
                    push.is_read = True

    def change(self, user_id: str, rows: Sequence[PusherRow], *, set_now: bool) -> None:
        """Replace the HTTP pushers of a user. `set_now`: pushers among them that have never pushed
        are new, and show no badge."""
        by_nid = {row.pusher_nid: row for row in rows}
        for nid, each in by_nid.items():
            was_set = set_now or each.position > self._floor
            if self._shown.get(nid) is not None or (was_set and each.last_success_ts is not None):
                self.set_badge_due(each, each.position)  # it may have been disabled while they read
            elif set_now:
                self._shown.record(nid, 0)
        for nid, line in list(self._by_user.get(user_id, {}).items()):
            row = by_nid.get(nid)
            if row is None:
                self._drop(line)
                continue
            was_changed = row.data != line.row.data
            line.row, line.url = row, url_of(row)
            is_telling = line.in_flight is not None or line.badge_in_flight is not None
            if was_changed and not is_telling:  # retry at once, perhaps at another gateway
                line.backoff_ms, line.is_queued = 0, False
                line.turn += 1
                line.cancel()
                self._touched.add(line)
                if line.is_stored:
                    self._set_standing(line)

    def wake_changed(self) -> None:
        """Wake the queues that have changed."""
        self._touched.wake()

    # ----------------------------------------------------------------------------------------------
    # the lease

    def lowest(self) -> int | None:
        """Return the first position that is not sent and not stored with its pusher."""
        firsts = (line.first_unsent for line in self._lines.values() if not line.is_stored)
        return min((first for first in firsts if first is not None), default=None)

    async def store_states(self, *, all_standings: bool) -> None:
        """Store the state of pushers: of those that have begun or ceased to fail, or of all that
        pushed."""
        counted = 0
        for line in list(self._lines.values()):
            if (
                line.is_stored
                or line.first_unsent is None
                or not self._gateways.is_failing(line.url)
            ):
                continue
            counted += line.first is None
            if counted > MAX_COUNTED:
                continue  # left for the next round: the lease must be renewed in time
            # the gateway may be away for long
            if line.first is not None or await self._has_something_to_send(line):
                line.failing_since_ts = line.failing_since_ts or self._now_ms()
                line.error = line.error or "its gateway cannot be reached"
                self._set_standing(line)
        noted = {
            nid: each
            for nid, each in self._standings.items()
            if all_standings or nid in self._urgent
        }
        if not noted:
            return
        urgent, self._urgent = self._urgent, set()
        for nid in noted:
            del self._standings[nid]
        try:
            await self._store.set_states(noted)
        except BaseException:
            self._standings = {**noted, **self._standings}
            self._urgent |= urgent
            raise
        for nid, standing in noted.items():
            noted_line = self._lines.get(nid)
            if noted_line is not None and noted_line.failing_since_ts is not None:
                noted_line.is_stored = standing.failing_since_ts is not None

    # ----------------------------------------------------------------------------------------------
    # sending

    async def send(self, line: PusherQueue) -> None:
        """Send the next push of a queue, when its turn at the gateway comes. Raises nothing."""
        try:
            await self._send_next(line)
        except DatabaseUnavailable as error:
            self._delay(line)
            self.log.warn("push delayed: {error}", error=error)
        except Exception:  # an unexpected error: drop the push and continue with the next one
            self.log.failure("push failed")
            line.in_flight = None
        line.is_queued, line.badge_in_flight = False, None
        self._wake(line)

    async def _send_next(self, line: PusherQueue) -> None:
        row = line.row
        push = line.in_flight = self._take(line)
        if push is None and line.waiting:
            return  # all pushes are held: the badge is sent with them, or after they were read
        line.take_badge()
        body = await (self._body_of(row, push) if push is not None else self._badge_of(line))
        if self._lines.get(row.pusher_nid) is not line:
            line.in_flight = None
            return  # it was removed meanwhile
        if body is None or (push is not None and push.is_read):
            line.in_flight = None
            if push is not None:
                line.requeue_badge()  # the push would have sent the badge, too
            return
        try:
            accepted = await self._gateways.notify(line.url, row.pushkey, body.encoded)
        except PushFailed as error:
            if error.refused and push is not None and not push.is_short:
                push.is_short = True
                self._requeue(line, push)
            else:
                self._fail(line, push, error)
            return
        if (
            not accepted and line.row.data != row.data
        ):  # the pusher was changed, and the old gateway may not reject it at the new one
            self._requeue(line, push)
            return
        line.in_flight = None
        if not accepted:
            self.log.info(
                "the gateway rejected the pusher of {user} for the app {app}",
                app=row.app_id,
                user=row.user_id,
            )
            self._drop(line)
            await self._store.remove_rejected(row.user_id, row.app_id, row.pushkey)
            return
        if self._lines.get(row.pusher_nid) is not line:
            return  # it was removed meanwhile, or another node holds the lease now
        if body.unread is not None:
            self._shown.record(row.pusher_nid, body.unread)
        self._succeed(line, self._sent_upto(line) if push is None else push.event.position)

    def _requeue(self, line: PusherQueue, push: PendingPush | None) -> None:
        """Queue a push as the first one again, to send it without content or to another gateway."""
        line.in_flight = None
        line.requeue_badge()
        if push is not None and self._lines.get(line.row.pusher_nid) is line:
            line.requeue(push)

    def _delay(self, line: PusherQueue) -> None:
        """Queue the push again after a pause, because the database was unavailable."""
        push, line.in_flight = line.in_flight, None
        line.requeue_badge()
        if push is not None and self._lines.get(line.row.pusher_nid) is line:
            line.requeue(push)
            self._pause(line, RETRIES.first_ms)

    def _take(self, line: PusherQueue) -> PendingPush | None:
        """Return the next push that is still to be sent."""
        had_any = bool(line.waiting)
        push = line.take(self._now_ms() - MAX_AGE_MS)
        if push is not None:
            return push
        if had_any and line.failing_since_ts is not None:
            self._set_standing(
                line
            )  # else a restart would read the stream from there again without need
        return None

    async def _body_of(self, row: PusherRow, push: PendingPush) -> "_Body | None":
        told, user_id = push.event, UserID(row.user_id)
        if told.outside is None:
            stored = (await self._events.get_events([told.stored.nid])).get(told.stored.nid)
            if stored is None:
                return None
            told.stored = stored
        membership = (await self._memberships.of_user(user_id)).get(told.room_nid)
        if membership is None or not await self._decisions.concerns(told.stored, membership):
            return None
        names = await self._names.get(told)
        unread = None if row.no_counts else await self._badges.get(user_id)
        tweaks: Mapping[str, Any] = push.actions.tweaks
        with_content = self._with_content and not push.is_short
        encoded = encode_event(
            row, told.stored.event, names, tweaks, unread, with_content=with_content
        )
        return _Body(encoded, unread)

    async def _badge_of(self, line: PusherQueue) -> "_Body | None":
        row = line.row
        if line.badge_in_flight is None or row.no_counts:
            return None
        unread = await self._badges.get(UserID(row.user_id))
        if self._shown.get(row.pusher_nid) == unread:
            return None
        return _Body(encode_badge(row, unread), unread)

    async def _has_something_to_send(self, line: PusherQueue) -> bool:
        """Return whether the queue has something to send: clear a pending badge if the app shows it
        already."""
        due = line.badge
        if due is not None:
            shown = self._shown.get(line.row.pusher_nid)
            if shown == await self._badges.get(UserID(line.row.user_id)) and line.badge is due:
                line.badge = None  # else it changed again while it was counted
        return line.first_unsent is not None

    def _succeed(self, line: PusherQueue, position: int) -> None:
        if line.failing_since_ts is not None:
            self._urgent.add(line.row.pusher_nid)
        # only this pusher's position records what waits or is still to be read
        if not (line.is_stored and (line.waiting or self.is_behind)):
            line.failing_since_ts, line.is_stored = None, False
        line.backoff_ms, line.refusals, line.error = 0, 0, None
        if line.first is not None:  # an older push may be held
            position = min(position, line.first - 1)
        now = self._now_ms()
        self._standings[line.row.pusher_nid] = PusherState(
            position, line.failing_since_ts, now, 0, now, None
        )

    def _fail(self, line: PusherQueue, push: PendingPush | None, error: PushFailed) -> None:
        now = self._now_ms()
        line.in_flight = None
        is_over = error.for_good or error.refused
        if push is not None and not push.is_read and not is_over:
            line.requeue(push)
        if not is_over:
            line.requeue_badge()
        line.refusals = line.refusals + 1 if error.refused else 0
        line.failing_since_ts = line.failing_since_ts or now
        line.last_attempt_ts = now
        line.error = str(error)[:MAX_ERROR_CHARS]
        if self._lines.get(line.row.pusher_nid) is not line:
            return
        # an unreachable gateway has its own pause
        if line.refusals > 1 or not (error.unreachable or is_over):
            line.backoff_ms = max(
                RETRIES.after(line.backoff_ms), min(error.wait_ms, RETRIES.max_ms)
            )
            self._pause(line, line.backoff_ms)
        self._set_standing(line)

    def _sent_upto(self, line: PusherQueue) -> int:
        """Return the position up to which everything was sent if nothing waits, including what is
        not stored yet."""
        last = self._standings.get(line.row.pusher_nid)
        return max(line.row.position, line.last_position, 0 if last is None else last.position)

    def _set_standing(self, line: PusherQueue) -> None:
        first, nid = line.first, line.row.pusher_nid
        last = self._standings.get(nid)
        last_success_ts = None if last is None else last.last_success_ts
        position = self._sent_upto(line) if first is None else first - 1
        self._standings[nid] = PusherState(
            position,
            line.failing_since_ts,
            line.last_attempt_ts,
            line.backoff_ms,
            last_success_ts,
            line.error,
        )
        self._urgent.add(nid)

    # ----------------------------------------------------------------------------------------------
    # queues

    def _find(self, row: PusherRow) -> PusherQueue:
        line = self._lines.get(row.pusher_nid)
        if line is None:
            line = self._lines[row.pusher_nid] = PusherQueue(row, url_of(row))
            self._by_user.setdefault(row.user_id, {})[row.pusher_nid] = line
        return line

    def _wake(self, line: PusherQueue) -> None:
        if not self._active or self._lines.get(line.row.pusher_nid) is not line:
            return
        line.drop_read()
        if line.is_queued or line.is_held_back():
            return
        if line.has_ready:
            self._after(line, self._draw() * self._jitter_seconds if self._jitter_seconds else 0.0)
        elif line.waiting:
            pass  # all pushes are held, until they are read or released
        elif line.badge is not None:
            line.waits_for_badge = True
            self._after(line, BADGE_SECONDS)
        elif not self.is_behind and (line.failing_since_ts is None or line.error is None):
            # it was behind, and the user has read the rest elsewhere
            if line.failing_since_ts is not None:
                line.failing_since_ts = None
                self._set_standing(line)
            self._drop(line)

    def _release(self, line: PusherQueue, push: PendingPush) -> None:
        """Release a held push: the wait for the user's receipt has ended."""
        push.is_held = False
        if self._lines.get(line.row.pusher_nid) is line:
            if not push.is_read:
                self._readers.record_unread(line.row.user_id, push.event)
            self._wake(line)

    def _after(self, line: PusherQueue, seconds: float) -> None:
        if seconds:
            line.timer = self._clock.callLater(seconds, self._queue, line)
        else:
            self._queue(line)

    def _queue(self, line: PusherQueue) -> None:
        line.is_queued, line.waits_for_badge = True, False
        line.turn += 1
        self._gateways.add(line.url, QueueJob(self, line, line.turn))

    def _pause(self, line: PusherQueue, milliseconds: int) -> None:
        line.cancel()
        line.timer = self._clock.callLater(milliseconds / 1000, self._wake, line)

    def _drop(self, line: PusherQueue) -> None:
        line.cancel()
        line.waiting.clear()
        line.badge = None
        self._lines.pop(line.row.pusher_nid, None)
        of_user = self._by_user.get(line.row.user_id, {})
        of_user.pop(line.row.pusher_nid, None)
        if not of_user:
            self._by_user.pop(line.row.user_id, None)


class _Body(msgspec.Struct, frozen=True):
    encoded: bytes
    unread: int | None

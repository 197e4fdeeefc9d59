"""Queues the pushes of each pusher and sends them to its gateway.

Laws:
- Each pusher has one push in flight at a time, in the order of the stream. Later pushes may be sent
  before a push that is held because its user is reading the room.
- When its turn comes, a push is dropped if it was queued more than a day ago, if the event has been
  read or redacted, or if the user has left the room or ignores the sender.
- A failed push is retried after a pause that grows to an hour. It is dropped if a retry is useless,
  for example because the address policy forbids the gateway. If more than `MAX_WAITING` pushes of a
  pusher wait, the least important one is dropped.
- If a gateway answers with status 400, 413 or 422, it refuses the content of the push. The push is
  sent once more without the event's content. If the gateway refuses it again, it is dropped. The
  next push is sent without a pause, but if two pushes in a row are dropped this way, the pusher
  pauses as after a failure.
- Failed and refused pushes never remove their pusher. A pusher is removed if its gateway rejects
  the pushkey (`rejected` in a response).
- For a failing pusher, the position just before its first unsent push is stored. After a restart,
  the stream is read again from there. So a push that waits has no row of its own, and a failing
  pusher does not hold back the position that is stored with the lease (`stream_reader.py`).

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


class RandomSource(Protocol):
    """Returns random numbers."""

    def __call__(self) -> float:
        """Return a random number in [0, 1)."""
        ...


class QueueJob(msgspec.Struct, frozen=True):
    """The turn of one pusher's queue at its gateway."""

    deliveries: "PushDeliveries"
    queue: PusherQueue
    turn: int

    async def send(self) -> None:
        if self.turn == self.queue.turn:
            await self.deliveries.send(self.queue)


class PushDeliveries:
    """The queues of all pushers. Use this class only on the reactor thread."""

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
        random: RandomSource,
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
        self._random = random
        self._with_content = with_content
        self._jitter_seconds = jitter_seconds
        self._queues: dict[int, PusherQueue] = {}
        self._by_user: dict[str, dict[int, PusherQueue]] = {}
        self._sent_badges = SentBadges()
        self._states: dict[int, PusherState] = {}
        self._urgent: set[int] = set()
        """Pushers whose state is stored without delay: they have begun or ceased to fail."""
        self._changed = ChangedQueues(clock=clock, wake=self._wake)
        self._active = False
        self._floor = 0
        self.is_behind = False
        """Whether events that failing pushers missed are still being read. Until then these pushers
        count as failing, else events read later would not be pushed."""

    def get_figures(self) -> Mapping[str, int]:
        """Return the sizes of the queues, for metrics."""
        queues = self._queues.values()
        return {
            "waiting": sum(len(queue.waiting) + (queue.in_flight is not None) for queue in queues),
            "pushers_waiting": sum(1 for queue in queues if queue.first is not None),
            "pushers_failing": sum(1 for queue in queues if queue.failing_since_ts is not None),
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
            queue = self._find(row)
            queue.failing_since_ts, queue.backoff_ms, queue.error = (
                row.failing_since_ts,
                row.backoff_ms,
                row.error,
            )
            queue.last_attempt_ts, queue.is_stored = row.last_attempt_ts, True
            self._pause(queue, max(0, row.last_attempt_ts + row.backoff_ms - self._now_ms()))

    def catch_up(self) -> None:
        """Record that all events that failing pushers missed were read. Their badges may have
        changed, too."""
        self.is_behind = False
        for queue in self._queues.values():
            if queue.is_stored:
                self.set_badge_due(queue.row, None)
            self._changed.add(queue)

    def stop(self) -> None:
        """Stop to push and clear all queues."""
        self._active = False
        self._gateways.stop()
        for queue in self._queues.values():
            queue.cancel()
        self._queues.clear()
        self._by_user.clear()
        self._sent_badges.clear()
        self._states.clear()
        self._urgent.clear()
        self._changed.clear()

    def add(self, row: PusherRow, event: EventToPush, actions: Actions) -> None:
        """Queue an event. It is sent after `wake_changed`, when the receipts that follow it are
        known."""
        queue = self._find(row)
        self._changed.add(queue)
        if event.position <= queue.last_position:
            return  # this part of the stream is read a second time after an error
        queue.last_position = event.position
        push = PendingPush(event, actions, is_held=self._readers.is_reading(row, event, actions))
        queue.waiting.append(push)
        if push.is_held:
            self._clock.callLater(WAIT_SECONDS, self._release, queue, push)
        elif not rings(event, actions):
            queue.release(event)
        if len(queue.waiting) > MAX_WAITING:
            queue.drop_one()

    def skip(self, row: PusherRow, position: int) -> None:
        """Skip an event from before the pusher was set or enabled: it may only change the badge."""
        if self._sent_badges.get(row.pusher_nid) is not None:
            self.set_badge_due(row, position)

    def set_badge_due(self, row: PusherRow, position: int | None) -> None:
        """Mark the badge as changed by what is at this position of the stream."""
        if not row.no_counts:
            queue = self._find(row)
            self._changed.add(queue)
            queue.set_badge_due(position)

    def mark_read(
        self, user_id: str, room_nid: int, thread: str | None, position: int, *, all_threads: bool
    ) -> None:
        """Record that the user has read a room up to a position: all of it, or one thread (None:
        the main timeline)."""
        self._readers.record_read(
            user_id, room_nid, UNTHREADED if all_threads else thread, position
        )
        for queue in self._by_user.get(user_id, {}).values():
            for push in (
                *queue.waiting,
                *([queue.in_flight] if queue.in_flight is not None else []),
            ):
                event = push.event
                if (
                    event.room_nid == room_nid
                    and event.position <= position
                    and (all_threads or event.thread == thread)
                ):
                    push.is_read = True

    def change(self, user_id: str, rows: Sequence[PusherRow], *, newly_set: bool) -> None:
        """Replace the HTTP pushers of a user. `newly_set`: pushers among them that have never
        pushed are new, and show no badge."""
        by_nid = {row.pusher_nid: row for row in rows}
        for nid, each in by_nid.items():
            was_set = newly_set or each.position > self._floor
            if self._sent_badges.get(nid) is not None or (
                was_set and each.last_success_ts is not None
            ):
                self.set_badge_due(each, each.position)  # it may have been disabled while they read
            elif newly_set:
                self._sent_badges.record(nid, 0)
        for nid, queue in list(self._by_user.get(user_id, {}).items()):
            row = by_nid.get(nid)
            if row is None:
                self._drop(queue)
                continue
            was_changed = row.data != queue.row.data
            queue.row, queue.url = row, url_of(row)
            is_sending = queue.in_flight is not None or queue.badge_in_flight is not None
            if was_changed and not is_sending:  # retry at once, perhaps at another gateway
                queue.backoff_ms, queue.is_queued = 0, False
                queue.turn += 1
                queue.cancel()
                self._changed.add(queue)
                if queue.is_stored:
                    self._set_state(queue)

    def wake_changed(self) -> None:
        """Wake the queues that have changed."""
        self._changed.wake()

    # ----------------------------------------------------------------------------------------------
    # the lease

    def lowest(self) -> int | None:
        """Return the first position that is not sent and not stored with its pusher."""
        positions = (queue.first_unsent for queue in self._queues.values() if not queue.is_stored)
        return min((position for position in positions if position is not None), default=None)

    async def store_states(self, *, all_states: bool) -> None:
        """Store the state of pushers: of those that have begun or ceased to fail, or of all that
        pushed."""
        counted = 0
        for queue in list(self._queues.values()):
            if (
                queue.is_stored
                or queue.first_unsent is None
                or not self._gateways.is_failing(queue.url)
            ):
                continue
            counted += queue.first is None
            if counted > MAX_COUNTED:
                continue  # left for the next round: the lease must be renewed in time
            # the gateway may be away for long
            if queue.first is not None or await self._has_something_to_send(queue):
                queue.failing_since_ts = queue.failing_since_ts or self._now_ms()
                queue.error = queue.error or "its gateway cannot be reached"
                self._set_state(queue)
        states = {
            nid: each for nid, each in self._states.items() if all_states or nid in self._urgent
        }
        if not states:
            return
        urgent, self._urgent = self._urgent, set()
        for nid in states:
            del self._states[nid]
        try:
            await self._store.set_states(states)
        except BaseException:
            self._states = {**states, **self._states}
            self._urgent |= urgent
            raise
        for nid, state in states.items():
            failing = self._queues.get(nid)
            if failing is not None and failing.failing_since_ts is not None:
                failing.is_stored = state.failing_since_ts is not None

    # ----------------------------------------------------------------------------------------------
    # sending

    async def send(self, queue: PusherQueue) -> None:
        """Send the next push of a queue, when its turn at the gateway comes. Raises nothing."""
        try:
            await self._send_next(queue)
        except DatabaseUnavailable as error:
            self._delay(queue)
            self.log.warn("push delayed: {error}", error=error)
        except Exception:  # an unexpected error: drop the push and continue with the next one
            self.log.failure("push failed")
            queue.in_flight = None
        queue.is_queued, queue.badge_in_flight = False, None
        self._wake(queue)

    async def _send_next(self, queue: PusherQueue) -> None:
        row = queue.row
        push = queue.in_flight = self._take(queue)
        if push is None and queue.waiting:
            return  # all pushes are held: the badge is sent with them, or after they were read
        queue.take_badge()
        body = await (self._body_of(row, push) if push is not None else self._badge_of(queue))
        if self._queues.get(row.pusher_nid) is not queue:
            queue.in_flight = None
            return  # it was removed meanwhile
        if body is None or (push is not None and push.is_read):
            queue.in_flight = None
            if push is not None:
                queue.requeue_badge()  # the push would have sent the badge, too
            return
        try:
            accepted = await self._gateways.notify(queue.url, row.pushkey, body.encoded)
        except PushFailed as error:
            if error.refused and push is not None and not push.is_short:
                push.is_short = True
                self._requeue(queue, push)
            else:
                self._fail(queue, push, error)
            return
        # a rejection by the old gateway does not count for a pusher that was changed meanwhile
        if not accepted and queue.row.data != row.data:
            self._requeue(queue, push)
            return
        queue.in_flight = None
        if not accepted:
            self.log.info(
                "the gateway rejected the pusher of {user} for the app {app}",
                app=row.app_id,
                user=row.user_id,
            )
            self._drop(queue)
            await self._store.remove_rejected(row.user_id, row.app_id, row.pushkey)
            return
        if self._queues.get(row.pusher_nid) is not queue:
            return  # it was removed meanwhile, or another node holds the lease now
        if body.unread is not None:
            self._sent_badges.record(row.pusher_nid, body.unread)
        self._succeed(queue, self._sent_upto(queue) if push is None else push.event.position)

    def _requeue(self, queue: PusherQueue, push: PendingPush | None) -> None:
        """Queue a push as the first one again, to send it without content or to another gateway."""
        queue.in_flight = None
        queue.requeue_badge()
        if push is not None and self._queues.get(queue.row.pusher_nid) is queue:
            queue.requeue(push)

    def _delay(self, queue: PusherQueue) -> None:
        """Queue the push again after a pause, because the database was unavailable."""
        push, queue.in_flight = queue.in_flight, None
        queue.requeue_badge()
        if push is not None and self._queues.get(queue.row.pusher_nid) is queue:
            queue.requeue(push)
            self._pause(queue, RETRIES.first_ms)

    def _take(self, queue: PusherQueue) -> PendingPush | None:
        """Return the next push that is still to be sent."""
        had_waiting = bool(queue.waiting)
        push = queue.take(self._now_ms() - MAX_AGE_MS)
        if push is not None:
            return push
        if had_waiting and queue.failing_since_ts is not None:
            # otherwise a restart would read the stream from there again without need
            self._set_state(queue)
        return None

    async def _body_of(self, row: PusherRow, push: PendingPush) -> "_Body | None":
        event, user_id = push.event, UserID(row.user_id)
        if event.out_of_room is None:
            stored = (await self._events.get_events([event.stored.nid])).get(event.stored.nid)
            if stored is None:
                return None
            event.stored = stored
        membership = (await self._memberships.of_user(user_id)).get(event.room_nid)
        if membership is None or not await self._decisions.may_notify(event.stored, membership):
            return None
        names = await self._names.get(event)
        unread = None if row.no_counts else await self._badges.get(user_id)
        tweaks: Mapping[str, Any] = push.actions.tweaks
        with_content = self._with_content and not push.is_short
        encoded = encode_event(
            row, event.stored.event, names, tweaks, unread, with_content=with_content
        )
        return _Body(encoded, unread)

    async def _badge_of(self, queue: PusherQueue) -> "_Body | None":
        row = queue.row
        if queue.badge_in_flight is None or row.no_counts:
            return None
        unread = await self._badges.get(UserID(row.user_id))
        if self._sent_badges.get(row.pusher_nid) == unread:
            return None
        return _Body(encode_badge(row, unread), unread)

    async def _has_something_to_send(self, queue: PusherQueue) -> bool:
        """Return whether the queue has something to send: clear a pending badge if the app shows it
        already."""
        badge = queue.badge
        if badge is not None:
            shown = self._sent_badges.get(queue.row.pusher_nid)
            if shown == await self._badges.get(UserID(queue.row.user_id)) and queue.badge is badge:
                queue.badge = None  # else it changed again while it was counted
        return queue.first_unsent is not None

    def _succeed(self, queue: PusherQueue, position: int) -> None:
        if queue.failing_since_ts is not None:
            self._urgent.add(queue.row.pusher_nid)
        # only this pusher's position records what waits or is still to be read
        if not (queue.is_stored and (queue.waiting or self.is_behind)):
            queue.failing_since_ts, queue.is_stored = None, False
        queue.backoff_ms, queue.refusals, queue.error = 0, 0, None
        if queue.first is not None:  # an older push may be held
            position = min(position, queue.first - 1)
        now = self._now_ms()
        self._states[queue.row.pusher_nid] = PusherState(
            position, queue.failing_since_ts, now, 0, now, None
        )

    def _fail(self, queue: PusherQueue, push: PendingPush | None, error: PushFailed) -> None:
        now = self._now_ms()
        queue.in_flight = None
        is_over = error.permanent or error.refused
        if push is not None and not push.is_read and not is_over:
            queue.requeue(push)
        if not is_over:
            queue.requeue_badge()
        queue.refusals = queue.refusals + 1 if error.refused else 0
        queue.failing_since_ts = queue.failing_since_ts or now
        queue.last_attempt_ts = now
        queue.error = str(error)[:MAX_ERROR_CHARS]
        if self._queues.get(queue.row.pusher_nid) is not queue:
            return
        # an unreachable gateway has its own pause
        if queue.refusals > 1 or not (error.unreachable or is_over):
            queue.backoff_ms = max(
                RETRIES.after(queue.backoff_ms), min(error.wait_ms, RETRIES.max_ms)
            )
            self._pause(queue, queue.backoff_ms)
        self._set_state(queue)

    def _sent_upto(self, queue: PusherQueue) -> int:
        """Return the position up to which everything was sent if nothing waits, including what is
        not stored yet."""
        last = self._states.get(queue.row.pusher_nid)
        return max(queue.row.position, queue.last_position, 0 if last is None else last.position)

    def _set_state(self, queue: PusherQueue) -> None:
        first, nid = queue.first, queue.row.pusher_nid
        last = self._states.get(nid)
        last_success_ts = None if last is None else last.last_success_ts
        position = self._sent_upto(queue) if first is None else first - 1
        self._states[nid] = PusherState(
            position,
            queue.failing_since_ts,
            queue.last_attempt_ts,
            queue.backoff_ms,
            last_success_ts,
            queue.error,
        )
        self._urgent.add(nid)

    # ----------------------------------------------------------------------------------------------
    # queues

    def _find(self, row: PusherRow) -> PusherQueue:
        queue = self._queues.get(row.pusher_nid)
        if queue is None:
            queue = self._queues[row.pusher_nid] = PusherQueue(row, url_of(row))
            self._by_user.setdefault(row.user_id, {})[row.pusher_nid] = queue
        return queue

    def _wake(self, queue: PusherQueue) -> None:
        if not self._active or self._queues.get(queue.row.pusher_nid) is not queue:
            return
        queue.drop_read()
        if queue.is_queued or queue.is_held_back():
            return
        if queue.has_ready:
            self._after(
                queue, self._random() * self._jitter_seconds if self._jitter_seconds else 0.0
            )
        elif queue.waiting:
            pass  # all pushes are held, until they are read or released
        elif queue.badge is not None:
            queue.waits_for_badge = True
            self._after(queue, BADGE_SECONDS)
        elif not self.is_behind and (queue.failing_since_ts is None or queue.error is None):
            # it was behind, and the user has read the rest elsewhere
            if queue.failing_since_ts is not None:
                queue.failing_since_ts = None
                self._set_state(queue)
            self._drop(queue)

    def _release(self, queue: PusherQueue, push: PendingPush) -> None:
        """Release a held push: the wait for the user's receipt has ended."""
        push.is_held = False
        if self._queues.get(queue.row.pusher_nid) is queue:
            if not push.is_read:
                self._readers.record_unread(queue.row.user_id, push.event)
            self._wake(queue)

    def _after(self, queue: PusherQueue, seconds: float) -> None:
        if seconds:
            queue.timer = self._clock.callLater(seconds, self._submit, queue)
        else:
            self._submit(queue)

    def _submit(self, queue: PusherQueue) -> None:
        queue.is_queued, queue.waits_for_badge = True, False
        queue.turn += 1
        self._gateways.add(queue.url, QueueJob(self, queue, queue.turn))

    def _pause(self, queue: PusherQueue, milliseconds: int) -> None:
        queue.cancel()
        queue.timer = self._clock.callLater(milliseconds / 1000, self._wake, queue)

    def _drop(self, queue: PusherQueue) -> None:
        queue.cancel()
        queue.waiting.clear()
        queue.badge = None
        self._queues.pop(queue.row.pusher_nid, None)
        of_user = self._by_user.get(queue.row.user_id, {})
        of_user.pop(queue.row.pusher_nid, None)
        if not of_user:
            self._by_user.pop(queue.row.user_id, None)


class _Body(msgspec.Struct, frozen=True):
    encoded: bytes
    unread: int | None

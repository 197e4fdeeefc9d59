"""The queue of one pusher: the pushes that are not sent yet, in the order of the stream.

A push may be held for a moment, because the user seems to be reading the room
(`active_readers.py`). Then later pushes may be sent before it. `first` is the lowest position of
all unsent pushes, including those that are held or in flight. The pusher's stored position stays
below `first`, so that a restart loses no push.
"""

from collections import deque
from collections.abc import Callable
from itertools import islice, product
from typing import Final

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from homeserver.services.push.actions import Actions
from homeserver.services.pushers.display_names import EventToPush
from storage.push.pushers import PusherRow

WAKES_PER_TURN: Final = 200
"""Queues that are woken in one turn of the reactor."""


class _Data(msgspec.Struct):
    url: str = ""


class PendingPush(msgspec.Struct, eq=False):
    """An event to push for one pusher."""

    event: EventToPush
    actions: Actions
    is_read: bool = False
    is_held: bool = False
    """Whether it waits for the user's receipt."""
    is_short: bool = False
    """Whether it is sent without content, because its gateway refused it with content."""


class BadgeChange(msgspec.Struct, eq=False, frozen=True):
    """A badge that may differ from the one the app shows."""

    since: int | None
    """The position of the first change that is not sent: reading the stream again from there sends
    it. None: it will not be read again."""


class PusherQueue(msgspec.Struct, eq=False):
    """The queue of one pusher. Exists while a push waits or the pusher fails."""

    row: PusherRow
    url: str
    waiting: deque[PendingPush] = msgspec.field(default_factory=deque)
    """Pushes by position."""
    in_flight: PendingPush | None = None
    last_position: int = 0
    """The position of the last event that was added."""
    badge: BadgeChange | None = None
    """The badge to send."""
    badge_in_flight: BadgeChange | None = None
    """The badge in flight."""
    is_queued: bool = False
    """Whether it waits for its turn at the gateway, or a request is in flight."""
    turn: int = 0
    """The number of the current turn; jobs of older turns are ignored."""
    failing_since_ts: int | None = None
    backoff_ms: int = 0
    refusals: int = 0
    """The number of pushes in a row that the gateway refused and that were dropped."""
    last_attempt_ts: int = 0
    error: str | None = None
    is_stored: bool = False
    """Whether its position is stored in the database."""
    timer: IDelayedCall | None = None
    waits_for_badge: bool = False
    """Whether the timer delays only the badge: an event does not wait for it."""

    @property
    def first(self) -> int | None:
        """The position of the first event that is not sent yet."""
        waiting = self.waiting[0].event.position if self.waiting else None
        if self.in_flight is None:
            return waiting
        under_way = self.in_flight.event.position
        return under_way if waiting is None else min(under_way, waiting)

    @property
    def first_unsent(self) -> int | None:
        """The position of the first event or change of the badge that is not sent yet."""
        badges = (self.badge, self.badge_in_flight)
        found = [badge.since for badge in badges if badge is not None and badge.since is not None]
        if self.first is not None:
            found.append(self.first)
        return min(found, default=None)

    @property
    def has_ready(self) -> bool:
        """Whether an event waits that is not held."""
        return any(not push.is_held for push in self.waiting)

    def take(self, oldest_ms: int) -> PendingPush | None:
        """Return the next push to send that is not held. Drop pushes that were read, or queued
        before `oldest_ms`; the badge is still sent for the latter."""
        at = 0
        while at < len(self.waiting):
            push = self.waiting[at]
            is_over = push.is_read or push.event.queued_ms <= oldest_ms
            if push.is_held and not is_over:
                at += 1
                continue
            del self.waiting[at]
            if not is_over:
                return push
            if not push.is_read:
                self.set_badge_due(None)
        return None

    def release(self, event: EventToPush) -> None:
        """Release the held pushes of an event's room and thread, so that they keep their order."""
        for push in self.waiting:
            if push.event.room_nid == event.room_nid and push.event.thread == event.thread:
                push.is_held = False

    def requeue(self, push: PendingPush) -> None:
        """Insert a push that was taken into its old position."""
        at = 0
        while at < len(self.waiting) and self.waiting[at].event.position < push.event.position:
            at += 1
        self.waiting.insert(at, push)

    def set_badge_due(self, since: int | None) -> None:
        """Mark the badge as changed at a position of the stream."""
        before = None if self.badge is None else self.badge.since
        self.badge = BadgeChange(before if since is None else since)

    def take_badge(self) -> None:
        """Take the badge to send it now."""
        self.badge_in_flight, self.badge = self.badge, None

    def requeue_badge(self) -> None:
        """Queue the badge in flight again, because it was not sent."""
        newer, unsent, self.badge_in_flight = self.badge, self.badge_in_flight, None
        if unsent is not None:
            self.badge = unsent
            if newer is not None:
                self.set_badge_due(newer.since)

    def drop_one(self) -> None:
        """Drop the least important push, because too many wait. Prefer one that is not a highlight,
        then one whose room has a later push; among equal ones the oldest. The badge is sent in
        any case, since the others may be redacted."""
        self.set_badge_due(None)
        newest = {push.event.room_nid: at for at, push in enumerate(self.waiting)}
        for is_highlight, is_newest in product((False, True), repeat=2):
            for at, push in enumerate(self.waiting):
                if (
                    push.actions.highlight is is_highlight
                    and (newest[push.event.room_nid] == at) is is_newest
                ):
                    del self.waiting[at]
                    return

    def cancel(self) -> None:
        """Cancel the timer."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()

    def is_held_back(self) -> bool:
        """Return whether a timer is running. The badge's timer is cancelled if an event is
        ready."""
        if self.waits_for_badge and self.has_ready:
            self.cancel()
        return self.timer is not None and self.timer.active()

    def drop_read(self) -> None:
        """Drop the pushes that were read meanwhile."""
        if any(push.is_read for push in self.waiting):
            self.waiting = deque(push for push in self.waiting if not push.is_read)


class ChangedQueues:
    """The queues that have changed and are to be woken. Use this class only on the reactor
    thread."""

    log = Logger()

    def __init__(self, *, clock: IReactorTime, wake: Callable[[PusherQueue], None]) -> None:
        """`wake` starts to send a queue, if it still exists."""
        self._clock = clock
        self._wake = wake
        self._changed: dict[int, PusherQueue] = {}
        self._waking: dict[int, PusherQueue] = {}
        """Queues that are being woken."""
        self._is_waking = False

    def add(self, queue: PusherQueue) -> None:
        """Wake a queue at the next call of `wake`."""
        self._changed[queue.row.pusher_nid] = queue

    def wake(self) -> None:
        """Wake all changed queues; if they are many, in several turns of the reactor."""
        self._waking |= self._changed
        self._changed.clear()
        if not self._is_waking:
            self._wake_batch()

    def clear(self) -> None:
        """Forget the changed queues."""
        self._changed.clear()
        self._waking.clear()

    def _wake_batch(self) -> None:
        batch = [self._waking.pop(nid) for nid in list(islice(self._waking, WAKES_PER_TURN))]
        self._is_waking = bool(self._waking)
        if self._is_waking:
            self._clock.callLater(0, self._wake_batch)
        for queue in batch:
            try:
                self._wake(queue)
            except Exception:  # an unexpected error: wake the others
                self.log.failure(
                    "pusher {pusher_nid} could not be woken", pusher_nid=queue.row.pusher_nid
                )


def url_of(row: PusherRow) -> str:
    """Return the address of a pusher's gateway."""
    return msgspec.json.decode(row.data, type=_Data).url

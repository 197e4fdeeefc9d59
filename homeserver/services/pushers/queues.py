"""What waits for one pusher: the events that it is to tell, in the order of the stream.

A push may be held for a moment, as its user seems to be reading there (`active_readers.py`). What
is behind it goes meanwhile; that it is not told yet is never lost out of sight: `first` is the
lowest position of all, held or under way.
"""

from collections import deque
from collections.abc import Callable
from itertools import islice, product
from typing import Final

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from homeserver.services.push.actions import Actions
from homeserver.services.pushers.display_names import Told
from storage.push.pushers import PusherRow

WOKEN_AT_ONCE: Final = 200
"""Lines that begin to send in one go: then others have the reactor."""


class _Data(msgspec.Struct):
    url: str = ""


class Push(msgspec.Struct, eq=False):
    """An event that one pusher is to tell."""

    told: Told
    actions: Actions
    is_read: bool = False
    is_held: bool = False
    """It is waited for that the user reads it."""
    is_short: bool = False
    """It goes without what was said, as its gateway refused it with that."""


class Due(msgspec.Struct, eq=False, frozen=True):
    """That the number may be another than the app was told."""

    since: int | None
    """The position of what made it so last: who reads that again tells it for all before. None: it
    will not be read again."""


class Line(msgspec.Struct, eq=False):
    """What waits for one pusher. Exists while something does, or while the pusher fails."""

    row: PusherRow
    url: str
    waiting: deque[Push] = msgspec.field(default_factory=deque)
    """In the order of their positions."""
    under_way: Push | None = None
    last_position: int = 0
    """Of the last event that was added."""
    badge: Due | None = None
    """The number is to be told."""
    badge_under_way: Due | None = None
    """It is being told."""
    is_queued: bool = False
    """It waits for its turn at the gateway, or something is under way."""
    turn: int = 0
    """Which one; an older one means nothing any more."""
    failing_since_ts: int | None = None
    pause_ms: int = 0
    refusals: int = 0
    """So many pushes were given up one after the other, as the gateway refused them."""
    tried_ts: int = 0
    error: str | None = None
    is_noted: bool = False
    """The database knows up to which position it is done."""
    timer: IDelayedCall | None = None
    waits_for_badge: bool = False
    """The timer is that of the badge alone: an event need not wait for it."""

    @property
    def first(self) -> int | None:
        """The position of the first event that is not told yet."""
        waiting = self.waiting[0].told.position if self.waiting else None
        if self.under_way is None:
            return waiting
        under_way = self.under_way.told.position
        return under_way if waiting is None else min(under_way, waiting)

    @property
    def unfinished(self) -> int | None:
        """The position of the first thing of which it does not know yet: an event, or what changed
        the number."""
        dues = (self.badge, self.badge_under_way)
        found = [due.since for due in dues if due is not None and due.since is not None]
        if self.first is not None:
            found.append(self.first)
        return min(found, default=None)

    @property
    def has_ready(self) -> bool:
        """Whether an event waits that is not held."""
        return any(not push.is_held for push in self.waiting)

    def take(self, oldest_ms: int) -> Push | None:
        """The next push that is still to be told, and not held. What was read, or queued before a
        time, goes; of the latter the number is told at least."""
        at = 0
        while at < len(self.waiting):
            push = self.waiting[at]
            is_over = push.is_read or push.told.queued_ms <= oldest_ms
            if push.is_held and not is_over:
                at += 1
                continue
            del self.waiting[at]
            if not is_over:
                return push
            if not push.is_read:
                self.set_badge_due(None)
        return None

    def let_go(self, told: Told) -> None:
        """What stands where this event does is held no longer: they go in their order."""
        for push in self.waiting:
            if push.told.room_nid == told.room_nid and push.told.thread == told.thread:
                push.is_held = False

    def put_back(self, push: Push) -> None:
        """It was taken, and is to be told later: in its place."""
        at = 0
        while at < len(self.waiting) and self.waiting[at].told.position < push.told.position:
            at += 1
        self.waiting.insert(at, push)

    def set_badge_due(self, since: int | None) -> None:
        """The number may have become another, by what stands there in the stream."""
        before = None if self.badge is None else self.badge.since
        self.badge = Due(before if since is None else since)

    def take_badge(self) -> None:
        """The number is told now."""
        self.badge_under_way, self.badge = self.badge, None

    def put_back_badge(self) -> None:
        """If it was to be told, it was not, and is to be told later."""
        newer, due, self.badge_under_way = self.badge, self.badge_under_way, None
        if due is not None:
            self.badge = due
            if newer is not None:
                self.set_badge_due(newer.since)

    def give_up_one(self) -> None:
        """Too many wait: the one goes that is missed least. Rather one of a room of which a later
        one tells than the last of a room, and those that call their user last; of equal ones the
        oldest. The number is told in any case: the others may be taken back."""
        self.set_badge_due(None)
        newest = {push.told.room_nid: at for at, push in enumerate(self.waiting)}
        for calls, is_newest in product((False, True), repeat=2):
            for at, push in enumerate(self.waiting):
                if (
                    push.actions.highlight is calls
                    and (newest[push.told.room_nid] == at) is is_newest
                ):
                    del self.waiting[at]
                    return

    def cancel(self) -> None:
        """Wait for no timer any more."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()

    def is_held_back(self) -> bool:
        """Whether a timer is to be waited for; that of the badge is not, where an event is
        ready."""
        if self.waits_for_badge and self.has_ready:
            self.cancel()
        return self.timer is not None and self.timer.active()

    def drop_read(self) -> None:
        """What was read meanwhile waits no longer."""
        if any(push.is_read for push in self.waiting):
            self.waiting = deque(push for push in self.waiting if not push.is_read)


class TouchedLines:
    """Lines to which something was added. For the reactor thread."""

    log = Logger()

    def __init__(self, clock: IReactorTime, wake: Callable[[Line], None]) -> None:
        """`wake` lets a line send, if it still is one."""
        self._clock = clock
        self._wake = wake
        self._touched: dict[int, Line] = {}
        self._woken: dict[int, Line] = {}
        """Those whose turn it is."""
        self._is_waking = False

    def add(self, line: Line) -> None:
        """Wake it with the next ones."""
        self._touched[line.row.pusher_nid] = line

    def wake(self) -> None:
        """Let them send: where they are many, in pieces."""
        self._woken |= self._touched
        self._touched.clear()
        if not self._is_waking:
            self._wake_some()

    def clear(self) -> None:
        """Wake none of them."""
        self._touched.clear()
        self._woken.clear()

    def _wake_some(self) -> None:
        some = [self._woken.pop(nid) for nid in list(islice(self._woken, WOKEN_AT_ONCE))]
        self._is_waking = bool(self._woken)
        if self._is_waking:
            self._clock.callLater(0, self._wake_some)
        for line in some:
            try:
                self._wake(line)
            except Exception:  # a bug of ours: the others have their turn
                self.log.failure(
                    "pusher {pusher_nid} could not be woken", pusher_nid=line.row.pusher_nid
                )


def url_of(row: PusherRow) -> str:
    """The address of the gateway."""
    return msgspec.json.decode(row.data, type=_Data).url

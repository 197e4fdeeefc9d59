"""Finds users who are reading a room right now, so that pushes to their other devices are delayed.

A gateway gets a push within milliseconds, and a client sends its read receipt some moments later.
Without a delay the phone of a user who is reading the room on a desktop would buzz at every
message.

Laws:
- A user is an active reader of a room or thread if they have read all events that were pushed for
  it, have done so recently, and a device other than the pusher's is in a sync. A user who does not
  read during one delay is no active reader until they read again.
- Only the memory of this node is used, and no query is made. Syncs at another node do not delay a
  push, and nothing is delayed just after a start.
- Pushes about calls (voice or video) are never delayed, unless the event is encrypted: then the
  server cannot see that it is a call.

Use this module only on the reactor thread.
"""

from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime

from homeserver.services.push.actions import Actions
from homeserver.services.pushers.display_names import EventToPush
from storage.cache import LRU
from storage.push.pushers import PusherRow
from storage.rooms.receipts import UNTHREADED

WAIT_SECONDS: Final = 3.0
"""A client fetches and shows the message, and collects receipts for a second or two before it sends
them.
"""
RECENT_SECONDS: Final = 120.0
"""A user who last read longer ago than this is not an active reader: with longer pauses people look
away.
"""
MAX_CACHED: Final = 20_000
"""Entries in each of the two caches, one for a user and a room or thread."""
RINGING: Final = frozenset(
    {
        "m.call.invite",
        "m.rtc.notification",
        "org.matrix.msc4075.rtc.notification",
        "m.call.notify",
        "org.matrix.msc4075.call.notify",
    }
)
"""Event types of calls, including those of older clients. An encrypted event may be a call, too:
the server cannot see it.
"""
RING: Final = "ring"
"""The sound of the rule for calls. spec: client-server-api#default-underride-rules"""

_Key = tuple[str, int, str | None]
"""A user, a room, and a thread of it: None is the main timeline, `UNTHREADED` the complete room."""


class Syncs(Protocol):
    """Reports which devices are in a sync."""

    def is_syncing(self, user_id: str, except_device: str | None = None) -> bool:
        """Return whether a device of the user other than `except_device` is in a sync, or was in
        the last seconds."""
        ...


class ActiveReaders:
    """Records what users read and what was pushed to them."""

    def __init__(self, *, clock: IReactorTime, syncs: Syncs) -> None:
        self._clock = clock
        self._syncs = syncs
        self._last_read: LRU[_Key, float] = LRU(max_entries=MAX_CACHED)
        """When the user last read everything there, in seconds of the clock."""
        self._pushed: LRU[_Key, float] = LRU(max_entries=MAX_CACHED)
        """The position of the last event there that was pushed without a delay or after one that
        did not help."""

    def record_read(self, user_id: str, room_nid: int, thread: str | None, position: int) -> None:
        """Record that the user has read a thread, or the complete room (`UNTHREADED`), up to a
        position. A message of the user counts as reading, too."""
        key = (user_id, room_nid, thread)
        if (self._pushed.peek(key) or 0) <= position:
            self._last_read.put(key, self._clock.seconds())

    def is_reading(self, pusher: PusherRow, event: EventToPush, actions: Actions) -> bool:
        """Return whether to delay this push, because its user is reading where the event is
        shown."""
        keys = _keys_of(pusher.user_id, event)
        last = max(self._last_read.peek(key) or 0.0 for key in keys)
        if not last:
            self._record_pushed(keys, event)
            return False
        if self._clock.seconds() - last > RECENT_SECONDS or not self._syncs.is_syncing(
            pusher.user_id
        ):
            self.record_unread(pusher.user_id, event)
            return False
        if rings(event, actions):
            return False
        return self._syncs.is_syncing(pusher.user_id, except_device=pusher.device_id)

    def record_unread(self, user_id: str, event: EventToPush) -> None:
        """Record that the delay did not help and the event is pushed."""
        keys = _keys_of(user_id, event)
        for key in keys:
            self._last_read.pop(key)
        self._record_pushed(keys, event)

    def _record_pushed(self, keys: tuple[_Key, _Key], event: EventToPush) -> None:
        for key in keys:
            self._pushed.put(key, max(event.position, self._pushed.peek(key) or 0))


def rings(event: EventToPush, actions: Actions) -> bool:
    """Return whether the event is a call."""
    return event.stored.event.type in RINGING or actions.sound == RING


def _keys_of(user_id: str, event: EventToPush) -> tuple[_Key, _Key]:
    """Return the thread and the room of an event: reading either one reads the event."""
    return (user_id, event.room_nid, event.thread), (user_id, event.room_nid, UNTHREADED)

"""Who is reading a room right now, at another device than the one that would be told: a push for
them waits a moment for their receipt.

A gateway is told within milliseconds, and the client that shows a message says some moments later
that it was read: so without a wait the telephone of whoever sits before the room buzzes at every
message.

Laws:
- Reading is who had read all there (the room, or the thread) that they were told of, did so lately,
  and has a device in a sync. Who lets one wait pass without reading does not read any more, until
  they do.
- Only what this process knows counts, and nothing is asked of the database: who syncs at another
  node does not wait, nor does anybody just after a start.
- What rings does not wait.

For the reactor thread.
"""

from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime

from homeserver.services.push.actions import Actions
from homeserver.services.pushers.display_names import Told
from storage.cache import LRU
from storage.push.pushers import PusherRow
from storage.rooms.receipts import UNTHREADED

WAIT_SECONDS: Final = 3.0
"""A client fetches the message, shows it, and gathers what was read for a second or two before it
says so."""
LATELY_SECONDS: Final = 120.0
"""So long ago somebody may have read there last: in a talk with longer pauses people look away."""
REMEMBERED: Final = 20_000
"""Rooms and threads of users, of those that were read lately, and of those where something was
told."""
RINGING: Final = frozenset(
    {
        "m.call.invite",
        "m.rtc.notification",
        "org.matrix.msc4075.rtc.notification",
        "m.call.notify",
        "org.matrix.msc4075.call.notify",
    }
)
"""Types of events that ring, those of older clients among them. What is encrypted may ring, too:
that is not known here."""
RING: Final = "ring"
"""The sound of the rule for calls. spec: client-server-api#default-underride-rules"""

_Place = tuple[str, int, str | None]
"""A user, a room, and a thread of it: None for the main timeline, `UNTHREADED` for all of the
room."""


class Syncs(Protocol):
    """Who knows which devices wait for news."""

    def is_syncing(self, user_id: str, besides: str | None = None) -> bool:
        """Whether a device of the user waits in a sync, or did within the last seconds: another one
        than `besides`."""
        ...


class Readers:
    """Knows them."""

    def __init__(self, clock: IReactorTime, syncs: Syncs) -> None:
        self._clock = clock
        self._syncs = syncs
        self._read: LRU[_Place, float] = LRU(max_entries=REMEMBERED)
        """When they read there last, all that there was."""
        self._told: LRU[_Place, float] = LRU(max_entries=REMEMBERED)
        """The position of the last event that they were told of there, without a wait or after one
        in vain."""

    def note(self, user_id: str, room_nid: int, thread: str | None, position: int) -> None:
        """The user has read a thread up to a position, or all of the room (`UNTHREADED`), or has
        written there."""
        place = (user_id, room_nid, thread)
        if (self._told.peek(place) or 0) <= position:
            self._read.put(place, self._clock.seconds())

    def may_read(self, pusher: PusherRow, told: Told, actions: Actions) -> bool:
        """Whether this push is to wait a moment, as its user is reading where the event stands."""
        places = _places(pusher.user_id, told)
        last = max(self._read.peek(place) or 0.0 for place in places)
        if not last:
            self._keep_told(places, told)
            return False
        if self._clock.seconds() - last > LATELY_SECONDS or not self._syncs.is_syncing(
            pusher.user_id
        ):
            self.give_up(pusher.user_id, told)
            return False
        if rings(told, actions):
            return False
        return self._syncs.is_syncing(pusher.user_id, besides=pusher.device_id)

    def give_up(self, user_id: str, told: Told) -> None:
        """They have not read it, and are told."""
        places = _places(user_id, told)
        for place in places:
            self._read.pop(place)
        self._keep_told(places, told)

    def _keep_told(self, places: tuple[_Place, _Place], told: Told) -> None:
        for place in places:
            self._told.put(place, max(told.position, self._told.peek(place) or 0))


def rings(told: Told, actions: Actions) -> bool:
    """Whether somebody calls."""
    return told.stored.event.type in RINGING or actions.sound == RING


def _places(user_id: str, told: Told) -> tuple[_Place, _Place]:
    """What they may have read to have read the event."""
    return (user_id, told.room_nid, told.thread), (user_id, told.room_nid, UNTHREADED)

"""Wakes those who wait for news: long-polls of /sync.

Laws:
- Who wants to wait begins to listen before looking, so that nothing falls between looking and
  waiting.
- A change costs what it concerns: of a room's local members only those who listen are looked at.
- Who could not be found out to be concerned, as the database was away, is woken when it is back.
- What another node wrote wakes whom it concerns, as that node says
  (`homeserver/cluster/incoming_changes.py`); where it does not say so, everybody.
- Who has waited is told nothing before it is known that their session has not ended meanwhile.
- Waking happens in later turns of the reactor, some listeners a turn: a message to a thousand of
  them does not keep everyone else waiting, and what the writer of the change does after its commit
  is done first.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.ids import UserID
from federation.rooms.memberships import Memberships
from homeserver.api.requester import Requester
from homeserver.cluster.incoming_changes import NewsOfOthers
from homeserver.cluster.outgoing_changes import Range
from storage.cache import LRU
from storage.engine.interface import DatabaseUnavailable
from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventNews, EventRow
from storage.retention.purging import PurgedMessages
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.receipts import ReceiptRow
from storage.rooms.sticky_events import StickyRow

WAKES_A_TURN = 25
PAUSE = 1.0
"""Seconds until it is asked again whom something concerns, when the database was away."""
TOLD_TO_ALL = frozenset({Topic.DEVICE, Topic.PROFILE})
"""What everyone who shares a room with the user has to hear of."""
PRIVATE_RECEIPT = "m.read.private"
GAP = 10.0
"""Seconds between two syncs of a client that is there: it works off what the last one brought."""
FEW_DEVICES = 8
"""With more of a user it is looked which of them are gone."""
USERS_REMEMBERED = 20_000
"""Of whom it is known when their devices last listened."""


CheckAgain = Callable[[Requester], Awaitable[None] | None]
"""Gives None for a caller whose session is known to stand; else what finds out, and raises where it
has ended."""


class Listener:
    """One who listens. `close` it when done."""

    __slots__ = (
        "_caller",
        "_check_again",
        "_close",
        "_heard",
        "_waiting",
        "device_id",
        "room_nid",
        "user_id",
    )

    def __init__(
        self,
        caller: Requester,
        room_nid: int | None,
        check_again: CheckAgain,
        close: "Callable[[Listener], None]",
    ) -> None:
        self._caller = caller
        self.user_id = caller.user_id
        self.device_id = caller.device_id
        self.room_nid = room_nid
        """A room that they listen to, though they may not be in it."""
        self._check_again = check_again
        self._close = close
        self._heard = False
        self._waiting: Deferred[None] | None = None

    def hear(self) -> None:
        """Something that concerns the user has happened."""
        self._heard = True
        if self._waiting is not None and not self._waiting.called:
            self._waiting.callback(None)

    async def wait(self, clock: IReactorTime, timeout: float) -> bool:
        """Wait for something since the last wait, for so many seconds at most; whether there was
        something.

        Raises `UnknownToken`, `UserLocked` where there was, for who would not be let in any more.
        """
        if not self._heard:
            self._waiting = Deferred()
            call = clock.callLater(timeout, self._waiting.cancel)
            try:
                await self._waiting
            except CancelledError:
                if call.active():
                    raise  # the request was given up, not timed out
                return False
            finally:
                if call.active():
                    call.cancel()
                self._waiting = None
        self._heard = False
        doubt = self._check_again(self._caller)
        if doubt is not None:
            await doubt
        return True

    def close(self) -> None:
        """Listen no more."""
        self._close(self)


class Notifier:
    """Knows who listens, and hears the stream of changes. For the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        streams: Streams,
        memberships: Memberships,
        clock: IReactorTime,
        check_again: CheckAgain,
        others: NewsOfOthers | None = None,
    ) -> None:
        """`others`: who knows what other nodes write; None where there are none."""
        self._streams = streams
        self._check_again = check_again
        self._others = others
        self._memberships = memberships
        self._clock = clock
        self._listeners: dict[str, set[Listener]] = {}
        self._at_rooms: dict[int, set[Listener]] = {}
        """Those of them who listen to a room that they need not be in."""
        self._left: LRU[str, dict[str | None, float]] = LRU(max_entries=USERS_REMEMBERED)
        """By user when their devices ceased to listen, those of the last `GAP` seconds at least."""
        self._to_wake: dict[Listener, None] = {}
        self._scheduled = False
        self._rooms: dict[int, None] = {}
        self._people: dict[str, None] = {}
        streams.subscribe(self._on_changes)
        streams.watch(self._on_remote_write)
        if others is not None:
            others.wait_for(self._hear_late, self._give_up)

    def listen(self, caller: Requester, room_nid: int | None = None) -> Listener:
        """Begin to listen for what concerns the caller, and a room that they look at."""
        listener = Listener(caller, room_nid, self._check_again, self._remove)
        self._listeners.setdefault(caller.user_id, set()).add(listener)
        if room_nid is not None:
            self._at_rooms.setdefault(room_nid, set()).add(listener)
        return listener

    def is_syncing(self, user_id: str, besides: str | None = None) -> bool:
        """Whether a device of the user listens, or did within `GAP` seconds: another one than
        `besides`."""
        listening = (listener.device_id for listener in self._listeners.get(user_id, ()))
        if any(device_id is None or device_id != besides for device_id in listening):
            return True
        since = self._clock.seconds() - GAP
        left = self._left.peek(user_id) or {}
        return any(
            at >= since and (device_id is None or device_id != besides)
            for device_id, at in left.items()
        )

    def wake_users(self, user_ids: Iterable[str]) -> None:
        """Something that is not on the stream concerns these users."""
        for user_id in user_ids:
            for listener in self._listeners.get(user_id, ()):
                self._to_wake[listener] = None
        if self._to_wake:
            self._schedule()

    def wake(self, listeners: Iterable[Listener]) -> None:
        """Something concerns these who listen."""
        self._to_wake.update(dict.fromkeys(listeners))
        if self._to_wake:
            self._schedule()

    def wake_room(self, room_nid: int) -> None:
        """Something concerns the local members of a room."""
        if self._listeners:
            self._rooms[room_nid] = None
            self._schedule()

    def _remove(self, listener: Listener) -> None:
        self._to_wake.pop(listener, None)
        self._note_left(listener)
        listeners = self._listeners.get(listener.user_id)
        if listeners is not None:
            listeners.discard(listener)
            if not listeners:
                del self._listeners[listener.user_id]
        if listener.room_nid is not None:
            at_room = self._at_rooms.get(listener.room_nid, set())
            at_room.discard(listener)
            if not at_room:
                self._at_rooms.pop(listener.room_nid, None)

    def _note_left(self, listener: Listener) -> None:
        now = self._clock.seconds()
        devices = self._left.peek(listener.user_id) or {}
        devices[listener.device_id] = now
        if len(devices) > FEW_DEVICES:
            devices = {device_id: at for device_id, at in devices.items() if at >= now - GAP}
        self._left.put(listener.user_id, devices)

    def _on_changes(self, changes: Sequence[Change]) -> None:
        if not self._listeners:
            return
        for change in changes:
            row = change.detail
            if isinstance(row, EventRow | EventNews | StickyRow) or (
                isinstance(row, ReceiptRow) and row.receipt_type != PRIVATE_RECEIPT
            ):
                self._rooms[row.room_nid] = None
            if isinstance(row, PartialRoom) or (
                isinstance(row, PurgedMessages) and row.counted_upto
            ):
                self._rooms[row.room_nid] = None
            if change.topic in TOLD_TO_ALL and change.user_id is not None:
                self._people[change.user_id] = None
                self._schedule()
            if change.topic is not Topic.EVENT and change.user_id is not None:
                self.wake_users([change.user_id])
            if change.user_ids:
                self.wake_users(change.user_ids)
        if self._rooms:
            self._schedule()

    # other nodes

    def _on_remote_write(self, after: int, upto: int) -> None:
        """Another node wrote: where it has not said what, whom it concerns is not known here, or
        not yet."""
        told = self._streams.told(after, upto)
        if told is not None:
            self._on_changes(told)
        elif self._others is None:
            self.wake_users(self._listeners)

    def _hear_late(self, _ranges: Sequence[Range], changes: Sequence[Change]) -> None:
        self._on_changes(changes)

    def _give_up(self, _ranges: Sequence[Range]) -> None:
        self.wake_users(self._listeners)

    def _schedule(self, seconds: float = 0) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(seconds, self._start_turn)

    def _start_turn(self) -> None:
        Deferred.fromCoroutine(self._turn())

    async def _turn(self) -> None:
        people, self._people = self._people, {}
        rooms: dict[int, None] = {}
        pause = 0.0
        try:
            for user_id in people:
                rows = (await self._memberships.of_user(UserID(user_id))).values()
                self._rooms.update((row.room_nid, None) for row in rows if row.membership == "join")
            rooms, self._rooms = self._rooms, {}
            for room_nid in rooms:
                self._to_wake.update(dict.fromkeys(self._at_rooms.get(room_nid, ())))
                members = await self._memberships.local_members(room_nid)
                listening = self._listeners
                if len(members) <= len(listening):
                    self.wake_users([user_id for user_id in members if user_id in listening])
                else:
                    self.wake_users([user_id for user_id in listening if user_id in members])
        except DatabaseUnavailable as error:
            self._log.warn("Who is to be woken is not known, and asked again: {error}", error=error)
            self._people, self._rooms = {**people, **self._people}, {**rooms, **self._rooms}
            pause = PAUSE
        finally:
            for listener in list(self._to_wake)[:WAKES_A_TURN]:
                if self._to_wake.pop(listener, 0) is None:
                    listener.hear()
            self._scheduled = False
            if self._to_wake or self._rooms or self._people:
                self._schedule(pause)

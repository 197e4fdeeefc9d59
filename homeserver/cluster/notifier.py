"""Wakes long polls of /sync and sliding sync when a change concerns them.

Laws:

- A long poll listens before it reads, so no change between reading and waiting is missed.
- The cost of a change does not depend on the number of all users. If a room changes, the notifier
  wakes the local members who have a long poll. To find them, it goes through the smaller set: the
  room's local members, or the users who have a long poll.
- To find the users whom a change concerns, the notifier may have to read the database. If the
  database is unavailable, the notifier retries until it has woken these users.
- A commit of another node wakes the users that it concerns, according to that node's description
  (`homeserver/cluster/incoming_changes.py`). Without a description, the commit wakes all
  users.
- After a wait, the session is checked again before the client receives a change.
- Long polls are woken in batches, in later turns of the reactor. So an event that wakes a thousand
  of them delays neither other requests nor the response to the sender.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.ids import UserID
from federation.rooms.memberships import Memberships
from homeserver.api.requester import Requester
from homeserver.cluster.incoming_changes import IncomingChanges
from homeserver.cluster.outgoing_changes import Range
from storage.cache import LRU
from storage.engine.interface import DatabaseUnavailable
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.events import EventRow, EventSummary
from storage.retention.purging import PurgedMessages
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.receipts import ReceiptRow
from storage.rooms.sticky_events import StickyRow

WAKES_PER_TURN = 25
RETRY_SECONDS = 1.0
"""The time in seconds until the database is tried again."""
SHARED_TOPICS = frozenset({Topic.DEVICE, Topic.PROFILE})
"""The topics that concern everyone who shares a room with the user."""
PRIVATE_RECEIPT = "m.read.private"
SYNC_GAP_SECONDS = 10.0
"""The longest time in seconds that an active client needs between two syncs."""
MAX_DEVICES_UNCHECKED = 8
"""With more devices of a user, outdated entries are removed."""
MAX_USERS_TRACKED = 20_000
"""The number of users whose last listening times are kept."""


CheckAgain = Callable[[Requester], Awaitable[None] | None]
"""Checks the session of a caller. Returns None if it is known to be valid; otherwise an awaitable,
which raises if the session has ended."""


class Listener:
    """A long poll that waits for changes. `close` it when it ends."""

    __slots__ = (
        "_caller",
        "_check_session",
        "_close",
        "_has_changes",
        "_waiting",
        "device_id",
        "room_nid",
        "user_id",
    )

    def __init__(
        self,
        *,
        caller: Requester,
        room_nid: int | None,
        check_session: CheckAgain,
        close: "Callable[[Listener], None]",
    ) -> None:
        self._caller = caller
        self.user_id = caller.user_id
        self.device_id = caller.device_id
        self.room_nid = room_nid
        """A room to listen to, even if the user is not in it."""
        self._check_session = check_session
        self._close = close
        self._has_changes = False
        self._waiting: Deferred[None] | None = None

    def wake(self) -> None:
        """Record a change that concerns the user, and wake the long poll."""
        self._has_changes = True
        if self._waiting is not None and not self._waiting.called:
            self._waiting.callback(None)

    async def wait(self, clock: IReactorTime, timeout: float) -> bool:
        """Wait for a change since the last wait, for up to `timeout` seconds. Return whether there
        was one.

        Raises `UnknownToken`, `UserLocked` after a change if the session is no longer valid.
        """
        if not self._has_changes:
            self._waiting = Deferred()
            call = clock.callLater(timeout, self._waiting.cancel)
            try:
                await self._waiting
            except CancelledError:
                if call.active():
                    raise  # the request was cancelled, not timed out
                return False
            finally:
                if call.active():
                    call.cancel()
                self._waiting = None
        self._has_changes = False
        check = self._check_session(self._caller)
        if check is not None:
            await check
        return True

    def close(self) -> None:
        """Stop listening."""
        self._close(self)


class Notifier:
    """Holds the listeners, and wakes those that a change concerns. It is used only on the reactor
    thread."""

    _log = Logger()

    def __init__(
        self,
        *,
        streams: Streams,
        memberships: Memberships,
        clock: IReactorTime,
        check_session: CheckAgain,
        incoming_changes: IncomingChanges | None = None,
    ) -> None:
        """`incoming_changes`: the source of changes that other nodes commit; None if there are no
        other nodes."""
        self._streams = streams
        self._check_session = check_session
        self._incoming_changes = incoming_changes
        self._memberships = memberships
        self._clock = clock
        self._listeners: dict[str, set[Listener]] = {}
        self._at_rooms: dict[int, set[Listener]] = {}
        """Listeners by the room that they view."""
        self._left: LRU[str, dict[str | None, float]] = LRU(max_entries=MAX_USERS_TRACKED)
        """When each user's devices stopped listening, at least in the last `SYNC_GAP_SECONDS`."""
        self._to_wake: dict[Listener, None] = {}
        self._scheduled = False
        self._rooms: dict[int, None] = {}
        self._users: dict[str, None] = {}
        streams.subscribe(self._on_changes, stage=Stage.NOTIFY)
        streams.watch(self._on_remote_write, stage=Stage.NOTIFY)
        if incoming_changes is not None:
            incoming_changes.subscribe(self._on_late_changes, self._on_lost_changes)

    def listen(self, caller: Requester, room_nid: int | None = None) -> Listener:
        """Listen for changes that concern the caller, and for changes in the room `room_nid` that
        they view."""
        listener = Listener(
            caller=caller, room_nid=room_nid, check_session=self._check_session, close=self._remove
        )
        self._listeners.setdefault(caller.user_id, set()).add(listener)
        if room_nid is not None:
            self._at_rooms.setdefault(room_nid, set()).add(listener)
        return listener

    def is_syncing(self, user_id: str, except_device: str | None = None) -> bool:
        """Return whether a device of the user other than `except_device` is listening, or was
        within `SYNC_GAP_SECONDS` seconds."""
        listening = (listener.device_id for listener in self._listeners.get(user_id, ()))
        if any(device_id is None or device_id != except_device for device_id in listening):
            return True
        since = self._clock.seconds() - SYNC_GAP_SECONDS
        left = self._left.peek(user_id) or {}
        return any(
            at >= since and (device_id is None or device_id != except_device)
            for device_id, at in left.items()
        )

    def wake_users(self, user_ids: Iterable[str]) -> None:
        """Wake users because of a change that is not on the stream."""
        for user_id in user_ids:
            for listener in self._listeners.get(user_id, ()):
                self._to_wake[listener] = None
        if self._to_wake:
            self._schedule()

    def wake(self, listeners: Iterable[Listener]) -> None:
        """Wake these listeners."""
        self._to_wake.update(dict.fromkeys(listeners))
        if self._to_wake:
            self._schedule()

    def wake_room(self, room_nid: int) -> None:
        """Wake the local members of a room."""
        if self._listeners:
            self._rooms[room_nid] = None
            self._schedule()

    def _remove(self, listener: Listener) -> None:
        self._to_wake.pop(listener, None)
        self._record_left(listener)
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

    def _record_left(self, listener: Listener) -> None:
        now = self._clock.seconds()
        devices = self._left.peek(listener.user_id) or {}
        devices[listener.device_id] = now
        if len(devices) > MAX_DEVICES_UNCHECKED:
            devices = {
                device_id: at for device_id, at in devices.items() if at >= now - SYNC_GAP_SECONDS
            }
        self._left.put(listener.user_id, devices)

    def _on_changes(self, changes: Sequence[Change]) -> None:
        if not self._listeners:
            return
        for change in changes:
            row = change.detail
            if isinstance(row, EventRow | EventSummary | StickyRow) or (
                isinstance(row, ReceiptRow) and row.receipt_type != PRIVATE_RECEIPT
            ):
                self._rooms[row.room_nid] = None
            if isinstance(row, PartialRoom) or (
                isinstance(row, PurgedMessages) and row.counted_upto
            ):
                self._rooms[row.room_nid] = None
            if change.topic in SHARED_TOPICS and change.user_id is not None:
                self._users[change.user_id] = None
                self._schedule()
            if change.topic is not Topic.EVENT and change.user_id is not None:
                self.wake_users([change.user_id])
            if change.user_ids:
                self.wake_users(change.user_ids)
        if self._rooms:
            self._schedule()

    # Changes of other nodes.

    def _on_remote_write(self, after: int, upto: int) -> None:
        """Handle a commit of another node: wake the users it concerns if its changes are known, or
        all users if they will not arrive."""
        changes = self._streams.get_remote_changes(after, upto)
        if changes is not None:
            self._on_changes(changes)
        elif self._incoming_changes is None:
            self.wake_users(self._listeners)

    def _on_late_changes(self, _ranges: Sequence[Range], changes: Sequence[Change]) -> None:
        self._on_changes(changes)

    def _on_lost_changes(self, _ranges: Sequence[Range]) -> None:
        self.wake_users(self._listeners)

    def _schedule(self, seconds: float = 0) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(seconds, self._start_batch)

    def _start_batch(self) -> None:
        Deferred.fromCoroutine(self._wake_batch())

    async def _wake_batch(self) -> None:
        users, self._users = self._users, {}
        rooms: dict[int, None] = {}
        delay = 0.0
        try:
            for user_id in users:
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
            self._log.warn(
                "the listeners to wake are not known; trying again: {error}", error=error
            )
            self._users, self._rooms = {**users, **self._users}, {**rooms, **self._rooms}
            delay = RETRY_SECONDS
        finally:
            for listener in list(self._to_wake)[:WAKES_PER_TURN]:
                if self._to_wake.pop(listener, 0) is None:
                    listener.wake()
            self._scheduled = False
            if self._to_wake or self._rooms or self._users:
                self._schedule(delay)

"""Rechecks soft-failed sticky events, and delivers them once the current state allows them.

Servers may have different current states when an event arrives, so one server may soft-fail an
event that another accepts. A sticky event would then never be delivered on the first server.
MSC4354 therefore requires a recheck when the membership of the sender changes. Of these changes,
only a join can make the event allowed. So each join of the sender causes a recheck, until the event
expires. A node remembers at most `MAX_WAITING` senders of soft-failed sticky events
(`WaitingSenders`). A delivered event stays soft-failed: our events do not follow it, and no
timeline shows it.

Proposal: MSC4354
"""

from collections.abc import Callable, Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from federation.protocol.errors import MatrixError
from federation.protocol.event_auth import auth_keys, check_auth
from federation.protocol.ids import RoomID, ServerName, UserID, domain_of
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.snapshot import RoomSnapshot
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomStore
from storage.rooms.sticky_events import StickyEventStore, StickyRow

MAX_WAITING: Final = 10_000
"""The maximum number of remembered senders. A sender counts once for each room. Soft-failed
events of other senders might never be delivered."""


class WaitingSenders:
    """A bounded set of the senders with soft-failed sticky events, by room.

    When the set is full, the server with the most senders loses one, because it most likely sends
    events that nobody may send.
    """

    def __init__(self, max_senders: int = MAX_WAITING) -> None:
        self._max_senders = max_senders
        self._count = 0
        self._by_server: dict[ServerName, dict[tuple[int, str], None]] = {}

    def __contains__(self, key: tuple[int, str]) -> bool:
        return key in self._by_server.get(_server_of(key), {})

    def add(self, room_nid: int, sender: str) -> None:
        """Add a sender, and remove another if there are too many."""
        key = (room_nid, sender)
        senders = self._by_server.setdefault(_server_of(key), {})
        if key in senders:
            return
        senders[key] = None
        self._count += 1
        if self._count > self._max_senders:
            fullest = max(self._by_server.values(), key=len)
            self.discard(*next(iter(fullest)))

    def discard(self, room_nid: int, sender: str) -> None:
        """Remove a sender."""
        key = (room_nid, sender)
        server = _server_of(key)
        senders = self._by_server.get(server, {})
        if key in senders:
            del senders[key]
            self._count -= 1
        if not senders:
            self._by_server.pop(server, None)


def _server_of(key: tuple[int, str]) -> ServerName:
    return domain_of(UserID(key[1]))


class StickyRechecks:
    """Rechecks soft-failed sticky events. Use this class only on the reactor thread."""

    log = Logger()

    def __init__(
        self,
        *,
        store: StickyEventStore,
        rooms: RoomStore,
        engine: RoomEngine,
        events: RoomEvents,
        streams: Streams,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._rooms = rooms
        self._engine = engine
        self._events = events
        self._now_ms = now_ms
        self._waiting = WaitingSenders()
        self._has_remote_writes = False
        """Another process may know of further senders: then each join is looked up."""
        streams.subscribe(self._on_changes, Topic.STICKY, Topic.MEMBERSHIP, stage=Stage.SEND)
        streams.watch(self._on_remote_write, stage=Stage.SEND)

    async def start(self) -> None:
        """Load the senders that waited before a restart."""
        for room_nid, sender in await self._store.get_senders_of_held(self._now_ms()):
            self._waiting.add(room_nid, sender)

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if isinstance(row, StickyRow):
                if row.is_held:
                    self._waiting.add(row.room_nid, row.sender)
            elif (
                isinstance(row, MembershipRow)
                and row.membership == "join"
                and (self._has_remote_writes or (row.room_nid, row.user_id) in self._waiting)
            ):
                Deferred.fromCoroutine(self._recheck(row.room_nid, row.user_id)).addErrback(
                    lambda failure: self.log.failure(
                        "soft-failed sticky events are not rechecked", failure
                    )
                )

    def _on_remote_write(self, _after: int, _upto: int) -> None:
        self._has_remote_writes = True

    async def _recheck(self, room_nid: int, sender: str) -> None:
        rows = await self._store.get_held(room_nid, sender, self._now_ms())
        if not rows:
            self._waiting.discard(room_nid, sender)
            return
        room = (await self._rooms.get_rooms_by_nid([room_nid]))[room_nid]
        room_id = RoomID(room.room_id)
        # the stream announces the join before the room's head moves; it has moved in our turn
        allowed = await self._engine.in_turn(room_id, lambda: self._find_allowed(room_id, rows))
        if allowed:
            await self._store.release(room.room_id, allowed)
        if len(allowed) == len(rows):
            self._waiting.discard(room_nid, sender)

    async def _find_allowed(self, room_id: RoomID, rows: Sequence[StickyRow]) -> list[StickyRow]:
        snapshot = await self._engine.get_snapshot(room_id)
        events = await self._events.get_events(row.event_nid for row in rows)
        return [
            row
            for row in rows
            if row.event_nid in events and await _is_allowed(snapshot, events[row.event_nid])
        ]


async def _is_allowed(snapshot: RoomSnapshot, stored: StoredEvent) -> bool:
    """Return whether the current state allows the event to be sent."""
    event = stored.event
    keys = auth_keys(event.version, event.type, event.sender, event.state_key, event.content)
    state = await snapshot.state.load(keys)
    try:
        check_auth(
            event,
            {key: other.event for key, other in state.items()},
            create=await snapshot.create_event(),
        )
    except MatrixError:
        return False
    return True

"""Sticky events that were soft-failed: they are told once their sender may send them after all.

Servers do not all see the same present state when an event arrives, so they may differ in what they
soft-fail. For a sticky event that would be for good, and so it is asked again whenever its sender
comes into the room. It stays soft-failed: nothing is built upon it, and no timeline shows it.

Proposal: MSC4354.
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
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomStore
from storage.rooms.sticky_events import StickyEventStore, StickyRow

MOST_WHO_WAIT: Final = 10_000
"""Senders in rooms that are remembered; of more, events are not told later."""


class WhoWaits:
    """Senders in rooms, as many as are remembered. Where there are too many, those servers lose
    that have most: theirs are the events that nobody may send."""

    def __init__(self, most: int = MOST_WHO_WAIT) -> None:
        self._most = most
        self._count = 0
        self._by_server: dict[ServerName, dict[tuple[int, str], None]] = {}

    def __contains__(self, who: tuple[int, str]) -> bool:
        return who in self._by_server.get(_server_of(who), {})

    def add(self, room_nid: int, sender: str) -> None:
        """Remember somebody, perhaps in the place of another."""
        who = (room_nid, sender)
        own = self._by_server.setdefault(_server_of(who), {})
        if who in own:
            return
        own[who] = None
        self._count += 1
        if self._count > self._most:
            largest = max(self._by_server.values(), key=len)
            self.discard(*next(iter(largest)))

    def discard(self, room_nid: int, sender: str) -> None:
        """Forget somebody."""
        who = (room_nid, sender)
        server = _server_of(who)
        own = self._by_server.get(server, {})
        if who in own:
            del own[who]
            self._count -= 1
        if not own:
            self._by_server.pop(server, None)


def _server_of(who: tuple[int, str]) -> ServerName:
    return domain_of(UserID(who[1]))


class StickyChecks:
    """Asks again. For the reactor thread."""

    log = Logger()

    def __init__(
        self,
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
        self._who_waits = WhoWaits()
        self._others_write = False
        """Somebody may wait of whom another process knows alone: then each join is looked up."""
        streams.subscribe(self._on_changes, Topic.STICKY, Topic.MEMBERSHIP)
        streams.watch(self._on_remote_write)

    async def start(self) -> None:
        """Learn who waited before a restart."""
        for room_nid, sender in await self._store.get_who_waits(self._now_ms()):
            self._who_waits.add(room_nid, sender)

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if isinstance(row, StickyRow):
                if row.waits:
                    self._who_waits.add(row.room_nid, row.sender)
            elif (
                isinstance(row, MembershipRow)
                and row.membership == "join"
                and (self._others_write or (row.room_nid, row.user_id) in self._who_waits)
            ):
                Deferred.fromCoroutine(self._ask_again(row.room_nid, row.user_id)).addErrback(
                    lambda failure: self.log.failure(
                        "soft-failed sticky events are not told", failure
                    )
                )

    def _on_remote_write(self, _after: int, _upto: int) -> None:
        self._others_write = True

    async def _ask_again(self, room_nid: int, sender: str) -> None:
        rows = await self._store.get_waiting(room_nid, sender, self._now_ms())
        if not rows:
            self._who_waits.discard(room_nid, sender)
            return
        room = (await self._rooms.get_rooms_by_nid([room_nid]))[room_nid]
        room_id = RoomID(room.room_id)
        # the stream tells of the join before the room's head is moved: that is done when it is our
        # turn
        allowed = await self._engine.in_turn(room_id, lambda: self._find_allowed(room_id, rows))
        if allowed:
            await self._store.release(room.room_id, allowed)
        if len(allowed) == len(rows):
            self._who_waits.discard(room_nid, sender)

    async def _find_allowed(self, room_id: RoomID, rows: Sequence[StickyRow]) -> list[StickyRow]:
        snapshot = await self._engine.get_snapshot(room_id)
        events = await self._events.get_events(row.event_nid for row in rows)
        return [
            row
            for row in rows
            if row.event_nid in events and await _is_allowed(snapshot, events[row.event_nid])
        ]


async def _is_allowed(snapshot: RoomSnapshot, stored: StoredEvent) -> bool:
    """Whether the present state lets the event be sent."""
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

"""Audits stored states: recomputes the states of events from the history and reports differences.

The audit covers events that arrived in rooms with other servers. The state after an event is
recomputed from the states after its prev_events, and compared with the stored one. If each such
step is correct, all states in the room are. After a batch of events, the current states of its
rooms are recomputed from their forward extremities.

Laws:
- The audit only reports. A difference is a bug of this server, or damage to the database, and its
  analysis needs the unchanged data.
- Each event is checked once, some minutes after its arrival. A message in a linear history costs
  one comparison of hashes.
- The resolver of the audit has no cache. Otherwise a result could be compared with itself.
- The audit checks only states that follow from stored ones. It skips events whose state came from
  another server (at a join, or at a gap), and rooms with partial state. It also skips backfilled,
  rejected and soft-failed events.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec
from twisted.logger import Logger

from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents
from federation.rooms.resolve import StateResolver
from federation.rooms.snapshot import RoomSnapshot
from storage.events.events import EventFlag
from storage.maintenance.state_audit import AuditedEvent, StateAuditStore
from storage.persist.room_writer import StateChange
from storage.rooms.rooms import RoomStore

NAME: Final = "audit_states"
"""The name of the job, and of its stored progress."""
MAX_KEYS_LOGGED: Final = 20
_HIDDEN = EventFlag.REJECTED | EventFlag.SOFT_FAILED


class StateAuditObserver(Protocol):
    """Receives the findings of the audit. Must not raise or block."""

    def states_checked(self, count: int) -> None:
        """Count states that were recomputed and compared."""

    def state_differs(self) -> None:
        """A stored state differs from the recomputed one."""


class _Progress(msgspec.Struct, frozen=True):
    """The progress of the audit."""

    done: int
    """The number of the last event that was checked."""
    upto: int
    """The last event that had come when this round began: later ones may not be placed yet."""


class _Links(msgspec.Struct):
    """The prev_events of an event: IDs, or in the oldest rooms pairs of an ID and hashes."""

    prev_events: list[str | tuple[str, msgspec.Raw]]


class StateAudit:
    """Audits stored states. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        store: StateAuditStore,
        rooms: RoomStore,
        engine: RoomEngine,
        events: RoomEvents,
        resolver: StateResolver,
        observer: StateAuditObserver,
    ) -> None:
        """`resolver`: one without a cache."""
        self._store = store
        self._rooms = rooms
        self._engine = engine
        self._events = events
        self._resolver = resolver
        self._observer = observer
        self._log = Logger()

    async def do_step(self, limit: int) -> int:
        """Check the events with the next `limit` numbers; return fewer than `limit` when the round
        is over."""
        stored = await self._store.get_progress(NAME)
        progress = (
            _Progress(0, 0) if stored is None else msgspec.json.decode(stored, type=_Progress)
        )
        last = min(progress.done + limit, progress.upto)
        if last > progress.done:
            await self._check_events(await self._store.get_arrived(progress.done, last))
        is_over = last >= progress.upto
        upto = await self._store.get_latest_nid() if is_over else progress.upto
        after = _Progress(last, upto)
        if after != progress:
            await self._store.advance_progress(NAME, stored, msgspec.json.encode(after).decode())
        return 0 if is_over else limit

    async def _check_events(self, arrived: Sequence[tuple[AuditedEvent, bytes]]) -> None:
        links = {event.event_id: _previous(pdu) for event, pdu in arrived}
        known = {event.event_id: event for event, _ in arrived}
        named = {name for names in links.values() for name in names}
        known.update(await self._store.get_events(named - known.keys()))
        rooms = await self._rooms.get_rooms_by_nid({event.room_nid for event, _ in arrived})
        count = 0
        for event, _ in arrived:
            prev = [known.get(name) for name in links[event.event_id]]
            before = [each for each in prev if each is not None and _precedes(each, event)]
            if not before or len(before) < len(prev) or event.flags & EventFlag.STATE_ADDED:
                # the first event; or another server defined its place, or a part of the state
                continue
            count += 1
            if (
                event.state_key is None
                and len(before) == 1
                and before[0].state_root == event.state_root
            ):
                continue
            snapshot = await self._engine.get_snapshot(RoomID(rooms[event.room_nid].room_id))
            await self._compare_event(snapshot, event, before)
        for room in rooms.values():
            count += await self._compare_head(RoomID(room.room_id))
        self._observer.states_checked(count)

    async def _compare_event(
        self, snapshot: RoomSnapshot, event: AuditedEvent, before: Sequence[AuditedEvent]
    ) -> None:
        state = await self._resolve(snapshot, [StateChange(each.state_root) for each in before])
        if event.state_key is not None:
            state = StateChange(
                state.root, {**state.entries, (event.type, event.state_key): event.event_nid}
            )
        await self._compare(
            snapshot, state, StateChange(event.state_root), f"after {event.event_id}"
        )

    async def _compare_head(self, room_id: RoomID) -> int:
        snapshot = await self._engine.get_snapshot(room_id)
        loaded = await self._events.get_events(nid for nid, _ in snapshot.head.extremities)
        if not loaded or any(stored.state_root is None for stored in loaded.values()):
            return 0  # no local user has been in the room yet
        state = await self._resolve(
            snapshot, [StateChange(stored.state_root) for stored in loaded.values()]
        )
        await self._compare(
            snapshot, state, StateChange(snapshot.head.state_root), "that is current"
        )
        return 1

    async def _resolve(self, snapshot: RoomSnapshot, states: Sequence[StateChange]) -> StateChange:
        return await self._resolver.resolve(
            snapshot.room.room_nid, snapshot.version, await snapshot.create_event(), states
        )

    async def _compare(
        self, snapshot: RoomSnapshot, computed: StateChange, stored: StateChange, which: str
    ) -> None:
        difference = await self._resolver.diff(snapshot.room.room_nid, stored, computed)
        if not difference:
            return
        self._observer.state_differs()
        self._log.error(
            "the state of {room_id} {which} differs from its history: {difference}",
            room_id=snapshot.room_id,
            which=which,
            difference=await self._describe(difference),
        )

    async def _describe(self, difference: Mapping[StateKey, tuple[int | None, int | None]]) -> str:
        """Return keys with the IDs of their events: stored, and computed."""
        first = dict(sorted(difference.items())[:MAX_KEYS_LOGGED])
        events = await self._events.get_events(
            {nid for pair in first.values() for nid in pair if nid is not None}
        )
        parts = [
            f"{key.type} {key.state_key!r}: "
            + " instead of ".join(
                "nothing" if nid is None else events[nid].event.event_id for nid in pair
            )
            for key, pair in first.items()
        ]
        more = len(difference) - len(first)
        return "; ".join(parts) + (f"; and {more} more" if more else "")


def _previous(pdu: bytes) -> list[str]:
    links = msgspec.json.decode(pdu, type=_Links)
    return [each if isinstance(each, str) else each[0] for each in links.prev_events]


def _precedes(previous: AuditedEvent, event: AuditedEvent) -> bool:
    """Return whether an event was placed before the other one was placed on it."""
    if previous.state_root is None or previous.room_nid != event.room_nid or event.position is None:
        return False
    if previous.position is not None:
        return previous.position < event.position
    return bool(previous.flags & _HIDDEN) and previous.event_nid < event.event_nid

"""Whether the states that are stored are what the past of the rooms gives: looked at again, event
by event, and told.

For each event that has arrived in a room with other servers, the state after it is computed anew
from the states after those that it follows, and compared with the stored one. What holds for each
step holds for the whole past of a room. After the events of a batch the current states of their
rooms are computed anew from their forward extremities.

Laws:
- It reports and mends nothing: a difference is a bug of this server, or damage to the database, and
  whoever looks for it needs what is there.
- Each event is looked at once, some minutes after it has come; a message in a line costs a
  comparison of two hashes.
- It needs no memory of the resolver's: nothing is compared with itself.
- Only what can be proved is: events that were placed by a state which another server told (at a
  join, or at a gap) are passed over, and so is what is no news, and what is in a room of whose
  state a part is lacking.
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
from storage.maintenance.state_audit import Placed, StateAuditStore
from storage.persist.room_writer import StateChange
from storage.rooms.rooms import RoomStore

NAME: Final = "audit_states"
"""Of the job, and of its note."""
MOST_KEYS_TOLD: Final = 20
_UNSEEN = EventFlag.REJECTED | EventFlag.SOFT_FAILED


class AuditObserver(Protocol):
    """Hears what the audit finds. May not raise or block."""

    def states_checked(self, count: int) -> None:
        """So many states were computed anew and compared."""

    def state_differs(self) -> None:
        """One of them is not what is stored."""


class _Progress(msgspec.Struct, frozen=True):
    """How far the audit is."""

    done: int
    """The number of the last event that was looked at."""
    upto: int
    """The last one that had come when this round began: later ones may not have found their place
    yet."""


class _Links(msgspec.Struct):
    """What an event follows: ids, or in the oldest rooms pairs of an id and hashes."""

    prev_events: list[str | tuple[str, msgspec.Raw]]


class StateAudit:
    """Looks at states. For the reactor thread."""

    def __init__(
        self,
        store: StateAuditStore,
        rooms: RoomStore,
        engine: RoomEngine,
        events: RoomEvents,
        resolver: StateResolver,
        observer: AuditObserver,
    ) -> None:
        """`resolver` is one that remembers nothing."""
        self._store = store
        self._rooms = rooms
        self._engine = engine
        self._events = events
        self._resolver = resolver
        self._observer = observer
        self._log = Logger()

    async def do_step(self, limit: int) -> int:
        """Look at events with the next so many numbers; fewer than `limit` when the round is
        over."""
        note = await self._store.get_note(NAME)
        progress = _Progress(0, 0) if note is None else msgspec.json.decode(note, type=_Progress)
        last = min(progress.done + limit, progress.upto)
        if last > progress.done:
            await self._look_at(await self._store.get_arrived(progress.done, last))
        is_over = last >= progress.upto
        upto = await self._store.get_latest_nid() if is_over else progress.upto
        after = _Progress(last, upto)
        if after != progress:
            await self._store.move_note(NAME, note, msgspec.json.encode(after).decode())
        return 0 if is_over else limit

    async def _look_at(self, arrived: Sequence[tuple[Placed, bytes]]) -> None:
        links = {placed.event_id: _previous(pdu) for placed, pdu in arrived}
        known = {placed.event_id: placed for placed, _ in arrived}
        named = {name for names in links.values() for name in names}
        known.update(await self._store.get_placed(named - known.keys()))
        rooms = await self._rooms.get_rooms_by_nid({placed.room_nid for placed, _ in arrived})
        count = 0
        for placed, _ in arrived:
            prev = [known.get(name) for name in links[placed.event_id]]
            before = [each for each in prev if each is not None and _came_before(each, placed)]
            if not before or len(before) < len(prev) or placed.flags & EventFlag.MENDED:
                # the first event; or its place, or something of the state, was told by another
                # server
                continue
            count += 1
            if (
                placed.state_key is None
                and len(before) == 1
                and before[0].state_root == placed.state_root
            ):
                continue
            snapshot = await self._engine.get_snapshot(RoomID(rooms[placed.room_nid].room_id))
            await self._compare_event(snapshot, placed, before)
        for room in rooms.values():
            count += await self._compare_head(RoomID(room.room_id))
        self._observer.states_checked(count)

    async def _compare_event(
        self, snapshot: RoomSnapshot, placed: Placed, before: Sequence[Placed]
    ) -> None:
        state = await self._resolve(snapshot, [StateChange(each.state_root) for each in before])
        if placed.state_key is not None:
            state = StateChange(
                state.root, {**state.entries, (placed.type, placed.state_key): placed.event_nid}
            )
        await self._compare(
            snapshot, state, StateChange(placed.state_root), f"after {placed.event_id}"
        )

    async def _compare_head(self, room_id: RoomID) -> int:
        snapshot = await self._engine.get_snapshot(room_id)
        loaded = await self._events.get_events(nid for nid, _ in snapshot.head.extremities)
        if not loaded or any(stored.state_root is None for stored in loaded.values()):
            return 0  # nobody of ours has been in the room yet
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
            "the state of {room_id} {which} is not what its past gives: {difference}",
            room_id=snapshot.room_id,
            which=which,
            difference=await self._describe(difference),
        )

    async def _describe(self, difference: Mapping[StateKey, tuple[int | None, int | None]]) -> str:
        """Keys with the ids of the events: stored, and computed."""
        first = dict(sorted(difference.items())[:MOST_KEYS_TOLD])
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


def _came_before(prev: Placed, event: Placed) -> bool:
    """Whether an event had its place when the other was placed upon it."""
    if prev.state_root is None or prev.room_nid != event.room_nid or event.position is None:
        return False
    if prev.position is not None:
        return prev.position < event.position
    return bool(prev.flags & _UNSEEN) and prev.event_nid < event.event_nid

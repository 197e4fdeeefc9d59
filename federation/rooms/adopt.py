"""Taking in a room from outside: the state before our join, its auth chain, and the join itself.

- All events are first stored as outliers, in chunks. The state is gathered in chunks too, under the join, and so are the
  memberships of other servers' users. Then one small write gives the join its place and moves the head: until then
  nobody here is in the room, and nothing of it is shown.
- Done again after a restart, each step finds what is there already.

spec: server-server-api#joining-rooms
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from federation.identity import ServerIdentity
from federation.protocol.errors import BadState, Forbidden, TooLarge
from federation.protocol.event_signing import required_signers
from federation.protocol.ids import EventID, RoomID
from federation.protocol.room_versions import RoomVersion
from federation.rooms.check import SHOWN, Candidate, Verdict, check_on_receipt
from federation.rooms.effects import effect_of_absence, state_effect
from federation.rooms.engine import RoomEngine
from federation.rooms.outliers import Outliers
from federation.rooms.placement import new_event
from federation.rooms.room_events import RoomEvents, StoredEvent
from federation.rooms.snapshots import CREATE, RoomSnapshot
from federation.rooms.sources import Questions, StoredSources
from storage.database import Database
from storage.events import EventFlag
from storage.memberships import MembershipStore
from storage.room_effects import NO_EFFECT, StateEffect
from storage.room_writer import Appended, NewCurrentState, NewEvent, RoomWriter, StateChange
from storage.rooms import RoomRow, RoomStore, add_room, select_room
from storage.state_tree import StateTreeStore
from storage.timelines import move_backward_extremities
from storage.transaction import WriteTransaction

MAX_EVENTS = 500_000
"""Of the state and its auth chain together."""
CHUNK = 500
"""Entries written at once."""

Entries = Mapping[tuple[str, str], int]


class Adoptions:
    """Takes in rooms. For the reactor thread."""

    def __init__(
        self,
        database: Database,
        engine: RoomEngine,
        rooms: RoomStore,
        events: RoomEvents,
        trees: StateTreeStore,
        memberships: MembershipStore,
        outliers: Outliers,
        writer: RoomWriter,
        identity: ServerIdentity,
        questions: Questions,
        now_ms: Callable[[], int],
    ) -> None:
        self._database = database
        self._engine = engine
        self._rooms = rooms
        self._events = events
        self._trees = trees
        self._memberships = memberships
        self._outliers = outliers
        self._writer = writer
        self._identity = identity
        self._questions = questions
        self._now_ms = now_ms

    async def adopt(
        self,
        version: RoomVersion,
        room_id: RoomID,
        state: Sequence[Mapping[str, Any]],
        auth_chain: Sequence[Mapping[str, Any]],
        join: Mapping[str, Any],
    ) -> StoredEvent:
        """Enter a room that nobody of this server is in, by PDUs; the join as it is stored.

        `state` is that before the join; what is not valid in it is left out. Raises TooLarge; BadState when the state is
        none, or someone of this server is in the room (then the join is received like any other event); Forbidden
        when the join is not allowed; BadEvent.
        """
        if len(state) + len(auth_chain) > MAX_EVENTS:
            raise TooLarge(f"The state of the room has more than {MAX_EVENTS} events")
        room = await self._find_room(version, room_id)
        if await self._memberships.get_local_members(room.room_nid):
            raise BadState("This server is in the room already")
        candidates = [Candidate(version, pdu) for pdu in (*auth_chain, *state, join)]
        own = candidates[-1].read()
        outcomes = await self._outliers.add(room, candidates)
        if outcomes[-1].is_waiting:
            raise BadState("The auth chain of the join is not complete")
        if outcomes[-1].verdict in (Verdict.DROP, Verdict.REJECT):
            raise outcomes[-1].error or Forbidden("The join is not allowed")
        kept = [outcome.event_id for outcome in outcomes[len(auth_chain) : -1] if outcome.event_id is not None]
        entries = await self._gather(room, [event_id for event_id in kept if event_id != own.event_id])

        async def work() -> StoredEvent:
            return await self._enter(room, version, own.event_id, entries)

        return await self._engine.in_turn(room_id, work)

    async def _find_room(self, version: RoomVersion, room_id: RoomID) -> RoomRow:
        room = await self._rooms.get_room(room_id)
        if room is None:
            room = await self._database.write("add_room", self._add_room, room_id, version)
        if room.version != version.identifier:
            raise BadState(f"The room is known to have version {room.version}")
        return room

    def _add_room(self, txn: WriteTransaction, room_id: RoomID, version: RoomVersion) -> RoomRow:
        known = select_room(txn, room_id)
        return known if known is not None else add_room(txn, room_id, version.identifier, self._now_ms())[0]

    async def _gather(self, room: RoomRow, event_ids: Sequence[EventID]) -> Entries:
        """The entries of the state. Raises BadState."""
        entries: dict[tuple[str, str], int] = {}
        for start in range(0, len(event_ids), CHUNK):
            found = await self._events.get_by_id(room.room_nid, set(event_ids[start : start + CHUNK]))
            for stored in found.values():
                if stored.rejected:
                    continue
                if stored.event.state_key is None or entries.setdefault(stored.event.key, stored.nid) != stored.nid:
                    raise BadState("The state of the room has no single event for each of its entries")
        if CREATE not in entries:
            raise BadState("The state of the room lacks its create event")
        return entries

    async def _enter(self, room: RoomRow, version: RoomVersion, join_id: EventID, entries: Entries) -> StoredEvent:
        join = (await self._events.get_by_id(room.room_nid, [join_id]))[join_id]
        if not join.is_outlier:
            return join  # done before
        auth = await self._events.get_by_id(room.room_nid, join.event.auth_events)
        before = StateChange(None, entries)
        signers = required_signers(join.event)  # they were checked when it was stored
        sources = StoredSources(self._questions, room, list(auth.values()), before, None, signers)
        checked = await check_on_receipt(Candidate(version, {}, join.event), RoomID(room.room_id), sources)
        if checked.verdict not in SHOWN:
            raise checked.error or Forbidden("The join is not allowed by the state of the room")
        root = await self._grow(room, join, entries)
        snapshot = await self._engine.get_snapshot(RoomID(room.room_id))
        effects = await self._write_members(room, entries)
        effects += await self._effects_of_absence(snapshot, entries)
        effects.append((join_id, state_effect(join.event, self._identity)))
        new = replace(
            new_event(join.event, int(EventFlag.TIMELINE), [], ()),
            effect=state_effect(join.event, self._identity),
            state_before=StateChange(root),
            placed_nid=join.nid,
        )
        current = NewCurrentState(StateChange(root), {join.event.key: join_id}, effects, recount=True)
        known = await self._events.get_by_id(room.room_nid, join.event.prev_events)
        missing = [name for name in join.event.prev_events if name not in known or known[name].is_outlier]
        appended = await self._database.write("enter_room", self._append, snapshot, new, current, missing)
        # nothing that was read of an earlier state counts any more
        fresh = RoomSnapshot(room, version, snapshot.head, self._engine.view(room.room_nid, None))
        return self._engine.advance(fresh, appended)[0]

    async def _grow(self, room: RoomRow, join: StoredEvent, entries: Entries) -> bytes | None:
        """Gather the state under the join; its root."""
        root = await self._database.write("begin_state", self._writer.begin_state, join.nid)
        there = await self._trees.get_all(room.room_nid, root)
        if any(entries.get(key) != nid for key, nid in there.items()):
            # an earlier attempt was told of another state
            root, there = await self._database.write("begin_state", self._writer.begin_state, join.nid, afresh=True), {}
        left = [(key, nid) for key, nid in entries.items() if key not in there]
        for start in range(0, len(left), CHUNK):
            root = await self._database.write(
                "grow_state", self._writer.grow_state, room, join.nid, dict(left[start : start + CHUNK])
            )
        return root

    async def _write_members(self, room: RoomRow, entries: Entries) -> list[tuple[int | str, StateEffect]]:
        """Write the memberships of other servers' users; what remains for the last write."""
        remaining: list[tuple[int | str, StateEffect]] = []
        nids = list(entries.values())
        for start in range(0, len(nids), CHUNK):
            loaded = await self._events.get_events(nids[start : start + CHUNK])
            now: list[tuple[int, StateEffect]] = []
            for nid, stored in loaded.items():
                effect = state_effect(stored.event, self._identity)
                if effect.membership is not None and not effect.membership.is_local:
                    now.append((nid, effect))
                elif effect != NO_EFFECT:
                    remaining.append((nid, effect))
            if now:
                await self._database.write("add_members", self._writer.add_effects, room, now)
        return remaining

    async def _effects_of_absence(
        self, snapshot: RoomSnapshot, entries: Entries
    ) -> list[tuple[int | str, StateEffect]]:
        """What it means that entries of the state in which we last left the room are gone."""
        old = await snapshot.state.load_nids()
        gone: Collection[int] = [nid for key, nid in old.items() if key not in entries]
        loaded = await self._events.get_events(gone)
        return [(nid, effect_of_absence(stored.event, self._identity)) for nid, stored in loaded.items()]

    def _append(
        self,
        txn: WriteTransaction,
        snapshot: RoomSnapshot,
        new: NewEvent,
        current: NewCurrentState,
        missing: Sequence[EventID],
    ) -> Appended:
        move_backward_extremities(txn, snapshot.room.room_nid, [new.event_id], missing, new.depth)
        return self._writer.append(
            txn, snapshot.room, snapshot.head, [new], [new.event_id], current=current, now_ms=self._now_ms()
        )

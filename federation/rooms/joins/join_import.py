"""Imports a room from another server: the state before our join, its auth chain, and the join.

- All events are first stored as outliers, in chunks. The state before the join and the memberships
  of remote users are written in chunks, too. Then one small write adds the join to the room's graph
  and moves the head. Until then no local user is in the room, and no client sees it.
- After a restart all steps run again. They skip what is already stored.
- The state of a large room may be partial, without most memberships. The user joins with the
  partial state, and the room's head records that it is partial. `completion.py` fetches the rest.
- Events that cannot be verified because keys are unavailable are left out of the state and stored
  separately: see `unverified_events.py`.
- The server that we join through may not have received the last leaves of our users. These leaves
  are applied to the imported state: see `federation/rooms/rejoins.py`.

spec: server-server-api#joining-rooms
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import BadState, Forbidden, MatrixError, TooLarge
from federation.protocol.event_signing import is_content_hash_valid, required_signers
from federation.protocol.ids import EventID, RoomID, ServerName, domain_of
from federation.protocol.room_versions import RoomVersion
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.membership_templates import MEMBER
from federation.rooms.receipt_checks import (
    SHOWN,
    ReceivedPdu,
    Verdict,
    check_on_receipt,
    check_signed,
)
from federation.rooms.receive.check_sources import CheckServices, StoredSources
from federation.rooms.receive.persist import new_event
from federation.rooms.receive.state_imports import Pdu, StateImports, as_mapping, get_stored_ids
from federation.rooms.receive.unverified_events import find_left_out
from federation.rooms.rejoins import HasLeftRoom, UnacknowledgedLeaves
from federation.rooms.resolve import StateResolver
from federation.rooms.snapshot import CREATE, RoomSnapshot
from federation.rooms.state_effects import StoredEffects, effect_of_absence, state_effect
from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import WriteTransaction
from storage.events.events import EventFlag
from storage.events.timelines import move_backward_extremities
from storage.partial_state.unverified_events import (
    NeededIn,
    UnverifiedEvent,
    add_unverified_events,
    mark_as_earlier_state,
)
from storage.persist.room_writer import (
    AppendResult,
    NewCurrentState,
    NewEvent,
    RoomWriter,
    StateChange,
)
from storage.persist.state_effects import NO_EFFECT, StateEffect
from storage.rooms.memberships import MembershipStore
from storage.rooms.partial_rooms import PartialRoomStore, add_partial_join, delete_partial_join
from storage.rooms.rooms import RoomRow, RoomStore, get_or_add_room
from storage.state.state_tree import StateTreeStore

MAX_EVENTS = 500_000
"""The limit of the state and its auth chain together."""
CHUNK = 500
"""Entries per write."""
CREATE_TYPE: Final = b"m.room.create"
MAX_CREATE_EVENTS: Final = 10
"""Create events whose signatures we check: an honest server sends one."""

Entries = Mapping[tuple[str, str], int]


class RemoteRoomInfo(msgspec.Struct, frozen=True):
    """Data about a room from the response of another server, besides the state."""

    resident: ServerName
    servers: Collection[ServerName]
    """The servers in the room."""
    members_omitted: bool
    """The state lacks most memberships."""


class JoinImporter:
    """Imports rooms. Use this class only on the reactor thread."""

    # More than ten: an import writes to every table of a room.
    def __init__(
        self,
        *,
        database: Database,
        engine: RoomEngine,
        rooms: RoomStore,
        events: RoomEvents,
        trees: StateTreeStore,
        memberships: MembershipStore,
        imports: StateImports,
        effects: StoredEffects,
        resolver: StateResolver,
        unacknowledged_leaves: UnacknowledgedLeaves,
        partial: PartialRoomStore,
        writer: RoomWriter,
        identity: ServerIdentity,
        services: CheckServices,
        now_ms: Callable[[], int],
        first_attempt: Callable[[], int],
    ) -> None:
        """`first_attempt`: returns when unverified events are retried, in milliseconds."""
        self._database = database
        self._engine = engine
        self._rooms = rooms
        self._events = events
        self._trees = trees
        self._memberships = memberships
        self._imports = imports
        self._effects = effects
        self._resolver = resolver
        self._unacknowledged_leaves = unacknowledged_leaves
        self._partial = partial
        self._writer = writer
        self._identity = identity
        self._services = services
        self._now_ms = now_ms
        self._first_attempt = first_attempt

    async def import_join(
        self,
        version: RoomVersion,
        room_id: RoomID,
        state: Sequence[Pdu],
        auth_chain: Sequence[Pdu],
        join: Mapping[str, Any],
        part: RemoteRoomInfo | None = None,
    ) -> StoredEvent:
        """Import a room that no local user is in, from PDUs. Return the stored join.

        `state`: the state before the join; invalid events are left out. Raises TooLarge; BadState
        when the state is invalid, or a local user is in the room (receive the join like any other
        event then); Forbidden when the join is not allowed; BadEvent.
        """
        if len(state) + len(auth_chain) > MAX_EVENTS:
            raise TooLarge(f"The state of the room has more than {MAX_EVENTS} events")
        await self._check_create_event(version, room_id, [*state, *auth_chain])
        room = await self._find_room(version, room_id)
        if await self._memberships.get_local_members(room.room_nid):
            raise BadState("This server is in the room already")
        own = ReceivedPdu(version=version, pdu=join).read()
        pdus = [*auth_chain, *state]
        outcomes = await self._imports.store(room, pdus)
        (outcome,) = await self._imports.store(room, [join])
        if outcome.is_waiting:
            raise BadState("The auth chain of the join is not complete")
        if outcome.verdict in (Verdict.DROP, Verdict.REJECT):
            raise outcome.error or Forbidden("The join is not allowed")
        stored_ids = get_stored_ids(outcomes[len(auth_chain) :])
        entries = await self._imports.get_entries(
            room, [event_id for event_id in stored_ids if event_id != own.event_id]
        )
        await self._check_version(version, entries)
        state_ids = {
            outcome.event_id
            for outcome in outcomes[len(auth_chain) :]
            if outcome.event_id is not None
        }
        left_out = find_left_out(zip(pdus, outcomes, strict=True), state_ids, NeededIn.OUR_STATE)
        if (
            part is not None
            and not part.members_omitted
            and not await self._partial.has_events(room.room_nid)
        ):
            part = None  # else there would be nothing to complete

        async def work() -> StoredEvent:
            return await self._persist_join(room, version, own.event_id, entries, part, left_out)

        return await self._engine.in_turn(room_id, work)

    async def _check_version(self, version: RoomVersion, entries: Entries) -> None:
        """Check that the room has the version that the template named. Raises BadState."""
        create = (await self._events.get_events([entries[CREATE]]))[entries[CREATE]]
        if create.event.content.get("room_version", "1") != version.identifier:
            raise BadState("The room has another version than the server said")

    async def _check_create_event(
        self, version: RoomVersion, room_id: RoomID, pdus: Sequence[Pdu]
    ) -> None:
        """Check a create event before anything of the room is stored. Raises BadState.

        The version decides how events are checked and what their IDs are, so events that were
        stored with a wrong version would stay wrong.
        """
        checked_count = 0
        for pdu in pdus:
            if isinstance(pdu, msgspec.Raw) and CREATE_TYPE not in bytes(pdu):
                continue
            if checked_count == MAX_CREATE_EVENTS:
                break
            try:
                event = ReceivedPdu(version=version, pdu=as_mapping(pdu)).read()
                if event.state_key is None or event.key != CREATE or event.room_id != room_id:
                    continue
                if event.content.get(
                    "room_version", "1"
                ) != version.identifier or not is_content_hash_valid(event):
                    continue
                if not version.room_id_is_create_hash and domain_of(event.sender) != domain_of(
                    room_id
                ):
                    continue
                checked_count += 1
                check_signed(event, await self._services.get_signers(event))
            except MatrixError:
                continue
            return
        raise BadState("No create event proves that the room has the version that the server said")

    async def _find_room(self, version: RoomVersion, room_id: RoomID) -> RoomRow:
        room = await self._rooms.get_room(room_id)
        if room is None or room.version != version.identifier:
            room = await self._database.write(
                "add_room", get_or_add_room, room_id, version.identifier, self._now_ms()
            )
        if room.version != version.identifier:
            raise BadState(f"The room is known to have version {room.version}")
        return room

    async def _persist_join(
        self,
        room: RoomRow,
        version: RoomVersion,
        join_id: EventID,
        entries: Entries,
        part: RemoteRoomInfo | None,
        left_out: Sequence[UnverifiedEvent],
    ) -> StoredEvent:
        join = (await self._events.get_by_id(room.room_nid, [join_id]))[join_id]
        if not join.is_outlier:
            return join  # this was done before
        auth = await self._events.get_by_id(room.room_nid, join.event.auth_events)
        if part is not None:  # add the memberships that the join cites: an invite, the authoriser
            members = [
                stored
                for stored in auth.values()
                if stored.event.type == MEMBER and not stored.rejected
            ]
            entries = {stored.event.key: stored.nid for stored in members} | dict(entries)
        before = StateChange(None, entries)
        signers = required_signers(join.event)  # they were checked when it was stored
        sources = StoredSources(
            services=self._services,
            room=room,
            auth=list(auth.values()),
            before=before,
            current=None,
            signers=signers,
        )
        checked = await check_on_receipt(
            ReceivedPdu(version=version, pdu={}, event=join.event), RoomID(room.room_id), sources
        )
        if checked.verdict not in SHOWN:
            raise checked.error or Forbidden("The join is not allowed by the state of the room")
        root = await self._store_state(room, join, entries)
        snapshot = await self._engine.get_snapshot(RoomID(room.room_id))
        extremities: Sequence[StoredEvent] = ()
        state = StateChange(root)
        own_members = {
            key: nid
            for key, nid in entries.items()
            if key[0] == MEMBER and self._identity.is_local(key[1])
        }
        old_state = StateChange(snapshot.head.state_root)
        replaced = await self._unacknowledged_leaves.find_replaced(
            room.room_nid, old_state, StateChange(old_state.root, own_members)
        )
        if replaced and part is not None and part.members_omitted:
            # The members who left stay out until the state is complete and resolved (`recheck.py`).
            replaced = {key: nid for key, nid in replaced.items() if key != join.event.key}
            state, entries = StateChange(root, replaced), {**entries, **replaced}
        elif replaced:
            extremities = list(
                (
                    await self._events.get_events(nid for nid, _ in snapshot.head.extremities)
                ).values()
            )
            state, entries = await self._resolve(room, version, join, root, entries, extremities)
        effects = await self._write_members(room, entries)
        effects += await self._effects_of_absence(snapshot, entries, part)
        effects.append((join_id, state_effect(join.event, self._identity)))
        known = await self._events.get_by_id(room.room_nid, join.event.prev_events)
        missing = [
            name for name in join.event.prev_events if name not in known or known[name].is_outlier
        ]
        flags = EventFlag.TIMELINE | (EventFlag.AFTER_GAP if missing else 0)
        new = replace(
            new_event(join.event, flags, [], ()),
            effect=state_effect(join.event, self._identity),
            state_before=StateChange(root),
            outlier_nid=join.nid,
            has_gap=True,
        )
        current = NewCurrentState(
            state,
            {join.event.key: join_id},
            effects,
            recount=True,
            partial_join=None if part is None else join.nid,
        )
        appended = await self._database.write(
            "persist_join",
            self._write_join,
            room,
            snapshot,
            new,
            [end.event.event_id for end in extremities],
            current,
            missing,
            part,
            left_out,
        )
        # drop what was read of an earlier state
        completed = RoomSnapshot(
            room, version, snapshot.head, self._engine.view(room.room_nid, None)
        )
        return self._engine.advance(completed, appended)[0]

    async def _resolve(
        self,
        room: RoomRow,
        version: RoomVersion,
        join: StoredEvent,
        root: bytes | None,
        entries: Entries,
        extremities: Sequence[StoredEvent],
    ) -> tuple[StateChange, Entries]:
        """Resolve the state after our join with the states after the events in which we left.

        Returns the state, and its entries without the join. Raises Forbidden.
        """
        create = (await self._events.get_events([entries[CREATE]]))[entries[CREATE]]
        after = StateChange(root, {join.event.key: join.nid})
        state = await self._resolver.resolve(
            room.room_nid,
            version,
            create.event,
            [after, *(StateChange(end.state_root) for end in extremities)],
        )
        resolved = dict(entries)
        for key, (_, now) in (await self._resolver.diff(room.room_nid, after, state)).items():
            if key == join.event.key:
                raise HasLeftRoom(
                    "You left this room or were removed from it, and need to be let in again"
                )
            if now is None:
                resolved.pop(key, None)
            else:
                resolved[key] = now
        return state, resolved

    async def _store_state(
        self, room: RoomRow, join: StoredEvent, entries: Entries
    ) -> bytes | None:
        """Write the state tree under the join in chunks; return its root."""
        root = await self._database.write(
            "get_gathered_state", self._writer.get_gathered_state, join.nid
        )
        written = await self._trees.get_all(room.room_nid, root)
        if any(entries.get(key) != nid for key, nid in written.items()):
            # an earlier attempt got another state
            root, written = (
                await self._database.write(
                    "get_gathered_state", self._writer.get_gathered_state, join.nid, restart=True
                ),
                {},
            )
        remaining = [(key, nid) for key, nid in entries.items() if key not in written]
        for start in range(0, len(remaining), CHUNK):
            root = await self._database.write(
                "extend_gathered_state",
                self._writer.extend_gathered_state,
                room,
                join.nid,
                dict(remaining[start : start + CHUNK]),
            )
        return root

    async def _write_members(
        self, room: RoomRow, entries: Entries
    ) -> list[tuple[int | str, StateEffect]]:
        """Write the memberships of remote users; return the effects for the last write."""
        remaining: list[tuple[int | str, StateEffect]] = []
        nids = list(entries.values())
        for start in range(0, len(nids), CHUNK):
            effects = await self._effects.of(room, nids[start : start + CHUNK])
            now: list[tuple[int, StateEffect]] = []
            for nid, effect in effects.items():
                if effect.membership is not None and not effect.membership.is_local:
                    now.append((nid, effect))
                elif effect != NO_EFFECT:
                    remaining.append((nid, effect))
            if now:
                await self._database.write(
                    "add_members", self._writer.apply_early_effects, room, now
                )
        return remaining

    async def _effects_of_absence(
        self, snapshot: RoomSnapshot, entries: Entries, part: RemoteRoomInfo | None
    ) -> list[tuple[int | str, StateEffect]]:
        """Return the effects of entries that are gone since we last left the room."""
        old = await snapshot.state.load_nids()
        removed: Collection[int] = [
            nid
            for key, nid in old.items()
            if key not in entries and (part is None or not part.members_omitted or key[0] != MEMBER)
        ]
        loaded = await self._events.get_events(removed)
        return [
            (nid, effect_of_absence(stored.event, self._identity)) for nid, stored in loaded.items()
        ]

    def _write_join(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        snapshot: RoomSnapshot,
        new: NewEvent,
        extremities: Sequence[EventID],
        current: NewCurrentState,
        missing: Sequence[EventID],
        part: RemoteRoomInfo | None,
        left_out: Sequence[UnverifiedEvent],
    ) -> AppendResult:
        room_nid = snapshot.room.room_nid
        # an invite may have named another version since it was checked
        get_or_add_room(txn, room.room_id, room.version, self._now_ms())
        delete_partial_join(txn, room_nid)
        mark_as_earlier_state(txn, room_nid)
        if left_out:
            add_unverified_events(txn, room_nid, left_out, self._first_attempt())
        move_backward_extremities(txn, room_nid, [new.event_id], missing, new.depth)
        appended = self._writer.append(
            txn,
            snapshot.room,
            snapshot.head,
            [new],
            [*extremities, new.event_id],
            current=current,
            now_ms=self._now_ms(),
        )
        (row,) = appended.rows
        partial = None
        if part is not None and row.position is not None:
            partial = add_partial_join(
                txn, room_nid, row.event_nid, row.position, part.resident, part.servers
            )
        txn.announce(
            Change(row.position or 0, Topic.PARTIAL_STATE, snapshot.room.room_id, detail=partial)
        )
        return appended

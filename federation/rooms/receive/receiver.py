"""Receives events from other servers: checks them, adds them to the room's graph, and writes them.

Before the events get their turn in the room's queue, this module asks the room's policy server,
fetches keys, and tries to fetch unaltered copies of events whose content does not match their hash.
During the turn it sends no requests, except to a policy server that the room has just named.

Laws:
- Events go through the room's queue, like those of our users. So writes of one node never conflict.
- Each PDU gets an outcome. A hostile event costs no more than others and does not affect them.
- Missing events are reported, never fetched. The caller fetches them (`missing_events.py`).
- In a room with partial state, a new event is checked against the known part of the state and the
  memberships among its auth events. For missing prev_events, the state after our join is used, but
  only if the event is backfilled, if it removes a local user, or if all of them are prev_events of
  our join too. All events that were received with partial state are rechecked when the state is
  complete (`partial_state/completion.py`).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from federation.protocol.errors import BadState, Forbidden, MatrixError, NotFound, TooLarge
from federation.protocol.event_signing import required_signers
from federation.protocol.events import Event
from federation.protocol.ids import EventID, RoomID, ServerName
from federation.protocol.policy_server import NAMING, find_naming
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.membership_templates import MEMBER
from federation.rooms.receipt_checks import (
    REFUSED_BY_POLICY,
    SHOWN,
    ReceivedPdu,
    Verdict,
    as_hashed,
    check_on_receipt,
    check_signed,
)
from federation.rooms.receive.batch import Batch, Outcome, make_dropped
from federation.rooms.receive.check_sources import (
    NO_POLICY_VERDICTS,
    CheckServices,
    PolicyVerdicts,
    StoredSources,
)
from federation.rooms.receive.content_restore import ContentRestorer, find_complete
from federation.rooms.receive.extremity_limit import exceeds_extremity_limit
from federation.rooms.receive.outliers import Outliers
from federation.rooms.receive.persist import CheckedArrival, EventPersister
from federation.rooms.receive.room_participants import SELF_MEMBERSHIPS, allows_membership
from federation.rooms.receive.unaltered_copies import replace_altered
from federation.rooms.receive.unverified_events import UnverifiedStateEvents
from federation.rooms.resolve import StateResolver
from federation.rooms.server_acl_checks import SERVER_ACL, ServerACLChecks
from federation.rooms.snapshot import RoomSnapshot
from storage.events.events import EarlierReferences, EventFlag, EventStore
from storage.partial_state.unverified_events import NeededIn
from storage.persist.room_writer import HeadMoved, StateChange

MAX_PDUS = 500
"""PDUs that one call takes. A transaction has 50 at most."""
MAX_TRIES = 20


class _Known(msgspec.Struct, frozen=True):
    """The stored events that a batch contains or refers to. Grows while the batch is received."""

    events: dict[EventID, StoredEvent]
    earlier: EarlierReferences
    states: Mapping[EventID, Collection[EventID]]
    signers: Mapping[EventID, Collection[ServerName]]
    """The servers whose signatures each event has. Only events that were checked before."""
    cited: Mapping[str, NeededIn]
    """Cited events of remote states that could not be verified when we got those states."""


class _ReceiveOptions(msgspec.Struct, frozen=True):
    """Options of `Receiver.receive`, which explains them."""

    is_past: bool
    send_on: bool
    upon_gap: bool
    refused: Collection[EventID]
    verdicts: PolicyVerdicts


class Receiver:
    """Receives events from other servers. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        engine: RoomEngine,
        events: RoomEvents,
        store: EventStore,
        resolver: StateResolver,
        persister: EventPersister,
        outliers: Outliers,
        services: CheckServices,
        access: ServerACLChecks,
        unverified: UnverifiedStateEvents,
        content_restorer: ContentRestorer,
    ) -> None:
        self._content_restorer = content_restorer
        self._access = access
        self._unverified = unverified
        self._engine = engine
        self._events = events
        self._store = store
        self._resolver = resolver
        self._persister = persister
        self._outliers = outliers
        self._services = services

    async def receive(
        self,
        room_id: RoomID,
        pdus: Sequence[Mapping[str, Any] | Event],
        *,
        origin: ServerName | None = None,
        is_past: bool = False,
        states: Mapping[EventID, Collection[EventID]] | None = None,
        broadcast: bool = False,
        allow_gap: bool = False,
        refused: Collection[EventID] = (),
        may_wait: bool = False,
    ) -> list[Outcome]:
        """Receive raw or parsed events of a known room, and return their outcomes in order.

        `origin`: the server whose transaction brought them; the room's server ACL must allow it.
        `is_past`: they were fetched from the room's history, so they are not new, and not checked
        against the current state. `states`: for events with missing prev_events, the state before
        them according to another server, as IDs of stored events. It is resolved with the states
        after the prev_events that we have. `broadcast`: we send them to the other servers in the
        room, because they were made with our help. `allow_gap`: in a room with partial state, they
        do not wait for missing prev_events. `refused`: past events that the room's policy server
        refuses. `may_wait`: the caller repeats the call later, so they wait while the policy server
        is unavailable. Raises NotFound, TooLarge.
        """
        candidates = await self._candidates(room_id, pdus)
        snapshot = await self._engine.get_snapshot(room_id)
        if origin is not None and not await self._is_allowed(snapshot, origin, candidates):
            denied = Forbidden(f"The server ACL of this room denies {origin}")
            return [Outcome(_id_of(candidate), Verdict.DROP, denied) for candidate in candidates]

        signers = await self._find_signers(candidates)
        room_nid = snapshot.room.room_nid
        copies = await replace_altered(
            self._services, room_nid, candidates, signers, origin=origin, is_new=not is_past
        )
        candidates = copies.candidates
        verdicts = (
            NO_POLICY_VERDICTS
            if is_past
            else await self._ask_policy_server(snapshot, candidates, signers, may_wait=may_wait)
        )
        options = _ReceiveOptions(is_past, broadcast, allow_gap, refused, verdicts)

        async def work() -> list[Outcome]:
            cited = await self._unverified.add_verified_cited(room_id, _collect_cited(candidates))
            return await self._receive(room_id, candidates, options, states or {}, signers, cited)

        return copies.get_outcomes(await self._engine.in_turn(room_id, work))

    async def _is_allowed(
        self, snapshot: RoomSnapshot, origin: ServerName, candidates: Sequence[ReceivedPdu]
    ) -> bool:
        """Return whether the room's ACL allows a server to send events.

        One of the events may be the ACL event itself, which we had without its content.
        """
        if await self._access.is_allowed(snapshot, origin):
            return True
        acl = await snapshot.state.get(SERVER_ACL)
        for candidate in candidates:
            if acl is not None and _id_of(candidate) == acl.event.event_id:
                await self._content_restorer.restore(snapshot.room_id, acl, candidate)
                return await self._access.is_allowed(
                    await self._engine.get_snapshot(snapshot.room_id), origin
                )
        return False

    async def receive_outliers(
        self, room_id: RoomID, pdus: Sequence[Mapping[str, Any] | Event]
    ) -> list[Outcome]:
        """Store events as outliers: auth events, and the state at some event. Raises NotFound,
        TooLarge."""
        candidates = await self._candidates(room_id, pdus)
        return await self._outliers.add((await self._engine.get_snapshot(room_id)).room, candidates)

    async def _candidates(
        self, room_id: RoomID, pdus: Sequence[Mapping[str, Any] | Event]
    ) -> list[ReceivedPdu]:
        if len(pdus) > MAX_PDUS:
            raise TooLarge(f"At most {MAX_PDUS} events are taken at once")
        version = (await self._engine.get_snapshot(room_id)).version
        return [
            ReceivedPdu(version=version, pdu=pdu.pdu, event=pdu)
            if isinstance(pdu, Event)
            else ReceivedPdu(version=version, pdu=pdu)
            for pdu in pdus
        ]

    async def _find_signers(
        self, candidates: Sequence[ReceivedPdu]
    ) -> Mapping[EventID, Collection[ServerName]]:
        """Find the signatures of all events at once, before their turn in the queue.

        So fetching a key from a slow server delays no other event in the room.
        """
        events: dict[EventID, Event] = {}
        for candidate in candidates:
            try:
                event = candidate.read()
            except MatrixError:
                continue  # the batch gives it its outcome
            if not self._events.is_cached(event.event_id):
                events[event.event_id] = event
        if len(events) > 1:
            await self._services.prefetch_keys(events.values())
        signers = [await self._get_signers(event) for event in events.values()]
        return dict(zip(events, signers, strict=True))

    async def _ask_policy_server(
        self,
        snapshot: RoomSnapshot,
        candidates: Sequence[ReceivedPdu],
        signers: Mapping[EventID, Collection[ServerName]],
        *,
        may_wait: bool,
    ) -> PolicyVerdicts:
        """Ask the room's policy server about new events that have their required signatures.

        This happens before their turn in the queue, so that a slow policy server delays no other
        event in the room.
        """
        named = await _find_policy_event(snapshot)
        if named is None:
            return NO_POLICY_VERDICTS
        new: list[Event] = []
        let_in: set[EventID] = set()
        for event, signed_by in await self._find_new(snapshot, candidates, signers):
            new.append(event)
            if event.membership in SELF_MEMBERSHIPS and await allows_membership(
                snapshot, event, signed_by
            ):
                let_in.add(event.event_id)
        approved = await self._services.approve_many(snapshot.room.room_nid, new, named, let_in)
        allowed = {event_id: allows for event_id, allows in approved.items() if allows is not None}
        return PolicyVerdicts(named, allowed, approved.keys() - allowed.keys() if may_wait else ())

    async def _find_new(
        self,
        snapshot: RoomSnapshot,
        candidates: Sequence[ReceivedPdu],
        signers: Mapping[EventID, Collection[ServerName]],
    ) -> list[tuple[Event, Collection[ServerName]]]:
        """Return the events that are not placed yet and have their required signatures.

        Each comes with the content that counts, and with the servers that signed it.
        """
        events: dict[EventID, Event] = {}
        for candidate in candidates:
            try:
                event = candidate.read()
            except MatrixError:
                continue  # the batch gives it its outcome
            events[event.event_id] = event
        known = await self._events.get_by_id(snapshot.room.room_nid, events)
        new: list[tuple[Event, Collection[ServerName]]] = []
        for event_id, event in events.items():
            stored, signed_by = known.get(event_id), signers.get(event_id, ())
            if stored is None:
                try:
                    check_signed(event, signed_by)
                    new.append((as_hashed(event), signed_by))
                except MatrixError:
                    continue  # the batch gives it its outcome
            elif stored.is_outlier:  # it was checked when it was stored
                new.append((stored.event, required_signers(stored.event)))
        return new

    async def _get_signers(self, event: Event) -> Collection[ServerName]:
        try:
            return await self._services.get_signers(event)
        except MatrixError:
            return ()  # it does not name its required signers, or we do not talk to one of them

    async def _receive(
        self,
        room_id: RoomID,
        candidates: Sequence[ReceivedPdu],
        options: _ReceiveOptions,
        states: Mapping[EventID, Collection[EventID]],
        signers: Mapping[EventID, Collection[ServerName]],
        cited: Mapping[str, NeededIn],
    ) -> list[Outcome]:
        snapshot = await self._engine.get_snapshot(room_id)
        if not snapshot.head.extremities:
            raise NotFound("This server is not in the room")
        batch = Batch(candidates=candidates, room_id=room_id)
        known = await self._load_known(snapshot, batch.ordered, states, signers, cited)
        for event in batch.ordered:
            batch.outcomes[event.event_id] = await self._receive_event(
                room_id, batch.candidates[event.event_id], known, options
            )
        return batch.get_outcomes()

    async def _load_known(
        self,
        snapshot: RoomSnapshot,
        events: Sequence[Event],
        states: Mapping[EventID, Collection[EventID]],
        signers: Mapping[EventID, Collection[ServerName]],
        cited: Mapping[str, NeededIn],
    ) -> _Known:
        """Load all that the events name in one batch of reads."""
        own = [event.event_id for event in events]
        named = {
            name
            for event in events
            for name in (event.event_id, *event.prev_events, *event.auth_events)
        }
        found = dict(await self._events.get_in_any_room(named))
        earlier = (
            await self._store.get_earlier_references(snapshot.room.room_nid, own)
            if own
            else EarlierReferences({}, frozenset())
        )
        return _Known(found, earlier, states, signers, cited)

    async def _receive_event(
        self, room_id: RoomID, candidate: ReceivedPdu, known: _Known, options: _ReceiveOptions
    ) -> Outcome:
        event_id = candidate.read().event_id
        for _ in range(MAX_TRIES):
            snapshot = await self._engine.get_snapshot(room_id)
            try:
                return await self._receive_one(snapshot, candidate, known, options)
            except HeadMoved:
                await self._engine.refresh(snapshot)
                self._events.evict([event_id])
                known.events.update(await self._events.get_in_any_room([event_id]))
        raise RuntimeError(
            f"the head of {room_id} moved {MAX_TRIES} times while {event_id} was received"
        )

    async def _receive_one(
        self,
        snapshot: RoomSnapshot,
        candidate: ReceivedPdu,
        known: _Known,
        options: _ReceiveOptions,
    ) -> Outcome:
        event = candidate.read()
        own = known.events.get(event.event_id)
        if own is not None and not own.is_outlier:
            await self._content_restorer.restore(RoomID(snapshot.room.room_id), own, candidate)
            return Outcome(event.event_id, None, was_known=True)
        if own is not None:
            # the stored one was checked, and may have been redacted since or lack its content
            event = find_complete(own, candidate) or own.event
            candidate = ReceivedPdu(version=event.version, pdu=event.pdu, event=event)
        signers = None if own is not None else known.signers.get(event.event_id)
        try:
            if signers is not None:  # before we ask or store anything because of it
                check_signed(event, signers)
        except MatrixError as error:
            is_unverified = self._services.lacks_keys(event)
            return Outcome(event.event_id, Verdict.DROP, error, is_unverified=is_unverified)
        join = await self._partial_join(snapshot)
        prev, missing = _split(event.prev_events, known.events, skip_outliers=True)
        if any(other.room_nid != snapshot.room.room_nid for other in prev):
            return make_dropped(event, "The event follows one of another room")
        auth, missing_auth = _split(event.auth_events, known.events, skip_outliers=False)
        has_state = event.event_id in known.states
        # with partial state, nothing before our join is known
        is_before_join = join is not None and _follows(missing, join)
        is_assumed = join is not None and (options.is_past or options.upon_gap or is_before_join)
        has_gap = is_assumed and not has_state and bool(missing)
        is_backfilled = options.is_past or event.event_id in known.earlier.backward
        if missing_auth or (missing and not has_state and not has_gap):
            lacking = () if has_state or has_gap else missing
            return Outcome(
                event.event_id,
                None,
                missing_prev=lacking,
                missing_auth=missing_auth,
                is_backfilled=is_backfilled,
            )
        verdicts = await self._get_policy_verdicts(snapshot, options)
        if event.event_id in verdicts.waiting:
            return Outcome(event.event_id, None, awaits_policy_server=True)
        if not is_backfilled and await exceeds_extremity_limit(snapshot, event, self._events):
            return Outcome(event.event_id, None, exceeds_extremity_limit=True)
        try:
            before = await self._state_before(
                snapshot, event, prev, known.states, join if has_gap else None
            )
            trusted = [
                other for other in auth if _is_trusted(other, known.cited, in_part=join is not None)
            ]
            from_prev = before
            before = await self._add_cited(snapshot, from_prev, trusted)
        except MatrixError as error:
            return Outcome(event.event_id, Verdict.DROP, error)
        current = None if is_backfilled else StateChange(snapshot.head.state_root)
        if current is not None:
            # the state before another event than our join may be outdated
            ours = NeededIn.OUR_STATE
            still_valid = [
                other for other in trusted if known.cited.get(other.event.event_id, ours) is ours
            ]
            current = await self._add_cited(snapshot, current, still_valid)
            if current == before:
                current = None  # `before` is checked already
        if own is not None:
            signers = required_signers(event)  # they were checked when it was stored
        create = await snapshot.create_event()
        # with partial state, the past cannot be checked against what is known of the present
        known_before = None if join is not None and is_backfilled else before
        sources = StoredSources(
            services=self._services,
            room=snapshot.room,
            auth=auth,
            before=known_before,
            current=current,
            signers=signers,
            create=create,
            verdicts=verdicts,
            loaded=snapshot.state,
        )
        checked = await check_on_receipt(
            candidate, RoomID(snapshot.room.room_id), sources, in_part=join is not None
        )
        if event.event_id in options.refused and checked.verdict in SHOWN:
            checked = replace(checked, verdict=Verdict.SOFT_FAIL, error=REFUSED_BY_POLICY)
        if checked.event is None:
            return Outcome(event.event_id, Verdict.DROP, checked.error)
        arrival = CheckedArrival(
            checked,
            checked.event if own is None else event,
            before,
            prev,
            missing,
            [other for other in auth if other.event.state_key is not None],
            own,
            await self._redactions(snapshot, checked.event, known)
            if own is None or own.redacted_by is None
            else (),
            is_backfilled,
            options.send_on,
            has_gap or (join is not None and bool(missing)),
            has_cited_state=join is None and before is not from_prev,
            is_after_gap=not is_backfilled
            and not is_before_join
            and (bool(missing) or any(map(_hides_gap, prev))),
        )
        known.events[event.event_id] = await self._persister.persist(snapshot, arrival)
        return Outcome(event.event_id, checked.verdict, checked.error)

    async def _get_policy_verdicts(
        self, snapshot: RoomSnapshot, options: _ReceiveOptions
    ) -> PolicyVerdicts:
        """Return the verdicts of the room's current policy server.

        Past events have their verdicts already.
        """
        if options.is_past:
            return NO_POLICY_VERDICTS
        named, former = await _find_policy_event(snapshot), options.verdicts.policy_event
        if named is None or former is None or named.event_id != former.event_id:
            return PolicyVerdicts(named)
        return options.verdicts

    async def _redactions(
        self, snapshot: RoomSnapshot, event: Event, known: _Known
    ) -> Sequence[StoredEvent]:
        nids = known.earlier.redactions.get(event.event_id, ())
        if not nids:
            return ()
        redactions = await self._events.get_events(nids)
        return await self._persister.find_redactions(snapshot.room, event, redactions.values())

    async def _state_before(
        self,
        snapshot: RoomSnapshot,
        event: Event,
        prev: Sequence[StoredEvent],
        states: Mapping[EventID, Collection[EventID]],
        join: StoredEvent | None,
    ) -> StateChange:
        """Return the state before an event. For missing prev_events, use the state after `join`."""
        known = [
            StateChange(stored.state_root) for stored in (*prev, *(() if join is None else (join,)))
        ]
        if event.event_id in states:
            known.append(
                StateChange(None, await self._gather_state(snapshot, states[event.event_id]))
            )
        if not known:
            return StateChange(None)
        return await self._resolver.resolve(
            snapshot.room.room_nid, snapshot.version, await snapshot.create_event(), known
        )

    async def _partial_join(self, snapshot: RoomSnapshot) -> StoredEvent | None:
        """Return the join since which only a part of the state is known."""
        nid = snapshot.head.partial_join
        return None if nid is None else (await self._events.get_events([nid]))[nid]

    async def _add_cited(
        self, snapshot: RoomSnapshot, state: StateChange, auth: Sequence[StoredEvent]
    ) -> StateChange:
        """Add cited events to a state, where the state has no other event for their key."""
        if not auth:
            return state
        cited = {stored.event.key: stored.nid for stored in auth}
        known = await self._resolver.load(snapshot.room.room_nid, state, cited)
        new: dict[tuple[str, str], int] = {
            key: nid for key, nid in cited.items() if key not in known
        }
        return StateChange(state.root, {**state.entries, **new}) if new else state

    async def _gather_state(
        self, snapshot: RoomSnapshot, event_ids: Collection[EventID]
    ) -> dict[tuple[str, str], int]:
        """Return a state that is given as events, all of which must be stored. Raises BadState."""
        found = await self._store.get_entries(snapshot.room.room_nid, event_ids)
        if len(found) != len(set(event_ids)):
            raise BadState("The state before the event contains events that are not known")
        entries: dict[tuple[str, str], int] = {}
        for stored in found.values():
            if stored.state_key is None or (stored.type, stored.state_key) in entries:
                raise BadState(
                    "The state before the event has no single event for each of its entries"
                )
            if not stored.flags & EventFlag.REJECTED:
                entries[(stored.type, stored.state_key)] = stored.event_nid
        return entries


async def _find_policy_event(snapshot: RoomSnapshot) -> Event | None:
    """Return the event that names the room's policy server."""
    stored = find_naming(await snapshot.state.load(NAMING))
    return None if stored is None else stored.event


def _collect_cited(candidates: Sequence[ReceivedPdu]) -> set[EventID]:
    """Return the auth events of the PDUs that are valid events."""
    cited: set[EventID] = set()
    for candidate in candidates:
        try:
            cited.update(candidate.read().auth_events)
        except MatrixError:
            continue  # the batch gives it its outcome
    return cited


def _is_trusted(event: StoredEvent, cited: Mapping[str, NeededIn], *, in_part: bool) -> bool:
    """Return whether a cited event counts where the state has no event for its key."""
    if event.rejected or event.event.state_key is None:
        return False
    if in_part and event.event.type == MEMBER:
        return True
    return cited.get(event.event.event_id, NeededIn.AUTH_CHAIN) is not NeededIn.AUTH_CHAIN


def _hides_gap(stored: StoredEvent) -> bool:
    """Return whether there is a gap before an event that clients do not see."""
    return stored.is_after_gap and not stored.in_timeline


def _follows(missing: Collection[EventID], join: StoredEvent) -> bool:
    """Return whether the join follows everything that is missing."""
    return set(missing) <= set(join.event.prev_events)


def _split(
    names: Sequence[EventID], known: Mapping[EventID, StoredEvent], *, skip_outliers: bool
) -> tuple[list[StoredEvent], list[EventID]]:
    """Return the stored events, and the IDs of the others, in the order given.

    `skip_outliers`: an outlier counts as missing.
    """
    found = [known.get(name) for name in names]
    usable = [
        each for each in found if each is not None and not (skip_outliers and each.is_outlier)
    ]
    have = {stored.event.event_id for stored in usable}
    return usable, [name for name in dict.fromkeys(names) if name not in have]


def _id_of(candidate: ReceivedPdu) -> EventID | None:
    try:
        return candidate.read().event_id
    except MatrixError:
        return None

"""How events that were made elsewhere get into a room, without any network: check, place, write.

Laws:
- Events are taken in through the queue of their room, like those of our own users: heads never
  conflict on one node.
- Whatever is received gets an outcome. A hostile event costs no more than an honest one and harms
  no other.
- What is missing is said, never fetched: that is for whoever holds the wire. (Whom a room has made
  its judge is asked, though, and keys, and for the true copy of what came altered: before the
  events get their turn.)
- In a room of which only a part of the state is here, an event is judged by that part and by the
  memberships that it cites; what follows the events before our join is taken to come upon the state
  that we joined upon, and so is what puts a user of ours out and follows what nobody tells us. All
  of it is looked at again when the rest has come (`completion.py`).
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
from federation.rooms.check import (
    REFUSED_BY_POLICY,
    SHOWN,
    Candidate,
    Verdict,
    as_hashed,
    check_on_receipt,
    check_signed,
)
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.membership_templates import MEMBER
from federation.rooms.receive.batch import Batch, Outcome, dropped
from federation.rooms.receive.check_sources import NO_JUDGE, Judged, Questions, StoredSources
from federation.rooms.receive.content_restore import LateContents, find_whole
from federation.rooms.receive.extremity_limit import is_one_too_many
from federation.rooms.receive.outliers import Outliers
from federation.rooms.receive.participants import OWN_DOING, lets_in
from federation.rooms.receive.persist import Arrival, Placements
from federation.rooms.receive.unaltered_copies import take_true
from federation.rooms.receive.unverified_events import UnprovedStates
from federation.rooms.resolve import StateResolver
from federation.rooms.server_access import SERVER_ACL, ServerAccess
from federation.rooms.snapshot import RoomSnapshot
from storage.events.events import EventFlag, EventStore, Waiting
from storage.partial_state.unverified_events import PartOf
from storage.persist.room_writer import HeadMoved, StateChange

MAX_PDUS = 500
"""How many PDUs are taken at once; a transaction has 50 at most."""
MAX_TRIES = 20


class _Known(msgspec.Struct, frozen=True):
    """What is stored of the events that a batch has and names; grows as the batch is taken in."""

    events: dict[EventID, StoredEvent]
    waiting: Waiting
    states: Mapping[EventID, Collection[EventID]]
    signers: Mapping[EventID, Collection[ServerName]]
    """Of those that were looked at before."""
    noted: Mapping[str, PartOf]
    """Cited events that are part of states that we were told, and could prove later only."""


class _Manner(msgspec.Struct, frozen=True):
    """How events are taken in: see `Receiver.receive`."""

    past: bool
    send_on: bool
    upon_gap: bool
    refused: Collection[EventID]
    judged: Judged


class Receiver:
    """Takes in events from outside. For the reactor thread."""

    def __init__(
        self,
        engine: RoomEngine,
        events: RoomEvents,
        store: EventStore,
        resolver: StateResolver,
        placements: Placements,
        outliers: Outliers,
        questions: Questions,
        access: ServerAccess,
        unproved: UnprovedStates,
        late: LateContents,
    ) -> None:
        self._late = late
        self._access = access
        self._unproved = unproved
        self._engine = engine
        self._events = events
        self._store = store
        self._resolver = resolver
        self._placements = placements
        self._outliers = outliers
        self._questions = questions

    async def receive(
        self,
        room_id: RoomID,
        pdus: Sequence[Mapping[str, Any] | Event],
        *,
        origin: ServerName | None = None,
        past: bool = False,
        states: Mapping[EventID, Collection[EventID]] | None = None,
        send_on: bool = False,
        upon_gap: bool = False,
        refused: Collection[EventID] = (),
        may_wait: bool = False,
    ) -> list[Outcome]:
        """Take in events of a known room, as they came or parsed; their outcomes, in the order
        given.

        `origin` is the server whose transaction brought them, which the room's server ACL must
        allow. `past`: they were fetched from the room's history, so they are no news and the
        present state has no say. `states` gives, for events some of whose prev_events cannot be
        had, the state before them as another server tells it, by the ids of stored events; it does
        not replace what we know of the state after the others. `send_on`: it falls to us to tell
        the other servers in the room, since the events were made with our help. `upon_gap`: in a
        room of which a part of the state is lacking, they need not wait for what they follow.
        `refused`: of the past, what the room's policy server does not let pass. `may_wait`: they
        are given again later, so they wait while the room's policy server has no time for them.
        Raises NotFound, TooLarge.
        """
        candidates = await self._candidates(room_id, pdus)
        snapshot = await self._engine.get_snapshot(room_id)
        if origin is not None and not await self._is_allowed(snapshot, origin, candidates):
            denied = Forbidden(f"The server ACL of this room denies {origin}")
            return [Outcome(_id_of(candidate), Verdict.DROP, denied) for candidate in candidates]

        signers = await self._find_signers(candidates)
        room_nid = snapshot.room.room_nid
        taken = await take_true(
            self._questions, room_nid, candidates, signers, origin=origin, is_news=not past
        )
        candidates = taken.candidates
        judged = (
            NO_JUDGE
            if past
            else await self._judge(snapshot, candidates, signers, may_wait=may_wait)
        )
        manner = _Manner(past, send_on, upon_gap, refused, judged)

        async def work() -> list[Outcome]:
            noted = await self._unproved.settle_cited(room_id, _cited(candidates))
            return await self._receive(room_id, candidates, manner, states or {}, signers, noted)

        return taken.answer(await self._engine.in_turn(room_id, work))

    async def _is_allowed(
        self, snapshot: RoomSnapshot, origin: ServerName, candidates: Sequence[Candidate]
    ) -> bool:
        """Whether the room's ACL lets a server tell of events: it may be that very list which came
        without its content."""
        if await self._access.is_allowed(snapshot, origin):
            return True
        acl = await snapshot.state.get(SERVER_ACL)
        for candidate in candidates:
            if acl is not None and _id_of(candidate) == acl.event.event_id:
                await self._late.take(snapshot.room_id, acl, candidate)
                return await self._access.is_allowed(
                    await self._engine.get_snapshot(snapshot.room_id), origin
                )
        return False

    async def receive_outliers(
        self, room_id: RoomID, pdus: Sequence[Mapping[str, Any] | Event]
    ) -> list[Outcome]:
        """Keep events without their place: auth events, and the state at some event. Raises
        NotFound, TooLarge."""
        candidates = await self._candidates(room_id, pdus)
        return await self._outliers.add((await self._engine.get_snapshot(room_id)).room, candidates)

    async def _candidates(
        self, room_id: RoomID, pdus: Sequence[Mapping[str, Any] | Event]
    ) -> list[Candidate]:
        if len(pdus) > MAX_PDUS:
            raise TooLarge(f"At most {MAX_PDUS} events are taken at once")
        version = (await self._engine.get_snapshot(room_id)).version
        return [
            Candidate(version, pdu.pdu, pdu) if isinstance(pdu, Event) else Candidate(version, pdu)
            for pdu in pdus
        ]

    async def _find_signers(
        self, candidates: Sequence[Candidate]
    ) -> Mapping[EventID, Collection[ServerName]]:
        """Whose signatures the events have, all at once and before their turn: a key that has to be
        fetched from a slow server holds up nobody else in the room."""
        events: dict[EventID, Event] = {}
        for candidate in candidates:
            try:
                event = candidate.read()
            except MatrixError:
                continue  # it gets its outcome later
            if not self._events.is_cached(event.event_id):
                events[event.event_id] = event
        if len(events) > 1:
            await self._questions.prepare(events.values())
        signers = [await self._get_signers(event) for event in events.values()]
        return dict(zip(events, signers, strict=True))

    async def _judge(
        self,
        snapshot: RoomSnapshot,
        candidates: Sequence[Candidate],
        signers: Mapping[EventID, Collection[ServerName]],
        *,
        may_wait: bool,
    ) -> Judged:
        """Ask the room's policy server about those that are new, and are signed by whom they must
        be: before their turn, so that a slow one holds up nobody else in the room."""
        named = await _named_policy(snapshot)
        if named is None:
            return NO_JUDGE
        new: list[Event] = []
        let_in: set[EventID] = set()
        for event, signed_by in await self._find_new(snapshot, candidates, signers):
            new.append(event)
            if event.membership in OWN_DOING and await lets_in(snapshot, event, signed_by):
                let_in.add(event.event_id)
        judged = await self._questions.judge(snapshot.room.room_nid, new, named, let_in)
        allowed = {event_id: said for event_id, said in judged.items() if said is not None}
        return Judged(named, allowed, judged.keys() - allowed.keys() if may_wait else ())

    async def _find_new(
        self,
        snapshot: RoomSnapshot,
        candidates: Sequence[Candidate],
        signers: Mapping[EventID, Collection[ServerName]],
    ) -> list[tuple[Event, Collection[ServerName]]]:
        """The events that have no place yet and are signed by whom they must be, with the content
        that counts; and whose signatures each has."""
        events: dict[EventID, Event] = {}
        for candidate in candidates:
            try:
                event = candidate.read()
            except MatrixError:
                continue  # it gets its outcome later
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
                    continue  # it gets its outcome later
            elif stored.is_outlier:  # it was checked when it was stored
                new.append((stored.event, required_signers(stored.event)))
        return new

    async def _get_signers(self, event: Event) -> Collection[ServerName]:
        try:
            return await self._questions.get_signers(event)
        except MatrixError:
            return ()  # it does not say who has to sign it, or we do not talk with who has

    async def _receive(
        self,
        room_id: RoomID,
        candidates: Sequence[Candidate],
        manner: _Manner,
        states: Mapping[EventID, Collection[EventID]],
        signers: Mapping[EventID, Collection[ServerName]],
        noted: Mapping[str, PartOf],
    ) -> list[Outcome]:
        snapshot = await self._engine.get_snapshot(room_id)
        if not snapshot.head.extremities:
            raise NotFound("This server is not in the room")
        batch = Batch(candidates, room_id)
        known = await self._load(snapshot, batch.ordered, states, signers, noted)
        for event in batch.ordered:
            batch.outcomes[event.event_id] = await self._receive_one(
                room_id, batch.candidates[event.event_id], known, manner
            )
        return batch.answer()

    async def _load(
        self,
        snapshot: RoomSnapshot,
        events: Sequence[Event],
        states: Mapping[EventID, Collection[EventID]],
        signers: Mapping[EventID, Collection[ServerName]],
        noted: Mapping[str, PartOf],
    ) -> _Known:
        """One batch of reads for all that the events name."""
        own = [event.event_id for event in events]
        named = {
            name
            for event in events
            for name in (event.event_id, *event.prev_events, *event.auth_events)
        }
        found = dict(await self._events.get_anywhere(named))
        waiting = (
            await self._store.get_waiting(snapshot.room.room_nid, own)
            if own
            else Waiting({}, frozenset())
        )
        return _Known(found, waiting, states, signers, noted)

    async def _receive_one(
        self, room_id: RoomID, candidate: Candidate, known: _Known, manner: _Manner
    ) -> Outcome:
        event_id = candidate.read().event_id
        for _ in range(MAX_TRIES):
            snapshot = await self._engine.get_snapshot(room_id)
            try:
                return await self._place(snapshot, candidate, known, manner)
            except HeadMoved:
                await self._engine.refresh(snapshot)
                self._events.forget([event_id])
                known.events.update(await self._events.get_anywhere([event_id]))
        raise RuntimeError(
            f"the head of {room_id} moved {MAX_TRIES} times while {event_id} was received"
        )

    async def _place(
        self, snapshot: RoomSnapshot, candidate: Candidate, known: _Known, manner: _Manner
    ) -> Outcome:
        event = candidate.read()
        own = known.events.get(event.event_id)
        if own is not None and not own.is_outlier:
            await self._late.take(RoomID(snapshot.room.room_id), own, candidate)
            return Outcome(event.event_id, None, was_known=True)
        if own is not None:
            # what was stored has been checked, and may have lost its content since; or it came
            # without
            event = find_whole(own, candidate) or own.event
            candidate = Candidate(event.version, event.pdu, event)
        signers = None if own is not None else known.signers.get(event.event_id)
        try:
            if signers is not None:  # before anything is asked or kept on its behalf
                check_signed(event, signers)
        except MatrixError as error:
            is_unproved = self._questions.lacks_keys(event)
            return Outcome(event.event_id, Verdict.DROP, error, is_unproved=is_unproved)
        join = await self._partial_join(snapshot)
        prev, missing = _split(event.prev_events, known.events, placed=True)
        if any(other.room_nid != snapshot.room.room_nid for other in prev):
            return dropped(event, "The event follows one of another room")
        auth, missing_auth = _split(event.auth_events, known.events, placed=False)
        has_state = event.event_id in known.states
        # while a part of the state is lacking, nothing is known of what was before our join
        is_beside_join = join is not None and _follows(missing, join)
        is_assumed = join is not None and (manner.past or manner.upon_gap or is_beside_join)
        has_gap = is_assumed and not has_state and bool(missing)
        is_past = manner.past or event.event_id in known.waiting.backward
        if missing_auth or (missing and not has_state and not has_gap):
            lacking = () if has_state or has_gap else missing
            return Outcome(
                event.event_id,
                None,
                missing_prev=lacking,
                missing_auth=missing_auth,
                is_of_the_past=is_past,
            )
        said = await self._said_now(snapshot, manner)
        if event.event_id in said.open:
            return Outcome(event.event_id, None, is_unjudged=True)
        if not is_past and await is_one_too_many(snapshot, event, self._events):
            return Outcome(event.event_id, None, is_crowded_out=True)
        try:
            before = await self._state_before(
                snapshot, event, prev, known.states, join if has_gap else None
            )
            believed = [
                other
                for other in auth
                if _is_believed(other, known.noted, in_part=join is not None)
            ]
            told = before
            before = await self._with_cited(snapshot, told, believed)
        except MatrixError as error:
            return Outcome(event.event_id, Verdict.DROP, error)
        current = None if is_past else StateChange(snapshot.head.state_root)
        if current is not None:
            # what was told of another state than that before our join may be over
            ours = PartOf.OUR_STATE
            lasting = [
                other for other in believed if known.noted.get(other.event.event_id, ours) is ours
            ]
            current = await self._with_cited(snapshot, current, lasting)
            if current == before:
                current = None  # which is asked already
        if own is not None:
            signers = required_signers(event)  # they were checked when it was stored
        create = await snapshot.create_event()
        # the past of a room that we know in part cannot be judged by what is known of the present
        judged = None if join is not None and is_past else before
        sources = StoredSources(
            self._questions,
            snapshot.room,
            auth,
            judged,
            current,
            signers,
            create,
            said,
            snapshot.state,
        )
        checked = await check_on_receipt(
            candidate, RoomID(snapshot.room.room_id), sources, in_part=join is not None
        )
        if event.event_id in manner.refused and checked.verdict in SHOWN:
            checked = replace(checked, verdict=Verdict.SOFT_FAIL, error=REFUSED_BY_POLICY)
        if checked.event is None:
            return Outcome(event.event_id, Verdict.DROP, checked.error)
        arrival = Arrival(
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
            is_past,
            manner.send_on,
            has_gap or (join is not None and bool(missing)),
            is_mended=join is None and before is not told,
            is_after_hole=not is_past
            and not is_beside_join
            and (bool(missing) or any(map(_hides_hole, prev))),
        )
        known.events[event.event_id] = await self._placements.place(snapshot, arrival)
        return Outcome(event.event_id, checked.verdict, checked.error)

    async def _said_now(self, snapshot: RoomSnapshot, manner: _Manner) -> Judged:
        """What the policy server says that the room has now; of the past it has been asked
        before."""
        if manner.past:
            return NO_JUDGE
        named, asked = await _named_policy(snapshot), manner.judged.named
        if named is None or asked is None or named.event_id != asked.event_id:
            return Judged(named)
        return manner.judged

    async def _redactions(
        self, snapshot: RoomSnapshot, event: Event, known: _Known
    ) -> Sequence[StoredEvent]:
        nids = known.waiting.redactions.get(event.event_id, ())
        if not nids:
            return ()
        redactions = await self._events.get_events(nids)
        return await self._placements.find_redactions(snapshot.room, event, redactions.values())

    async def _state_before(
        self,
        snapshot: RoomSnapshot,
        event: Event,
        prev: Sequence[StoredEvent],
        states: Mapping[EventID, Collection[EventID]],
        join: StoredEvent | None,
    ) -> StateChange:
        """`join`: the one whose state stands for that before events which are missing."""
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
        """The join since which only a part of the state is known."""
        nid = snapshot.head.partial_join
        return None if nid is None else (await self._events.get_events([nid]))[nid]

    async def _with_cited(
        self, snapshot: RoomSnapshot, state: StateChange, auth: Sequence[StoredEvent]
    ) -> StateChange:
        """A state with events that an event cites, as far as nothing is in their place."""
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
        """A state that was given by its events, all of which must be stored. Raises BadState."""
        found = await self._store.get_entries(snapshot.room.room_nid, event_ids)
        if len(found) != len(set(event_ids)):
            raise BadState("The state before the event has events that are not known")
        entries: dict[tuple[str, str], int] = {}
        for stored in found.values():
            if stored.state_key is None or (stored.type, stored.state_key) in entries:
                raise BadState(
                    "The state before the event has no single event for each of its entries"
                )
            if not stored.flags & EventFlag.REJECTED:
                entries[(stored.type, stored.state_key)] = stored.event_nid
        return entries


async def _named_policy(snapshot: RoomSnapshot) -> Event | None:
    """The event that names the room's policy server."""
    stored = find_naming(await snapshot.state.load(NAMING))
    return None if stored is None else stored.event


def _cited(candidates: Sequence[Candidate]) -> set[EventID]:
    """What the PDUs that are events cite."""
    cited: set[EventID] = set()
    for candidate in candidates:
        try:
            cited.update(candidate.read().auth_events)
        except MatrixError:
            continue  # it gets its outcome later
    return cited


def _is_believed(cited: StoredEvent, noted: Mapping[str, PartOf], *, in_part: bool) -> bool:
    """Whether something cited counts where the state has nothing in its place."""
    if cited.rejected or cited.event.state_key is None:
        return False
    if in_part and cited.event.type == MEMBER:
        return True
    return noted.get(cited.event.event_id, PartOf.AUTH_CHAIN) is not PartOf.AUTH_CHAIN


def _hides_hole(stored: StoredEvent) -> bool:
    """Whether something is missing before an event that nobody is shown."""
    return stored.is_after_hole and not stored.in_timeline


def _follows(missing: Collection[EventID], join: StoredEvent) -> bool:
    """Whether what an event follows and is missing is what the join follows."""
    return set(missing) <= set(join.event.prev_events)


def _split(
    names: Sequence[EventID], known: Mapping[EventID, StoredEvent], *, placed: bool
) -> tuple[list[StoredEvent], list[EventID]]:
    """(the events that are stored, and where so asked have a place; the ids of the others), each in
    the order given."""
    found = [known.get(name) for name in names]
    usable = [
        stored for stored in found if stored is not None and not (placed and stored.is_outlier)
    ]
    have = {stored.event.event_id for stored in usable}
    return usable, [name for name in dict.fromkeys(names) if name not in have]


def _id_of(candidate: Candidate) -> EventID | None:
    try:
        return candidate.read().event_id
    except MatrixError:
        return None

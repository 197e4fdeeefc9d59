"""Parses the events of one request, orders them, and collects their outcomes.

Each event comes after the events of the batch that it refers to. Events that refer to each other in
a cycle are dropped, and so are events that refer to them. Such cycles are possible only in room
versions 1 and 2, where servers choose the event IDs.
"""

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.peers.response_splitter import Yielder
from federation.protocol.errors import BadEvent, MatrixError
from federation.protocol.events import MAX_PDU_BYTES, Event, encode_pdu, parse_event
from federation.protocol.ids import EventID, RoomID
from federation.protocol.room_versions import RoomVersion
from federation.rooms.receipt_checks import ReceivedPdu, Verdict

CREATE = "m.room.create"
SORTED_AT_ONCE: Final = 1000
"""Events that are sorted between two turns of other work: a few milliseconds."""


class Outcome(msgspec.Struct, frozen=True):
    """The result of receiving one PDU."""

    event_id: EventID | None
    """None when the PDU is not a valid event."""
    verdict: Verdict | None
    """None: it waits for missing events, or was received before."""
    error: MatrixError | None = None
    was_known: bool = False
    missing_prev: Sequence[EventID] = ()
    """The event cannot be placed without these, or the state before it."""
    missing_auth: Sequence[EventID] = ()
    is_backfilled: bool = False
    """It waits, and events that we have follow it. It may be backfilled when a client reads that
    far."""
    is_unverified: bool = False
    """It is dropped because a signing key cannot be fetched. It may prove valid later."""
    exceeds_extremity_limit: bool = False
    """Nothing is missing, but the room has too many forward extremities already; see
    `extremity_limit.py`."""
    awaits_policy_server: bool = False
    """Nothing is missing, but the room's policy server is unavailable."""

    @property
    def is_waiting(self) -> bool:
        """Return whether it has to be received again once it can be placed."""
        return bool(
            self.missing_prev
            or self.missing_auth
            or self.exceeds_extremity_limit
            or self.awaits_policy_server
        )


def make_dropped(event: Event, text: str) -> Outcome:
    """Return the outcome of an event that has no place in the room."""
    return Outcome(event.event_id, Verdict.DROP, BadEvent(text))


class Batch:
    """The PDUs of one request."""

    def __init__(self, *, candidates: Sequence[ReceivedPdu], room_id: RoomID) -> None:
        self._candidates = candidates
        self.candidates: dict[EventID, ReceivedPdu] = {}
        """The first valid event of this room for each ID."""
        self.outcomes: dict[EventID, Outcome] = {}
        for candidate in candidates:
            try:
                event = candidate.read()
            except MatrixError:
                continue  # `answer` reports it
            if event.event_id in self.candidates:
                continue
            if event.room_id != room_id:
                self.outcomes.setdefault(
                    event.event_id, make_dropped(event, "The event is of another room")
                )
                continue
            self.candidates[event.event_id] = candidate
        self.ordered, circular = sort_by_reference(
            {event_id: candidate.read() for event_id, candidate in self.candidates.items()}
        )
        """The events, each after its prev_events and auth_events."""
        for event in circular:
            self.outcomes[event.event_id] = make_dropped(
                event, "The event is part of a cycle of references"
            )

    def get_outcomes(self) -> list[Outcome]:
        """Return an outcome for each PDU, in the order given. A repeated ID counts as known."""
        answered: set[EventID] = set()
        outcomes: list[Outcome] = []
        for candidate in self._candidates:
            try:
                event_id = candidate.read().event_id
            except MatrixError as error:
                outcomes.append(Outcome(None, Verdict.DROP, error))
                continue
            outcomes.append(
                Outcome(event_id, None, was_known=True)
                if event_id in answered
                else self.outcomes[event_id]
            )
            answered.add(event_id)
        return outcomes


async def parse_events(
    version: RoomVersion, room_id: RoomID, pdus: Iterable[Mapping[str, Any]], clock: IReactorTime
) -> dict[EventID, Event]:
    """Parse the PDUs, and return the events of the room by ID.

    Yields to other work in between: an event of only empty objects takes milliseconds.
    """
    yielder = Yielder(clock=clock)
    found: dict[EventID, Event] = {}
    for pdu in pdus:
        try:
            event = parse_event(version, pdu)
        except MatrixError:
            await yielder.after(MAX_PDU_BYTES)  # as if it had the maximal length
            continue
        if event.room_id == room_id:
            found.setdefault(event.event_id, event)
        await yielder.after(len(encode_pdu(event)))
    return found


def sort_by_reference(events: Mapping[EventID, Event]) -> tuple[list[Event], list[Event]]:
    """Return the events in reference order, and those that are part of a cycle or refer to one."""
    sorting = _sort(events)
    while True:
        try:
            next(sorting)
        except StopIteration as done:
            found: tuple[list[Event], list[Event]] = done.value
            return found


async def sort_many_by_reference(
    events: Mapping[EventID, Event], clock: IReactorTime
) -> tuple[list[Event], list[Event]]:
    """Like `sort_by_reference`, but yields to other work in between."""
    sorting, yielder = _sort(events), Yielder(clock=clock, bytes_per_turn=1)
    while True:
        try:
            next(sorting)
        except StopIteration as done:
            found: tuple[list[Event], list[Event]] = done.value
            return found
        await yielder.after(1)


def _sort(
    events: Mapping[EventID, Event],
) -> Generator[None, None, tuple[list[Event], list[Event]]]:
    """Sort the events; yields where other work may run, whatever the references are."""
    dependencies: dict[EventID, set[EventID]] = {}
    dependents: dict[EventID, list[EventID]] = {}
    creations: list[EventID] = []
    first: list[EventID] = []
    for number, (event_id, event) in enumerate(events.items(), 1):
        names = {name for name in _references(event) if name in events}
        if names:
            dependencies[event_id] = names
        else:
            # where a room ID is the hash of its create event, no auth_events name that event
            (creations if event.type == CREATE else first).append(event_id)
        for name in names:
            dependents.setdefault(name, []).append(event_id)
        if number % SORTED_AT_ONCE == 0:
            yield
    ready = deque([*creations, *first])
    ordered: list[Event] = []
    steps = 0
    while ready:
        event_id = ready.popleft()
        ordered.append(events[event_id])
        for dependent in dependents.pop(event_id, ()):
            names = dependencies[dependent]
            names.discard(event_id)
            if not names:
                del dependencies[dependent]
                ready.append(dependent)
            steps += 1
            if steps % SORTED_AT_ONCE == 0:
                yield
        steps += 1
        if steps % SORTED_AT_ONCE == 0:
            yield
    return ordered, [events[event_id] for event_id in dependencies]


def _references(event: Event) -> Iterable[EventID]:
    yield from event.prev_events
    yield from event.auth_events

"""Fetches the state before an event, and the auth chain of an event, from other servers, and stores
both.

The ids of a state and its auth chain are requested first. If few of the events are missing here,
they are requested one by one. Otherwise the complete state is requested. The events are stored as
outliers, each after its auth events. A state is refused if it has too many new events, no create
event, or several events with the same type and state key.

Responses may be long, so the number of them in memory is limited for all rooms together
(`federation/remote/large_responses.py`).
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import RemoteError
from federation.protocol.events import Event
from federation.protocol.ids import EventID, ServerName
from federation.remote.events import EventClient, StateIDs, StatePDUs
from federation.remote.large_responses import LargeResponseSlots, TimeLeft, get_time_limit
from federation.rooms.concurrency import map_concurrently
from federation.rooms.receive.batch import Outcome, parse_events, sort_many_by_reference
from federation.rooms.receive.receiver import MAX_PDUS, Receiver
from federation.rooms.receive.state_imports import Pdu, StateImports, as_mapping
from federation.rooms.receive.unverified_events import find_left_out
from federation.rooms.snapshot import CREATE, RoomSnapshot
from storage.events.events import EventFlag, EventStore, StateEntry
from storage.partial_state.unverified_events import NeededIn, UnverifiedEvent

MAX_SINGLE_REQUESTS: Final = 30
"""Up to this number, missing events are fetched one by one."""
CONCURRENT_REQUESTS: Final = 5
"""Requests for single events at a time."""
MAX_NEW: Final = 50_000
"""New events that one state may bring."""


class RemoteState(msgspec.Struct, frozen=True):
    """A state according to another server, as ids of stored events."""

    event_ids: Sequence[EventID]
    left_out: Sequence[UnverifiedEvent]
    """Events that are left out only because a signing key, of them or of their auth events, cannot
    be fetched now."""


class RemoteStates:
    """Fetches states and auth chains. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        receiver: Receiver,
        imports: StateImports,
        store: EventStore,
        remote: EventClient,
        lists: LargeResponseSlots,
        states: LargeResponseSlots,
        clock: IReactorTime,
    ) -> None:
        """`lists`: limits concurrent responses with lists of IDs and auth chains; `states`: those
        with complete states."""
        self._receiver = receiver
        self._imports = imports
        self._store = store
        self._remote = remote
        self._lists = lists
        self._states = states
        self._clock = clock

    async def fetch_state(
        self,
        server: ServerName,
        snapshot: RoomSnapshot,
        event_id: EventID,
        max_new: int = MAX_NEW,
        needed_in: NeededIn = NeededIn.SOME_STATE,
        *,
        time_left: TimeLeft = get_time_limit,
    ) -> RemoteState:
        """Fetch the state before an event from a server, and store its events.

        Invalid events are left out. `max_new`: the limit of new events. `needed_in`: how far the
        state is trusted. `time_left`: returns the time that is left. Raises RemoteError.
        """
        room_id, room_nid = snapshot.room_id, snapshot.room.room_nid

        async def ask_ids(max_bytes: int) -> StateIDs:
            return await self._remote.get_state_ids(
                server, room_id, event_id, seconds=time_left(), max_bytes=max_bytes
            )

        async def ask_state(max_bytes: int) -> StatePDUs:
            return await self._remote.get_state(
                server, room_id, event_id, seconds=time_left(), max_bytes=max_bytes
            )

        async with self._lists.read(server, ask_ids, time_left) as ids:
            pass
        wanted = {*ids.state, *ids.auth_chain}
        missing = wanted - (await self._store.get_entries(room_nid, wanted)).keys()
        if len(missing) > max_new:
            raise RemoteError(
                server, f"{len(missing)} events would be new in the state", retryable=False
            )
        if len(missing) <= MAX_SINGLE_REQUESTS:
            stored = await self._store_outliers(
                snapshot, await self._fetch(server, missing, time_left), missing
            )
            left_out = find_left_out(stored, ids.state, needed_in)
        else:
            async with self._states.read(server, ask_state, time_left) as state:
                pdus: list[Pdu] = [*state.auth_chain, *state.state]
                del state
                outcomes = await self._imports.store(snapshot.room, pdus)
                left_out = find_left_out(zip(pdus, outcomes, strict=True), ids.state, needed_in)
                del pdus
        entries = await self._store.get_entries(room_nid, ids.state)
        _check_is_state(server, entries.values())
        return RemoteState([EventID(name) for name in entries], left_out)

    async def fetch_auth_chain(
        self,
        server: ServerName,
        snapshot: RoomSnapshot,
        event: Event,
        missing: Collection[EventID],
        *,
        time_left: TimeLeft = get_time_limit,
    ) -> None:
        """Fetch and store the auth chain of an event, as far as the server has it.

        `missing`: its auth events that we do not have. Raises RemoteError.
        """

        async def ask(max_bytes: int) -> Sequence[Pdu]:
            return await self._remote.get_event_auth(
                server, snapshot.room_id, event.event_id, seconds=time_left(), max_bytes=max_bytes
            )

        async with self._lists.read(server, ask, time_left) as chain:
            await self._store_outliers(snapshot, chain, None)
            del chain
        lacking = set(missing) - (await self._store.get_event_nids(missing)).keys()
        if lacking:
            await self._store_outliers(
                snapshot, await self._fetch(server, lacking, time_left), lacking
            )

    async def _fetch(
        self, server: ServerName, event_ids: Iterable[EventID], time_left: TimeLeft
    ) -> list[Pdu]:
        async def fetch(event_id: EventID) -> Pdu:
            return await self._remote.get_event(server, event_id, seconds=time_left())

        return await map_concurrently(fetch, sorted(event_ids), CONCURRENT_REQUESTS)

    async def _store_outliers(
        self, snapshot: RoomSnapshot, pdus: Sequence[Pdu], wanted: Collection[EventID] | None
    ) -> list[tuple[Pdu, Outcome]]:
        """Store the wanted events (None: all), each after its auth events."""
        mappings = (as_mapping(pdu) for pdu in pdus)
        found = await parse_events(snapshot.version, snapshot.room_id, mappings, self._clock)
        events = {name: event for name, event in found.items() if wanted is None or name in wanted}
        ordered, _ = await sort_many_by_reference(events, self._clock)
        stored: list[tuple[Pdu, Outcome]] = []
        for start in range(0, len(ordered), MAX_PDUS):
            chunk = ordered[start : start + MAX_PDUS]
            outcomes = await self._receiver.receive_outliers(snapshot.room_id, chunk)
            stored += [(event.pdu, outcome) for event, outcome in zip(chunk, outcomes, strict=True)]
        return stored


def _check_is_state(server: ServerName, entries: Collection[StateEntry]) -> None:
    """Check that entries form a state. Raises RemoteError."""
    keys = [
        (entry.type, entry.state_key) for entry in entries if not entry.flags & EventFlag.REJECTED
    ]
    if CREATE not in keys:
        raise RemoteError(server, "the state lacks the room's create event", retryable=False)
    if len(set(keys)) != len(keys) or any(entry.state_key is None for entry in entries):
        raise RemoteError(server, "the state has several events for one state key", retryable=False)

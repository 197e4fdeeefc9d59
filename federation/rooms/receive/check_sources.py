"""Provides the inputs of the checks on receipt (`receipt_checks.CheckSources`) from stored
events."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID, ServerName
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.receipt_checks import AuthEvents
from federation.rooms.resolve import StateResolver
from federation.rooms.state_view import StateView
from storage.persist.room_writer import StateChange
from storage.rooms.rooms import RoomRow

GetSigners = Callable[[Event], Awaitable[Collection[ServerName]]]
"""Returns the required signers of an event whose valid signatures it has."""
PrefetchKeys = Callable[[Iterable[Event]], Awaitable[None]]
"""Prefetches the keys that the signatures of these events need."""
LacksKeys = Callable[[Event], bool]
"""Returns whether a signature of the event could not be checked because its key is unavailable."""
Approve = Callable[[int, Event, Event | None], Awaitable[bool]]
"""Returns whether the policy server of a room (its number) allows an event. The policy server is
named by the last argument, a state event; None: the room has none, and every event passes."""
ApproveMany = Callable[
    [int, Collection[Event], Event | None, Collection[EventID]],
    Awaitable[Mapping[EventID, bool | None]],
]
"""Returns the same for many events, before they are received in the room; None: the policy server
is unavailable. The last argument: events that the room allows to users of servers outside it."""
FindUnaltered = Callable[[int, Sequence[Event], ServerName | None], Awaitable[Sequence[Event]]]
"""Returns replacements of events of a room (its number) that another server sent with an altered
content: see `UnalteredCopies.find`."""


class CheckServices(msgspec.Struct, frozen=True):
    """The services that the checks on receipt use, for all rooms."""

    events: RoomEvents
    resolver: StateResolver
    get_signers: GetSigners
    approve: Approve
    approve_many: ApproveMany
    prefetch_keys: PrefetchKeys
    lacks_keys: LacksKeys
    find_unaltered: FindUnaltered

    async def find_create(
        self, room: RoomRow, event: Event
    ) -> tuple[Event | None, Collection[EventID]]:
        """Return the create event that the room ID names, in room versions with such IDs.

        Returns its ID again if it was rejected.
        """
        if not event.version.room_id_is_create_hash:
            return None, ()
        create_id = EventID("$" + room.room_id[1:])
        stored = await self.events.get_event(room.room_nid, create_id)
        if stored is None:
            return None, ()
        return stored.event, (create_id,) if stored.rejected else ()


class PolicyVerdicts(msgspec.Struct, frozen=True):
    """The verdicts of a room's policy server about events."""

    policy_event: Event | None = None
    """The state event that names the policy server."""
    allowed: Mapping[EventID, bool] = msgspec.field(default_factory=dict)
    """The verdicts that came before the events were received."""
    waiting: Collection[EventID] = ()
    """Events that wait for the policy server."""


NO_POLICY_VERDICTS: Final = PolicyVerdicts()


class StoredSources:
    """Implements `receipt_checks.CheckSources` for one event whose prev_events and auth_events are
    loaded."""

    def __init__(
        self,
        *,
        services: CheckServices,
        room: RoomRow,
        auth: Sequence[StoredEvent],
        before: StateChange | None,
        current: StateChange | None,
        signers: Collection[ServerName] | None,
        create: Event | None = None,
        verdicts: PolicyVerdicts = NO_POLICY_VERDICTS,
        loaded: StateView | None = None,
    ) -> None:
        """`before` is None if it is not known well enough; `current` is None if the event is not
        checked against the current state. `signers`: its verified signers, if known. `create`: the
        room's create event, if known. `verdicts`: names no policy server where none applies.
        `loaded`: see `StateResolver.load`."""
        self._services = services
        self._room = room
        self._auth = auth
        self._before = before
        self._current = current
        self._signers = signers
        self._create = create
        self._verdicts = verdicts
        self._loaded = loaded

    async def get_signers(self, event: Event) -> Collection[ServerName]:
        return await self._services.get_signers(event) if self._signers is None else self._signers

    async def get_auth_events(self, event: Event) -> AuthEvents:
        create, rejected = await self._find_create(event)
        by_id = {stored.event.event_id: stored.event for stored in self._auth}
        return AuthEvents(
            [by_id[name] for name in event.auth_events],
            {*rejected, *(stored.event.event_id for stored in self._auth if stored.rejected)},
            create,
        )

    async def _find_create(self, event: Event) -> tuple[Event | None, Collection[EventID]]:
        if self._create is not None and event.version.room_id_is_create_hash:
            return self._create, ()
        return await self._services.find_create(self._room, event)

    async def get_state_before(
        self, event: Event, keys: Collection[StateKey]
    ) -> Mapping[StateKey, Event] | None:
        return None if self._before is None else await self._load(self._before, keys)

    async def get_current_state(
        self, keys: Collection[StateKey]
    ) -> Mapping[StateKey, Event] | None:
        return None if self._current is None else await self._load(self._current, keys)

    async def is_room_create(self, event: Event) -> bool:
        return self._create is not None and event.event_id == self._create.event_id

    async def is_approved(self, event: Event) -> bool:
        allowed = self._verdicts.allowed.get(event.event_id)
        if allowed is not None:
            return allowed
        return await self._services.approve(self._room.room_nid, event, self._verdicts.policy_event)

    async def _load(
        self, state: StateChange, keys: Collection[StateKey]
    ) -> Mapping[StateKey, Event]:
        loaded = await self._services.resolver.load(self._room.room_nid, state, keys, self._loaded)
        return {key: stored.event for key, stored in loaded.items()}

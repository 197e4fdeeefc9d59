"""The input of a state resolution: a pool of the loaded events, and types of the functions that
look up state entries and power levels.

A resolution with incomplete input would give another state than on other servers. So missing input
ends the resolution with a `MissingInput` error that names it.
"""

from collections.abc import Callable, Iterable, Mapping

from federation.protocol.auth_rules import AuthError
from federation.protocol.event_auth import POWER_LEVELS, auth_events_needed, check_auth
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID
from federation.protocol.power_levels import PowerLevels

StateLookup = Callable[[StateKey], EventID | None]
"""A state, asked key by key: the entry, or None where the state has none."""

PowerLevelsOf = Callable[[EventID], EventID | None]
"""The power levels among the auth events of an event."""


class MissingInput(LookupError):
    """The caller did not load something that the resolution needs. This is always a bug of this
    server."""


class MissingEvent(MissingInput):
    """`event_id` was needed and not among the events given."""

    def __init__(self, event_id: EventID) -> None:
        super().__init__(f"State resolution needs the event {event_id}, which was not loaded")
        self.event_id = event_id


class MissingStateKey(MissingInput):
    """`key` was needed and not among the keys of the undisputed state that were looked up."""

    def __init__(self, key: StateKey) -> None:
        super().__init__(
            f"State resolution needs the undisputed {key.type} {key.state_key!r}, "
            "which was not looked up"
        )
        self.key = key


class MissingLineage(MissingInput):
    """`event_id` was needed and not among the events whose power lineage was given."""

    def __init__(self, event_id: EventID) -> None:
        super().__init__(
            f"State resolution needs the power lineage of {event_id}, which was not given"
        )
        self.event_id = event_id


class EventPool:
    """The loaded events by id, always with the room's create event. Parses and caches their power
    levels."""

    __slots__ = ("_events", "_levels", "create")

    def __init__(self, events: Mapping[EventID, Event], create: Event) -> None:
        self._events = events
        self._levels: dict[EventID | None, PowerLevels] = {}
        self.create = create

    def __getitem__(self, event_id: EventID) -> Event:
        """Raises `MissingEvent`."""
        event = self._events.get(event_id)
        if event is not None:
            return event
        if event_id == self.create.event_id:
            return self.create
        raise MissingEvent(event_id)

    def power_levels_of(self, event_id: EventID) -> EventID | None:
        """The power levels among the auth events of an event. Raises `MissingEvent`."""
        return next(
            (auth_id for auth_id in self[event_id].auth_events if sets_power_levels(self[auth_id])),
            None,
        )

    def levels(self, levels_id: EventID | None) -> PowerLevels:
        """Return the parsed levels of an m.room.power_levels event (None: there is none), cached.

        Raises `MissingEvent`.
        """
        levels = self._levels.get(levels_id)
        if levels is None:
            event = None if levels_id is None else self[levels_id]
            levels = self._levels[levels_id] = PowerLevels.of(
                self.create.version, event, self.create
            )
        return levels

    def allows(self, event: Event, state: StateLookup, auth_events: Iterable[EventID] = ()) -> bool:
        """Whether the authorization rules allow the event in that state.

        What the rules need and `state` has not is taken from `auth_events`. Raises `MissingEvent`.
        """
        needed = auth_events_needed(event.version, event)
        around: dict[StateKey, Event] = {}
        for key in needed:
            event_id = state(key)
            if event_id is not None:
                around[key] = self[event_id]
        if len(around) < len(needed):
            for auth_id in auth_events:
                auth_event = self[auth_id]
                if auth_event.state_key is not None and auth_event.key in needed:
                    around.setdefault(auth_event.key, auth_event)
        levels_event = around.get(POWER_LEVELS)
        levels = self.levels(None if levels_event is None else levels_event.event_id)
        try:
            check_auth(event, around, create=self.create, power_levels=levels)
        except AuthError:
            return False
        return True


def sets_power_levels(event: Event) -> bool:
    """Whether the event sets the power levels of its room."""
    return event.type == POWER_LEVELS.type and event.state_key == POWER_LEVELS.state_key

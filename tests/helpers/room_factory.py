"""Builds rooms of any version in memory. Events have IDs, `prev_events`, `auth_events` and `depth`
as a server sets them.

    room = Room("11")                       # with its create event; @alice:alpha.example made it
    room.join(ALICE)
    room.join_rules("public")
    room.join(BOB)
    branch = room.fork()                    # same past, its own future
    branch.message(BOB, "over here")
    room.message(ALICE, "over there")
    room.merge(branch)                      # the next event has both as prev_events

Each event is checked against the room's state, so a room is valid unless `check=False`. Hashes and
signatures are placeholders. Nothing is random: the same calls give the same IDs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any, Final

from federation.protocol.event_auth import CREATE, POWER_LEVELS, auth_keys, check_auth
from federation.protocol.events import Event, StateKey, parse_event
from federation.protocol.ids import EventID
from federation.protocol.membership_auth import JOIN_RULES, MEMBER
from federation.protocol.room_versions import (
    DEFAULT_ROOM_VERSION,
    ROOM_VERSIONS,
    EventFormat,
    RoomVersion,
)

ALICE: Final = "@alice:alpha.example"
BOB: Final = "@bob:alpha.example"
CHARLIE: Final = "@charlie:gamma.example"

State = Mapping[StateKey, Event]
Resolve = Callable[[Sequence[State]], State]


def last_wins(states: Sequence[State]) -> State:
    """Merge states; the later state wins. Use it only for branches without conflicts."""
    merged: dict[StateKey, Event] = {}
    for state in states:
        merged.update(state)
    return merged


class Room:
    """A room and a position in it: the next event follows `heads`. Forks share the events but not
    the position."""

    def __init__(
        self,
        version: RoomVersion | str = DEFAULT_ROOM_VERSION,
        *,
        creator: str = ALICE,
        content: Mapping[str, Any] | None = None,
        resolve: Resolve = last_wins,
    ) -> None:
        """`content` is added to the create event's content. `resolve` merges the states after
        several heads."""
        self.version = ROOM_VERSIONS[version] if isinstance(version, str) else version
        self.room_id: str | None = (
            None if self.version.room_id_is_create_hash else f"!room:{_server(creator)}"
        )
        self.events: dict[EventID, Event] = {}
        """All events, including those of forks, in the order in which they were sent."""
        self.states: dict[EventID, State] = {}
        """The state after each event."""
        self.heads: tuple[EventID, ...] = ()
        self._resolve = resolve
        self._counter = count(1)
        own = {} if self.version.creator_is_sender else {"creator": creator}
        self.create = self.add(
            self.build(
                creator,
                "m.room.create",
                {"room_version": self.version.identifier, **own, **(content or {})},
                "",
            )
        )
        self.room_id = self.create.room_id

    @property
    def state(self) -> State:
        """Return the state after the heads."""
        states = [self.states[head] for head in self.heads]
        return states[0] if len(states) == 1 else self._resolve(states) if states else {}

    def fork(self) -> "Room":
        """Return the same room at the same position. Later events of the two are separate
        branches."""
        branch = object.__new__(Room)
        branch.__dict__.update(self.__dict__)
        return branch

    def merge(self, *branches: "Room") -> None:
        """Add the heads of the branches, so that the next event follows them too."""
        heads = (*self.heads, *(head for branch in branches for head in branch.heads))
        self.heads = tuple(dict.fromkeys(heads))

    def build(
        self,
        sender: str,
        type: str,
        content: Mapping[str, Any] | None = None,
        state_key: str | None = None,
        *,
        prev: Iterable[Event] | None = None,
        auth: Iterable[Event] | None = None,
        **fields: Any,
    ) -> Event:
        """Build the next event without adding it to the room. `fields` are top-level fields, such
        as `redacts`."""
        number = next(self._counter)
        content = dict(content or {})
        prev_events = [self.events[head] for head in self.heads] if prev is None else list(prev)
        if auth is None:
            keys = sorted(auth_keys(self.version, type, sender, state_key, content))
            state = self.state
            auth = [state[key] for key in keys if key in state]
        pdu: dict[str, Any] = {
            "type": type,
            "sender": sender,
            "content": content,
            "depth": 1 + max((event.depth for event in prev_events), default=0),
            "origin_server_ts": 1_700_000_000_000 + number * 1000,
            "prev_events": [self._reference(event) for event in prev_events],
            "auth_events": [self._reference(event) for event in auth],
            "hashes": {"sha256": "placeholder"},
            "signatures": {_server(sender): {"ed25519:1": "placeholder"}},
            **fields,
        }
        if state_key is not None:
            pdu["state_key"] = state_key
        if self.room_id is not None:
            pdu.setdefault("room_id", self.room_id)
        if self.version.event_format is EventFormat.V1:
            pdu.setdefault("event_id", f"$event{number}:{_server(sender)}")
        return parse_event(self.version, pdu)

    def add(self, event: Event, *, check: bool = True) -> Event:
        """Add an event to the room. Raises `AuthError` if the state before it does not allow it,
        unless `check` is off."""
        before = {} if event.type == CREATE.type else self._state_before(event)
        if check:
            check_auth(event, before, create=event if event.type == CREATE.type else self.create)
        self.events[event.event_id] = event
        self.states[event.event_id] = (
            before if event.state_key is None else {**before, event.key: event}
        )
        self.heads = (
            *(head for head in self.heads if head not in event.prev_events),
            event.event_id,
        )
        return event

    def send(
        self,
        sender: str,
        type: str,
        content: Mapping[str, Any] | None = None,
        state_key: str | None = None,
        *,
        check: bool = True,
        **fields: Any,
    ) -> Event:
        """Build an event and add it to the room."""
        return self.add(self.build(sender, type, content, state_key, **fields), check=check)

    # ---- common events

    def member(
        self, sender: str, target: str, membership: str, *, check: bool = True, **content: Any
    ) -> Event:
        return self.send(sender, MEMBER, {"membership": membership, **content}, target, check=check)

    def join(self, user: str, **content: Any) -> Event:
        return self.member(user, user, "join", **content)

    def invite(self, sender: str, target: str, **content: Any) -> Event:
        return self.member(sender, target, "invite", **content)

    def leave(self, user: str) -> Event:
        return self.member(user, user, "leave")

    def kick(self, sender: str, target: str) -> Event:
        return self.member(sender, target, "leave")

    def ban(self, sender: str, target: str) -> Event:
        return self.member(sender, target, "ban")

    def knock(self, user: str) -> Event:
        return self.member(user, user, "knock")

    def join_rules(self, rule: str, *, sender: str = ALICE, **content: Any) -> Event:
        return self.send(sender, JOIN_RULES.type, {"join_rule": rule, **content}, "")

    def power(self, sender: str = ALICE, *, check: bool = True, **content: Any) -> Event:
        """Send m.room.power_levels with this content. `users` must have the creator, unless the
        room version forbids that."""
        return self.send(sender, POWER_LEVELS.type, content, "", check=check)

    def message(self, sender: str, body: str = "hello") -> Event:
        return self.send(sender, "m.room.message", {"msgtype": "m.text", "body": body})

    def topic(self, sender: str, topic: str, *, check: bool = True) -> Event:
        return self.send(sender, "m.room.topic", {"topic": topic}, "", check=check)

    def history_visibility(self, value: str, *, sender: str = ALICE) -> Event:
        return self.send(sender, "m.room.history_visibility", {"history_visibility": value}, "")

    def redact(self, sender: str, target: Event, *, check: bool = True) -> Event:
        if self.version.redacts_in_content:
            return self.send(sender, "m.room.redaction", {"redacts": target.event_id}, check=check)
        return self.send(sender, "m.room.redaction", {}, check=check, redacts=target.event_id)

    def auth_chain(self, *events: Event) -> dict[EventID, Event]:
        """Return the auth chain of the events, without themselves. It has the create event in every
        room version."""
        chain: dict[EventID, Event] = {}
        waiting = list(events)
        while waiting:
            event = waiting.pop()
            ids = list(event.auth_events)
            if self.version.room_id_is_create_hash and event is not self.create:
                ids.append(self.create.event_id)
            for event_id in ids:
                if event_id not in chain:
                    chain[event_id] = self.events[event_id]
                    waiting.append(self.events[event_id])
        return chain

    def _state_before(self, event: Event) -> State:
        states = [self.states[prev] for prev in event.prev_events]
        return states[0] if len(states) == 1 else self._resolve(states)

    def _reference(self, event: Event) -> object:
        if self.version.event_format is EventFormat.V1:
            return [event.event_id, {"sha256": "placeholder"}]
        return event.event_id


def public_room(
    version: RoomVersion | str = DEFAULT_ROOM_VERSION, *joined: str, resolve: Resolve = last_wins
) -> Room:
    """Create Alice's public room with power levels, which the given users have joined."""
    room = Room(version, resolve=resolve)
    room.join(ALICE)
    room.power(users={} if room.version.creators_privileged else {ALICE: 100})
    room.join_rules("public")
    for user in joined:
        room.join(user)
    return room


def _server(user_id: str) -> str:
    return user_id.partition(":")[2]

"""Random rooms of any version for Hypothesis: they grow by legal and illegal steps, fork and merge.

A room is grown by a pure function from a list of `Step`s, small numbers that are interpreted in the
context of the room at that point. So every list of steps is a room, examples shrink well, and a
failing case is a short JSON file.

A step that its own auth events do not allow leaves no trace, as on a server that drops or rejects
it for good. One that they allow and the state before it does not is stored as a rejected event. A
step may be sent from a stale or invented view of the room, by a server that missed or hides
something. The same holds for the states of a `Dispute`, as a server receives them from others.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import Any, Final

import msgspec
from hypothesis import strategies as st

from federation.protocol.auth_rules import AuthError
from federation.protocol.event_auth import auth_keys, check_auth, check_auth_events
from federation.protocol.events import Event, StateKey, parse_event
from federation.protocol.ids import EventID
from federation.protocol.room_versions import EventFormat, RoomVersion
from tests.federation.protocol.oracle_state_resolution import Oracle

USERS: Final = ("@alice:a.test", "@bob:b.test", "@carol:b.test", "@dave:c.test")
"""The first creates the room. In rooms with additional creators the second is one."""
JOIN_RULES: Final = ("public", "invite", "knock", "restricted", "knock_restricted", "private")
LEVELS: Final = (100, 50, 0, 100)

STEP_KINDS: Final = (
    "join", "join", "join", "join", "rename", "leave", "kick", "ban", "unban", "invite", "knock",
    "restricted_join", "power", "power", "power", "power", "join_rules", "join_rules", "topic",
    "topic", "own_state", "message", "third_party_invite",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One attempt to send an event. Numbers wrap round, so that any of them means something."""

    kind: str
    sender: int
    target: int
    value: int
    """A join rule, power levels, a text: whatever the kind needs."""
    parents: tuple[int, ...]
    """How far back in the room its previous events are; 0 is the latest event."""
    view: int
    """0: the sender names the auth events of the state before; n > 0: of the state n events
    back."""
    time: int
    depth_error: int


@dataclass(frozen=True, slots=True)
class Claim:
    """One entry of a claimed state: the key, counted among all keys, gets one of its events, or
    none."""

    key: int
    event: int
    """-1 removes the entry."""


@dataclass(slots=True)
class GrownRoom:
    """A room as one server that has seen everything knows it."""

    version: RoomVersion
    create: Event
    events: dict[EventID, Event] = field(default_factory=dict)
    """In the order in which they arrived."""
    states: dict[EventID, dict[StateKey, EventID]] = field(default_factory=dict)
    """The state after each event."""
    rejected: set[EventID] = field(default_factory=set)

    def back(self, distance: int) -> EventID:
        """The event that many before the latest."""
        order = list(self.events)
        return order[-1 - distance % len(order)]


class Dispute(msgspec.Struct, frozen=True):
    """States of one room that are to be resolved, and what is needed for it."""

    room: GrownRoom
    state_sets: Sequence[Mapping[StateKey, EventID]]
    rejected: Collection[EventID]

    def oracle(self) -> Oracle:
        """A fresh oracle for this dispute."""
        return Oracle(
            self.room.version, self.state_sets, self.room.events, self.room.create, self.rejected
        )


# ---- growing


def build(
    version: RoomVersion,
    create: Event | None,
    type: str,
    sender: str,
    state_key: str | None,
    content: Mapping[str, Any],
    *,
    event_id: str,
    prev_events: Sequence[str] = (),
    auth_events: Sequence[str] = (),
    time: int = 0,
    depth: int = 0,
) -> Event:
    """An event in the version's format, whose id is `event_id` where events say their own.

    Its hashes and signatures are not valid: nothing that is tested with these rooms looks at them.
    """
    pairs = version.event_format is EventFormat.V1
    pdu: dict[str, Any] = {
        "type": type,
        "sender": sender,
        "content": dict(content),
        "origin_server_ts": time,
        "depth": depth,
        "prev_events": [[parent, {}] for parent in prev_events] if pairs else list(prev_events),
        "auth_events": [[auth_id, {}] for auth_id in auth_events] if pairs else list(auth_events),
        # Redaction drops much of a content; what is left here gives different contents different
        # ids all the same.
        "hashes": {"sha256": str(content)},
        "signatures": {},
    }
    if state_key is not None:
        pdu["state_key"] = state_key
    if not version.room_id_is_create_hash:
        pdu["room_id"] = "!room:a.test"
    elif create is not None:
        pdu["room_id"] = create.room_id
    if pairs:
        pdu["event_id"] = event_id
    return parse_event(version, pdu)


def grow(version: RoomVersion, steps: Sequence[Step]) -> GrownRoom:
    """The room that the steps make, after a beginning that every room has: public, two admins, one
    moderator."""
    beginning = _begin(version)
    room = replace(
        beginning, events=dict(beginning.events), states=dict(beginning.states), rejected=set()
    )
    for step in steps:
        _take(room, step)
    return room


def dispute(
    room: GrownRoom, views: Sequence[tuple[int, Sequence[Claim]]], falsely_rejected: Sequence[int]
) -> Dispute:
    """The states after some events of the room, each as someone claims it to be."""
    claimed = [_claim(room, room.states[room.back(distance)], claims) for distance, claims in views]
    return Dispute(
        room, claimed, room.rejected | {room.back(distance) for distance in falsely_rejected}
    )


@cache
def _begin(version: RoomVersion) -> GrownRoom:
    alice, bob, carol, _ = USERS
    content: dict[str, Any] = {"room_version": version.identifier}
    if not version.creator_is_sender:
        content["creator"] = alice
    if version.creators_privileged:
        content["additional_creators"] = [bob]
    create = build(version, None, "m.room.create", alice, "", content, event_id="$create:a.test")
    room = GrownRoom(
        version, create, {create.event_id: create}, {create.event_id: {create.key: create.event_id}}
    )
    users = {} if version.creators_privileged else {alice: 100, bob: 100}
    beginning: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("m.room.member", alice, alice, {"membership": "join"}),
        ("m.room.power_levels", alice, "", {"users": {**users, carol: 50}}),
        ("m.room.join_rules", alice, "", {"join_rule": "public"}),
        ("m.room.member", bob, bob, {"membership": "join"}),
        ("m.room.member", carol, carol, {"membership": "join"}),
    )
    for type, sender, state_key, own_content in beginning:
        _send(room, type, sender, state_key, own_content, [room.back(0)], None, 0, 0)
    return room


def _take(room: GrownRoom, step: Step) -> None:
    sender = USERS[step.sender % len(USERS)]
    target = USERS[step.target % len(USERS)]
    type, state_key, content = _read(room.version, step, sender, target)
    parents = list(dict.fromkeys(room.back(distance) for distance in step.parents)) or [
        room.back(0)
    ]
    view = None if step.view == 0 else room.states[room.back(step.view)]
    _send(room, type, sender, state_key, content, parents, view, step.time, step.depth_error)


def _read(
    version: RoomVersion, step: Step, sender: str, target: str
) -> tuple[str, str | None, dict[str, Any]]:
    """Return the event that the step sends: type, state key, content."""
    match step.kind:
        case "join" | "leave" | "knock":
            return "m.room.member", sender, {"membership": step.kind}
        case "rename":
            return "m.room.member", sender, {"membership": "join", "displayname": str(step.value)}
        case "kick" | "unban":
            return "m.room.member", target, {"membership": "leave"}
        case "ban" | "invite":
            return "m.room.member", target, {"membership": step.kind}
        case "restricted_join":
            return (
                "m.room.member",
                sender,
                {"membership": "join", "join_authorised_via_users_server": target},
            )
        case "power":
            return "m.room.power_levels", "", _read_levels(version, step)
        case "join_rules":
            return "m.room.join_rules", "", {"join_rule": JOIN_RULES[step.value % len(JOIN_RULES)]}
        case "topic":
            return "m.room.topic", "", {"topic": str(step.value)}
        case "own_state":
            return "test.own", sender, {"value": step.value}
        case "third_party_invite":
            return "m.room.third_party_invite", str(step.value % 2), {"display_name": "someone"}
        case _:
            return "m.room.message", None, {"body": str(step.value)}


def _read_levels(version: RoomVersion, step: Step) -> dict[str, Any]:
    """Power levels: two bits of `value` for each user, one for whether a topic is for
    moderators."""
    users: dict[str, Any] = {}
    for index, user in enumerate(USERS):
        if not (version.creators_privileged and index < 2 and step.value % 16):
            users[user] = LEVELS[(step.value >> (2 * index)) % 4]
    if not version.integer_power_levels and step.value % 3 == 0:
        users = {user: str(level) for user, level in users.items()}
    return {"users": users, "state_default": LEVELS[(step.value >> 8) % 2]}


def _send(
    room: GrownRoom,
    type: str,
    sender: str,
    state_key: str | None,
    content: dict[str, Any],
    parents: list[EventID],
    view: Mapping[StateKey, EventID] | None,
    time: int,
    depth_error: int,
) -> None:
    """Add an event to the room if its own auth events allow it."""
    before = _state_before(room, parents)
    named = before if view is None else view
    needed = auth_keys(room.version, type, sender, state_key, content)
    auth_ids = sorted(named[key] for key in needed if key in named)
    depth = max(0, 1 + max(room.events[parent].depth for parent in parents) + depth_error)
    number = len(room.events)
    event = build(
        room.version,
        room.create,
        type,
        sender,
        state_key,
        content,
        # Where events say their own ids, the order of ids has nothing to do with that of arrival.
        event_id=f"${number * 7 % 31}-{number}:{sender.partition(':')[2]}",
        prev_events=parents,
        auth_events=auth_ids,
        time=time,
        depth=depth,
    )
    if event.event_id in room.events:
        return
    auth_events = [room.events[auth_id] for auth_id in auth_ids]
    try:
        check_auth_events(event, auth_events, rejected=room.rejected, create=room.create)
        check_auth(
            event, {auth_event.key: auth_event for auth_event in auth_events}, create=room.create
        )
    except AuthError:
        return
    room.events[event.event_id] = event
    room.states[event.event_id] = before
    try:
        check_auth(
            event,
            {key: room.events[before[key]] for key in needed if key in before},
            create=room.create,
        )
    except AuthError:
        room.rejected.add(event.event_id)
        return
    if event.state_key is not None:
        room.states[event.event_id] = {**before, event.key: event.event_id}


def _state_before(room: GrownRoom, parents: Sequence[EventID]) -> dict[StateKey, EventID]:
    states = [room.states[parent] for parent in parents]
    if len(states) == 1:
        return states[0]
    return Oracle(room.version, states, room.events, room.create, room.rejected).resolve()


def _claim(
    room: GrownRoom, state: Mapping[StateKey, EventID], claims: Sequence[Claim]
) -> dict[StateKey, EventID]:
    by_key: dict[StateKey, list[EventID]] = {}
    for event in room.events.values():
        if event.state_key is not None:
            by_key.setdefault(event.key, []).append(event.event_id)
    claimed = dict(state)
    for claim in claims:
        key = sorted(by_key)[claim.key % len(by_key)]
        if claim.event < 0:
            claimed.pop(key, None)
        else:
            claimed[key] = by_key[key][claim.event % len(by_key[key])]
    return claimed


# ---- strategies

_FEW: Final = st.integers(0, 7)

# What takes few values is drawn at once: each draw costs Hypothesis more than a step costs the
# room.
_WHO_DOES_WHAT: Final = st.sampled_from(tuple(product(STEP_KINDS, (0, 0, 1, 1, 2, 3), range(4))))
_HOW: Final = st.sampled_from(
    tuple(product((0, 0, 0, 0, 1, 2, 4, 8), range(5), (0, 0, 0, 1, -1, 3, -4)))
)
_PARENTS: Final = st.one_of(st.just((0,)), st.lists(_FEW, min_size=1, max_size=3).map(tuple))


def _step(
    what: tuple[str, int, int], value: int, parents: tuple[int, ...], how: tuple[int, int, int]
) -> Step:
    kind, sender, target = what
    view, time, depth_error = how
    return Step(kind, sender, target, value, parents, view, time, depth_error)


STEPS: Final[st.SearchStrategy[Step]] = st.builds(
    _step, _WHO_DOES_WHAT, st.integers(0, 511), _PARENTS, _HOW
)
CLAIMS: Final[st.SearchStrategy[Claim]] = st.builds(
    Claim, key=st.integers(0, 15), event=st.integers(-1, 5)
)


def rooms(version: RoomVersion, *, max_steps: int = 30) -> st.SearchStrategy[GrownRoom]:
    """Rooms of that version."""
    return st.lists(STEPS, min_size=min(8, max_steps), max_size=max_steps).map(
        lambda steps: grow(version, steps)
    )


@cache
def disputes(version: RoomVersion, *, max_steps: int = 30) -> st.SearchStrategy[Dispute]:
    """Two to four states of a room of that version, true or claimed, with up to two events wrongly
    held for rejected."""
    view = st.tuples(st.integers(0, 15), st.lists(CLAIMS, max_size=3))
    return st.builds(
        dispute,
        rooms(version, max_steps=max_steps),
        st.lists(view, min_size=2, max_size=4),
        st.lists(_FEW, max_size=2),
    )

"""Random questions to the authorization rules: an event and a state, legal or not, well-formed or
just so.

States are drawn entry by entry, without asking whether a room could have come to them: the rules
must have an answer for each. New power levels are drawn as changes of the current ones, so that the
points about changes are reached; and a `Focus` draws questions that get past the first rules, to
those about memberships or about power levels.

Strategies are made once: Hypothesis takes longer to look one over than to draw from it. What is
made of an answer that was drawn before is therefore drawn by `pick`.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache, lru_cache
from typing import Any, Final

from canonicaljson import encode_canonical_json
from hypothesis import strategies as st
from nacl.signing import SigningKey

from federation.protocol.event_auth import auth_keys
from federation.protocol.events import Event, StateKey, parse_event
from federation.protocol.room_versions import ROOM_VERSIONS, EventFormat, RoomVersion
from tests.federation.protocol.oracle_question import Question
from tests.helpers.room_factory import ALICE, BOB, CHARLIE

DORA: Final = "@dora:gamma.example"
USERS: Final = [ALICE, BOB, CHARLIE, DORA]
SERVERS: Final = ["alpha.example", "gamma.example"]
TYPES: Final = [
    "m.room.message",
    "m.room.topic",
    "m.room.power_levels",
    "m.room.redaction",
    "org.example.custom",
]
OTHER_TYPES: Final = [
    "m.room.member",
    "m.room.create",
    "m.room.aliases",
    "m.room.third_party_invite",
]
KEYS: Final = [SigningKey(bytes([number]) * 32) for number in (1, 2)]
NAMED: Final = [
    "users_default",
    "events_default",
    "state_default",
    "ban",
    "redact",
    "kick",
    "invite",
]
ABSENT: Final = object()


class Focus(Enum):
    ANYTHING = "anything"
    MEMBERSHIPS = "memberships"
    POWER_LEVELS = "power levels"


@dataclass(frozen=True)
class Drawn:
    """A question in both forms: for the code under test, and for the oracle."""

    event: Event
    create: Event
    state: Mapping[StateKey, Event]
    auth_events: list[Event]
    rejected: frozenset[str]
    signed_by: frozenset[str]
    question: Question


@lru_cache(500)
def _numbered(length: int, values: str) -> st.SearchStrategy[tuple[int, str]]:
    return st.sampled_from([(number, values) for number in range(length)])


def pick(draw: st.DrawFn, *values: Any) -> Any:
    """One of these."""
    # Hypothesis tries what was drawn from one strategy in other places that draw from it: hence one
    # for each set of values.
    number, _ = draw(_numbered(len(values), repr(values)))
    return values[number]


def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def content(**fields: Any) -> dict[str, Any]:
    """An object of these fields; those drawn as ABSENT are left out."""
    return {key: value for key, value in fields.items() if value is not ABSENT}


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).rstrip(b"=").decode()


@cache
def level(version: RoomVersion, *, odd: bool) -> st.SearchStrategy[Any]:
    integers = some(0, 1, 49, 50, 50, 51, 100, -1)
    strings = some("50", " 100 ", "+51", "-5", "0049")
    odd_values: list[Any] = [True, None, [], {}, "", "x", "1_0", "5.0", "9" * 400, "+-1"]
    if not version.strict_canonical_json:
        odd_values += [50.9, 1e2, -0.5, 0.0]
    if odd:
        return st.one_of(integers, integers, integers, strings, st.sampled_from(odd_values))
    return integers if version.integer_power_levels else st.one_of(integers, integers, strings)


@cache
def power_content(version: RoomVersion, focus: Focus) -> st.SearchStrategy[dict[str, Any]]:
    """Power levels as a room may have them; in focus, most users have enough to change them."""
    plain = level(version, odd=False)
    users = st.dictionaries(st.sampled_from(USERS), plain)
    if focus is not Focus.ANYTHING:
        users = st.fixed_dictionaries(
            {BOB: some(0, 50, 51), CHARLIE: some(49, 50, 51), DORA: some(0, 50, 100)}
        )
    return st.fixed_dictionaries(
        {
            "users": users,
            "events": st.dictionaries(st.sampled_from(TYPES), plain),
            "notifications": st.one_of(
                st.just(ABSENT), st.dictionaries(some("room", "other"), plain)
            ),
            **{name: st.one_of(st.just(ABSENT), st.just(ABSENT), plain) for name in NAMED},
        }
    ).map(lambda drawn: content(**drawn))


CHANGED: Final = st.lists(some("users", "users", "events", "notifications", *NAMED), max_size=4)
DROPPED: Final = st.lists(some("users", "events", *NAMED), max_size=1)


def changed_power_content(
    draw: st.DrawFn, version: RoomVersion, current: dict[str, Any]
) -> dict[str, Any]:
    odd = pick(draw, False, False, True)
    value = level(version, odd=odd)
    new = {key: dict(item) if isinstance(item, dict) else item for key, item in current.items()}
    for name in draw(CHANGED):
        if name in NAMED:
            new[name] = draw(value)
        elif odd and pick(draw, False, False, True):
            new[name] = pick(draw, 5, [], "x")
        else:
            keys = {"users": USERS, "events": TYPES, "notifications": ["room", "other"]}[name]
            if odd and name == "users":
                keys = [*keys, "bob", "@bob"]
            entry = pick(draw, *keys)
            entries = new.setdefault(name, {})
            if isinstance(entries, dict):
                entries[entry] = draw(value)
    for name in draw(DROPPED):
        new.pop(name, None)
    return new


def third_party_signed(draw: st.DrawFn, target: str) -> Any:
    if pick(draw, *[False] * 9, True):
        return pick(draw, 5, {}, {"mxid": target}, {"token": "tok"}, {"mxid": 5, "token": "tok"})
    signed: dict[str, Any] = {
        "mxid": pick(draw, target, target, target, BOB),
        "token": pick(draw, *["tok"] * 5, "x", 5),
    }
    signature = base64_of(pick(draw, *KEYS).sign(encode_canonical_json(signed)).signature)
    signed["signatures"] = pick(
        draw,
        {"id.example": {"ed25519:0": signature}},
        {"id.example": {"ed25519:0": "short", "ed25519:1": signature}, "other.example": {}},
        {"id.example": {"ed25519:0": base64_of(b"0" * 64)}},
        {},
    )
    return signed


def member_content(draw: st.DrawFn, target: str) -> dict[str, Any]:
    drawn = content(
        membership=pick(
            draw,
            *["join"] * 4,
            *["invite"] * 4,
            *["leave"] * 3,
            "ban",
            "ban",
            "knock",
            "knock",
            "odd",
            5,
            ABSENT,
        ),
        join_authorised_via_users_server=pick(
            draw, *[ABSENT] * 9, ALICE, BOB, CHARLIE, 5, "nobody"
        ),
    )
    if drawn.get("membership") == "invite" and pick(draw, False, True):
        if pick(draw, *[True] * 5, False):
            drawn["third_party_invite"] = {"signed": third_party_signed(draw, target)}
        else:
            drawn["third_party_invite"] = pick(draw, {}, "x", {"display_name": "Bob"})
    return drawn


class Maker:
    """Makes events of one room of that version."""

    def __init__(self, version: RoomVersion) -> None:
        self.version = version
        self.room_id: str | None = None if version.room_id_is_create_hash else "!room:alpha.example"
        self.made = 0

    def event(
        self, sender: str, type: str, content: Any, state_key: str | None = None, **fields: Any
    ) -> Event:
        self.made += 1
        pdu = {
            "type": type,
            "sender": sender,
            "content": content,
            "depth": self.made,
            "origin_server_ts": self.made,
            "prev_events": [],
            "auth_events": [],
            "hashes": {"sha256": "placeholder"},
            "signatures": {},
            "room_id": self.room_id,
            **fields,
        }
        if state_key is not None:
            pdu["state_key"] = state_key
        if pdu["room_id"] is None:
            del pdu["room_id"]
        if self.version.event_format is EventFormat.V1:
            pdu.setdefault("event_id", f"$event{self.made}:{sender.partition(':')[2]}")
        return parse_event(self.version, pdu)

    def reference(self, event_id: str) -> Any:
        return [event_id, {}] if self.version.event_format is EventFormat.V1 else event_id


@cache
def questions(identifier: str, focus: Focus) -> st.SearchStrategy[Drawn]:
    return st.composite(_question)(identifier, focus)


def _question(draw: st.DrawFn, identifier: str, focus: Focus) -> Drawn:
    version = ROOM_VERSIONS[identifier]
    make = Maker(version)
    create = make.event(
        ALICE,
        "m.room.create",
        content(
            creator=pick(draw, ALICE, ALICE, ALICE, BOB, 5, ABSENT),
            additional_creators=pick(
                draw, *[ABSENT] * (3 if focus is Focus.ANYTHING else 12), [BOB], [BOB, CHARLIE]
            ),
            **{"m.federate": pick(draw, *[ABSENT] * 9, True, False, "false")},
        ),
        "",
    )
    make.room_id = create.room_id
    state = _states(draw, version, make, focus)
    event, prev_events = _event(draw, version, make, create, state, focus)
    if not version.room_id_is_create_hash:
        state[StateKey("m.room.create", "")] = create
    auth_events, rejected = _auth_events(draw, make, create, event, state, focus)
    signed_by = pick(
        draw, frozenset(SERVERS), frozenset(SERVERS), frozenset(SERVERS[:1]), frozenset()
    )
    question = Question(
        version=identifier,
        event=event.pdu,
        event_id=event.event_id,
        create=create.pdu,
        create_id=create.event_id,
        state={(key.type, key.state_key): entry.pdu for key, entry in state.items()},
        auth_events=[(auth.event_id, _pdu_of_room(auth)) for auth in auth_events],
        rejected=rejected,
        signed_by=signed_by,
        prev_events=prev_events,
    )
    return Drawn(event, create, state, auth_events, rejected, signed_by, question)


def _pdu_of_room(event: Event) -> Mapping[str, Any]:
    """The create event of a room that is named after it belongs to that room, although it does not
    say so."""
    return {**event.pdu, "room_id": event.room_id}


def _states(
    draw: st.DrawFn, version: RoomVersion, make: Maker, focus: Focus
) -> dict[StateKey, Event]:
    events = []
    usual = {Focus.ANYTHING: 14, Focus.MEMBERSHIPS: 8, Focus.POWER_LEVELS: 60}[focus]
    for user in USERS:
        membership = pick(
            draw,
            *["join"] * usual,
            *["invite", "ban"] * 2,
            "invite",
            "leave",
            "ban",
            "knock",
            "odd",
            5,
            None,
            ABSENT,
            ABSENT,
        )
        if membership is not ABSENT:
            events.append(
                make.event(
                    user, "m.room.member", {"membership": membership} if membership else {}, user
                )
            )
    rule = pick(
        draw,
        "public",
        "public",
        "invite",
        "knock",
        "restricted",
        "knock_restricted",
        "private",
        5,
        None,
        ABSENT,
        ABSENT,
    )
    if rule is not ABSENT:
        events.append(
            make.event(ALICE, "m.room.join_rules", {"join_rule": rule} if rule else {}, "")
        )
    if pick(draw, True, True, True, False):
        events.append(
            make.event(ALICE, "m.room.power_levels", draw(power_content(version, focus)), "")
        )
    if pick(draw, True, True, True, False):
        public_keys = [{"public_key": base64_of(bytes(key.verify_key))} for key in KEYS]
        keys = pick(
            draw,
            public_keys[0],
            {"public_keys": public_keys},
            {"public_keys": public_keys[1:], "public_key": "x"},
            {},
        )
        events.append(make.event(pick(draw, *USERS), "m.room.third_party_invite", keys, "tok"))
    return {event.key: event for event in events}


def _event(
    draw: st.DrawFn,
    version: RoomVersion,
    make: Maker,
    create: Event,
    state: Mapping[StateKey, Event],
    focus: Focus,
) -> tuple[Event, list[str]]:
    sender = pick(draw, *USERS)
    type = {
        Focus.ANYTHING: pick(draw, *TYPES, *OTHER_TYPES),
        Focus.MEMBERSHIPS: "m.room.member",
        Focus.POWER_LEVELS: "m.room.power_levels",
    }[focus]
    fields: dict[str, Any] = {}
    state_key: str | None = pick(draw, None, "", "@other:alpha.example", sender)
    body: Any = {}
    prev_events = pick(
        draw, ["$before:alpha.example"], ["$before:alpha.example"], [create.event_id], []
    )
    if type == "m.room.member":
        state_key = pick(draw, sender, sender, *USERS, None)
        body = member_content(draw, state_key or "")
    elif type == "m.room.power_levels":
        current = state.get(StateKey("m.room.power_levels", ""))
        old = dict(current.content) if current is not None else draw(power_content(version, focus))
        body = changed_power_content(draw, version, old)
        state_key = pick(draw, "", "", "", None)
    elif type == "m.room.create":
        prev_events = pick(draw, [], [], [], prev_events)
        fields["room_id"] = pick(
            draw,
            "!new:alpha.example",
            "!new:gamma.example",
            None if create.version.room_id_is_create_hash else "!x:alpha.example",
        )
        body = content(
            creator=pick(draw, ABSENT, sender, 5),
            room_version=pick(draw, ABSENT, "1", "12", "unknown", 5, None, []),
            additional_creators=pick(draw, ABSENT, ABSENT, [], [BOB], [5], ["bob"], BOB, None),
        )
    elif type == "m.room.aliases":
        state_key = pick(draw, None, "", *SERVERS)
    elif type == "m.room.redaction":
        fields["redacts"] = pick(draw, "$target:alpha.example", "$target:gamma.example", 5, None)
    if (
        version.room_id_is_create_hash
        and focus is Focus.ANYTHING
        and type != "m.room.create"
        and pick(draw, *[False] * 15, True)
    ):
        fields["room_id"] = "!" + "A" * 43
    fields["prev_events"] = [make.reference(prev) for prev in prev_events]
    return make.event(sender, type, body, state_key, **fields), prev_events


def _auth_events(
    draw: st.DrawFn,
    make: Maker,
    create: Event,
    event: Event,
    state: Mapping[StateKey, Event],
    focus: Focus,
) -> tuple[list[Event], frozenset[str]]:
    """Mostly what the event should name."""
    keys = {
        StateKey("m.room.create", ""),
        StateKey("m.room.power_levels", ""),
        StateKey("m.room.member", event.sender),
    }
    if event.type == "m.room.member":
        keys.add(StateKey("m.room.member", event.state_key or ""))
        if event.membership in ("join", "invite", "knock"):
            keys.add(StateKey("m.room.join_rules", ""))
        if event.membership == "invite" and pick(draw, False, False, True):
            keys.add(StateKey("m.room.third_party_invite", "tok"))
        if event.membership == "join" and pick(draw, False, False, True):
            keys.add(StateKey("m.room.member", BOB))
    auth_events = [state[key] for key in sorted(keys) if key in state]
    rejected: frozenset[str] = frozenset()
    if focus is not Focus.ANYTHING:
        keys = set(
            auth_keys(make.version, event.type, event.sender, event.state_key, event.content)
        )
        return [state[key] for key in sorted(keys) if key in state], rejected
    fault = pick(
        draw,
        *[""] * 20,
        "duplicate",
        "unexpected",
        "rejected",
        "create rejected",
        "no create",
        "other room",
    )
    if fault == "duplicate" and auth_events:
        auth_events.append(pick(draw, *auth_events))
    elif fault == "unexpected":
        auth_events.append(pick(draw, create, event, *state.values()))
    elif fault == "rejected" and auth_events:
        rejected = frozenset([pick(draw, *auth_events).event_id])
    elif fault == "create rejected":
        rejected = frozenset([create.event_id])
    elif fault == "no create":
        auth_events = [auth for auth in auth_events if auth.type != "m.room.create"]
    elif fault == "other room":
        other = Maker(make.version)
        other.room_id = (
            "!" + "B" * 43 if make.version.room_id_is_create_hash else "!other:alpha.example"
        )
        auth_events = [
            other.event(auth.sender, auth.type, auth.content, auth.state_key)
            if auth.type == "m.room.member"
            else auth
            for auth in auth_events
        ]
    return auth_events, rejected

"""Every rule of every room version's page: an event that it refuses, and its neighbour that is
allowed.

A case makes a room in which one thing is wrong, and the same without the fault. All versions that
have the rule run it, and the number reported is the one that the oracle finds on the page.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from federation.protocol.auth_rules import AuthError, Rule, rule_numbers
from federation.protocol.event_auth import auth_keys, check_auth, check_auth_events
from federation.protocol.events import Event, StateKey
from federation.protocol.room_versions import (
    ROOM_VERSIONS,
    V1,
    V7,
    V8,
    V12,
    EventFormat,
    RoomVersion,
)
from tests.federation.protocol.auth_questions import KEYS, base64_of
from tests.federation.protocol.oracle_auth import answer
from tests.federation.protocol.oracle_question import Question
from tests.helpers.room_factory import ALICE, BOB, CHARLIE, Room, public_room


@dataclass(frozen=True)
class Trial:
    """An event at a place in a room, and what its receiver knows of it."""

    room: Room
    event: Event
    signed_by: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()
    auth: Sequence[Event] | None = None

    @property
    def auth_events(self) -> Sequence[Event]:
        return (
            [self.room.events[event_id] for event_id in self.event.auth_events]
            if self.auth is None
            else self.auth
        )

    def verdict(self) -> str | None:
        event, create = self.event, self.room.create
        try:
            check_auth_events(event, self.auth_events, rejected=self.rejected, create=create)
            own = event if event.type == "m.room.create" else create
            check_auth(event, self.room.state, create=own, signed_by=self.signed_by)
        except AuthError as error:
            return error.rule
        return None

    def page_says(self) -> str | None:
        return answer(
            Question(
                version=self.event.version.identifier,
                event=self.event.pdu,
                event_id=self.event.event_id,
                create=self.room.create.pdu,
                create_id=self.room.create.event_id,
                state={
                    (key.type, key.state_key): event.pdu for key, event in self.room.state.items()
                },
                auth_events=[
                    (auth.event_id, {**auth.pdu, "room_id": auth.room_id})
                    for auth in self.auth_events
                ],
                rejected=self.rejected,
                signed_by=self.signed_by,
                prev_events=list(self.event.prev_events),
            )
        )


Case = Callable[[RoomVersion], tuple[Trial, Trial]]


def trial(
    room: Room,
    sender: str,
    type: str,
    content: Mapping[str, Any],
    key: str | None = None,
    **fields: Any,
) -> Trial:
    return Trial(room, room.build(sender, type, content, key, **fields))


def membership(room: Room, sender: str, target: str, value: str, **content: Any) -> Trial:
    return trial(room, sender, "m.room.member", {"membership": value, **content}, target)


def levels(
    version: RoomVersion, users: Mapping[str, Any] | None = None, **content: Any
) -> dict[str, Any]:
    """Power levels of a room of Alice's, who is named where she may be."""
    own = {} if version.creators_privileged else {ALICE: 100}
    return {**content, "users": {**own, **(users or {})}}


def room_of(version: RoomVersion, *joined: str, rule: str = "public", **power: Any) -> Room:
    room = public_room(version, *joined)
    room.power(**levels(version, **power))
    if rule != "public":
        room.join_rules(rule)
    return room


def after(room: Room, *steps: Callable[[Room], object]) -> Room:
    branch = room.fork()
    for step in steps:
        step(branch)
    return branch


# ---- the create event, auth events, federation, aliases


def create_case(
    version: RoomVersion, bad: Mapping[str, Any], *, fields: Mapping[str, Any] | None = None
) -> tuple[Trial, Trial]:
    room = Room(version)
    good = {} if version.creator_is_sender else {"creator": ALICE}
    empty = replace_heads(room)
    content = {key: value for key, value in {**good, **bad}.items() if value != "absent"}
    return trial(empty, ALICE, "m.room.create", content, "", **(fields or {})), trial(
        empty, ALICE, "m.room.create", good, ""
    )


def replace_heads(room: Room) -> Room:
    empty = room.fork()
    empty.heads = ()
    if room.version.room_id_is_create_hash:
        empty.room_id = None
    return empty


def create_prev_events(version: RoomVersion) -> tuple[Trial, Trial]:
    _bad, good = create_case(version, {})
    room = Room(version)
    reference = (
        [room.create.event_id, {}]
        if version.event_format is EventFormat.V1
        else room.create.event_id
    )
    return trial(
        good.room, ALICE, "m.room.create", dict(good.event.content), "", prev_events=[reference]
    ), good


def room_unknown(version: RoomVersion) -> tuple[Trial, Trial]:
    room = room_of(version)
    good = trial(room, ALICE, "m.room.message", {})
    return trial(room, ALICE, "m.room.message", {}, room_id="!" + "A" * 43), good


def auth_case(change: Callable[[Room, list[Event]], list[Event]]) -> Case:
    def case(version: RoomVersion) -> tuple[Trial, Trial]:
        room = room_of(version, BOB)
        good = trial(room, ALICE, "m.room.message", {})
        return replace(good, auth=change(room, list(good.auth_events))), good

    return case


def auth_rejected(version: RoomVersion) -> tuple[Trial, Trial]:
    good = trial(room_of(version), ALICE, "m.room.message", {})
    return replace(good, rejected=frozenset(good.event.auth_events[:1])), good


def auth_other_room(version: RoomVersion) -> tuple[Trial, Trial]:
    good = trial(room_of(version), ALICE, "m.room.message", {})
    create = {} if version.creator_is_sender else {"creator": ALICE}
    other = Room(version, content={"other": True, **create})
    other.room_id = other.room_id if version.room_id_is_create_hash else "!other:alpha.example"
    foreign = other.build(ALICE, "m.room.member", {"membership": "join"}, ALICE)
    return replace(
        good, auth=[foreign if auth.type == "m.room.member" else auth for auth in good.auth_events]
    ), good


def not_federated(version: RoomVersion) -> tuple[Trial, Trial]:
    closed = Room(version, content={"m.federate": False})
    closed.join(ALICE)
    closed.join_rules("public")
    return membership(closed, CHARLIE, CHARLIE, "join"), membership(closed, BOB, BOB, "join")


def aliases(key: str | None) -> Case:
    def case(version: RoomVersion) -> tuple[Trial, Trial]:
        room = room_of(version)
        return tuple(
            trial(room, BOB, "m.room.aliases", {}, each) for each in (key, "alpha.example")
        )  # type: ignore[return-value]

    return case


# ---- memberships


def member_form(version: RoomVersion) -> tuple[Trial, Trial]:
    room = room_of(version)
    return trial(room, BOB, "m.room.member", {}, BOB), membership(room, BOB, BOB, "join")


def restricted(version: RoomVersion, authoriser: str, signed: bool) -> Trial:
    room = room_of(version, rule="restricted")
    joining = membership(room, BOB, BOB, "join", join_authorised_via_users_server=authoriser)
    return replace(joining, signed_by=frozenset(["alpha.example"] if signed else []))


def banned_join(version: RoomVersion) -> tuple[Trial, Trial]:
    room = room_of(version)
    return membership(after(room, lambda r: r.ban(ALICE, BOB)), BOB, BOB, "join"), membership(
        room, BOB, BOB, "join"
    )


def third_party(**fault: Any) -> Case:
    """`fault` may replace the `target`, the `sender`, the `signed` object, or forge the
    signature."""

    def case(version: RoomVersion) -> tuple[Trial, Trial]:
        room = room_of(version, CHARLIE)
        room.send(
            ALICE,
            "m.room.third_party_invite",
            {"public_key": base64_of(bytes(KEYS[0].verify_key))},
            "tok",
        )
        bad_room = after(room, lambda r: r.ban(ALICE, BOB)) if fault.get("banned") else room
        return invite(bad_room, **fault), invite(room)

    def invite(room: Room, **fault: Any) -> Trial:
        signed: dict[str, Any] = {
            "mxid": fault.get("mxid", BOB),
            "token": fault.get("token", "tok"),
        }
        message = f'{{"mxid":"{signed["mxid"]}","token":"{signed["token"]}"}}'.encode()
        signature = KEYS[1 if fault.get("forged") else 0].sign(message).signature
        signed["signatures"] = {"id.example": {"ed25519:0": base64_of(signature)}}
        content = fault.get("invite", {"signed": signed})
        return membership(
            room, fault.get("sender", ALICE), BOB, "invite", third_party_invite=content
        )

    return case


def invite_target(version: RoomVersion) -> tuple[Trial, Trial]:
    room = room_of(version)
    return membership(after(room, lambda r: r.join(BOB)), ALICE, BOB, "invite"), membership(
        room, ALICE, BOB, "invite"
    )


def by_level(
    value: str, low: int, needed: int, *steps: Callable[[Room], object], **power: Any
) -> Case:
    """Bob does it to Charlie, with a level too low and with the level needed."""

    def case(version: RoomVersion) -> tuple[Trial, Trial]:
        rooms = [room_of(version, BOB, users={BOB: each}, **power) for each in (low, needed)]
        bad, good = (membership(after(room, *steps), BOB, CHARLIE, value) for room in rooms)
        return bad, good

    return case


def self_leave(version: RoomVersion) -> tuple[Trial, Trial]:
    room = room_of(version)
    return membership(room, BOB, BOB, "leave"), membership(
        after(room, lambda r: r.join(BOB)), BOB, BOB, "leave"
    )


def from_outside(value: str) -> Case:
    def case(version: RoomVersion) -> tuple[Trial, Trial]:
        room = room_of(version)
        bad = BOB if value != "leave" else CHARLIE
        return membership(room, bad, "@eve:gamma.example", value), membership(
            after(room, lambda r: r.join("@eve:gamma.example")) if value == "leave" else room,
            ALICE,
            "@eve:gamma.example",
            value,
        )

    return case


def knock_case(
    version: RoomVersion, *, rule: str = "knock", sender: str = BOB, invited: bool = False
) -> tuple[Trial, Trial]:
    room = room_of(version, rule="knock")
    bad = room_of(version, rule=rule)
    if invited:
        bad.invite(ALICE, BOB)
    return membership(bad, sender, BOB, "knock"), membership(room, BOB, BOB, "knock")


# ---- all other events


def not_joined(version: RoomVersion) -> tuple[Trial, Trial]:
    room = room_of(version)
    return trial(room, BOB, "m.room.message", {}), trial(room, ALICE, "m.room.message", {})


def send_case(type: str, key: str | None, bad: int, good: int, **power: Any) -> Case:
    def case(version: RoomVersion) -> tuple[Trial, Trial]:
        rooms = [room_of(version, BOB, users={BOB: each}, **power) for each in (bad, good)]
        one, two = (trial(room, BOB, type, {}, key) for room in rooms)
        return one, two

    return case


def state_key_of_another(version: RoomVersion) -> tuple[Trial, Trial]:
    room = room_of(version)
    return trial(room, ALICE, "org.example.x", {}, BOB), trial(
        room, ALICE, "org.example.x", {}, ALICE
    )


def power_case(
    bad: Mapping[str, Any],
    good: Mapping[str, Any],
    *,
    users: Mapping[str, int] | None = None,
    **current: Any,
) -> Case:
    """Bob, at 50, changes the power levels in two ways."""

    def case(version: RoomVersion) -> tuple[Trial, Trial]:
        people = {BOB: 50, **(users or {})}
        room = room_of(
            version,
            BOB,
            users=people,
            events={"m.room.power_levels": 0, "m.room.name": 60},
            **current,
        )
        before = dict(room.state[StateKey("m.room.power_levels", "")].content)
        one, two = (
            trial(room, BOB, "m.room.power_levels", merged(before, change), "")
            for change in (bad, good)
        )
        return one, two

    return case


def merged(content: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    new = dict(content)
    for key, value in change.items():
        new[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
    return new


def power_creators(version: RoomVersion) -> tuple[Trial, Trial]:
    room = room_of(version)
    one, two = (
        trial(room, ALICE, "m.room.power_levels", {"users": {user: 1}}, "") for user in (ALICE, BOB)
    )
    return one, two


def redaction(version: RoomVersion) -> tuple[Trial, Trial]:
    room = room_of(version, BOB)
    one, two = (
        trial(room, BOB, "m.room.redaction", {}, redacts=target)
        for target in ("$x:gamma.example", "$x:alpha.example")
    )
    return one, two


CASES: Final[Mapping[Rule, Case]] = {
    Rule.CREATE_PREV_EVENTS: create_prev_events,
    Rule.CREATE_ROOM_ID: lambda v: create_case(v, {}, fields={"room_id": "!x:gamma.example"}),
    Rule.CREATE_ROOM_VERSION: lambda v: create_case(v, {"room_version": "unheard of"}),
    Rule.CREATE_CREATOR: lambda v: create_case(v, {"creator": "absent"}),
    Rule.CREATE_ADDITIONAL_CREATORS: lambda v: create_case(v, {"additional_creators": ["bob"]}),
    Rule.ROOM_UNKNOWN: room_unknown,
    Rule.AUTH_DUPLICATE: auth_case(lambda _room, auth: [*auth, auth[0]]),
    Rule.AUTH_UNEXPECTED: auth_case(
        lambda room, auth: [*auth, room.state[StateKey("m.room.member", BOB)]]
    ),
    Rule.AUTH_REJECTED: auth_rejected,
    Rule.AUTH_NO_CREATE: auth_case(
        lambda room, auth: [event for event in auth if event is not room.create]
    ),
    Rule.AUTH_OTHER_ROOM: auth_other_room,
    Rule.NOT_FEDERATED: not_federated,
    Rule.ALIASES_STATE_KEY: aliases(None),
    Rule.ALIASES_SERVER: aliases("gamma.example"),
    Rule.MEMBER_FORM: member_form,
    Rule.MEMBER_AUTHORISER_SIGNATURE: lambda v: (
        restricted(v, ALICE, False),
        restricted(v, ALICE, True),
    ),
    Rule.JOIN_OF_ANOTHER: lambda v: (
        membership(room_of(v), ALICE, BOB, "join"),
        membership(room_of(v), BOB, BOB, "join"),
    ),
    Rule.JOIN_BANNED: banned_join,
    Rule.JOIN_AUTHORISER: lambda v: (
        restricted(v, "@eve:alpha.example", True),
        restricted(v, ALICE, True),
    ),
    Rule.JOIN_RULE: lambda v: (
        membership(room_of(v, rule="invite"), BOB, BOB, "join"),
        membership(
            after(room_of(v, rule="invite"), lambda r: r.invite(ALICE, BOB)), BOB, BOB, "join"
        ),
    ),
    Rule.THIRD_PARTY_BANNED: third_party(banned=True),
    Rule.THIRD_PARTY_SIGNED: third_party(invite={}),
    Rule.THIRD_PARTY_FIELDS: third_party(invite={"signed": {"mxid": BOB}}),
    Rule.THIRD_PARTY_USER: third_party(mxid=CHARLIE),
    Rule.THIRD_PARTY_TOKEN: third_party(token="another"),
    Rule.THIRD_PARTY_SENDER: third_party(sender=CHARLIE),
    Rule.THIRD_PARTY_SIGNATURE: third_party(forged=True),
    Rule.INVITE_SENDER: from_outside("invite"),
    Rule.INVITE_TARGET: invite_target,
    Rule.INVITE_LEVEL: by_level("invite", 9, 10, invite=10),
    Rule.LEAVE_SELF: self_leave,
    Rule.LEAVE_SENDER: from_outside("leave"),
    Rule.UNBAN_LEVEL: by_level("leave", 59, 60, lambda r: r.ban(ALICE, CHARLIE), ban=60, kick=10),
    Rule.KICK_LEVEL: by_level("leave", 49, 50, lambda r: r.join(CHARLIE)),
    Rule.BAN_SENDER: from_outside("ban"),
    Rule.BAN_LEVEL: by_level("ban", 49, 50),
    Rule.KNOCK_RULE: lambda v: knock_case(v, rule="invite"),
    Rule.KNOCK_FOR_ANOTHER: lambda v: knock_case(v, sender=ALICE),
    Rule.KNOCK_MEMBERSHIP: lambda v: knock_case(v, invited=True),
    Rule.MEMBERSHIP_UNKNOWN: lambda v: (
        membership(room_of(v), BOB, BOB, "elsewhere"),
        membership(room_of(v), BOB, BOB, "join"),
    ),
    Rule.SENDER_NOT_JOINED: not_joined,
    Rule.THIRD_PARTY_INVITE_LEVEL: send_case("m.room.third_party_invite", "tok", 9, 10, invite=10),
    Rule.REQUIRED_LEVEL: send_case("m.room.topic", "", 49, 50),
    Rule.STATE_KEY_OF_ANOTHER: state_key_of_another,
    Rule.POWER_LEVELS_FORM: power_case({"ban": "50"}, {"ban": 50}),
    Rule.POWER_ENTRIES_FORM: power_case(
        {"notifications": {"room": "50"}}, {"notifications": {"room": 50}}
    ),
    Rule.POWER_USERS_FORM: power_case({"users": {"bob": 1}}, {"users": {CHARLIE: 1}}),
    Rule.POWER_CREATORS: power_creators,
    Rule.POWER_LEVEL_CURRENT: power_case({"ban": 50, "kick": 40}, {"kick": 40}, ban=51),
    Rule.POWER_LEVEL_NEW: power_case({"ban": 51}, {"ban": 49}),
    Rule.POWER_ENTRY_CURRENT: power_case(
        {"events": {"m.room.name": 50}}, {"events": {"m.room.topic": 50}}
    ),
    Rule.POWER_ENTRY_NEW: power_case(
        {"events": {"m.room.topic": 51}}, {"events": {"m.room.topic": 50}}
    ),
    Rule.POWER_USER_CURRENT: power_case(
        {"users": {CHARLIE: 40}}, {"users": {BOB: 40}}, users={CHARLIE: 50}
    ),
    Rule.POWER_USER_NEW: power_case({"users": {CHARLIE: 51}}, {"users": {CHARLIE: 50}}),
    Rule.REDACTION: redaction,
}

PAGE_RULES: Final = [
    pytest.param(version, rule, number, id=f"v{identifier}-{number}")
    for identifier, version in ROOM_VERSIONS.items()
    for rule, number in rule_numbers(version).items()
]


@pytest.mark.parametrize(("version", "rule", "number"), PAGE_RULES)
def test_each_rule_refuses_its_case_and_allows_the_neighbour(
    version: RoomVersion, rule: Rule, number: str
) -> None:
    bad, good = CASES[rule](version)
    assert bad.verdict() == number
    assert bad.page_says() == number
    assert good.verdict() is None
    assert good.page_says() is None


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=list(ROOM_VERSIONS))
def test_a_member_join_names_the_state_that_its_version_selects(version: RoomVersion) -> None:
    content = {"membership": "join", "join_authorised_via_users_server": ALICE}
    expected = {
        StateKey("m.room.power_levels", ""),
        StateKey("m.room.member", BOB),
        StateKey("m.room.join_rules", ""),
    }
    if not version.room_id_is_create_hash:
        expected.add(StateKey("m.room.create", ""))
    if version.restricted_joins:
        expected.add(StateKey("m.room.member", ALICE))
    assert auth_keys(version, "m.room.member", BOB, BOB, content) == expected


def test_rule_numbers_are_those_of_the_specification() -> None:
    assert rule_numbers(V1)[Rule.REDACTION] == "11.3"
    assert rule_numbers(V7)[Rule.KNOCK_MEMBERSHIP] == "4.6.4"
    assert rule_numbers(V8)[Rule.JOIN_AUTHORISER] == "4.3.5.2"
    assert rule_numbers(V12)[Rule.POWER_USER_NEW] == "10.10.1"
    assert rule_numbers(V12)[Rule.AUTH_OTHER_ROOM] == "3.5"


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=list(ROOM_VERSIONS))
def test_the_creator_may_join_an_empty_room(version: RoomVersion) -> None:
    room = Room(version)
    joining = membership(room, ALICE, ALICE, "join")
    assert joining.verdict() is None
    other = membership(room, BOB, BOB, "join")
    assert other.verdict() == rule_numbers(version)[Rule.JOIN_RULE]

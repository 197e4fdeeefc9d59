"""The authorization rules transcribed from the pages of the room versions, slowly and literally, as
an oracle for tests.

`PAGES[version]` is a page: its rules in its order, each with the number it has there. Where two
pages word a rule alike, they share its transcription. Nothing of the code under test is used:
events are PDUs as plain JSON, and levels, domains and auth events selection are read here again.
What the pages leave open is decided here in words marked OPEN.
"""

from collections.abc import Callable, Mapping

from tests.federation.protocol.oracle_members import (
    member_rule,
    member_rule_v7,
    member_rule_v8,
    member_rule_v10,
)
from tests.federation.protocol.oracle_question import (
    Allow,
    Json,
    Question,
    Reject,
    creators_v12,
    domain,
    entries,
    is_user_id,
)


def selected(q: Question, *, create: bool, restricted: bool) -> set[tuple[str, str]]:
    """spec: server-server-api#auth-events-selection"""
    keys = {("m.room.power_levels", ""), ("m.room.member", q.sender)}
    if create:
        keys.add(("m.room.create", ""))
    if q.type == "m.room.member":
        if "state_key" in q.event:
            keys.add(("m.room.member", q.target))
        membership = q.content.get("membership")
        if membership in ("join", "invite", "knock"):
            keys.add(("m.room.join_rules", ""))
        if membership == "invite" and "third_party_invite" in q.content:
            invite = q.content["third_party_invite"]
            signed = invite.get("signed") if isinstance(invite, dict) else None
            token = signed.get("token") if isinstance(signed, dict) else None
            if isinstance(token, str):
                keys.add(("m.room.third_party_invite", token))
        authoriser = q.content.get("join_authorised_via_users_server")
        if membership == "join" and restricted and isinstance(authoriser, str):
            keys.add(("m.room.member", authoriser))
    return keys


# ---- rule 1 and what comes before the type of the event


def create_rule(q: Question, n: str, *, v12: bool = False, creator: bool = False) -> None:
    if q.type != "m.room.create":
        return
    if q.prev_events:
        raise Reject(f"{n}.1")
    if v12:
        if "room_id" in q.event:
            raise Reject(f"{n}.2")
    elif domain(q.event["room_id"]) != domain(q.sender):
        raise Reject(f"{n}.2")
    recognised = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"]
    if "room_version" in q.content and q.content["room_version"] not in recognised:
        raise Reject(f"{n}.3")
    if creator and "creator" not in q.content:
        raise Reject(f"{n}.4")
    if v12 and "additional_creators" in q.content:
        additional = q.content["additional_creators"]
        if not isinstance(additional, list) or not all(is_user_id(user) for user in additional):
            raise Reject(f"{n}.4")
    raise Allow


def room_rule(q: Question, n: str) -> None:
    if q.event["room_id"] != "!" + q.create_id[1:] or q.create_id in q.rejected:
        raise Reject(n)


def auth_events_rule(q: Question, n: str, *, create: bool = True, restricted: bool = False) -> None:
    keys = [(event["type"], event.get("state_key")) for _id, event in q.auth_events]
    if any(keys.count(key) > 1 for key in keys):
        raise Reject(f"{n}.1")
    if any(key not in selected(q, create=create, restricted=restricted) for key in keys):
        raise Reject(f"{n}.2")
    if any(event_id in q.rejected for event_id, _event in q.auth_events):
        raise Reject(f"{n}.3")
    if create and not any(type == "m.room.create" for type, _key in keys):
        raise Reject(f"{n}.4")
    if any(event.get("room_id") != q.event["room_id"] for _id, event in q.auth_events):
        raise Reject(f"{n}.5")


def federate_rule(q: Question, n: str) -> None:
    if q.create["content"].get("m.federate") is False and domain(q.sender) != domain(
        q.create["sender"]
    ):
        raise Reject(n)


def aliases_rule(q: Question, n: str) -> None:
    if q.type != "m.room.aliases":
        return
    if "state_key" not in q.event:
        raise Reject(f"{n}.1")
    if domain(q.sender) != q.target:
        raise Reject(f"{n}.2")
    raise Allow


# ---- all other events


def joined_rule(q: Question, n: str) -> None:
    if q.membership(q.sender) != "join":
        raise Reject(n)


def third_party_invite_event_rule(q: Question, n: str) -> None:
    if q.type == "m.room.third_party_invite":
        if q.power(q.sender) >= q.invite_level():
            raise Allow
        raise Reject(f"{n}.1")


def required_level_rule(q: Question, n: str) -> None:
    if q.required_level() > q.power(q.sender):
        raise Reject(n)


def state_key_rule(q: Question, n: str) -> None:
    if "state_key" in q.event and q.target.startswith("@") and q.target != q.sender:
        raise Reject(n)


NAMED = ["users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"]


def power_rule(q: Question, n: str) -> None:
    """Versions 1 to 5."""
    power_rule_lenient(q, n, ["events"])


def power_rule_v6(q: Question, n: str) -> None:
    power_rule_lenient(q, n, ["events", "notifications"])


def power_rule_lenient(q: Question, n: str, objects: list[str]) -> None:
    if q.type != "m.room.power_levels":
        return
    users = q.content.get("users", {})
    if not isinstance(users, dict) or not all(is_user_id(user) for user in users):
        raise Reject(f"{n}.1")
    if any(q.numbers(level) is None for level in users.values()):
        raise Reject(f"{n}.1")
    # OPEN: the page asks for integers, strings and floats in its other sections; what is neither
    # falls under this point.
    for name in NAMED:
        if name in q.content and q.numbers(q.content[name]) is None:
            raise Reject(f"{n}.1")
    for name in objects:
        levels = q.content.get(name, {})
        if not isinstance(levels, dict) or any(
            q.numbers(level) is None for level in levels.values()
        ):
            raise Reject(f"{n}.1")
    if q.power_content() is None:
        raise Allow
    power_changes(q, [f"{n}.3", f"{n}.4", f"{n}.5", f"{n}.6", f"{n}.7"], objects)
    raise Allow


def power_rule_v10(q: Question, n: str) -> None:
    if q.type != "m.room.power_levels":
        return
    power_form_v10(q, n)
    if q.power_content() is None:
        raise Allow
    power_changes(
        q, [f"{n}.5", f"{n}.6", f"{n}.7", f"{n}.8", f"{n}.9"], ["events", "notifications"]
    )
    raise Allow


def power_rule_v12(q: Question, n: str) -> None:
    if q.type != "m.room.power_levels":
        return
    power_form_v10(q, n)
    if any(creator in q.content.get("users", {}) for creator in creators_v12(q.create)):
        raise Reject(f"{n}.4")
    if q.power_content() is None:
        raise Allow
    power_changes(
        q, [f"{n}.6", f"{n}.7", f"{n}.8", f"{n}.9", f"{n}.10"], ["events", "notifications"]
    )
    raise Allow


def power_form_v10(q: Question, n: str) -> None:
    for name in NAMED:
        if name in q.content and q.numbers(q.content[name]) is None:
            raise Reject(f"{n}.1")
    for name in ["events", "notifications"]:
        if name in q.content:
            levels = q.content[name]
            if not isinstance(levels, dict) or any(
                q.numbers(level) is None for level in levels.values()
            ):
                raise Reject(f"{n}.2")
    # OPEN: `users` may be absent.
    users = q.content.get("users", {})
    if not isinstance(users, dict) or any(q.numbers(level) is None for level in users.values()):
        raise Reject(f"{n}.3")
    if not all(is_user_id(user) for user in users):
        raise Reject(f"{n}.3")


def power_changes(q: Question, n: list[str], objects: list[str]) -> None:
    old_content, new_content = q.power_content() or {}, q.content
    mine = q.power(q.sender)

    def changed(old: Json, new: Json, key: str) -> tuple[int | None, int | None] | None:
        before, after = q.numbers(old.get(key)), q.numbers(new.get(key))
        return None if before == after else (before, after)

    for name in NAMED:
        change = changed(old_content, new_content, name)
        if change is not None:
            if change[0] is not None and change[0] > mine:
                raise Reject(f"{n[0]}.1")
            if change[1] is not None and change[1] > mine:
                raise Reject(f"{n[0]}.2")
    for index, number in ((0, n[1]), (1, n[2])):
        for name in objects:
            old, new = entries(old_content, name), entries(new_content, name)
            for key in [*old, *new]:
                change = changed(old, new, key)
                value = None if change is None else change[index]
                if value is not None and value > mine:
                    raise Reject(f"{number}.1")
    old, new = entries(old_content, "users"), entries(new_content, "users")
    for user in [*old, *new]:
        change = changed(old, new, user)
        if user != q.sender and change is not None and change[0] is not None and change[0] >= mine:
            raise Reject(f"{n[3]}.1")
    for user in [*old, *new]:
        change = changed(old, new, user)
        if change is not None and change[1] is not None and change[1] > mine:
            raise Reject(f"{n[4]}.1")


def redaction_rule(q: Question, n: str) -> None:
    if q.type != "m.room.redaction":
        return
    if q.power(q.sender) >= q.redact_level():
        raise Allow
    redacts = q.event.get("redacts")
    if isinstance(redacts, str) and domain(redacts) == domain(q.event_id):
        raise Allow
    raise Reject(f"{n}.3")


# ---- the pages


def page_v1(q: Question) -> None:
    create_rule(q, "1", creator=True)
    auth_events_rule(q, "2")
    federate_rule(q, "3")
    aliases_rule(q, "4")
    member_rule(q, "5")
    joined_rule(q, "6")
    third_party_invite_event_rule(q, "7")
    required_level_rule(q, "8")
    state_key_rule(q, "9")
    power_rule(q, "10")
    redaction_rule(q, "11")


def page_v3(q: Question) -> None:
    create_rule(q, "1", creator=True)
    auth_events_rule(q, "2")
    federate_rule(q, "3")
    aliases_rule(q, "4")
    member_rule(q, "5")
    joined_rule(q, "6")
    third_party_invite_event_rule(q, "7")
    required_level_rule(q, "8")
    state_key_rule(q, "9")
    power_rule(q, "10")


def page_v6(q: Question) -> None:
    create_rule(q, "1", creator=True)
    auth_events_rule(q, "2")
    federate_rule(q, "3")
    member_rule(q, "4")
    joined_rule(q, "5")
    third_party_invite_event_rule(q, "6")
    required_level_rule(q, "7")
    state_key_rule(q, "8")
    power_rule_v6(q, "9")


def page_v7(q: Question) -> None:
    create_rule(q, "1", creator=True)
    auth_events_rule(q, "2")
    federate_rule(q, "3")
    member_rule_v7(q, "4")
    joined_rule(q, "5")
    third_party_invite_event_rule(q, "6")
    required_level_rule(q, "7")
    state_key_rule(q, "8")
    power_rule_v6(q, "9")


def page_v8(q: Question) -> None:
    create_rule(q, "1", creator=True)
    auth_events_rule(q, "2", restricted=True)
    federate_rule(q, "3")
    member_rule_v8(q, "4")
    joined_rule(q, "5")
    third_party_invite_event_rule(q, "6")
    required_level_rule(q, "7")
    state_key_rule(q, "8")
    power_rule_v6(q, "9")


def page_v10(q: Question) -> None:
    create_rule(q, "1", creator=True)
    auth_events_rule(q, "2", restricted=True)
    federate_rule(q, "3")
    member_rule_v10(q, "4")
    joined_rule(q, "5")
    third_party_invite_event_rule(q, "6")
    required_level_rule(q, "7")
    state_key_rule(q, "8")
    power_rule_v10(q, "9")


def page_v11(q: Question) -> None:
    create_rule(q, "1")
    auth_events_rule(q, "2", restricted=True)
    federate_rule(q, "3")
    member_rule_v10(q, "4")
    joined_rule(q, "5")
    third_party_invite_event_rule(q, "6")
    required_level_rule(q, "7")
    state_key_rule(q, "8")
    power_rule_v10(q, "9")


def page_v12(q: Question) -> None:
    create_rule(q, "1", v12=True)
    room_rule(q, "2")
    auth_events_rule(q, "3", create=False, restricted=True)
    federate_rule(q, "4")
    member_rule_v10(q, "5")
    joined_rule(q, "6")
    third_party_invite_event_rule(q, "7")
    required_level_rule(q, "8")
    state_key_rule(q, "9")
    power_rule_v12(q, "10")


PAGES: Mapping[str, Callable[[Question], None]] = {
    "1": page_v1,
    "2": page_v1,
    "3": page_v3,
    "4": page_v3,
    "5": page_v3,
    "6": page_v6,
    "7": page_v7,
    "8": page_v8,
    "9": page_v8,
    "10": page_v10,
    "11": page_v11,
    "12": page_v12,
}


def answer(question: Question) -> str | None:
    """The number of the rule that rejects the event, or None if the page of its version allows
    it."""
    try:
        PAGES[question.version](question)
    except Allow:
        return None
    except Reject as reject:
        return str(reject)
    return None  # "Otherwise, allow."

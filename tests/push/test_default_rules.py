"""The default rules against the text of the specification, one by one. spec:
client-server-api#predefined-rules"""

import json
from pathlib import Path
from typing import Any

import pytest

from federation.protocol.event_signing import build_event
from federation.protocol.events import Event
from federation.protocol.ids import RoomID, ServerName, UserID
from federation.protocol.power_levels import PowerLevels
from federation.protocol.room_versions import V11
from federation.protocol.signing import SigningKey
from homeserver.services.push.event_properties import EvaluatedEvent
from homeserver.services.push.push_rules import ruleset
from homeserver.services.push.rule_sets import RuleCompiler
from tests.push.literal_rules import Surroundings, evaluate

SPEC = json.loads(Path(__file__).with_name("spec_v1.19_default_rules.json").read_text())
"""The definitions in the specification v1.19, in its order."""
BOB = UserID("@bob:a.test")
ALICE = UserID("@alice:a.test")
MODERATOR = UserID("@moderator:a.test")
ROOM = RoomID("!room:a.test")
KEY = SigningKey("key", b"k" * 32)

PUSH = ["notify"]
LOUD = ["notify", {"set_tweak": "sound", "value": "default"}]
RING = ["notify", {"set_tweak": "sound", "value": "ring"}]
CALLED = ["notify", {"set_tweak": "sound", "value": "default"}, {"set_tweak": "highlight"}]
ROOM_CALLED = ["notify", {"set_tweak": "highlight"}]
SILENT: list[Any] = []

TEXT = {"msgtype": "m.text", "body": "hello @room bob"}
FOR_BOB = {"m.mentions": {"user_ids": [BOB]}}
FOR_ALL = {"m.mentions": {"room": True}}
EDIT = {"m.relates_to": {"rel_type": "m.replace", "event_id": "$e"}}
MSG, ENC, MEMBER = "m.room.message", "m.room.encrypted", "m.room.member"
POLL = "org.matrix.msc3381.poll"


def event(type: str, content: dict[str, Any], state_key: str | None, sender: UserID) -> Event:
    return build_event(
        V11,
        ServerName("a.test"),
        KEY,
        room_id=ROOM,
        type=type,
        sender=sender,
        content=content,
        state_key=state_key,
        redacts=None,
        origin_server_ts=1,
        prev_events=[],
        auth_events=[],
        depth=1,
        event_id=None,
        reference_hashes=None,
    )


def test_default_rules_are_those_of_the_specification() -> None:
    ours = ruleset(BOB, None)
    for kind in ("override", "underride"):
        named = json.loads(json.dumps(SPEC[kind]).replace("[the user's Matrix ID]", BOB))
        assert [rule for rule in ours[kind] if not rule["rule_id"].startswith(".org.")] == named
    assert not ours["content"]
    assert not ours["room"]
    assert not ours["sender"]


# (rule, members, type, content, state key, sender, actions)
TABLE = [
    # ordinary messages
    (".m.rule.message", 3, MSG, TEXT, None, ALICE, PUSH),
    (".m.rule.room_one_to_one", 2, MSG, TEXT, None, ALICE, LOUD),
    (".m.rule.message", 1, MSG, TEXT, None, ALICE, PUSH),
    (".m.rule.encrypted", 3, ENC, {}, None, ALICE, PUSH),
    (".m.rule.encrypted_room_one_to_one", 2, ENC, {}, None, ALICE, LOUD),
    (".m.rule.call", 3, "m.call.invite", {}, None, ALICE, RING),
    (".m.rule.call", 2, "m.call.invite", {}, None, ALICE, RING),
    # what is silent
    (".m.rule.suppress_notices", 2, MSG, {**TEXT, "msgtype": "m.notice"}, None, ALICE, SILENT),
    (
        ".m.rule.suppress_notices",
        2,
        MSG,
        {**TEXT, **FOR_BOB, "msgtype": "m.notice"},
        None,
        ALICE,
        SILENT,
    ),
    (".m.rule.reaction", 3, "m.reaction", {}, None, ALICE, SILENT),
    (".m.rule.room.server_acl", 3, "m.room.server_acl", {}, "", MODERATOR, SILENT),
    (".m.rule.suppress_edits", 2, MSG, {**TEXT, **EDIT}, None, ALICE, SILENT),
    (".m.rule.suppress_edits", 2, ENC, EDIT, None, ALICE, SILENT),
    ("no rule", 3, "m.room.topic", {"topic": "tea"}, "", ALICE, SILENT),
    ("no rule", 3, "m.room.redaction", {"redacts": "$e"}, None, ALICE, SILENT),
    # mentions
    (".m.rule.is_user_mention", 3, MSG, {**TEXT, **FOR_BOB}, None, ALICE, CALLED),
    (".m.rule.is_user_mention", 3, ENC, FOR_BOB, None, ALICE, CALLED),
    (".m.rule.is_user_mention", 3, "m.reaction", FOR_BOB, None, ALICE, CALLED),
    (".m.rule.is_user_mention", 3, MSG, {**TEXT, **FOR_BOB, **EDIT}, None, ALICE, CALLED),
    (
        ".m.rule.message",
        3,
        MSG,
        {**TEXT, "m.mentions": {"user_ids": [ALICE, "@bob"]}},
        None,
        ALICE,
        PUSH,
    ),
    (".m.rule.message", 3, MSG, {**TEXT, "m.mentions": {"user_ids": BOB}}, None, ALICE, PUSH),
    (".m.rule.is_room_mention", 3, MSG, {**TEXT, **FOR_ALL}, None, MODERATOR, ROOM_CALLED),
    (".m.rule.is_room_mention", 2, ENC, FOR_ALL, None, MODERATOR, ROOM_CALLED),
    (".m.rule.message", 3, MSG, {**TEXT, **FOR_ALL}, None, ALICE, PUSH),
    (".m.rule.message", 3, MSG, {**TEXT, "m.mentions": {"room": 1}}, None, MODERATOR, PUSH),
    # members and rooms
    (".m.rule.invite_for_me", 3, MEMBER, {"membership": "invite"}, BOB, ALICE, LOUD),
    (".m.rule.member_event", 3, MEMBER, {"membership": "invite"}, "@carol:a.test", ALICE, SILENT),
    (".m.rule.member_event", 3, MEMBER, {"membership": "leave"}, BOB, ALICE, SILENT),
    (
        ".m.rule.member_event",
        2,
        MEMBER,
        {"membership": "join"},
        "@carol:a.test",
        UserID("@carol:a.test"),
        SILENT,
    ),
    (".m.rule.tombstone", 3, "m.room.tombstone", {"body": "moved"}, "", ALICE, ROOM_CALLED),
    ("no rule", 3, "m.room.tombstone", {"body": "moved"}, None, ALICE, SILENT),
    ("no rule", 3, "m.room.tombstone", {"body": "moved"}, "x", ALICE, SILENT),
    # polls (MSC3930)
    (".org.matrix.msc3930.rule.poll_start", 3, f"{POLL}.start", {}, None, ALICE, PUSH),
    (".org.matrix.msc3930.rule.poll_start_one_to_one", 2, f"{POLL}.start", {}, None, ALICE, LOUD),
    (".org.matrix.msc3930.rule.poll_end", 3, f"{POLL}.end", {}, None, ALICE, PUSH),
    (".org.matrix.msc3930.rule.poll_end_one_to_one", 2, f"{POLL}.end", {}, None, ALICE, LOUD),
    (".org.matrix.msc3930.rule.poll_response", 3, f"{POLL}.response", FOR_ALL, None, ALICE, SILENT),
]


@pytest.mark.parametrize(
    ("rule", "members", "type", "content", "state_key", "sender", "actions"), TABLE
)
def test_each_default_rule_gives_its_actions(
    rule: str,
    members: int,
    type: str,
    content: dict[str, Any],
    state_key: str | None,
    sender: UserID,
    actions: list[Any],
) -> None:
    power = event("m.room.power_levels", {"users": {MODERATOR: 50}}, "", ALICE)
    create = event("m.room.create", {"room_version": "11"}, "", UserID("@founder:a.test"))
    happened = event(type, content, state_key, sender)
    rules = RuleCompiler().default
    occasion = EvaluatedEvent.of_event(happened, members, PowerLevels.of(V11, power, create))
    found = rules.find(occasion, BOB)
    assert list(found.raw) == actions
    assert found.notify == ("notify" in actions)
    assert found.highlight == ({"set_tweak": "highlight"} in actions)
    assert rule == next(
        (each.rule_id for each in rules.rules if each.matches(occasion, BOB, None)), "no rule"
    )
    around = Surroundings(BOB, None, members, 50 if sender == MODERATOR else 0, {})
    shown = {"room_id": ROOM, **happened.pdu}
    assert evaluate(ruleset(BOB, None), shown, around) == actions, "the literal rules say the same"


def test_the_msc4028_rule_wakes_clients_for_every_encrypted_event() -> None:
    kept = b'{"changed": {".org.matrix.msc4028.encrypted_event": {"enabled": true}}}'
    occasion = EvaluatedEvent.of_event(event(ENC, EDIT, None, ALICE), 3, None)
    compiler = RuleCompiler()
    assert not compiler.default.find(occasion, BOB).notify
    found = compiler.compile(kept).find(occasion, BOB)
    assert found.notify
    assert not found.highlight
    assert "org.matrix.msc4062.dont_email" in found.tweaks


@pytest.mark.parametrize(("own", "wakes"), [("override", False), ("room", True)])
def test_the_msc4028_rule_wakes_clients_in_rooms_with_mentions_only_but_not_in_muted_ones(
    own: str, wakes: bool
) -> None:
    """MSC4028: in a room with mentions only, the client has to look for mentions itself."""
    conditions = (
        [{"kind": "event_match", "key": "room_id", "pattern": ROOM}] if own == "override" else None
    )
    kept = {
        "own": {own: [{"rule_id": ROOM, "actions": [], "conditions": conditions}]},
        "changed": {".org.matrix.msc4028.encrypted_event": {"enabled": True}},
    }
    rules = RuleCompiler().compile(json.dumps(kept).encode())
    assert (
        rules.find(EvaluatedEvent.of_event(event(ENC, {}, None, ALICE), 3, None), BOB).notify
        is wakes
    )
    assert not rules.find(
        EvaluatedEvent.of_event(event(MSG, TEXT, None, ALICE), 3, None), BOB
    ).notify

"""Hashes and signatures of events: ours are right, others' are checked as the specification
says."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.protocol.canonical_json import decode_object
from federation.protocol.errors import BadEvent, BadJson, EventTooLarge
from federation.protocol.event_signing import (
    build_event,
    compute_content_hash,
    hash_and_sign_event,
    is_content_hash_valid,
    is_event_signed_by,
    is_hash_of,
    missing_signers,
    required_signers,
    sign_event,
)
from federation.protocol.events import (
    MAX_PDU_BYTES,
    Event,
    encode_pdu,
    encode_reference,
    parse_event,
)
from federation.protocol.ids import EventID, RoomID, ServerName, UserID
from federation.protocol.redaction import redact
from federation.protocol.room_versions import (
    ROOM_VERSIONS,
    V1,
    V2,
    V3,
    V5,
    V7,
    V8,
    V10,
    V11,
    V12,
    RoomVersion,
)
from federation.protocol.signing import SigningKey, encode_base64, is_signature_valid
from tests.federation.protocol.strategies import EVENT_TYPES, HASH, contents, pdus
from tests.federation.protocol.vectors import cases, signing_key

KEY = signing_key()
OTHER_KEY = SigningKey("2", b"2" * 32)
HERE = ServerName("domain")
THERE = ServerName("other.example")
PUBLIC = {HERE: {KEY.key_id: KEY.public_key}, THERE: {OTHER_KEY.key_id: OTHER_KEY.public_key}}


def build(version: RoomVersion, **fields: Any) -> Event:
    """A message of @alice:domain, but for the fields that are given."""
    first = version in (V1, V2)
    arguments: dict[str, Any] = {
        "room_id": RoomID("!" + HASH) if version is V12 else RoomID("!room:domain"),
        "type": "m.room.message",
        "sender": UserID("@alice:domain"),
        "content": {"body": "hi"},
        "prev_events": [EventID("$p:domain" if first else "$" + HASH)],
        "auth_events": [EventID("$a:domain" if first else "$" + HASH)],
        "depth": 7,
        "origin_server_ts": 1_700_000_000_000,
    }
    if first:
        arguments |= {
            "event_id": "$e:domain",
            "reference_hashes": {"$p:domain": "pp", "$a:domain": "aa"},
        }
    return build_event(version, HERE, KEY, **{**arguments, **fields})


# ---- the worked examples


@pytest.mark.parametrize(
    "case", cases("events", "event_signing"), ids=lambda case: case["input"]["type"]
)
def test_the_examples_of_the_specification_are_signed(case: Any) -> None:
    version = ROOM_VERSIONS[case["room_version"]]
    assert hash_and_sign_event(version, case["input"], HERE, KEY) == case["signed"]


@pytest.mark.parametrize(
    "case", cases("events", "event_signing_more"), ids=lambda case: case["content_hash"]
)
def test_further_examples_are_signed(case: Any) -> None:
    signed = hash_and_sign_event(ROOM_VERSIONS[case["room_version"]], case["input"], HERE, KEY)
    assert signed["hashes"] == {"sha256": case["content_hash"]}
    assert signed["signatures"] == {"domain": {"ed25519:1": case["signature"]}}


@pytest.mark.parametrize(
    "case", cases("events", "event_signature_checks"), ids=lambda case: case["expect"]
)
def test_hash_and_signature_are_checked_separately(case: Any) -> None:
    pdu = case["event"]
    assert is_hash_of(pdu) is case["content_hash_valid"]
    message = encode_reference(ROOM_VERSIONS[case["room_version"]], pdu)
    signature = pdu["signatures"]["domain"]["ed25519:1"]
    assert is_signature_valid(KEY.public_key, message, signature) is case["signature_valid"]


@pytest.mark.parametrize(
    "case",
    cases("redaction", "redaction_and_ids"),
    ids=lambda case: f"v{case['room_version']}-{case['event']['type']}",
)
def test_a_signature_holds_for_the_event_and_its_redacted_copy(case: Any) -> None:
    version = ROOM_VERSIONS[case["room_version"]]
    assert encode_base64(compute_content_hash(case["event"])) == case["content_hash"]
    for pdu in (case["event"], case["redacted"]):
        event = parse_event(version, pdu)
        assert is_event_signed_by(event, ServerName("example.com"), PUBLIC[HERE])
    assert is_content_hash_valid(parse_event(version, case["event"]))


@pytest.mark.parametrize(
    "case", cases("events", "room_version_12_room_ids"), ids=lambda case: case["room_id"]
)
def test_create_events_without_a_room_id_are_signed(case: Any) -> None:
    expected = case["create_event"]
    event = build_event(
        V12,
        ServerName("example.com"),
        KEY,
        room_id=None,
        type="m.room.create",
        state_key="",
        sender=UserID(expected["sender"]),
        content=expected["content"],
        prev_events=[],
        auth_events=[],
        depth=1,
        origin_server_ts=expected["origin_server_ts"],
    )
    assert (event.pdu, event.room_id) == (expected, case["room_id"])


# ---- our own events


@settings(max_examples=100)
@given(
    st.sampled_from(list(ROOM_VERSIONS.values())),
    st.sampled_from([name for name in EVENT_TYPES if name != "m.room.create"]),
    contents,
    st.none() | st.text("abc", max_size=5),
)
def test_a_built_event_is_parsed_to_the_same_event(
    version: RoomVersion, event_type: str, content: dict[str, Any], state_key: str | None
) -> None:
    built = build(version, type=event_type, content=content, state_key=state_key)
    read = parse_event(version, decode_object(encode_pdu(built)))
    assert encode_pdu(read) == encode_pdu(built)
    assert (read.event_id, read.room_id, read.pdu) == (built.event_id, built.room_id, built.pdu)
    assert is_content_hash_valid(read)
    assert is_event_signed_by(read, HERE, PUBLIC[HERE])
    assert built.pdu == hash_and_sign_event(version, built.pdu, HERE, KEY)


def test_floats_of_old_rooms_are_hashed_as_written() -> None:
    built = build(V5, content={"x": 1e16, "y": 1e-7})
    assert b'{"x":1e+16,"y":1e-07}' in encode_pdu(built)
    assert is_content_hash_valid(parse_event(V5, decode_object(encode_pdu(built))))


def test_a_redaction_names_its_target_in_the_place_of_its_version() -> None:
    target = EventID("$" + HASH)
    for version in (V10, V11):
        event = build(version, type="m.room.redaction", content={"reason": "spam"}, redacts=target)
        assert event.redacts == target
        assert ("redacts" in event.pdu, "redacts" in event.content) == (
            version is V10,
            version is V11,
        )


def test_the_first_versions_refer_to_events_by_id_and_hash() -> None:
    event = build(V1)
    assert event.event_id == "$e:domain"
    assert event.pdu["prev_events"] == [["$p:domain", {"sha256": "pp"}]]


def test_building_an_event_copies_the_content() -> None:
    content = {"reason": "spam"}
    event = build(V11, type="m.room.redaction", content=content, redacts=EventID("$" + HASH))
    assert content == {"reason": "spam"}
    content["reason"] = "other"
    assert event.content["reason"] == "spam"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"content": {"body": "x" * MAX_PDU_BYTES}}, EventTooLarge),
        ({"type": "t" * 256}, EventTooLarge),
        ({"state_key": "я" * 128}, EventTooLarge),
        ({"state_key": "\0"}, BadEvent),
        ({"content": {"x": 1.5}}, BadJson),
        ({"content": {"x": 2**53}}, BadJson),
        ({"depth": 2**53}, BadEvent),
        ({"sender": "alice"}, BadEvent),
        ({"prev_events": ["$" + HASH] * 21}, BadEvent),
        ({"room_id": "!room:domain"}, BadEvent),
        ({"room_id": None}, BadEvent),
    ],
)
def test_an_event_that_others_would_refuse_is_not_built(
    fields: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        build(V12, **fields)


def test_content_that_nests_too_deep_is_not_built() -> None:
    nested: Any = []
    for _ in range(250):
        nested = [nested]
    with pytest.raises(BadEvent, match="deep"):
        build(V12, content={"x": nested})


# ---- who must have signed


def test_the_server_of_the_sender_must_sign() -> None:
    for version in ROOM_VERSIONS.values():
        assert required_signers(build(version)) == {HERE}
        assert not missing_signers(build(version), PUBLIC)
        assert missing_signers(build(version), {}) == {HERE}
        assert missing_signers(build(version, sender="@bob:other.example"), PUBLIC) - {HERE} == {
            THERE
        }


def test_in_the_first_versions_the_server_of_the_event_id_must_sign_too() -> None:
    event = build(V2, event_id="$e:other.example")
    assert required_signers(event) == {HERE, THERE}
    assert missing_signers(event, PUBLIC) == {THERE}
    signed = parse_event(V2, sign_event(V2, event.pdu, THERE, OTHER_KEY))
    assert not missing_signers(signed, PUBLIC)


def test_a_restricted_join_must_be_signed_by_the_authorising_server() -> None:
    content = {"membership": "join", "join_authorised_via_users_server": "@bob:other.example"}
    member = {"type": "m.room.member", "state_key": "@alice:domain", "content": content}
    assert required_signers(build(V7, **member)) == {HERE}
    for version in (V8, V12):
        event = build(version, **member)
        assert missing_signers(event, PUBLIC) == {THERE}
        vouched = parse_event(version, sign_event(version, event.pdu, THERE, OTHER_KEY))
        assert not missing_signers(vouched, PUBLIC)
        assert vouched.event_id == event.event_id
    with pytest.raises(BadEvent):
        required_signers(
            build(V8, **{**member, "content": {**content, "join_authorised_via_users_server": 1}})
        )


def test_an_invite_by_a_third_party_identifier_may_come_from_another_server() -> None:
    content = {"membership": "invite", "third_party_invite": {"signed": {}}}
    member = {"type": "m.room.member", "state_key": "@carol:x.y", "sender": "@bob:other.example"}
    assert required_signers(build(V3, **member, content=content)) == frozenset()
    assert required_signers(build(V1, **member, content=content)) == {HERE}
    for other in ({"membership": "join"}, {"third_party_invite": "no object"}):
        assert THERE in required_signers(build(V3, **member, content={**content, **other}))


def test_a_changed_event_fails_its_signature_or_hash() -> None:
    event = build(V11)
    moved = parse_event(V11, {**event.pdu, "depth": 8})
    assert missing_signers(moved, PUBLIC) == {HERE}
    rewritten = parse_event(V11, {**event.pdu, "content": {"body": "changed"}})
    assert not missing_signers(rewritten, PUBLIC)
    assert not is_content_hash_valid(rewritten)
    assert redact(V11, rewritten.pdu) == redact(V11, event.pdu)


@settings(max_examples=50)
@given(pdus(), st.sampled_from(["", "é", "AAAA", "====", "A" * 43]))
def test_any_wrong_content_hash_is_detected(pdu: dict[str, Any], claimed: str) -> None:
    assert not is_content_hash_valid(parse_event(V11, {**pdu, "hashes": {"sha256": claimed}}))


@pytest.mark.parametrize("hashes", [None, [], {}, {"sha256": 1}])
def test_an_event_without_a_hash_fails_the_hash_check(hashes: object) -> None:
    assert not is_hash_of({"content": {}, "hashes": hashes})

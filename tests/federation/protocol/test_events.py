"""Events are read strictly, named by their hashes, kept as bytes, and shown to clients."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.protocol.canonical_json import MAX_SENT_DEPTH, encode_canonical
from federation.protocol.errors import BadEvent, EventTooLarge, MatrixError
from federation.protocol.events import (
    MAX_PDU_BYTES,
    StateKey,
    client_form_prefix,
    compute_event_id,
    encode_pdu,
    load_event,
    parse_event,
)
from federation.protocol.ids import EventID, RoomID
from federation.protocol.room_versions import ROOM_VERSIONS, V1, V3, V5, V6, V10, V11, V12
from tests.federation.protocol.strategies import HASH, hostile_pdus, pdus, strict_objects
from tests.federation.protocol.vectors import cases, load

PDU: dict[str, Any] = {
    "type": "m.room.message",
    "sender": "@alice:example.com",
    "room_id": "!room:example.com",
    "content": {"body": "hi"},
    "depth": 7,
    "origin_server_ts": 1_700_000_000_000,
    "prev_events": ["$" + HASH],
    "auth_events": ["$" + HASH],
    "hashes": {"sha256": "x"},
    "signatures": {"example.com": {"ed25519:1": "x"}},
}
PDU_V1 = {
    **PDU,
    "event_id": "$e:example.com",
    "prev_events": [["$p:example.com", {"sha256": "x"}]],
    "auth_events": [["$a:example.com", {"sha256": "x"}]],
}
PDU_V12 = {**PDU, "room_id": "!" + HASH}


def without(pdu: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in pdu.items() if name != key}


@pytest.mark.parametrize(
    ("version", "event_id"), load("events", "event_ids")["event_id_by_room_version"].items()
)
def test_the_id_of_a_real_event_is_computed(version: str, event_id: str) -> None:
    assert (
        compute_event_id(ROOM_VERSIONS[version], load("events", "event_ids")["event"]) == event_id
    )


@pytest.mark.parametrize(
    "case",
    cases("redaction", "redaction_and_ids"),
    ids=lambda case: f"v{case['room_version']}-{case['event']['type']}",
)
def test_an_event_and_its_redacted_copy_have_one_id(case: Any) -> None:
    version = ROOM_VERSIONS[case["room_version"]]
    assert parse_event(version, case["event"]).event_id == case["event_id"]
    assert parse_event(version, case["redacted"]).event_id == case["event_id"]


@pytest.mark.parametrize(
    "case", cases("events", "room_version_12_room_ids"), ids=lambda case: case["room_id"]
)
def test_the_room_id_is_the_id_of_the_create_event(case: Any) -> None:
    event = parse_event(V12, case["create_event"])
    assert (event.event_id, event.room_id) == (case["event_id"], case["room_id"])
    assert "room_id" not in event.pdu


def test_an_event_has_views_of_its_fields() -> None:
    event = parse_event(V11, {**PDU, "state_key": "", "unsigned": {"age": 3}})
    assert event.key == StateKey("m.room.message", "")
    assert event.is_state
    assert event.content == {"body": "hi"}
    assert (event.depth, event.origin_server_ts, event.sender) == (
        7,
        1_700_000_000_000,
        "@alice:example.com",
    )
    assert list(event.prev_events) == list(event.auth_events) == ["$" + HASH]
    assert (event.membership, event.redacts) == (None, None)
    assert "unsigned" not in event.pdu
    with pytest.raises(ValueError, match="no state event"):
        _ = parse_event(V11, PDU).key


def test_the_first_event_format_is_parsed() -> None:
    event = parse_event(V1, PDU_V1)
    assert event.event_id == "$e:example.com"
    assert list(event.prev_events) == ["$p:example.com"]
    assert list(event.auth_events) == ["$a:example.com"]


def test_only_member_events_have_a_membership_string() -> None:
    assert (
        parse_event(
            V11, {**PDU, "type": "m.room.member", "content": {"membership": "join"}}
        ).membership
        == "join"
    )
    assert (
        parse_event(V11, {**PDU, "type": "m.room.member", "content": {"membership": 1}}).membership
        is None
    )
    assert parse_event(V11, {**PDU, "content": {"membership": "join"}}).membership is None


@pytest.mark.parametrize(
    ("version", "top", "inner", "target"),
    [
        (V10, "$top", "$inner", "$top"),
        (V11, "$top", "$inner", "$inner"),
        (V10, None, "$inner", None),
        (V11, "$top", None, None),
        (V10, ["$top"], None, None),
        (V11, None, "no id", None),
    ],
)
def test_the_target_of_a_redaction_is_found(
    version: Any, top: Any, inner: Any, target: str | None
) -> None:
    pdu = {
        **PDU,
        "type": "m.room.redaction",
        "content": {} if inner is None else {"redacts": inner},
    }
    if top is not None:
        pdu["redacts"] = top
    event = parse_event(version, pdu)
    assert event.redacts == target
    if target is not None:
        shown = json.loads(client_form_prefix(event) + b"}")
        assert shown["redacts"] == shown["content"]["redacts"] == target


@pytest.mark.parametrize("key", [key for key in PDU])
def test_an_event_without_a_required_field_is_refused(key: str) -> None:
    with pytest.raises(BadEvent, match=key):
        parse_event(V11, without(PDU, key))
    with pytest.raises(BadEvent, match=key):
        parse_event(V12, without(PDU_V12, key))


WRONG: list[tuple[str, list[object]]] = [
    ("type", [1, None, "a\0", "a" * 256, "я" * 128]),
    ("sender", [1, "alice", "@alice", "@" + "a" * 251 + ":x.y"]),
    ("state_key", [None, 1, "a" * 256, "😀" * 64]),
    ("room_id", [None, "room:example.com", "!room", "!" + "a" * 251 + ":x.y"]),
    ("content", [None, [], "x"]),
    ("depth", [-1, True, "1", 1.0, None, 2**53]),
    ("origin_server_ts", ["1", 1.5, None, False, 2**53]),
    ("prev_events", [None, {}, ["x"], [1], [["$a", {}]], ["$" + HASH] * 21]),
    ("auth_events", [None, {}, ["x"], ["$" + HASH] * 11]),
    ("hashes", [None, [], {}, {"sha256": 1}]),
    ("signatures", [None, [], {"x": []}, {"x": {"y": 1}}]),
]


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG for value in values]
)
def test_every_field_is_checked(key: str, value: object) -> None:
    with pytest.raises(BadEvent):
        parse_event(V11, {**PDU, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("event_id", None),
        ("event_id", "$nodomain"),
        ("event_id", "$" + "a" * 251 + ":x.y"),
        ("prev_events", ["$p:example.com"]),
        ("prev_events", [["$p:example.com"]]),
        ("prev_events", [["p", {}]]),
        ("auth_events", [["$p:example.com", "hash"]]),
    ],
)
def test_every_field_of_the_first_format_is_checked(key: str, value: object) -> None:
    with pytest.raises(BadEvent):
        parse_event(V1, {**PDU_V1, key: value})


def test_sizes_up_to_the_limits_are_accepted() -> None:
    parse_event(V11, {**PDU, "type": "я" * 127, "state_key": "a" * 255, "depth": 2**53 - 1})
    parse_event(V11, {**PDU, "prev_events": ["$" + HASH] * 20, "auth_events": ["$" + HASH] * 10})
    parse_event(V5, {**PDU, "depth": 2**63 - 1})
    with pytest.raises(BadEvent):
        parse_event(V5, {**PDU, "depth": 2**63})


def test_room_ids_of_the_twelfth_version_are_hashes() -> None:
    assert parse_event(V12, PDU_V12).room_id == "!" + HASH
    for room_id in ("!room:example.com", "$" + HASH, "!" + HASH[1:], 7):
        with pytest.raises(BadEvent):
            parse_event(V12, {**PDU, "room_id": room_id})


def test_numbers_are_checked_as_the_room_version_says() -> None:
    content = {"float": 1.5, "big": 2**60}
    assert parse_event(V5, {**PDU, "content": content}).content == content
    for value in content.values():
        with pytest.raises(BadEvent):
            parse_event(V6, {**PDU, "content": {"x": value}})
        with pytest.raises(BadEvent):
            parse_event(V6, {**PDU, "unknown": [value]})


def test_the_size_of_an_event_excludes_unsigned() -> None:
    room = MAX_PDU_BYTES - len(encode_canonical(PDU))
    largest = {**PDU, "content": {"body": "hi" + "x" * room}}
    assert (
        len(encode_pdu(parse_event(V11, {**largest, "unsigned": {"x": "y" * 1_000}})))
        == MAX_PDU_BYTES
    )
    with pytest.raises(EventTooLarge):
        parse_event(V11, {**PDU, "content": {"body": "hi" + "x" * (room + 1)}})


def test_nesting_is_bounded() -> None:
    nested: Any = []
    for _ in range(MAX_SENT_DEPTH - 3):
        nested = [nested]
    event = parse_event(V11, {**PDU, "content": {"x": nested}})
    assert (
        load_event(V11, event.event_id, event.room_id, encode_pdu(event)).content == event.content
    )
    with pytest.raises(BadEvent, match="deep"):
        parse_event(V11, {**PDU, "content": {"x": [nested]}})


@settings(max_examples=200)
@given(hostile_pdus, st.sampled_from(sorted(ROOM_VERSIONS)))
def test_a_hostile_pdu_is_an_event_or_a_matrix_error(pdu: dict[str, Any], version: str) -> None:
    try:
        event = parse_event(ROOM_VERSIONS[version], pdu)
    except MatrixError:
        return
    assert event.redacts is None or event.redacts.startswith("$")
    assert json.loads(client_form_prefix(event) + b"}")["event_id"] == event.event_id


@settings(max_examples=100)
@given(pdus(), strict_objects, st.sampled_from([V3, V6, V11]))
def test_the_id_does_not_depend_on_unsigned_and_signatures(
    pdu: dict[str, Any], unsigned: Any, version: Any
) -> None:
    event_id = parse_event(version, pdu).event_id
    more = {**pdu, "unsigned": unsigned, "signatures": {"x": {"ed25519:y": "z"}}}
    assert parse_event(version, more).event_id == event_id
    assert parse_event(version, {**pdu, "depth": pdu["depth"] ^ 1}).event_id != event_id


@settings(max_examples=100)
@given(pdus(), st.sampled_from([V6, V10, V11]))
def test_an_event_is_read_back_from_its_stored_bytes(pdu: dict[str, Any], version: Any) -> None:
    parsed = parse_event(version, pdu)
    stored = encode_pdu(parsed)
    assert stored == encode_canonical(pdu)
    loaded = load_event(version, parsed.event_id, parsed.room_id, stored)
    assert encode_pdu(loaded) == stored
    for name in (
        "version",
        "event_id",
        "room_id",
        "type",
        "state_key",
        "sender",
        "depth",
        "origin_server_ts",
    ):
        assert getattr(loaded, name) == getattr(parsed, name)
    assert (loaded.content, loaded.pdu, loaded.redacts) == (
        parsed.content,
        parsed.pdu,
        parsed.redacts,
    )
    assert json.loads(client_form_prefix(loaded) + b"}") == json.loads(
        client_form_prefix(parsed) + b"}"
    )


@settings(max_examples=50)
@given(pdus())
def test_an_event_has_the_client_format(pdu: dict[str, Any]) -> None:
    event = parse_event(V6, pdu)
    prefix = client_form_prefix(event)
    shown = msgspec.json.decode(prefix + b',"room_id":"!r","unsigned":{}}')
    expected: dict[str, Any] = {
        key: pdu[key]
        for key in ("type", "sender", "origin_server_ts", "content", "state_key")
        if key in pdu
    }
    if event.redacts is not None:
        expected |= {
            "redacts": event.redacts,
            "content": {**pdu["content"], "redacts": event.redacts},
        }
    assert shown == {**expected, "event_id": event.event_id, "room_id": "!r", "unsigned": {}}


def test_ids_of_old_rooms_are_escaped_for_clients() -> None:
    event = load_event(V1, EventID('$"\\é:x'), RoomID("!r:x"), encode_canonical(PDU_V1))
    assert json.loads(client_form_prefix(event) + b"}")["event_id"] == '$"\\é:x'

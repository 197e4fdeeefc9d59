"""Stripped state: the part sent to non-members, and the part accepted from other servers."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from federation.protocol.canonical_json import decode_json
from federation.protocol.errors import InvalidParam
from federation.protocol.event_signing import build_event
from federation.protocol.events import Event, StateKey, parse_event
from federation.protocol.ids import RoomID, ServerName, UserID
from federation.protocol.room_versions import V12
from federation.protocol.stripped_state import (
    MAX_STRIPPED_EVENTS,
    federation_form,
    parse_room_state,
    parse_stripped_state,
    strip_event,
    stripped_state_keys,
)
from tests.federation.protocol.strategies import json_values
from tests.federation.protocol.vectors import cases, signing_key

CREATE = parse_event(V12, cases("events", "room_version_12_room_ids")[0]["create_event"])
ROOM = CREATE.room_id


def name_event(room_id: RoomID = ROOM, state_key: str | None = "") -> Event:
    return build_event(
        V12,
        ServerName("example.com"),
        signing_key(),
        room_id=room_id,
        type="m.room.name",
        sender=UserID("@alice:example.com"),
        content={"name": "Mahalla"},
        prev_events=[CREATE.event_id],
        auth_events=[],
        depth=2,
        origin_server_ts=1,
        state_key=state_key,
    )


def test_stripped_state_has_the_specified_events() -> None:
    assert stripped_state_keys()[0] == StateKey("m.room.create", "")
    assert {key.type for key in stripped_state_keys()} == {
        "m.room.create",
        "m.room.name",
        "m.room.avatar",
        "m.room.topic",
        "m.room.join_rules",
        "m.room.canonical_alias",
        "m.room.encryption",
    }
    assert stripped_state_keys("@a:b")[-1] == StateKey("m.room.member", "@a:b")


def test_clients_get_four_keys() -> None:
    assert strip_event(name_event()) == {
        "type": "m.room.name",
        "state_key": "",
        "sender": "@alice:example.com",
        "content": {"name": "Mahalla"},
    }


def test_servers_get_whole_events_and_read_them_back() -> None:
    sent = msgspec.json.encode(federation_form([CREATE, name_event()]))
    received = parse_room_state(V12, ROOM, decode_json(sent))
    assert [event.event_id for event in received] == [CREATE.event_id, name_event().event_id]


@pytest.mark.parametrize(
    "entries",
    [
        None,
        {},
        [],
        [dict(name_event().pdu)],
        [dict(CREATE.pdu), strip_event(name_event())],
        [dict(CREATE.pdu), "x"],
        [dict(CREATE.pdu), dict(name_event(RoomID("!" + "A" * 43)).pdu)],
        [dict(CREATE.pdu), dict(name_event(state_key=None).pdu)],
        [dict(CREATE.pdu)] * (MAX_STRIPPED_EVENTS + 1),
    ],
)
def test_room_state_that_does_not_prove_the_room_is_refused(entries: object) -> None:
    with pytest.raises(InvalidParam):
        parse_room_state(V12, ROOM, entries)


def test_a_claimed_room_id_must_be_that_of_the_create_event() -> None:
    with pytest.raises(InvalidParam):
        parse_room_state(V12, RoomID("!" + "A" * 43), [dict(CREATE.pdu)])


def test_unverified_entries_are_pruned_for_clients() -> None:
    good = {"type": "m.room.name", "state_key": "", "sender": "@a:b", "content": {"name": "x"}}
    newer = {**good, "content": {"name": "y"}}
    bad: list[Any] = [
        1,
        {},
        {**good, "content": []},
        {**good, "sender": "a"},
        {**good, "state_key": 1},
        {**good, "type": 1},
    ]
    assert parse_stripped_state(
        [*bad, good, {**newer, "unsigned": {"x": 1}, "event_id": "$x"}]
    ) == [newer]
    refused: list[object] = [None, {}, [good] * (MAX_STRIPPED_EVENTS + 1)]
    for entries in refused:
        with pytest.raises(InvalidParam):
            parse_stripped_state(entries)


@settings(max_examples=100)
@given(json_values)
def test_any_stripped_state_is_handled(entries: Any) -> None:
    try:
        assert all(
            set(entry) == {"type", "state_key", "sender", "content"}
            for entry in parse_stripped_state(entries)
        )
    except InvalidParam:
        assert not isinstance(entries, list)

"""Power levels: defaults, creators, and the forms in which old rooms write a level."""

import pytest

from federation.protocol.power_levels import CREATOR_LEVEL, PowerLevels, parse_level
from federation.protocol.room_versions import ROOM_VERSIONS, V1, V6, V9, V10, V12, RoomVersion
from tests.helpers.room_factory import ALICE, BOB, CHARLIE, Room, public_room

VERSIONS = pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=list(ROOM_VERSIONS))


@VERSIONS
def test_without_a_power_levels_event_defaults_apply(version: RoomVersion) -> None:
    levels = PowerLevels.of(version, None, Room(version).create)
    assert levels.user_level(ALICE) == (CREATOR_LEVEL if version.creators_privileged else 100)
    assert levels.user_level(BOB) == 0
    assert (
        levels.event_level("m.room.topic", True),
        levels.event_level("m.room.message", False),
    ) == (50, 0)
    assert (levels.invite, levels.kick, levels.ban, levels.redact, levels.notifications()) == (
        0,
        50,
        50,
        50,
        50,
    )


@VERSIONS
def test_values_of_a_power_levels_event_apply(version: RoomVersion) -> None:
    room = public_room(version)
    users = {BOB: 30} if version.creators_privileged else {ALICE: 100, BOB: 30}
    event = room.power(
        users=users,
        users_default=-1,
        events={"m.room.topic": 7},
        state_default=60,
        ban=1,
        notifications={"room": 9},
    )
    levels = PowerLevels.of(version, event, room.create)
    assert (levels.user_level(BOB), levels.user_level(CHARLIE)) == (30, -1)
    assert (levels.event_level("m.room.topic", True), levels.event_level("m.room.name", True)) == (
        7,
        60,
    )
    assert (levels.ban, levels.kick, levels.notifications(), levels.notifications("other")) == (
        1,
        50,
        9,
        50,
    )
    assert levels.can_send(BOB, "m.room.topic", is_state=True)
    assert not levels.can_send(BOB, "m.room.name", is_state=True)


def test_additional_creators_are_above_all() -> None:
    levels = PowerLevels.of(V12, None, Room(V12, content={"additional_creators": [BOB]}).create)
    assert levels.user_level(BOB) == levels.user_level(ALICE) == CREATOR_LEVEL
    assert levels.creators == {ALICE, BOB}


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ("100", 100),
        ("000100", 100),
        ("+100", 100),
        (" -100 ", -100),
        ("0", 0),
        ("", None),
        ("1_0", None),
        ("5.0", None),
        ("1e2", None),
        ("+-1", None),
        ("9" * 309, None),
        ("9" * 5000, None),
        ("0" * 5000 + "7", 7),
        (True, None),
        (None, None),
        ([], None),
    ],
)
def test_strings_are_levels_before_version_10(value: object, level: int | None) -> None:
    assert parse_level(V1, value) == parse_level(V9, value) == level
    assert parse_level(V10, value) is None


@pytest.mark.parametrize(
    ("value", "level"), [(50.57, 50), (5.114698e4, 51146), (-0.5, 0), (float("inf"), None)]
)
def test_floats_are_levels_where_canonical_json_is_not_enforced(
    value: float, level: int | None
) -> None:
    assert parse_level(V1, value) == level
    assert parse_level(V6, value) is None

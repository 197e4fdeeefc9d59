"""The first events of an upgraded room: power levels of old versions, aliases of several
servers."""

from typing import Any

from federation.protocol.events import StateKey
from federation.protocol.ids import UserID
from federation.protocol.power_levels import PowerLevels
from federation.protocol.room_versions import ROOM_VERSIONS
from homeserver.services.rooms.upgrade_events import (
    muted_power_levels,
    new_power_levels,
    split_aliases,
)
from tests.helpers.room_factory import ALICE, BOB, CHARLIE, Room

LEVELS: dict[str, Any] = {
    "users": {ALICE: "100", BOB: " 50", CHARLIE: None},
    "events": {"m.room.name": "40", "m.room.topic": 40.9, "odd": {}},
    "events_default": "10",
    "invite": [],
    "notifications": {"room": "60"},
    "org.example": "kept in the old room",
}


def levels_of_old_room() -> PowerLevels:
    """Of a version that takes texts and fractions."""
    room = Room("5")
    room.join(ALICE)
    levels = room.power(check=False, **LEVELS)
    return PowerLevels.of(room.version, levels, room.state[StateKey("m.room.create", "")])


def test_power_levels_become_numbers() -> None:
    old = levels_of_old_room()
    events = {"m.room.name": 40, "m.room.topic": 40}
    assert new_power_levels(old, ROOM_VERSIONS["11"], UserID(ALICE), []) == {
        "users": {ALICE: 100, BOB: 50},
        "events": events,
        "events_default": 10,
        "notifications": {"room": 60},
    }
    newest = new_power_levels(old, ROOM_VERSIONS["12"], UserID(ALICE), [UserID(BOB)])
    assert newest["users"] == {}
    assert newest["events"] == events | {"m.room.tombstone": 150}


def test_power_levels_of_the_old_room_become_numbers() -> None:
    quiet = muted_power_levels(levels_of_old_room())
    assert (quiet["events_default"], quiet["invite"]) == (50, 50)
    assert quiet["users"] == {ALICE: 100, BOB: 50}
    assert quiet["org.example"] == "kept in the old room"


def test_aliases_of_other_servers_stay() -> None:
    content = {"alias": "#a:here.test", "alt_aliases": ["#b:there.test", "#c:here.test", 5]}
    moved = ["#a:here.test", "#c:here.test"]
    assert split_aliases(content, moved) == (
        {"alias": "#a:here.test", "alt_aliases": ["#c:here.test"]},
        {"alt_aliases": ["#b:there.test"]},
    )
    assert split_aliases({"alias": "#b:there.test", "alt_aliases": None}, moved) == (
        {},
        {"alias": "#b:there.test"},
    )
    assert split_aliases({"alias": 5}, moved) == ({}, {})

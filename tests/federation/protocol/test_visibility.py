"""History visibility: the table of the spec, the events that are judged before and after, and
servers."""

import pytest

from federation.protocol.visibility import (
    HistoryVisibility,
    is_visible,
    is_visible_to_server,
    membership_after,
    read_visibility,
)
from tests.helpers.room_factory import ALICE, BOB, public_room

WORLD, SHARED = HistoryVisibility.WORLD_READABLE, HistoryVisibility.SHARED
INVITED, JOINED = HistoryVisibility.INVITED, HistoryVisibility.JOINED


@pytest.mark.parametrize(
    ("visibility", "membership", "joined_later", "visible"),
    [
        (WORLD, None, False, True),
        (WORLD, "ban", False, True),
        (SHARED, "join", False, True),
        (SHARED, None, True, True),
        (SHARED, "invite", False, False),
        (SHARED, "leave", False, False),
        (INVITED, "join", False, True),
        (INVITED, "invite", False, True),
        (INVITED, "knock", True, False),
        (INVITED, None, True, False),
        (JOINED, "join", False, True),
        (JOINED, "invite", True, False),
        (JOINED, None, True, False),
    ],
)
def test_each_case_of_the_table_is_decided(
    visibility: HistoryVisibility, membership: str | None, joined_later: bool, visible: bool
) -> None:
    event = public_room("11").message(ALICE)
    assert (
        is_visible(
            event, BOB, visibility=visibility, membership=membership, joined_later=joined_later
        )
        is visible
    )
    to_server = is_visible_to_server(
        event,
        "alpha.example",
        visibility=visibility,
        memberships={membership, "leave"},
        joined_later=joined_later,
    )
    assert to_server is visible


def test_a_visibility_change_is_seen_by_members_of_either_side() -> None:
    room = public_room("11")
    opened, closed = room.history_visibility("world_readable"), room.history_visibility("joined")
    assert is_visible(opened, BOB, visibility=JOINED, membership=None, joined_later=False)
    assert is_visible(closed, BOB, visibility=WORLD, membership=None, joined_later=False)
    assert not is_visible(closed, BOB, visibility=JOINED, membership=None, joined_later=False)


def test_own_membership_is_seen_before_or_after() -> None:
    room = public_room("11")
    joined, kicked = room.join(BOB), room.kick(ALICE, BOB)
    assert is_visible(joined, BOB, visibility=JOINED, membership=None, joined_later=False)
    assert is_visible(kicked, BOB, visibility=JOINED, membership="join", joined_later=False)
    assert not is_visible(joined, ALICE, visibility=JOINED, membership=None, joined_later=False)
    assert is_visible_to_server(
        joined, "alpha.example", visibility=JOINED, memberships=(), joined_later=False
    )
    assert not is_visible_to_server(
        joined, "gamma.example", visibility=JOINED, memberships=(), joined_later=False
    )


def test_the_membership_shown_to_readers_is_the_one_after_the_event() -> None:
    room = public_room("11")
    joined = room.join(BOB)
    assert membership_after(joined, BOB, None) == "join"
    assert membership_after(joined, ALICE, "join") == "join"
    assert membership_after(room.message(ALICE), BOB, None) == "leave"


@pytest.mark.parametrize("value", [None, "unheard of", 5, []])
def test_an_unknown_history_visibility_counts_as_shared(value: object) -> None:
    event = public_room("11").send(
        ALICE, "m.room.history_visibility", {"history_visibility": value}, ""
    )
    assert read_visibility(event) is SHARED
    assert read_visibility(None) is SHARED

"""Badge counts when several pushes of one user are built at the same time."""

from collections.abc import Collection, Mapping, Set
from typing import Any, cast

from twisted.internet.defer import Deferred

from federation.protocol.ids import UserID
from federation.rooms.memberships import Memberships
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.account_data.invite_permissions import InvitePermissions
from homeserver.services.push.unread_counts import RoomUnread, Unread, UnreadCounts
from homeserver.services.pushers.badges import BadgeCounts
from storage.rooms.memberships import MembershipRow

ALICE = UserID("@alice:example.org")


def joined(room_nid: int) -> MembershipRow:
    row: Any = type("Row", (), {"room_nid": room_nid, "membership": "join"})()
    return cast(MembershipRow, row)


class Counting:
    """Holds the unread counts of rooms; a count is pending until `finish`."""

    def __init__(self, unread: Mapping[int, int]) -> None:
        self.unread = dict(unread)
        self.asked: list[Deferred[None]] = []

    async def of_user(self, _user_id: UserID) -> Any:
        return {nid: joined(nid) for nid in self.unread}

    async def get_counts(
        self, _user_id: UserID, rooms: Collection[MembershipRow], _ignored: Set[str]
    ) -> Mapping[int, RoomUnread]:
        counts = {
            row.room_nid: RoomUnread(Unread(self.unread[row.room_nid], 0), {}) for row in rooms
        }
        gate: Deferred[None] = Deferred()
        self.asked.append(gate)
        await gate
        return counts

    def finish(self) -> None:
        asked, self.asked = self.asked, []
        for gate in asked:
            gate.callback(None)


class NobodyIgnored:
    async def of_user(self, _user_id: UserID) -> Set[str]:
        return frozenset()


def badges_of(counting: Counting) -> BadgeCounts:
    memberships, unread = cast(Memberships, counting), cast(UnreadCounts, counting)
    ignored, permissions = cast(IgnoredUsers, NobodyIgnored()), cast(InvitePermissions, None)
    return BadgeCounts(
        memberships=memberships,
        unread=unread,
        ignored=ignored,
        permissions=permissions,
        by_room=False,
    )


def ask(badges: BadgeCounts) -> list[int]:
    """Return a list that gets the badge once it is counted."""
    results: list[int] = []
    Deferred.fromCoroutine(badges.get(ALICE)).addCallback(results.append)
    return results


def test_two_devices_that_are_pushed_to_at_once_get_the_same_badge() -> None:
    counting = Counting({1: 3, 2: 4})
    badges = badges_of(counting)
    first, second = ask(badges), ask(badges)
    while counting.asked:
        counting.finish()
    assert (first, second) == ([7], [7])


def test_a_change_during_a_count_is_in_the_next_count() -> None:
    counting = Counting({1: 3})
    badges = badges_of(counting)
    first = ask(badges)
    counting.unread[1] = 4
    badges.invalidate_room_of_user(ALICE, 1)
    second = ask(badges)
    while counting.asked:
        counting.finish()
    assert (first, second) == ([3], [4])


def test_a_redaction_during_the_first_count_is_in_the_next_count() -> None:
    counting = Counting({1: 1})
    badges = badges_of(counting)
    first = ask(badges)
    counting.unread[1] = 0
    assert badges.invalidate_room(1) == [ALICE]
    assert badges.invalidate_room(2) == []
    while counting.asked:
        counting.finish()
    assert first == [1]
    second = ask(badges)
    while counting.asked:
        counting.finish()
    assert second == [0]
    assert badges.invalidate_room(1) == []


def test_a_failed_count_is_retried_by_the_next_caller() -> None:
    counting = Counting({1: 3})
    badges = badges_of(counting)
    Deferred.fromCoroutine(badges.get(ALICE)).addErrback(lambda failure: failure.trap(OSError))
    second = ask(badges)
    counting.asked.pop().errback(OSError())
    while counting.asked:
        counting.finish()
    assert second == [3]

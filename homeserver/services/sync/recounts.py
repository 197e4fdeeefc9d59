"""Rooms whose counts of unread messages may be others though nothing happened there that a client
is told of: its user ignores somebody else than before, or messages were purged that they had not
read. What another node purged is read from the database.
"""

from collections.abc import Mapping

from federation.protocol.ids import UserID
from homeserver.services.account_data.ignored_users import IGNORED_USERS
from homeserver.services.push.unread_counts import UnreadCounts
from homeserver.services.streams.recent_changes import RecentChanges
from storage.account_data.account_data import AccountData
from storage.rooms.memberships import MembershipRow


class Recounts:
    """Finds them. For the reactor thread."""

    def __init__(self, recent: RecentChanges, unread: UnreadCounts) -> None:
        self._recent = recent
        self._unread = unread

    async def find(
        self, user_id: UserID, since: int, rows: Mapping[int, MembershipRow], data: AccountData
    ) -> set[int]:
        """The rooms, of those that the user is joined to. `data`: what they changed of their
        account data after that position."""
        joined = {nid: row for nid, row in rows.items() if row.membership == "join"}
        found: set[int] = set()
        if IGNORED_USERS in data.everywhere:
            # of whom the user ignored before nothing is known: all rooms where anything is unread
            # of anybody
            events = await self._unread.get_events(
                user_id, joined.values(), frozenset(), after=0, limit=1
            )
            found |= {nid for nid, newest in events.items() if newest}
        purged = self._recent.purged_since(since)
        if purged is None:
            purged = await self._unread.purged_since(since)
        concerned = [joined[nid] for nid in purged if nid in joined]
        if concerned:
            marks = await self._unread.read_marks(user_id, concerned)
            found |= {nid for nid, mark in marks.items() if mark.everything < purged[nid]}
        return found

"""Finds rooms whose unread counts may have changed without an event or receipt in the room.

This happens when the user changes the list of ignored users, and when unread messages are purged.
Purges that are not in memory (`RecentChanges`) are read from the database.
"""

from collections.abc import Mapping

from federation.protocol.ids import UserID
from homeserver.services.account_data.ignored_users import IGNORED_USERS
from homeserver.services.push.unread_counts import UnreadCounts
from homeserver.services.streams.recent_changes import RecentChanges
from storage.account_data.account_data import UserAccountData
from storage.rooms.memberships import MembershipRow


class UnreadChanges:
    """Finds rooms whose unread counts may have changed. Use this class only on the reactor
    thread."""

    def __init__(self, *, recent: RecentChanges, unread: UnreadCounts) -> None:
        self._recent = recent
        self._unread = unread

    async def find(
        self, user_id: UserID, since: int, rows: Mapping[int, MembershipRow], data: UserAccountData
    ) -> set[int]:
        """Return the joined rooms whose unread counts may have changed. `data`: the user's account
        data that changed since the position."""
        joined = {nid: row for nid, row in rows.items() if row.membership == "join"}
        found: set[int] = set()
        if IGNORED_USERS in data.global_data:
            # whom the user ignored before is not known: take all rooms with any unread event
            events = await self._unread.get_events(
                user_id, joined.values(), frozenset(), after=0, limit=1
            )
            found |= {nid for nid, newest in events.items() if newest}
        purged = self._recent.purged_since(since)
        if purged is None:
            purged = await self._unread.purged_since(since)
        affected = [joined[nid] for nid in purged if nid in joined]
        if affected:
            read_positions = await self._unread.get_read_positions(user_id, affected)
            found |= {nid for nid, read in read_positions.items() if read.everything < purged[nid]}
        return found

"""Rooms whose unread counts may have changed although no event says so.

This happens if the user reads the rooms on another device or changes their ignored users, or if
messages are purged. If none of this happened recently, which is known from memory, there is no
query.
"""

from collections.abc import Mapping, Set
from typing import Final

from federation.protocol.ids import UserID
from homeserver.services.account_data.ignored_users import IGNORED_USERS
from homeserver.services.push.unread_counts import READ_TYPES, UnreadCounts
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.sync.unread_changes import UnreadChanges
from storage.account_data.account_data import AccountDataStore, UserAccountData
from storage.engine.streams import Topic
from storage.rooms.memberships import MembershipRow
from storage.rooms.receipts import ReceiptStore

NONE: Final[frozenset[int]] = frozenset()


class SlidingUnreadChanges:
    """Finds such rooms. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        recent: RecentChanges,
        unread: UnreadCounts,
        receipts: ReceiptStore,
        account_data: AccountDataStore,
    ) -> None:
        self._recent = recent
        self._receipts = receipts
        self._account_data = account_data
        self._changed_counts = UnreadChanges(recent=recent, unread=unread)

    async def find(
        self,
        user_id: UserID,
        since: int,
        upto: int,
        sent: Set[int],
        rows: Mapping[int, MembershipRow],
    ) -> Set[int]:
        """Return those of the `sent` rooms, if the user is joined, whose counts may have changed
        since a position."""
        if since >= upto or not sent:
            return NONE
        found = self._recent.read_since(user_id, since)
        data = UserAccountData()
        if self._recent.concerns_user(user_id, Topic.ACCOUNT_DATA, since):
            data = await self._account_data.get_account_data_since(user_id, since, upto)
        is_known = found is not None and IGNORED_USERS not in data.global_data
        if is_known and not found and not self._recent.purged_since(since):
            return NONE
        joined = {
            nid: row
            for nid in sent
            if (row := rows.get(nid)) is not None and row.membership == "join"
        }
        if found is None:
            found = await self._find_read(user_id, since, joined)
        return (
            found | await self._changed_counts.find(user_id, since, joined, data)
        ) & joined.keys()

    async def _find_read(
        self, user_id: UserID, since: int, joined: Mapping[int, MembershipRow]
    ) -> set[int]:
        """The rooms in which the user's own receipts moved, from the database."""
        receipts = await self._receipts.get_receipts_of_user(user_id, joined)
        return {
            nid
            for nid, own in receipts.items()
            if any(row.position > since and row.receipt_type in READ_TYPES for row in own)
        }

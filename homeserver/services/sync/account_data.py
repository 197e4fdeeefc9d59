"""The account data of a response: global, and of each room.

spec: client-server-api#client-config
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from federation.protocol.ids import RoomID
from homeserver.services.account_data.account_data_cache import AccountDataCache
from homeserver.services.push.push_rules import account_data_events
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.sync.request import SyncRange, SyncRequest
from homeserver.services.sync.room_update import RoomUpdate
from storage.account_data.account_data import AccountDataStore, UserAccountData
from storage.engine.streams import Topic


class AccountDataSection:
    """Reads what is new in a user's account data."""

    def __init__(
        self, *, store: AccountDataStore, cache: AccountDataCache, recent: RecentChanges
    ) -> None:
        self._store = store
        self._cache = cache
        self._recent = recent

    async def read(self, request: SyncRequest, span: SyncRange) -> UserAccountData:
        """Return what changed in the range, or everything for an initial sync."""
        user_id = request.caller.user_id
        if request.since is None:
            return await self._cache.of_user(user_id)
        if not self._recent.concerns_user(user_id, Topic.ACCOUNT_DATA, span.since):
            return UserAccountData()
        return await self._store.get_account_data_since(user_id, span.since, span.upto)

    async def fill_rooms(
        self, request: SyncRequest, updates: Sequence[RoomUpdate], changed: UserAccountData
    ) -> None:
        """Add the account data of each room: what changed, or everything if the room starts
        over."""
        by_room: Mapping[str, Mapping[str, bytes]] = changed.rooms
        if request.since is not None:
            new = [update.room.room_id for update in updates if update.starts_over]
            if new:
                all_data = await self._cache.of_rooms(request.caller.user_id, new)
                by_room = {**by_room, **{room_id: all_data.get(room_id, {}) for room_id in new}}
        if not by_room:
            return
        wanted = request.filter.room.account_data
        for update in updates:
            room_id = RoomID(update.room.room_id)
            if wanted.allows_room(room_id):
                update.account_data = [
                    {"type": type, "content": msgspec.Raw(content)}
                    for type, content in by_room.get(room_id, {}).items()
                    if wanted.allows(type, None)
                ]


def global_account_data(request: SyncRequest, entries: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Make the events of the `account_data` section, as far as the filter allows them."""
    allows = request.filter.account_data.allows
    events = account_data_events(request.caller.user_id, entries, first=request.since is None)
    return [event for event in events if allows(event["type"], None)]

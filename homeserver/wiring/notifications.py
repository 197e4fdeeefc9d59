"""Wires unread counts, push decisions and the list of notifications."""

from collections.abc import Mapping

from homeserver.observe.caches import CountedCache, UnsizedCache
from homeserver.services.notifications.notifications import Notifications
from homeserver.services.push.decisions import PushDecisions
from homeserver.services.push.unread_counts import UnreadCounts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.push_rules import PushParts
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from homeserver.wiring.room_history import RoomHistoryParts
from homeserver.wiring.room_reading import RoomReadingParts
from homeserver.wiring.user_settings import UserSettingParts
from storage.push.old_push_actions import OldPushActionStore
from storage.rooms.receipts import ReceiptStore
from storage.rooms.recency import RoomRecencyStore


class NotificationParts:
    """Unread counts, decisions about pushes, and the list of notifications."""

    def __init__(
        self,
        base: Foundation,
        push: PushParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        history: RoomHistoryParts,
        settings: UserSettingParts,
        room_reading: RoomReadingParts,
    ) -> None:
        database, streams = base.database, base.database.streams
        self.unread = UnreadCounts(
            push.outcome_store,
            ReceiptStore(database),
            rooms.store,
            rooms.past,
            push.rules,
            streams,
            capacity=base.sizes.unread_counts,
        )
        self.push_decisions = PushDecisions(
            room_engine.engine,
            rooms.membership_store,
            rooms.past,
            push.rules,
            settings.ignored,
            settings.permissions,
            push.threads,
            history.lifetimes,
        )
        self.notifications = Notifications(
            push.outcome_store,
            OldPushActionStore(database),
            RoomRecencyStore(database),
            rooms.store,
            rooms.memberships,
            rooms.past,
            rooms.events,
            rooms.outside,
            self.unread,
            push.rules,
            self.push_decisions,
            settings.ignored,
            settings.permissions,
            room_reading.client_events,
            streams,
            history.lifetimes,
        )

    @property
    def caches(self) -> Mapping[str, CountedCache]:
        """Return the caches that have metrics."""
        return {"unread_counts": UnsizedCache(self.unread.cache)}

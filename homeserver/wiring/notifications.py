"""Wires unread counts, the list of notifications, and the decision which pushes and e-mails to
send."""

from collections.abc import Mapping, Sequence

from homeserver.observe.caches import CountedCache, UnsizedCache
from homeserver.services.notifications.notifications import Notifications
from homeserver.services.push.decisions import PushDecisions
from homeserver.services.push.unread_counts import UnreadCounts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.push_rules import PushRuleParts
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from homeserver.wiring.room_history import RoomHistoryParts
from homeserver.wiring.room_reading import RoomReadingParts
from homeserver.wiring.user_settings import UserSettingParts
from storage.push.old_push_actions import OldPushActionStore
from storage.rooms.receipts import ReceiptStore
from storage.rooms.recency import RoomRecencyStore


class NotificationParts:
    """Unread counts, the list of notifications, and the decision which pushes to send."""

    def __init__(
        self,
        *,
        base: Foundation,
        push: PushRuleParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        history: RoomHistoryParts,
        settings: UserSettingParts,
        room_reading: RoomReadingParts,
    ) -> None:
        database, streams = base.database, base.database.streams
        self.unread = UnreadCounts(
            outcomes=push.outcome_store,
            receipts=ReceiptStore(database),
            rooms=rooms.store,
            past_memberships=rooms.past_memberships,
            rules=push.rules,
            streams=streams,
            capacity=base.sizes.unread_counts,
        )
        self.push_decisions = PushDecisions(
            engine=room_engine.engine,
            memberships=rooms.membership_store,
            past_memberships=rooms.past_memberships,
            rules=push.rules,
            ignored=settings.ignored,
            permissions=settings.permissions,
            threads=push.threads,
            lifetimes=history.retention,
        )
        self.notifications = Notifications(
            outcomes=push.outcome_store,
            old=OldPushActionStore(database),
            recency=RoomRecencyStore(database),
            rooms=rooms.store,
            memberships=rooms.memberships,
            past_memberships=rooms.past_memberships,
            events=rooms.events,
            out_of_room=rooms.out_of_room,
            unread=self.unread,
            rules=push.rules,
            decisions=self.push_decisions,
            ignored=settings.ignored,
            permissions=settings.permissions,
            client_events=room_reading.client_events,
            streams=streams,
            lifetimes=history.retention,
        )

    @property
    def caches(self) -> Mapping[str, CountedCache]:
        """Return the caches that have metrics."""
        return {"unread_counts": UnsizedCache(self.unread.cache)}

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.notifications,)

"""Wires `/sync`, sliding sync, and the older endpoints `/events` and `/initialSync`."""

from collections.abc import Mapping, Sequence

from homeserver.observe.caches import CountedCache
from homeserver.services.account_data.account_data_cache import AccountDataCache
from homeserver.services.rooms.receipt_cache import ReceiptCache
from homeserver.services.rooms.room_caches import RoomCaches
from homeserver.services.sliding_sync.sliding_sync import SlidingSync
from homeserver.services.sync.device_sections import DeviceSectionReader
from homeserver.services.sync.initial_sync import InitialSync, InitialSyncParts
from homeserver.services.sync.joined_rooms import JoinedRooms
from homeserver.services.sync.lazy_members import LazyMembers
from homeserver.services.sync.plain_messages import PlainMessages
from homeserver.services.sync.presence import PresenceSection
from homeserver.services.sync.room_state import RoomStates
from homeserver.services.sync.room_summary import RoomSummaries
from homeserver.services.sync.sticky_events import StickyEventReader
from homeserver.services.sync.sync import Sync, SyncParts
from homeserver.services.sync.to_device_cache import ToDeviceCache
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.devices import DeviceParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.notifications import NotificationParts
from homeserver.wiring.presence import PresenceParts
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from homeserver.wiring.room_history import RoomHistoryParts
from homeserver.wiring.room_reading import RoomReadingParts
from homeserver.wiring.sliding_sync import make_sliding_parts
from homeserver.wiring.user_settings import UserSettingParts
from storage.account_data.account_data import AccountDataStore
from storage.events.timelines import TimelineStore
from storage.rooms.receipts import ReceiptStore
from storage.rooms.recency import RoomRecencyStore
from storage.rooms.summaries import RoomSummaryStore


class SyncingParts:
    """The forms of /sync, which share their readers."""

    def __init__(
        self,
        *,
        base: Foundation,
        accounts: AccountParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        history: RoomHistoryParts,
        settings: UserSettingParts,
        room_reading: RoomReadingParts,
        notifications: NotificationParts,
        presence: PresenceParts,
        devices: DeviceParts,
    ) -> None:
        database, streams, sizes = base.database, base.database.streams, base.sizes
        client_events, notifier = room_reading.client_events, presence.notifier
        receipt_store, account_data_store = ReceiptStore(database), AccountDataStore(database)
        max_events = base.config.rooms.filter_timeline_limit
        summaries = RoomSummaries(
            store=RoomSummaryStore(database),
            partial=rooms.partial,
            streams=streams,
            capacity=sizes.listed_rooms,
        )
        plain_messages = PlainMessages(
            timelines=rooms.timelines,
            events=rooms.events,
            visibility=history.visibility,
            client_events=client_events,
            unread=notifications.unread,
            ignored=settings.ignored,
        )
        joined = JoinedRooms(
            events=rooms.events,
            timelines=rooms.timelines,
            current_states=rooms.current_states,
            visibility=history.visibility,
            states=RoomStates(trees=rooms.trees, events=rooms.events),
            summaries=summaries,
            client_events=client_events,
            lazy_members=LazyMembers(capacity=sizes.lazy_members),
            aggregations=room_reading.aggregations,
            plain_messages=plain_messages,
            max_events=max_events,
        )
        parts = SyncParts(
            rooms=rooms.store,
            memberships=rooms.memberships,
            joined=joined,
            summaries=summaries,
            invited=room_reading.invited,
            unread=notifications.unread,
            receipts=receipt_store,
            account_data=account_data_store,
            room_caches=RoomCaches(
                ReceiptCache(store=receipt_store, streams=streams, capacity=sizes.receipts),
                AccountDataCache(
                    store=account_data_store, streams=streams, capacity=sizes.account_data_bytes
                ),
            ),
            typing=presence.typing,
            recent=rooms.recent,
            past_memberships=rooms.past_memberships,
            states=rooms.current_states,
            ignored_users=settings.ignored,
            permissions=settings.permissions,
            devices=DeviceSectionReader(
                to_device=accounts.stores.to_device,
                messages=ToDeviceCache(streams=streams),
                counts=devices.key_counts,
                lists=devices.device_lists,
                recent=rooms.recent,
            ),
            presence=PresenceSection(
                presence=presence.presence,
                memberships=rooms.memberships,
                store=rooms.membership_store,
                recent=rooms.recent,
                clock=base.clock,
                server_name=base.identity.server_name,
                includes_offline=base.config.users.presence.include_offline_users_on_sync,
            ),
            sticky=StickyEventReader(
                sticky=rooms.sticky_events,
                events=rooms.events,
                visibility=history.visibility,
                client_events=client_events,
            ),
            partial=rooms.partial,
            plain_messages=plain_messages,
        )
        self.sync = Sync(
            parts=parts,
            streams=streams,
            notifier=notifier,
            clock=base.clock,
            catch_up=database.catch_up,
        )
        self.initial_sync = InitialSync(
            parts=InitialSyncParts(
                room_engine.engine,
                rooms.events,
                room_reading.reading,
                rooms.store,
                room_reading.hidden_changes,
                rooms.memberships,
                TimelineStore(database),
                client_events,
                account_data_store,
                receipt_store,
                presence.typing,
                rooms.recent,
                settings.ignored,
                settings.permissions,
                parts.presence,
                RoomRecencyStore(database),
                room_reading.invited,
            ),
            streams=streams,
            notifier=notifier,
            clock=base.clock,
        )
        self.sliding = make_sliding_parts(
            base,
            parts,
            rooms,
            room_engine,
            history,
            room_reading,
            accounts.stores.profiles,
        )
        self.sliding_sync = SlidingSync(
            parts=self.sliding,
            streams=streams,
            notifier=notifier,
            clock=base.clock,
            catch_up=database.catch_up,
            max_events=max_events,
        )

    @property
    def caches(self) -> Mapping[str, CountedCache]:
        """Return the caches that have metrics."""
        return self.sliding.caches

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.initial_sync, self.sliding_sync, self.sync)

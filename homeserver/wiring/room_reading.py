"""Wires the reading of rooms: events in their client form, history, relations."""

from collections.abc import Mapping

from homeserver.observe.caches import CountedCache
from homeserver.services.directory.shadow_ban import HiddenRoomChanges
from homeserver.services.rooms.aggregations import Aggregations
from homeserver.services.rooms.client_events import ClientEvents
from homeserver.services.rooms.history import HistorySource
from homeserver.services.rooms.invited_rooms import InvitedRooms
from homeserver.services.rooms.no_relations_cache import NoRelationsCache
from homeserver.services.rooms.reading import RoomReading
from homeserver.services.rooms.receipts import ReadMarkers
from homeserver.services.rooms.relations import RoomRelations
from homeserver.services.rooms.state_responses import StateResponses
from homeserver.services.rooms.thread_subscriptions import ThreadSubscriptions
from homeserver.services.rooms.thread_updates import ThreadUpdates
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from homeserver.wiring.room_history import RoomHistoryParts
from homeserver.wiring.user_settings import UserSettingParts
from storage.account_data.account_data import AccountDataStore
from storage.directory.aliases import AliasStore
from storage.events.relations import RelationStore
from storage.events.timelines import TimelineStore
from storage.moderation.shadow_ban import ShadowRoomStore
from storage.rooms.sent_transactions import SentTransactionStore
from storage.rooms.thread_subscriptions import ThreadSubscriptionStore
from storage.rooms.thread_updates import ThreadUpdateStore


class RoomReadingParts:
    """Reading of rooms."""

    def __init__(
        self,
        base: Foundation,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        history: RoomHistoryParts,
        settings: UserSettingParts,
        source: HistorySource,
    ) -> None:
        """`source` fetches history that this server lacks."""
        database, streams, engine = base.database, base.database.streams, room_engine.engine
        relation_store = RelationStore(database)
        visibility, ignored = history.visibility, settings.ignored
        self.aggregations = Aggregations(
            relation_store,
            rooms.events,
            rooms.memberships,
            visibility,
            ignored,
            NoRelationsCache(streams, capacity=base.sizes.events),
        )
        self.client_events = ClientEvents(
            rooms.events,
            SentTransactionStore(database),
            self.aggregations,
            rooms.sticky_events,
            base.now_ms,
        )
        self._state_responses = StateResponses(streams, capacity=base.sizes.answer_bytes)
        self.reading = RoomReading(
            engine,
            rooms.events,
            rooms.memberships,
            rooms.membership_store,
            TimelineStore(database),
            visibility,
            history.stays,
            self.client_events,
            ignored,
            self.aggregations,
            self._state_responses,
            source,
        )
        self.relations = RoomRelations(relation_store, self.reading, self.client_events, ignored)
        self.markers = ReadMarkers(
            database, AccountDataStore(database), rooms.events, self.reading, base.now_ms
        )
        self.thread_subscriptions = ThreadSubscriptions(
            ThreadSubscriptionStore(database), self.reading, streams
        )
        self.thread_updates = ThreadUpdates(
            ThreadUpdateStore(database),
            rooms.store,
            rooms.events,
            rooms.memberships,
            visibility,
            self.client_events,
            ignored,
            streams,
        )
        self.invited = InvitedRooms(engine, rooms.events, rooms.outside)
        self.unshown = HiddenRoomChanges(
            database, ShadowRoomStore(database), AliasStore(database), rooms.store
        )

    @property
    def caches(self) -> Mapping[str, CountedCache]:
        """Return the caches that have metrics."""
        return {"state_responses": self._state_responses.cache}

"""Wires the reading of rooms: events in their client form, history, relations."""

from collections.abc import Mapping, Sequence

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
from storage.directory.shadow_ban import ShadowRoomStore
from storage.events.relations import RelationStore
from storage.events.timelines import TimelineStore
from storage.rooms.sent_transactions import SentTransactionStore
from storage.rooms.thread_subscriptions import ThreadSubscriptionStore
from storage.rooms.thread_updates import ThreadUpdateStore


class RoomReadingParts:
    """Reading of rooms."""

    def __init__(
        self,
        *,
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
            store=relation_store,
            events=rooms.events,
            memberships=rooms.memberships,
            visibility=visibility,
            ignored_users=ignored,
            no_relations_cache=NoRelationsCache(streams=streams, capacity=base.sizes.events),
        )
        self.client_events = ClientEvents(
            events=rooms.events,
            sent_transactions=SentTransactionStore(database),
            aggregations=self.aggregations,
            sticky_events=rooms.sticky_events,
            now_ms=base.now_ms,
        )
        self._state_responses = StateResponses(streams=streams, capacity=base.sizes.response_bytes)
        self.reading = RoomReading(
            engine=engine,
            events=rooms.events,
            memberships=rooms.memberships,
            membership_store=rooms.membership_store,
            timelines=TimelineStore(database),
            visibility=visibility,
            membership_periods=history.membership_periods,
            client_events=self.client_events,
            ignored_users=ignored,
            aggregations=self.aggregations,
            state_responses=self._state_responses,
            history=source,
        )
        self.relations = RoomRelations(
            store=relation_store,
            reading=self.reading,
            client_events=self.client_events,
            ignored_users=ignored,
        )
        self.markers = ReadMarkers(
            database=database,
            account_data=AccountDataStore(database),
            events=rooms.events,
            reading=self.reading,
            now_ms=base.now_ms,
        )
        self.thread_subscriptions = ThreadSubscriptions(
            store=ThreadSubscriptionStore(database), reading=self.reading, streams=streams
        )
        self.thread_updates = ThreadUpdates(
            store=ThreadUpdateStore(database),
            rooms=rooms.store,
            events=rooms.events,
            memberships=rooms.memberships,
            visibility=visibility,
            client_events=self.client_events,
            ignored_users=ignored,
            streams=streams,
        )
        self.invited = InvitedRooms(
            engine=engine, events=rooms.events, out_of_room=rooms.out_of_room
        )
        self.hidden_changes = HiddenRoomChanges(
            database=database,
            store=ShadowRoomStore(database),
            aliases=AliasStore(database),
            rooms=rooms.store,
        )

    @property
    def caches(self) -> Mapping[str, CountedCache]:
        """Return the caches that have metrics."""
        return {"state_responses": self._state_responses.cache}

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (
            self.markers,
            self.reading,
            self.relations,
            self.thread_subscriptions,
            self.thread_updates,
        )

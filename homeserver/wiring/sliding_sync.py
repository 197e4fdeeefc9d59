"""Wires the caches and readers of sliding sync, for `sync.py`."""

from homeserver.services.sliding_sync.connections import SlidingConnections
from homeserver.services.sliding_sync.extensions import ExtensionParts, ExtensionReader
from homeserver.services.sliding_sync.filter_data import RoomTagCache, RoomTraitCache
from homeserver.services.sliding_sync.filters import RoomFilters
from homeserver.services.sliding_sync.lists import RoomLists
from homeserver.services.sliding_sync.profiles import ProfileReader
from homeserver.services.sliding_sync.receipts import ReceiptReader
from homeserver.services.sliding_sync.required_state import RequiredStates
from homeserver.services.sliding_sync.room_entries import RoomEntries
from homeserver.services.sliding_sync.room_order import RoomOrders
from homeserver.services.sliding_sync.room_recency import RoomRecency
from homeserver.services.sliding_sync.room_update import RoomParts
from homeserver.services.sliding_sync.sent_typing import SentTyping
from homeserver.services.sliding_sync.sliding_sync import SlidingParts
from homeserver.services.sliding_sync.unread_changes import SlidingUnreadChanges
from homeserver.services.sync.lazy_members import LazyMembers
from homeserver.services.sync.sync import SyncParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from homeserver.wiring.room_history import RoomHistoryParts
from homeserver.wiring.room_reading import RoomReadingParts
from storage.profiles.profiles import ProfileStore
from storage.rooms.recency import RoomRecencyStore
from storage.rooms.summaries import RoomSummaryStore
from storage.sync.sliding_connections import SlidingConnectionStore


def make_sliding_parts(
    base: Foundation,
    synced: SyncParts,
    rooms: RoomDataParts,
    room_engine: RoomEngineParts,
    history: RoomHistoryParts,
    room_reading: RoomReadingParts,
    profiles: ProfileStore,
) -> SlidingParts:
    """Return the parts of sliding sync. It shares the services of /sync where they fit."""
    database, streams, sizes = base.database, base.database.streams, base.sizes
    events, timelines, visibility = rooms.events, rooms.timelines, history.visibility
    engine, client_events = room_engine.engine, room_reading.client_events
    summary_store = RoomSummaryStore(database)
    recency = RoomRecency(
        store=RoomRecencyStore(database), streams=streams, capacity=sizes.listed_rooms
    )
    orders = RoomOrders(
        memberships=synced.memberships,
        recency=recency,
        recent=synced.recent,
        streams=streams,
        capacity=sizes.ordered_rooms,
    )
    traits = RoomTraitCache(store=summary_store, streams=streams, capacity=sizes.listed_rooms)
    lists = RoomLists(
        events=events,
        rooms=synced.rooms,
        memberships=synced.memberships,
        permissions=synced.permissions,
        labels=RoomTagCache(store=synced.account_data, streams=streams, capacity=sizes.users),
        recency=recency,
        orders=orders,
        filters=RoomFilters(
            engine=engine,
            events=events,
            rooms=synced.rooms,
            invited=synced.invited,
            states=synced.states,
            traits=traits,
            orders=orders,
        ),
    )
    room_parts = RoomParts(
        events=events,
        current_states=synced.states,
        timelines=timelines,
        visibility=visibility,
        invited=synced.invited,
        ignored=synced.ignored_users,
        states=RequiredStates(rooms.trees),
        summaries=synced.summaries,
        unread=synced.unread,
        recency=recency,
        client_events=client_events,
        lazy_members=LazyMembers(capacity=sizes.lazy_members),
        plain_messages=synced.plain_messages,
    )
    receipts = ReceiptReader(
        receipts=synced.receipts,
        cache=synced.room_caches.receipts,
        timelines=timelines,
        recent=synced.recent,
        rooms=synced.rooms,
        ignored=synced.ignored_users,
    )
    extensions = ExtensionParts(
        devices=synced.devices,
        account_data=synced.account_data,
        account_data_cache=synced.room_caches.account_data,
        receipts=receipts,
        recent=synced.recent,
        rooms=synced.rooms,
        ignored=synced.ignored_users,
        threads=room_reading.thread_subscriptions,
        profiles=ProfileReader(
            profiles=profiles,
            memberships=synced.memberships,
            membership_store=rooms.membership_store,
            recent=synced.recent,
            states=synced.states,
        ),
        sticky=synced.sticky,
        sent_typing=SentTyping(
            typing=synced.typing, streams=streams, capacity=sizes.sent_typing_bytes
        ),
        thread_updates=room_reading.thread_updates,
    )
    return SlidingParts(
        connections=SlidingConnections(
            store=SlidingConnectionStore(database),
            memberships=synced.memberships,
            streams=streams,
            now_ms=base.now_ms,
            catch_up=database.catch_up,
            capacity=sizes.connected_rooms,
        ),
        lists=lists,
        entries=RoomEntries(room_parts),
        extensions=ExtensionReader(extensions),
        rooms=synced.rooms,
        states=synced.states,
        past_memberships=synced.past_memberships,
        recent=synced.recent,
        typing=synced.typing,
        partial=synced.partial,
        unread_changes=SlidingUnreadChanges(
            recent=synced.recent,
            unread=synced.unread,
            receipts=synced.receipts,
            account_data=synced.account_data,
        ),
        room_caches=synced.room_caches,
    )

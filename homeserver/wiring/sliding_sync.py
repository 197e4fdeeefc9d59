"""Wires sliding sync."""

from collections.abc import Callable

from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents
from federation.rooms.timelines import Timelines
from federation.rooms.visibility import Visibility
from homeserver.services.rooms.client_events import ClientEvents
from homeserver.services.rooms.thread_subscriptions import ThreadSubscriptions
from homeserver.services.rooms.thread_updates import ThreadUpdates
from homeserver.services.sliding_sync.connections import Connections
from homeserver.services.sliding_sync.extensions import ExtensionParts, ExtensionReader
from homeserver.services.sliding_sync.filter_data import RoomTagCache, RoomTraitCache
from homeserver.services.sliding_sync.filters import RoomFilters
from homeserver.services.sliding_sync.lists import RoomLists
from homeserver.services.sliding_sync.profiles import ProfileReader
from homeserver.services.sliding_sync.receipts import ReceiptReader
from homeserver.services.sliding_sync.required_state import RequiredStates
from homeserver.services.sliding_sync.room_order import RoomOrders
from homeserver.services.sliding_sync.room_recency import RoomRecency
from homeserver.services.sliding_sync.room_update import RoomParts
from homeserver.services.sliding_sync.rooms import RoomEntries
from homeserver.services.sliding_sync.sent_typing import SentTyping
from homeserver.services.sliding_sync.sliding_sync import SlidingParts
from homeserver.services.sliding_sync.unread_changes import SlidingUnreadChanges
from homeserver.services.sync.lazy_members import LazyMembers
from homeserver.services.sync.sync import SyncParts
from homeserver.wiring.cache_sizes import CacheSizes
from storage.engine.database import Database
from storage.profiles.profiles import ProfileStore
from storage.rooms.memberships import MembershipStore
from storage.rooms.recency import RoomRecencyStore
from storage.rooms.summaries import RoomSummaryStore
from storage.rooms.thread_updates import ThreadUpdateStore
from storage.state.state_tree import StateTreeStore
from storage.sync.sliding_connections import SlidingConnectionStore


def thread_updates(
    database: Database,
    synced: SyncParts,
    events: RoomEvents,
    visibility: Visibility,
    client_events: ClientEvents,
) -> ThreadUpdates:
    """Return the reader of threads with new events. It shares the services of /sync."""
    store = ThreadUpdateStore(database)
    rooms, memberships, ignored = synced.rooms, synced.memberships, synced.ignored
    return ThreadUpdates(
        store, rooms, events, memberships, visibility, client_events, ignored, database.streams
    )


def sliding_parts(
    database: Database,
    synced: SyncParts,
    engine: RoomEngine,
    events: RoomEvents,
    trees: StateTreeStore,
    timelines: Timelines,
    visibility: Visibility,
    client_events: ClientEvents,
    threads: ThreadSubscriptions,
    updates: ThreadUpdates,
    profiles: ProfileStore,
    sizes: CacheSizes,
    now_ms: Callable[[], int],
) -> SlidingParts:
    """Return the parts of sliding sync. It shares the services of /sync where they fit."""
    streams = database.streams
    summary_store = RoomSummaryStore(database)
    recency = RoomRecency(RoomRecencyStore(database), streams, capacity=sizes.listed_rooms)
    orders = RoomOrders(
        synced.memberships, recency, synced.recent, streams, capacity=sizes.ordered_rooms
    )
    traits = RoomTraitCache(summary_store, streams, capacity=sizes.listed_rooms)
    lists = RoomLists(
        events,
        synced.rooms,
        synced.memberships,
        synced.permissions,
        RoomTagCache(synced.account_data, streams, capacity=sizes.users),
        recency,
        orders,
        RoomFilters(engine, events, synced.rooms, synced.invited, synced.states, traits, orders),
    )
    room_parts = RoomParts(
        events=events,
        current_states=synced.states,
        timelines=timelines,
        visibility=visibility,
        invited=synced.invited,
        ignored=synced.ignored,
        states=RequiredStates(trees),
        summaries=synced.summaries,
        unread=synced.unread,
        recency=recency,
        client_events=client_events,
        lazy_members=LazyMembers(capacity=sizes.lazy_members),
        plain_messages=synced.plain_messages,
    )
    receipts = ReceiptReader(
        synced.receipts,
        synced.beside.receipts,
        timelines,
        synced.recent,
        synced.rooms,
        synced.ignored,
    )
    extensions = ExtensionParts(
        devices=synced.devices,
        account_data=synced.account_data,
        account_data_cache=synced.beside.account_data,
        receipts=receipts,
        recent=synced.recent,
        rooms=synced.rooms,
        ignored=synced.ignored,
        threads=threads,
        profiles=ProfileReader(
            profiles, synced.memberships, MembershipStore(database), synced.recent, synced.states
        ),
        sticky=synced.sticky,
        sent_typing=SentTyping(synced.typing, streams, capacity=sizes.sent_typing_bytes),
        thread_updates=updates,
    )
    return SlidingParts(
        connections=Connections(
            SlidingConnectionStore(database),
            synced.memberships,
            streams,
            now_ms,
            database.catch_up,
            capacity=sizes.connected_rooms,
        ),
        lists=lists,
        entries=RoomEntries(room_parts),
        extensions=ExtensionReader(extensions),
        rooms=synced.rooms,
        states=synced.states,
        past=synced.past,
        recent=synced.recent,
        typing=synced.typing,
        partial=synced.partial,
        unread_changes=SlidingUnreadChanges(
            synced.recent, synced.unread, synced.receipts, synced.account_data
        ),
        beside=synced.beside,
    )

"""Puts together sliding sync."""

from collections.abc import Callable

from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents
from federation.rooms.timelines import Timelines
from federation.rooms.visibility import Visibility
from homeserver.services.rooms.aggregations import Aggregations
from homeserver.services.rooms.client_events import ClientEvents
from homeserver.services.rooms.thread_subscriptions import ThreadSubscriptions
from homeserver.services.rooms.thread_updates import ThreadUpdates
from homeserver.services.sliding_sync.connections import Connections
from homeserver.services.sliding_sync.count_news import CountNews
from homeserver.services.sliding_sync.empty_answers import EmptyAnswers
from homeserver.services.sliding_sync.extensions import ExtensionParts, ExtensionReader
from homeserver.services.sliding_sync.filters import RoomFilters
from homeserver.services.sliding_sync.labels import RoomLabels, RoomTraits
from homeserver.services.sliding_sync.lists import RoomLists
from homeserver.services.sliding_sync.new_rooms import NewRooms
from homeserver.services.sliding_sync.order import RoomOrders
from homeserver.services.sliding_sync.profiles import ProfileNews
from homeserver.services.sliding_sync.receipts import ReceiptNews
from homeserver.services.sliding_sync.recency import RoomRecency
from homeserver.services.sliding_sync.required_state import RequiredStates
from homeserver.services.sliding_sync.room_work import RoomParts
from homeserver.services.sliding_sync.rooms import RoomEntries
from homeserver.services.sliding_sync.sliding_sync import SlidingParts
from homeserver.services.sliding_sync.typing_views import TypingViews
from homeserver.services.sync.lazy_members import LazyMembers
from homeserver.services.sync.sync import SyncParts
from homeserver.services.sync.timeline_pages import NewestPages
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
    """What reads in which threads something was said; it shares what /sync is made of."""
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
    aggregations: Aggregations,
    threads: ThreadSubscriptions,
    updates: ThreadUpdates,
    profiles: ProfileStore,
    sizes: CacheSizes,
    now_ms: Callable[[], int],
) -> SlidingParts:
    """The parts of sliding sync; it shares what /sync is made of, as far as that fits."""
    streams = database.streams
    summary_store = RoomSummaryStore(database)
    recency = RoomRecency(RoomRecencyStore(database), streams, capacity=sizes.listed_rooms)
    orders = RoomOrders(
        synced.memberships, recency, synced.recent, streams, capacity=sizes.ordered_rooms
    )
    traits = RoomTraits(summary_store, streams, capacity=sizes.listed_rooms)
    lists = RoomLists(
        events,
        synced.rooms,
        synced.memberships,
        synced.permissions,
        RoomLabels(synced.account_data, streams, capacity=sizes.users),
        recency,
        orders,
        RoomFilters(engine, events, synced.rooms, synced.invited, synced.states, traits, orders),
    )
    room_parts = RoomParts(
        events,
        synced.states,
        timelines,
        visibility,
        synced.invited,
        synced.ignored,
        RequiredStates(trees),
        synced.summaries,
        synced.unread,
        recency,
        client_events,
        LazyMembers(capacity=sizes.lazy_members),
        NewestPages(
            timelines, events, aggregations, client_events, now_ms, capacity=sizes.page_bytes
        ),
    )
    extensions = ExtensionReader(
        ExtensionParts(
            synced.devices,
            synced.account_data,
            synced.beside.account_data,
            ReceiptNews(
                synced.receipts,
                synced.beside.receipts,
                timelines,
                synced.recent,
                synced.rooms,
                synced.ignored,
            ),
            synced.recent,
            synced.rooms,
            synced.ignored,
            threads,
            ProfileNews(
                profiles,
                synced.memberships,
                MembershipStore(database),
                synced.recent,
                synced.states,
            ),
            synced.sticky,
            TypingViews(synced.typing, streams, capacity=sizes.typing_view_bytes),
            updates,
        )
    )
    return SlidingParts(
        Connections(
            SlidingConnectionStore(database),
            synced.memberships,
            streams,
            now_ms,
            database.catch_up,
            capacity=sizes.connected_rooms,
        ),
        lists,
        RoomEntries(room_parts, NewRooms(room_parts)),
        extensions,
        synced.rooms,
        synced.memberships,
        synced.states,
        synced.past,
        synced.recent,
        synced.typing,
        synced.partial,
        EmptyAnswers(streams, capacity=sizes.empty_answer_bytes),
        CountNews(synced.recent, synced.unread, synced.receipts, synced.account_data),
        synced.plain,
        synced.beside,
        room_parts.pages,
    )

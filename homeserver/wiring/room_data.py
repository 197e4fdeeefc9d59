"""Wires the stores and caches of rooms: everything that the room engine is built on."""

from collections.abc import Mapping

from federation.rooms.current_states import CurrentStates
from federation.rooms.events import RoomEvents
from federation.rooms.history.past_memberships import PastMemberships
from federation.rooms.joins.out_of_room import OutOfRoomMemberships
from federation.rooms.memberships import Memberships
from federation.rooms.partial_rooms import PartialRooms
from federation.rooms.room_servers import RoomServers
from federation.rooms.sticky_events import StickyEvents
from federation.rooms.timelines import Timelines
from homeserver.cluster.incoming_changes import IncomingChanges
from homeserver.observe.caches import CountedCache, UnsizedCache
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.wiring.foundation import Foundation
from storage.events.auth_chains import AuthChainStore
from storage.events.events import EventStore
from storage.events.timelines import TimelineStore
from storage.persist.room_writer import RoomWriter
from storage.rooms.memberships import MembershipStore
from storage.rooms.out_of_room_memberships import OutOfRoomMembershipStore
from storage.rooms.partial_rooms import PartialRoomStore
from storage.rooms.room_servers import RoomServerStore
from storage.rooms.rooms import RoomStore
from storage.rooms.sticky_events import StickyEventStore
from storage.state.state_tree import StateTreeStore


class RoomDataParts:
    """Stores and caches of rooms."""

    def __init__(self, *, base: Foundation, incoming_changes: IncomingChanges | None) -> None:
        """`incoming_changes`: the changes that other nodes announce; None if this is the only
        node."""
        database, sizes, streams = base.database, base.sizes, base.database.streams
        timelines = TimelineStore(database)
        self.store = RoomStore(database=database)
        self.membership_store = MembershipStore(database)
        self.trees = StateTreeStore(
            database=database, cache_bytes=sizes.state_bytes, cache_keys=sizes.state_keys
        )
        self.chains = AuthChainStore(database=database)
        self.writer = RoomWriter(trees=self.trees, chains=self.chains)
        self.events = RoomEvents(
            store=EventStore(database), rooms=self.store, streams=streams, capacity=sizes.events
        )
        self.memberships = Memberships(
            store=self.membership_store, streams=streams, capacity=sizes.users
        )
        self.past_memberships = PastMemberships(self.events)
        self.out_of_room = OutOfRoomMemberships(
            store=OutOfRoomMembershipStore(database), identity=base.identity, now_ms=base.now_ms
        )
        self.servers = RoomServers(
            store=RoomServerStore(database),
            memberships=self.memberships,
            streams=streams,
            capacity=sizes.rooms,
        )
        self.timelines = Timelines(store=timelines, streams=streams, capacity=sizes.rooms)
        self.current_states = CurrentStates(
            timelines=self.timelines, events=self.events, trees=self.trees
        )
        self.partial = PartialRooms(
            store=PartialRoomStore(database), streams=streams, clock=base.clock
        )
        self.sticky_events = StickyEvents(
            store=StickyEventStore(database), streams=streams, now_ms=base.now_ms
        )
        self.recent = RecentChanges(streams=streams, incoming_changes=incoming_changes)

    @property
    def caches(self) -> Mapping[str, CountedCache]:
        """Return the caches that have metrics."""
        return {
            "events": self.events,
            "memberships": self.memberships,
            "timelines": self.timelines,
            "room_servers": UnsizedCache(self.servers.cache),
        }

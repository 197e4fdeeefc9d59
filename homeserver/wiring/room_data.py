"""Wires the stores and caches of rooms: everything below the engine."""

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

    def __init__(self, base: Foundation, others: IncomingChanges | None) -> None:
        """`others`: the changes that other nodes announce; None if this is the only node."""
        database, sizes, streams = base.database, base.sizes, base.database.streams
        timelines = TimelineStore(database)
        self.store = RoomStore(database)
        self.membership_store = MembershipStore(database)
        self.trees = StateTreeStore(database, sizes.state_bytes, sizes.state_keys)
        self.chains = AuthChainStore(database)
        self.writer = RoomWriter(self.trees, self.chains)
        self.events = RoomEvents(EventStore(database), self.store, streams, capacity=sizes.events)
        self.memberships = Memberships(self.membership_store, streams, capacity=sizes.users)
        self.past = PastMemberships(self.events)
        self.outside = OutOfRoomMemberships(
            OutOfRoomMembershipStore(database), base.identity, base.now_ms
        )
        self.servers = RoomServers(
            RoomServerStore(database), self.memberships, streams, capacity=sizes.rooms
        )
        self.timelines = Timelines(timelines, streams, capacity=sizes.rooms)
        self.current_states = CurrentStates(self.timelines, self.events, self.trees)
        self.partial = PartialRooms(PartialRoomStore(database), streams, base.clock)
        self.sticky_events = StickyEvents(StickyEventStore(database), streams, base.now_ms)
        self.recent = RecentChanges(streams, others)

    @property
    def caches(self) -> Mapping[str, CountedCache]:
        """Return the caches that have metrics."""
        return {
            "events": self.events,
            "memberships": self.memberships,
            "timelines": self.timelines,
            "room_servers": UnsizedCache(self.servers.cache),
        }

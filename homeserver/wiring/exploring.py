"""Wires the services for exploring: room summaries, spaces, events by time, mutual rooms,
reports."""

from collections.abc import Sequence

from federation.peers.identity import ServerIdentity
from federation.rooms.history.by_time import RemoteTimes
from federation.rooms.serving.spaces import RemoteSpaces, Spaces
from federation.rooms.serving.summaries import Previews
from homeserver.services.moderation.report_administration import KeptReports
from homeserver.services.moderation.reports import Reports
from homeserver.services.rooms.events_by_time import EventsByTime
from homeserver.services.rooms.mutual_rooms import MutualRooms
from homeserver.services.rooms.space_hierarchy import SpaceHierarchy
from homeserver.services.rooms.summaries import RoomPreviews
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.rooms import RoomParts
from storage.engine.database import Database
from storage.events.timelines import TimelineStore
from storage.moderation.reports import ReportStore
from storage.rooms.memberships import MembershipStore
from storage.rooms.spaces import SpaceStore
from storage.rooms.summaries import RoomSummaryStore


class ExploringParts:
    """The services for exploring. `services` are for the router, `spaces` also for the federation
    endpoints."""

    def __init__(
        self,
        database: Database,
        identity: ServerIdentity,
        accounts: AccountParts,
        rooms: RoomParts,
        *,
        remote_spaces: RemoteSpaces,
        remote_times: RemoteTimes,
    ) -> None:
        membership_store = MembershipStore(database)
        previews = Previews(rooms.memberships, membership_store, rooms.store)
        self.spaces = Spaces(
            RoomSummaryStore(database),
            SpaceStore(database),
            membership_store,
            rooms.events,
            previews,
        )
        self.hierarchy = SpaceHierarchy(self.spaces, previews, remote_spaces)
        self.previews = RoomPreviews(
            rooms.room_memberships, rooms.memberships, self.spaces, previews, remote_spaces
        )
        self.times = EventsByTime(rooms.reading, TimelineStore(database), remote_times)
        self.mutual_rooms = MutualRooms(membership_store, rooms.store)
        report_store = ReportStore(database)
        self.services: Sequence[object] = (
            self.hierarchy,
            self.spaces,
            self.mutual_rooms,
            self.previews,
            Reports(report_store, rooms.reading, accounts.store, identity, rooms.now_ms),
            KeptReports(report_store, rooms.events),
            self.times,
        )

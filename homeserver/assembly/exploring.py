"""Puts together what people look around with: summaries of rooms, spaces, events by time, rooms in common, reports."""

from collections.abc import Sequence

from federation.identity import ServerIdentity
from federation.rooms.by_time import RemoteTimes
from federation.rooms.previews import Previews
from federation.rooms.spaces import RemoteSpaces, Spaces
from homeserver.assembly.accounts import AccountParts
from homeserver.assembly.rooms import RoomParts
from homeserver.services.events_by_time import EventsByTime
from homeserver.services.kept_reports import KeptReports
from homeserver.services.mutual_rooms import MutualRooms
from homeserver.services.reports import Reports
from homeserver.services.room_previews import RoomPreviews
from homeserver.services.space_hierarchy import SpaceHierarchy
from storage.database import Database
from storage.memberships import MembershipStore
from storage.reports import ReportStore
from storage.room_summaries import RoomSummaryStore
from storage.spaces import SpaceStore
from storage.timelines import TimelineStore


class ExploringParts:
    """`services` are for the router, `spaces` also for the endpoints of other servers."""

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
        self.spaces = Spaces(RoomSummaryStore(database), SpaceStore(database), membership_store, rooms.events, previews)
        self.hierarchy = SpaceHierarchy(self.spaces, previews, remote_spaces)
        self.previews = RoomPreviews(rooms.room_memberships, rooms.memberships, self.spaces, previews, remote_spaces)
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

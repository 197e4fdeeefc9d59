"""Wires lookups about rooms: summaries, spaces, events by time, mutual rooms. Also wires reports
of events, rooms and users."""

from collections.abc import Sequence

from federation.rooms.history.remote_timestamps import RemoteTimestamps
from federation.rooms.serving.spaces import RemoteSpaces, Spaces
from federation.rooms.serving.summaries import SummaryVisibility
from homeserver.services.moderation.report_administration import ReportAdministration
from homeserver.services.moderation.reports import Reports
from homeserver.services.rooms.events_by_time import EventsByTime
from homeserver.services.rooms.mutual_rooms import MutualRooms
from homeserver.services.rooms.space_hierarchy import SpaceHierarchy
from homeserver.services.rooms.summaries import RoomPreviews
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_reading import RoomReadingParts
from homeserver.wiring.room_services import RoomServiceParts
from storage.events.timelines import TimelineStore
from storage.moderation.reports import ReportStore
from storage.rooms.spaces import SpaceStore
from storage.rooms.summaries import RoomSummaryStore


class RoomLookupParts:
    """The services for lookups and reports. The federation endpoints need `spaces` too."""

    def __init__(
        self,
        *,
        base: Foundation,
        accounts: AccountParts,
        rooms: RoomDataParts,
        room_reading: RoomReadingParts,
        services: RoomServiceParts,
        remote_spaces: RemoteSpaces,
        remote_times: RemoteTimestamps,
    ) -> None:
        database, membership_store = base.database, rooms.membership_store
        previews = SummaryVisibility(
            memberships=rooms.memberships, membership_store=membership_store, rooms=rooms.store
        )
        self.spaces = Spaces(
            summaries=RoomSummaryStore(database),
            spaces=SpaceStore(database),
            membership_store=membership_store,
            events=rooms.events,
            previews=previews,
        )
        self.hierarchy = SpaceHierarchy(spaces=self.spaces, previews=previews, remote=remote_spaces)
        self.previews = RoomPreviews(
            room_memberships=services.memberships,
            memberships=rooms.memberships,
            spaces=self.spaces,
            previews=previews,
            remote=remote_spaces,
        )
        self.times = EventsByTime(
            reading=room_reading.reading, timelines=TimelineStore(database), remote=remote_times
        )
        self.mutual_rooms = MutualRooms(membership_store=membership_store, rooms=rooms.store)
        report_store = ReportStore(database)
        self.services: Sequence[object] = (
            self.hierarchy,
            self.spaces,
            self.mutual_rooms,
            self.previews,
            Reports(
                store=report_store,
                reading=room_reading.reading,
                accounts=accounts.stores.accounts,
                identity=base.identity,
                now_ms=base.now_ms,
            ),
            ReportAdministration(store=report_store, events=rooms.events),
            self.times,
        )

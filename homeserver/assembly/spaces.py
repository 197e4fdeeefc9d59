"""Puts together what tells of rooms to those outside: summaries, spaces."""

from federation.rooms.previews import Previews
from federation.rooms.spaces import RemoteSpaces, Spaces
from homeserver.assembly.rooms import RoomParts
from homeserver.services.room_previews import RoomPreviews
from homeserver.services.space_hierarchy import SpaceHierarchy
from storage.database import Database
from storage.memberships import MembershipStore
from storage.room_summaries import RoomSummaryStore
from storage.spaces import SpaceStore


class SpaceParts:
    """What is public is for the router."""

    def __init__(self, database: Database, rooms: RoomParts, remote: RemoteSpaces) -> None:
        membership_store = MembershipStore(database)
        previews = Previews(rooms.memberships, membership_store, rooms.room_store)
        self.spaces = Spaces(RoomSummaryStore(database), SpaceStore(database), membership_store, rooms.events, previews)
        self.hierarchy = SpaceHierarchy(self.spaces, previews, remote)
        self.previews = RoomPreviews(rooms.room_memberships, rooms.memberships, self.spaces, previews, remote)

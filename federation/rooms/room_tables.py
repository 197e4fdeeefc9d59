"""Where a room is kept, for who completes its state: all of its tables together."""

import msgspec

from storage.database import Database
from storage.memberships import MembershipStore
from storage.partial_rooms import PartialRoomStore
from storage.room_writer import RoomWriter
from storage.rooms import RoomStore
from storage.state_completion import StateCompletion
from storage.state_tree import StateTreeStore


class RoomTables(msgspec.Struct, frozen=True):
    """Where a room is kept."""

    database: Database
    rooms: RoomStore
    partial: PartialRoomStore
    memberships: MembershipStore
    trees: StateTreeStore
    writer: RoomWriter
    completion: StateCompletion

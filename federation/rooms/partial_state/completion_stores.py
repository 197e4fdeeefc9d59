"""The stores that the completion of a partial-state room reads and writes, in one struct.

With it, `RoomCompletion` (`completion.py`) takes one argument instead of seven.
"""

import msgspec

from storage.engine.database import Database
from storage.partial_state.completion import StateCompletion
from storage.persist.room_writer import RoomWriter
from storage.rooms.memberships import MembershipStore
from storage.rooms.partial_rooms import PartialRoomStore
from storage.rooms.rooms import RoomStore
from storage.state.state_tree import StateTreeStore


class CompletionStores(msgspec.Struct, frozen=True):
    """The stores of the tables that the completion of a room reads and writes."""

    database: Database
    rooms: RoomStore
    partial: PartialRoomStore
    memberships: MembershipStore
    trees: StateTreeStore
    writer: RoomWriter
    completion: StateCompletion

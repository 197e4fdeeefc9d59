"""The stores that complete a room with partial state, in one value for `RoomCompletion`.

The completion reads the room and its members from them, stores each finished step (`partial`), and
makes the last write (`completion`).
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
    """The stores of a room with partial state."""

    database: Database
    rooms: RoomStore
    partial: PartialRoomStore
    memberships: MembershipStore
    trees: StateTreeStore
    writer: RoomWriter
    completion: StateCompletion

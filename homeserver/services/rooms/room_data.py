"""What stands beside a room for who reads it, from memory: who has read how far, and what its
reader keeps of it."""

import msgspec

from homeserver.services.account_data.room_account_data_cache import KeptAccountData
from homeserver.services.rooms.receipt_cache import KeptReceipts


class BesideRooms(msgspec.Struct, frozen=True):
    """Both kinds of sync tell it of a room that is new to a client."""

    receipts: KeptReceipts
    account_data: KeptAccountData

"""Cached data that both kinds of sync send with a room: receipts and the reader's account data."""

import msgspec

from homeserver.services.account_data.room_account_data_cache import KeptAccountData
from homeserver.services.rooms.receipt_cache import KeptReceipts


class BesideRooms(msgspec.Struct, frozen=True):
    """The caches that both kinds of sync read for a room that is new to a client."""

    receipts: KeptReceipts
    account_data: KeptAccountData

"""Cached data that both kinds of sync send with a room: receipts and the reader's account data."""

import msgspec

from homeserver.services.account_data.room_account_data_cache import AccountDataCache
from homeserver.services.rooms.receipt_cache import ReceiptCache


class RoomCaches(msgspec.Struct, frozen=True):
    """The caches that both kinds of sync read for a room that is new to a client."""

    receipts: ReceiptCache
    account_data: AccountDataCache

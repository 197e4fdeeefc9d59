"""The caches that `/sync` and sliding sync share: receipts of rooms, and users' account data."""

import msgspec

from homeserver.services.account_data.account_data_cache import AccountDataCache
from homeserver.services.rooms.receipt_cache import ReceiptCache


class RoomCaches(msgspec.Struct, frozen=True):
    """The caches that `/sync` and sliding sync read for a room that is new to a client."""

    receipts: ReceiptCache
    account_data: AccountDataCache

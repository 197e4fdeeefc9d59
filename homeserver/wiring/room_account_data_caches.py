"""Wires the caches of receipts and of account data in rooms."""

from homeserver.services.account_data.room_account_data_cache import AccountDataCache
from homeserver.services.rooms.receipt_cache import ReceiptCache
from homeserver.services.rooms.room_caches import RoomCaches
from homeserver.wiring.cache_sizes import CacheSizes
from storage.account_data.account_data import AccountDataStore
from storage.engine.streams import Streams
from storage.rooms.receipts import ReceiptStore


def make_room_caches(
    receipts: ReceiptStore, account_data: AccountDataStore, streams: Streams, sizes: CacheSizes
) -> RoomCaches:
    """Return the caches of receipts and account data."""
    return RoomCaches(
        ReceiptCache(store=receipts, streams=streams, capacity=sizes.receipts),
        AccountDataCache(store=account_data, streams=streams, capacity=sizes.account_data_bytes),
    )

"""Wires the caches of receipts and of account data in rooms."""

from homeserver.services.account_data.room_account_data_cache import KeptAccountData
from homeserver.services.rooms.receipt_cache import KeptReceipts
from homeserver.services.rooms.room_data import BesideRooms
from homeserver.wiring.cache_sizes import CacheSizes
from storage.account_data.account_data import AccountDataStore
from storage.engine.streams import Streams
from storage.rooms.receipts import ReceiptStore


def beside_rooms(
    receipts: ReceiptStore, account_data: AccountDataStore, streams: Streams, sizes: CacheSizes
) -> BesideRooms:
    """Return the caches of receipts and account data."""
    return BesideRooms(
        KeptReceipts(receipts, streams, capacity=sizes.receipts),
        KeptAccountData(account_data, streams, capacity=sizes.account_data_bytes),
    )

"""Puts together what is kept in memory of what stands beside rooms."""

from homeserver.assembly.cache_sizes import CacheSizes
from homeserver.services.beside_rooms import BesideRooms
from homeserver.services.kept_account_data import KeptAccountData
from homeserver.services.kept_receipts import KeptReceipts
from storage.account_data import AccountDataStore
from storage.receipts import ReceiptStore
from storage.streams import Streams


def beside_rooms(
    receipts: ReceiptStore, account_data: AccountDataStore, streams: Streams, sizes: CacheSizes
) -> BesideRooms:
    """The caches of receipts and account data."""
    return BesideRooms(
        KeptReceipts(receipts, streams, capacity=sizes.receipts),
        KeptAccountData(account_data, streams, capacity=sizes.account_data_bytes),
    )

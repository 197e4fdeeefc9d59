"""Filters: what of a /sync or /messages a client wants, kept by number.

spec: client-server-api#filtering
"""

from collections import OrderedDict
from typing import Final

import msgspec

from federation.protocol.canonical_json import encode_canonical
from federation.protocol.endpoint import Requester
from federation.protocol.errors import Forbidden, InvalidParam, NotFound, TooLarge, UserLimitExceeded
from federation.protocol.ids import UserID
from homeserver.services.event_filters import NO_FILTER, Filter, parse_filter
from storage.database import Database
from storage.filters import FilterStore
from storage.transaction import WriteTransaction

MOST_FILTERS: Final = 1000
"""Of one user. Clients upload the same ones again, which get the same numbers."""
LARGEST_FILTER: Final = 65536
LARGEST_FILTERS: Final = 1024 * 1024
"""In characters of JSON, all of one user."""

_LONGEST_NUMBER: Final = 18


class Filters:
    """Keeps filters, and remembers those in use."""

    def __init__(self, database: Database, store: FilterStore, *, capacity: int, info_uri: str) -> None:
        """`capacity`: about how many bytes of filters are kept in memory. `info_uri`: a page about the limits of accounts."""
        self._database = database
        self._store = store
        self._capacity = capacity
        self._info_uri = info_uri
        self.weight = 0
        """About how many bytes are."""
        self._remembered: OrderedDict[tuple[UserID, str], tuple[Filter, int]] = OrderedDict()
        """Filters and how much each weighs."""

    async def do_add(self, caller: Requester, user_id: UserID, definition: dict[str, object]) -> str:
        """Keep a filter; its id, the same for the same filter. Raises `Forbidden`, `BadJson`, `TooLarge`, `UserLimitExceeded`."""
        if caller.user_id != user_id:
            raise Forbidden("You may add filters for yourself only")
        canonical = encode_canonical(definition)
        if len(canonical) > LARGEST_FILTER:
            raise TooLarge("A filter may have at most 64 KiB")
        parse_filter(canonical)
        text = canonical.decode()
        filter_id = await self._store.get_filter_id(user_id, text)
        if filter_id is None:

            def write(txn: WriteTransaction) -> int:
                count, size = self._store.get_sums(txn, user_id)
                if count >= MOST_FILTERS or size + len(text) > LARGEST_FILTERS:
                    raise UserLimitExceeded(
                        "You have uploaded as many filters as this server keeps for one user", info_uri=self._info_uri
                    )
                return self._store.add_filter(txn, user_id, text)

            filter_id = await self._database.write("add_filter", write)
        return str(filter_id)

    async def get_definition(self, caller: Requester, user_id: UserID, filter_id: str) -> msgspec.Raw:
        """A filter as it was uploaded. Raises `Forbidden`, `NotFound`."""
        if caller.user_id != user_id:
            raise Forbidden("You may read your own filters only")
        return msgspec.Raw((await self._find(user_id, filter_id)).encode())

    async def get_filter(self, user_id: UserID, text: str | None) -> Filter:
        """The filter that a request names: by id, as JSON, or none. Raises `InvalidParam`, `BadJson`."""
        if text is None:
            return NO_FILTER
        if text.lstrip().startswith("{"):
            return parse_filter(text)
        key = (user_id, text)
        remembered = self._remembered.get(key)
        if remembered is not None:
            self._remembered.move_to_end(key)
            return remembered[0]
        try:
            definition = await self._find(user_id, text)
        except NotFound as error:
            raise InvalidParam(error.text) from None
        found = parse_filter(definition)
        if key not in self._remembered:  # two may have asked at once
            self._remember(key, found, _weigh(definition))
        return found

    def _remember(self, key: tuple[UserID, str], filter: Filter, weight: int) -> None:
        self._remembered[key] = (filter, weight)
        self.weight += weight
        while self.weight > self._capacity:
            _, (_, dropped) = self._remembered.popitem(last=False)
            self.weight -= dropped

    async def _find(self, user_id: UserID, filter_id: str) -> str:
        definition = None
        if filter_id.isascii() and filter_id.isdecimal() and len(filter_id) <= _LONGEST_NUMBER:
            definition = await self._store.get_filter(user_id, int(filter_id))
        if definition is None:
            raise NotFound("There is no such filter")
        return definition


def _weigh(definition: str) -> int:
    """About how many bytes a filter takes when it is parsed: each name in it is an object."""
    return 1024 + 5 * len(definition)

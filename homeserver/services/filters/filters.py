"""Stored filters, which clients name by ID in /sync.

spec: client-server-api#filtering
"""

from collections.abc import Callable
from typing import Final

import msgspec
from canonicaljson import encode_canonical_json

from federation.protocol.errors import Forbidden, InvalidParam, NotFound, TooLarge
from federation.protocol.ids import UserID
from homeserver.api.requester import Requester
from homeserver.services.filters.event_filters import NO_FILTER, Filter, parse_filter
from storage.cache import LRU
from storage.filters.filters import FilterStore

MAX_FILTER_BYTES: Final = 65536
USE_INTERVAL_MS: Final = 10 * 60 * 1000
"""Minimum time between two writes of a filter's last use."""
_MAX_ID_DIGITS: Final = 18


class _CachedFilter(msgspec.Struct):
    """A parsed filter in the cache."""

    filter: Filter
    weight: int
    used_ms: int
    """The stored time of the last use; 0: none."""


class Filters:
    """Stores filters, and caches those in use."""

    def __init__(self, *, store: FilterStore, now_ms: Callable[[], int], capacity: int) -> None:
        """`capacity`: of the cache, in bytes, approximately."""
        self._store = store
        self._now_ms = now_ms
        self._cache: LRU[tuple[UserID, str], _CachedFilter] = LRU(
            max_weight=capacity, weigh=lambda _, cached: cached.weight
        )

    @property
    def cache(self) -> LRU[tuple[UserID, str], _CachedFilter]:
        """The filters by user and ID, for metrics."""
        return self._cache

    @property
    def weight(self) -> int:
        """The approximate size of the cached filters in bytes."""
        return self._cache.weight

    async def do_add(
        self, caller: Requester, user_id: UserID, definition: dict[str, object]
    ) -> str:
        """Store a filter and return its ID. Equal filters have the same ID. Raises `Forbidden`,
        `BadJson`, `TooLarge`.

        A bounded number is stored for each user (`storage/filters/filters.py`). Those in use stay,
        since each use is recorded.
        """
        if caller.user_id != user_id:
            raise Forbidden("You may add filters only for yourself")
        canonical = encode_canonical_json(definition)
        if len(canonical) > MAX_FILTER_BYTES:
            raise TooLarge("A filter may have at most 64 KiB")
        parse_filter(canonical)
        text = canonical.decode()
        now_ms = self._now_ms()
        found = await self._store.get_filter_id(user_id, text)
        if found is not None and found[1] > now_ms - USE_INTERVAL_MS:
            return str(found[0])
        return str(await self._store.add_filter(user_id, text, now_ms))

    async def get_definition(
        self, caller: Requester, user_id: UserID, filter_id: str
    ) -> msgspec.Raw:
        """Return a filter as it was uploaded. Raises `Forbidden`, `NotFound`."""
        if caller.user_id != user_id:
            raise Forbidden("You may read only your own filters")
        return msgspec.Raw((await self._find(user_id, filter_id))[0].encode())

    async def get_filter(self, user_id: UserID, text: str | None) -> Filter:
        """Return the filter of a request, given as an ID, as JSON or not at all. Raises
        `InvalidParam`, `BadJson`."""
        if text is None:
            return NO_FILTER
        if text.lstrip().startswith("{"):
            return parse_filter(text)
        key = (user_id, text)
        cached = self._cache.get(key)
        if cached is None:
            try:
                definition, used_ms = await self._find(user_id, text)
            except NotFound as error:
                raise InvalidParam(error.text) from None
            cached = _CachedFilter(parse_filter(definition), _weigh(definition), used_ms)
            if key not in self._cache:  # two requests may have read it at once
                self._cache.put(key, cached)
        now_ms = self._now_ms()
        if cached.used_ms <= now_ms - USE_INTERVAL_MS:
            cached.used_ms = now_ms
            await self._store.record_use(user_id, int(text), now_ms)
        return cached.filter

    async def _find(self, user_id: UserID, filter_id: str) -> tuple[str, int]:
        found = None
        if filter_id.isascii() and filter_id.isdecimal() and len(filter_id) <= _MAX_ID_DIGITS:
            found = await self._store.get_filter(user_id, int(filter_id))
        if found is None:
            raise NotFound("This filter does not exist or was deleted: upload it again")
        return found


def _weigh(definition: str) -> int:
    """Return the approximate size of a parsed filter in bytes: each name in it is an object."""
    return 1024 + 5 * len(definition)

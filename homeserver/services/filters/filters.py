"""Filters: what of a /sync or /messages a client wants, kept by number.

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

LARGEST_FILTER: Final = 65536
NOTED_EVERY_MS: Final = 10 * 60 * 1000
"""How often the use of a filter is written down while it goes on."""
_LONGEST_NUMBER: Final = 18


class _Cached(msgspec.Struct):
    filter: Filter
    weight: int
    noted_ms: int
    """When it was last used, as far as that is noted; 0: it was not."""


class Filters:
    """Stores filters, and caches those in use."""

    def __init__(self, store: FilterStore, now_ms: Callable[[], int], *, capacity: int) -> None:
        """`capacity`: about how many bytes of filters are cached."""
        self._store = store
        self._now_ms = now_ms
        self._cache: LRU[tuple[UserID, str], _Cached] = LRU(
            max_weight=capacity, weigh=lambda _, cached: cached.weight
        )

    @property
    def cache(self) -> LRU[tuple[UserID, str], _Cached]:
        """The filters by user and id, for metrics."""
        return self._cache

    @property
    def weight(self) -> int:
        """About how many bytes the cached filters take."""
        return self._cache.weight

    async def do_add(
        self, caller: Requester, user_id: UserID, definition: dict[str, object]
    ) -> str:
        """Keep a filter; its id, the same for the same filter. Raises `Forbidden`, `BadJson`,
        `TooLarge`.

        Of one user so many are kept (`storage/filters/filters.py`): those that are in use, since
        who comes with one of them has it noted.
        """
        if caller.user_id != user_id:
            raise Forbidden("You may add filters for yourself only")
        canonical = encode_canonical_json(definition)
        if len(canonical) > LARGEST_FILTER:
            raise TooLarge("A filter may have at most 64 KiB")
        parse_filter(canonical)
        text = canonical.decode()
        now_ms = self._now_ms()
        found = await self._store.get_filter_id(user_id, text)
        if found is not None and found[1] > now_ms - NOTED_EVERY_MS:
            return str(found[0])
        return str(await self._store.add_filter(user_id, text, now_ms))

    async def get_definition(
        self, caller: Requester, user_id: UserID, filter_id: str
    ) -> msgspec.Raw:
        """A filter as it was uploaded. Raises `Forbidden`, `NotFound`."""
        if caller.user_id != user_id:
            raise Forbidden("You may read your own filters only")
        return msgspec.Raw((await self._find(user_id, filter_id))[0].encode())

    async def get_filter(self, user_id: UserID, text: str | None) -> Filter:
        """The filter that a request names: by id, as JSON, or none. Raises `InvalidParam`,
        `BadJson`."""
        if text is None:
            return NO_FILTER
        if text.lstrip().startswith("{"):
            return parse_filter(text)
        key = (user_id, text)
        cached = self._cache.get(key)
        if cached is None:
            try:
                definition, noted_ms = await self._find(user_id, text)
            except NotFound as error:
                raise InvalidParam(error.text) from None
            cached = _Cached(parse_filter(definition), _weigh(definition), noted_ms)
            if key not in self._cache:  # two may have asked at once
                self._cache.put(key, cached)
        now_ms = self._now_ms()
        if cached.noted_ms <= now_ms - NOTED_EVERY_MS:
            cached.noted_ms = now_ms
            await self._store.note_used(user_id, int(text), now_ms)
        return cached.filter

    async def _find(self, user_id: UserID, filter_id: str) -> tuple[str, int]:
        found = None
        if filter_id.isascii() and filter_id.isdecimal() and len(filter_id) <= _LONGEST_NUMBER:
            found = await self._store.get_filter(user_id, int(filter_id))
        if found is None:
            raise NotFound("There is no such filter, or no longer: upload it again")
        return found


def _weigh(definition: str) -> int:
    """About how many bytes a filter takes when it is parsed: each name in it is an object."""
    return 1024 + 5 * len(definition)

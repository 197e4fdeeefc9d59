"""Filters: what of a /sync or /messages a client wants, parsed once and kept by number.

spec: client-server-api#filtering
"""

from collections import OrderedDict
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from federation.protocol.canonical_json import encode_canonical
from federation.protocol.errors import BadJson, Forbidden, InvalidParam, NotFound
from federation.protocol.ids import UserID
from homeserver.http.endpoint import Requester
from storage.database import Database
from storage.filters import FilterStore
from storage.transaction import WriteTransaction

T = TypeVar("T")

_MOST_REMEMBERED: Final = 5_000
_LONGEST_NUMBER: Final = 18

Name = Annotated[str, msgspec.Meta(max_length=255)]
Names = tuple[Name, ...]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events; None: no restriction. Types may have `*`."""

    limit: Count | None = None
    types: Names | None = None
    not_types: Names = ()
    senders: Names | None = None
    not_senders: Names = ()


class RoomEventFilter(EventFilter, frozen=True, kw_only=True):
    """Which events of rooms."""

    rooms: Names | None = None
    not_rooms: Names = ()
    contains_url: bool | None = None
    lazy_load_members: bool = False
    include_redundant_members: bool = False
    unread_thread_notifications: bool = False
    unstable_rel_types: Names | None = msgspec.field(default=None, name="org.matrix.msc3874.rel_types")
    unstable_not_rel_types: Names = msgspec.field(default=(), name="org.matrix.msc3874.not_rel_types")


class RoomFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which rooms, and which events of each kind in them."""

    rooms: Names | None = None
    not_rooms: Names = ()
    include_leave: bool = False
    account_data: RoomEventFilter = RoomEventFilter()
    ephemeral: RoomEventFilter = RoomEventFilter()
    state: RoomEventFilter = RoomEventFilter()
    timeline: RoomEventFilter = RoomEventFilter()


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """A whole filter. `event_fields`: dot paths, None for the whole event."""

    account_data: EventFilter = EventFilter()
    presence: EventFilter = EventFilter()
    room: RoomFilter = RoomFilter()
    event_fields: tuple[Name, ...] | None = None
    event_format: Literal["client", "federation"] = "client"


EVERYTHING: Final = Filter()

_decoder: Final = msgspec.json.Decoder(Filter)
_room_event_decoder: Final = msgspec.json.Decoder(RoomEventFilter)


def parse_filter(data: bytes | str) -> Filter:
    """A filter from its JSON. Raises `BadJson`. Unknown keys are passed over."""
    return _parse(_decoder, data)


def parse_room_event_filter(data: bytes | str) -> RoomEventFilter:
    """The filter of /messages and /context, from its JSON. Raises `BadJson`."""
    return _parse(_room_event_decoder, data)


def _parse(decoder: msgspec.json.Decoder[T], data: bytes | str) -> T:
    try:
        return decoder.decode(data)
    except RecursionError:
        raise BadJson("The filter is nested too deeply") from None
    except ValueError as error:
        raise BadJson(f"Not a valid filter: {error}") from None


class Filters:
    """Keeps filters, and remembers those in use."""

    def __init__(self, database: Database, store: FilterStore) -> None:
        self._database = database
        self._store = store
        self._remembered: OrderedDict[tuple[UserID, str], Filter] = OrderedDict()

    async def do_add(self, caller: Requester, user_id: UserID, definition: dict[str, object]) -> str:
        """Keep a filter; its id, the same for the same filter. Raises `Forbidden`, `BadJson`."""
        if caller.user_id != user_id:
            raise Forbidden("You may add filters for yourself only")
        canonical = encode_canonical(definition)
        parse_filter(canonical)
        text = canonical.decode()
        filter_id = await self._store.get_filter_id(user_id, text)
        if filter_id is None:

            def write(txn: WriteTransaction) -> int:
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
            return EVERYTHING
        if text.lstrip().startswith("{"):
            return parse_filter(text)
        key = (user_id, text)
        remembered = self._remembered.get(key)
        if remembered is not None:
            self._remembered.move_to_end(key)
            return remembered
        try:
            found = parse_filter(await self._find(user_id, text))
        except NotFound as error:
            raise InvalidParam(error.text) from None
        self._remembered[key] = found
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return found

    async def _find(self, user_id: UserID, filter_id: str) -> str:
        definition = None
        if filter_id.isascii() and filter_id.isdecimal() and len(filter_id) <= _LONGEST_NUMBER:
            definition = await self._store.get_filter(user_id, int(filter_id))
        if definition is None:
            raise NotFound("There is no such filter")
        return definition

"""Defines the body of a search request. Encodes and parses `next_batch`, the token for the next
page of results.

spec: client-server-api#post_matrixclientv3search
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, Final, Literal

import msgspec

from federation.protocol.errors import InvalidParam
from homeserver.services.filters.event_filters import Count, RoomEventFilter

MAX_TERM: Final = 500
"""Characters of a search term."""
MAX_CONTEXT: Final = 50
"""Events before and after a result, each."""

GroupKey = Literal["room_id", "sender"]


class EventContext(msgspec.Struct, frozen=True):
    """The context to return with each result."""

    before_limit: Count = 5
    after_limit: Count = 5
    include_profile: bool = False


class GroupBy(msgspec.Struct, frozen=True):
    """A key by which results are grouped."""

    key: GroupKey


class Groupings(msgspec.Struct, frozen=True):
    """The keys by which results are grouped."""

    group_by: Annotated[tuple[GroupBy, ...], msgspec.Meta(max_length=10)] = ()


class RoomEventsCriteria(msgspec.Struct, frozen=True):
    """A search in the events of rooms."""

    search_term: str
    keys: (
        Annotated[
            tuple[Literal["content.body", "content.name", "content.topic"], ...],
            msgspec.Meta(max_length=10),
        ]
        | None
    ) = None
    filter: RoomEventFilter = RoomEventFilter()
    order_by: Literal["rank", "recent"] = "rank"
    event_context: EventContext | None = None
    include_state: bool = False
    groupings: Groupings = Groupings()


class Categories(msgspec.Struct, frozen=True):
    """The categories of a search; there is only one."""

    room_events: RoomEventsCriteria | None = None


class SearchCursor(msgspec.Struct, frozen=True, array_like=True):
    """The end of a page of results.

    Results are sorted within windows: first the newest hits of the index, then the next older ones.
    """

    window: int
    """The highest number of an event in the window."""
    rank: int = 0
    ts: int = 0
    event_nid: int = 0
    """The last examined hit: rank, time, number. 0: none of this window."""
    group: GroupKey | None = None
    value: str = ""
    """The group whose results the next page continues."""


def format_cursor(cursor: SearchCursor) -> str:
    """Encode a cursor as an opaque token."""
    return urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode().rstrip("=")


def parse_cursor(text: str) -> SearchCursor:
    """Parse a token of `format_cursor`. Raises InvalidParam."""
    try:
        data = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        cursor = msgspec.msgpack.decode(data, type=SearchCursor)
    except (ValueError, msgspec.MsgspecError):
        raise InvalidParam("next_batch is not one that a search returned") from None
    if not all(0 <= number < 2**62 for number in (cursor.window, cursor.rank, cursor.event_nid)):
        raise InvalidParam("next_batch is not one that a search returned")
    if not -(2**62) < cursor.ts < 2**62:
        raise InvalidParam("next_batch is not one that a search returned")
    return cursor

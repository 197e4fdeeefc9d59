"""What somebody searches for, as it is asked, and the tokens with which they go on.

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
    """What is to be told of the surroundings of a result."""

    before_limit: Count = 5
    after_limit: Count = 5
    include_profile: bool = False


class Group(msgspec.Struct, frozen=True):
    """By what results are grouped."""

    key: GroupKey


class Groupings(msgspec.Struct, frozen=True):
    """All by which they are."""

    group_by: Annotated[tuple[Group, ...], msgspec.Meta(max_length=10)] = ()


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
    """Where to search; there is one category."""

    room_events: RoomEventsCriteria | None = None


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a page of results ended.

    Results are sorted within windows: the newest so many that the index finds, then the next older
    ones.
    """

    window: int
    """The highest number of an event in the window."""
    rank: int = 0
    ts: int = 0
    event_nid: int = 0
    """The last result that was looked at: rank, time, number. 0: none of the window."""
    group: GroupKey | None = None
    value: str = ""
    """The group in which to go on."""


def format_cursor(cursor: Cursor) -> str:
    """An opaque token."""
    return urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode().rstrip("=")


def parse_cursor(text: str) -> Cursor:
    """Raises InvalidParam."""
    try:
        data = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        cursor = msgspec.msgpack.decode(data, type=Cursor)
    except (ValueError, msgspec.MsgspecError):
        raise InvalidParam("next_batch is not a token that a search gave out") from None
    if not all(0 <= number < 2**62 for number in (cursor.window, cursor.rank, cursor.event_nid)):
        raise InvalidParam("next_batch is not a token that a search gave out")
    if not -(2**62) < cursor.ts < 2**62:
        raise InvalidParam("next_batch is not a token that a search gave out")
    return cursor

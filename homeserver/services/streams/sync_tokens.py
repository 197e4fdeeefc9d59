"""The tokens from which clients continue. They are opaque to clients.

- A sync token `s<position>_<ephemeral>` consists of a position in the stream and an ephemeral
  position. If the to-device messages do not all fit into an initial sync, `~<position>` is added:
  the position up to which the device has received them. Later tokens have it, too, until the device
  has received all. `-<room>.<room>…` is added if the client shows somebody typing in these rooms.
- The `pos` of sliding sync is a sync token and the name of a connection state.
- A room token `t<depth>_<event number>` is a place in the topological order of one room. While the
  DAG of the room is forked, events that arrived earlier may come after a new event in that order.
  So if a timeline is limited, `~<position>` is added to its `prev_batch`. A client that pages back
  from this token also gets such events, if they had arrived by that position in the stream.

/messages and similar endpoints of a room also accept a sync token or a `pos`. Such a token stands
for the place directly after the last event that had arrived by the token's position.
"""

import re
from typing import Final

import msgspec

from federation.protocol.errors import InvalidParam
from federation.rooms.events import StoredEvent
from storage.events.timelines import TimelinePlace

_TYPED: Final = r"(?:-([0-9]{1,18}(?:\.[0-9]{1,18}){0,31}))?"
_SYNC: Final = re.compile(
    rf"s([0-9]{{1,18}})_([0-9]{{1,18}})(?:~([0-9]{{1,18}}))?{_TYPED}", re.ASCII
)
_POS: Final = re.compile(
    rf"s([0-9]{{1,18}})_([0-9]{{1,18}}){_TYPED}_([0-9]{{1,18}}(?:\.[0-9a-f]{{1,14}}){{0,32}})",
    re.ASCII,
)
_ROOM: Final = re.compile(r"t(-?[0-9]{1,18})_([0-9]{1,18})(?:~([0-9]{1,18}))?", re.ASCII)


MAX_TYPING_ROOMS: Final = 32
"""Rooms with typing users in a token."""


class SyncToken(msgspec.Struct, frozen=True, gc=False):
    """The position of a client, which has received all durable changes up to one position and all
    ephemeral ones up to another."""

    position: int
    ephemeral: int
    to_device: int | None = None
    """The position of to-device messages, if it is less than `position`."""
    typing_rooms: tuple[int, ...] = ()
    """Rooms for which the client last received a typing user, the latest last; at most
    MAX_TYPING_ROOMS."""

    def __str__(self) -> str:
        if self.to_device is None and not self.typing_rooms:
            return f"s{self.position}_{self.ephemeral}"
        rest = "" if self.to_device is None else f"~{self.to_device}"
        typed = "-" + ".".join(map(str, self.typing_rooms)) if self.typing_rooms else ""
        return f"s{self.position}_{self.ephemeral}{rest}{typed}"


def parse_sync_token(text: str) -> SyncToken:
    """Parse a sync token. Raises InvalidParam."""
    match = _SYNC.fullmatch(text)
    if match is None:
        raise InvalidParam("The token is not one that /sync returned")
    position, ephemeral, to_device, typed = match.groups()
    return SyncToken(
        int(position),
        int(ephemeral),
        None if to_device is None else int(to_device),
        () if typed is None else _rooms(typed),
    )


def split_pos(text: str) -> tuple[SyncToken, str] | None:
    """Split a `pos` of sliding sync into the token and the name of the connection state
    (`sliding_sync/pos.py`). Return None if it is malformed."""
    match = _POS.fullmatch(text)
    if match is None:
        return None
    position, ephemeral, typed, name = match.groups()
    return SyncToken(
        int(position), int(ephemeral), typing_rooms=() if typed is None else _rooms(typed)
    ), name


def _rooms(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def format_room_token(place: TimelinePlace) -> str:
    """Return the room token of a place."""
    return f"t{place.depth}_{place.event_nid}"


def format_before(event: StoredEvent) -> str:
    """Return the room token of the place right before an event."""
    return f"t{event.depth}_{event.nid - 1}"


def format_gap(event: StoredEvent) -> str:
    """Return the room token right before an event before which other events were left out."""
    place = format_before(event)
    return place if event.position is None else f"{place}~{event.position - 1}"


def parse_arrived_position(text: str) -> int | None:
    """Return the position by which the left-out events of a room token had arrived, if any."""
    match = _ROOM.fullmatch(text)
    return None if match is None or match[3] is None else int(match[3])


def parse_room_token(text: str) -> TimelinePlace | SyncToken:
    """Parse a room token, a sync token or a `pos`. Raises InvalidParam."""
    match = _ROOM.fullmatch(text)
    if match is not None:
        return TimelinePlace(int(match[1]), int(match[2]))
    pos = split_pos(text)
    if pos is not None:
        return pos[0]
    if _SYNC.fullmatch(text):
        return parse_sync_token(text)
    raise InvalidParam("The token is not one that this server returned")

"""The tokens that clients continue with: opaque to them, two numbers to us.

- A sync token `s<position>_<ephemeral>` is a place in the one sequence and one in the ephemeral
  counter. As long as a device has not fetched all messages that waited for it before its first
  answer, `~<position>` follows: it has these up to there.
- The `pos` of sliding sync is such a token with one part more, the name of a state of the
  connection; readers of rooms take it too.
- A room token `t<depth>_<event number>` is a place in the order of one room's timeline. Before what
  arrived last, others may have arrived that stand further on, while the history is forked: where
  they are left out, `~<position>` follows, and whoever goes back from there begins with all that
  had arrived by then.

Where a token of the first kind is given to a reader of rooms, it stands for the place right after
what had arrived then.
"""

import re
from typing import Final

import msgspec

from federation.protocol.errors import InvalidParam
from federation.rooms.events import StoredEvent
from storage.events.timelines import Place

_TYPED: Final = r"(?:-([0-9]{1,18}(?:\.[0-9]{1,18}){0,31}))?"
_SYNC: Final = re.compile(
    rf"s([0-9]{{1,18}})_([0-9]{{1,18}})(?:~([0-9]{{1,18}}))?{_TYPED}", re.ASCII
)
_POS: Final = re.compile(
    rf"s([0-9]{{1,18}})_([0-9]{{1,18}}){_TYPED}_([0-9]{{1,18}}(?:\.[0-9a-f]{{1,14}}){{0,32}})",
    re.ASCII,
)
_ROOM: Final = re.compile(r"t(-?[0-9]{1,18})_([0-9]{1,18})(?:~([0-9]{1,18}))?", re.ASCII)


MOST_TYPED: Final = 32
"""Rooms in a token."""


class SyncToken(msgspec.Struct, frozen=True, gc=False):
    """What a client has heard of: all durable changes up to one position, all ephemeral ones up to
    another."""

    position: int
    ephemeral: int
    to_device: int | None = None
    """Messages to the device up to there only, where that is not the position."""
    typed: tuple[int, ...] = ()
    """The rooms of which the client was told last that somebody types there, the latest last; at
    most MOST_TYPED."""

    def __str__(self) -> str:
        if self.to_device is None and not self.typed:
            return f"s{self.position}_{self.ephemeral}"
        rest = "" if self.to_device is None else f"~{self.to_device}"
        typed = "-" + ".".join(map(str, self.typed)) if self.typed else ""
        return f"s{self.position}_{self.ephemeral}{rest}{typed}"


def parse_sync_token(text: str) -> SyncToken:
    """Raises InvalidParam."""
    match = _SYNC.fullmatch(text)
    if match is None:
        raise InvalidParam("Not a token that /sync gave out")
    position, ephemeral, to_device, typed = match.groups()
    return SyncToken(
        int(position),
        int(ephemeral),
        None if to_device is None else int(to_device),
        () if typed is None else _rooms(typed),
    )


def split_pos(text: str) -> tuple[SyncToken, str] | None:
    """The parts of a `pos` of sliding sync: the token, and the name of the state
    (`sliding_sync/pos.py`); None if it is none."""
    match = _POS.fullmatch(text)
    if match is None:
        return None
    position, ephemeral, typed, name = match.groups()
    return SyncToken(
        int(position), int(ephemeral), typed=() if typed is None else _rooms(typed)
    ), name


def _rooms(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def format_place(place: Place) -> str:
    """A room token."""
    return f"t{place.depth}_{place.event_nid}"


def format_before(event: StoredEvent) -> str:
    """From where a client asks for what came before an event, this one left out."""
    return f"t{event.depth}_{event.nid - 1}"


def format_gap(event: StoredEvent) -> str:
    """The same, others having been left out as well."""
    place = format_before(event)
    return place if event.position is None else f"{place}~{event.position - 1}"


def find_arrived(text: str) -> int | None:
    """By when that had arrived which was left out before a room token."""
    match = _ROOM.fullmatch(text)
    return None if match is None or match[3] is None else int(match[3])


def parse_room_token(text: str) -> Place | SyncToken:
    """Raises InvalidParam."""
    match = _ROOM.fullmatch(text)
    if match is not None:
        return Place(int(match[1]), int(match[2]))
    pos = split_pos(text)
    if pos is not None:
        return pos[0]
    if _SYNC.fullmatch(text):
        return parse_sync_token(text)
    raise InvalidParam("Not a token that this server gave out")

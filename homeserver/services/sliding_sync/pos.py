"""The last part of a `pos`: it names the state of the connection, by the number of a stored state
and the rooms that were added to this state later.

The form is `<number>.<room>.<room>…`. Each `<room>` is the number of an added room, with a bit that
says whether it is a direct chat. A stored state lists its rooms in the order in which they were
first sent. An added room has the same timeline limit and required state as the last room of the
stored state, and was sent up to the position in the `pos`. So a room that comes into view for the
first time usually causes no write. The added rooms cannot get lost, because the client sends the
name with its next request.

Laws:
- A name means the same forever and on every node: a stored state never changes under its number.
- A name is short, since it is part of a URL. If it would get more than MAX_ADDED rooms, a new state
  is stored instead.
- A client that invents a name harms only itself: it does not get what it claims to have. Only rooms
  that its user is or was in are accepted (`connections.py`).
"""

from collections.abc import Iterable
from typing import Final

MAX_ADDED: Final = 32
"""Rooms in a name; `homeserver/services/streams/sync_tokens.py` has the same bound."""


def name_of(state_nid: int) -> str:
    """Return the name of a stored state."""
    return str(state_nid)


def stored_nid(name: str) -> int:
    """Return the number of the stored state in a name."""
    return int(name.partition(".")[0])


def added_to(name: str, added: Iterable[tuple[int, bool]]) -> str | None:
    """Return the name with more rooms (number, and whether it is a direct chat); None if it gets
    too long."""
    longer = "".join([name, *[f".{room_nid << 1 | is_direct:x}" for room_nid, is_direct in added]])
    return longer if longer.count(".") <= MAX_ADDED else None


def added_in(name: str) -> list[tuple[int, bool]]:
    """Return the rooms that a name adds to the stored state."""
    _, *added = name.split(".")
    return [(number >> 1, bool(number & 1)) for number in (int(each, 16) for each in added)]

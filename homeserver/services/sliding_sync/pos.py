"""What a state of a connection is called in the `pos` that clients hold: the number of a state that
is stored, and the rooms that were told since just as its last one was: `<number>.<room>.<room>…`.

So a room that comes into view for the first time writes nothing, and nothing of it can get lost:
the client brings it along.

Laws:
- A name says the same for ever, on every node: what is stored under a number does not change, and
  nothing but that is needed to read it.
- It is short, since it is part of an address: of a few rooms, after which a state is stored that
  has them.
- A client that makes up a name misleads nobody but itself: it can name rooms that it was not sent,
  and then lacks what it was not sent. Only rooms that its user is in, or was, count
  (`connections.py`).
"""

from collections.abc import Iterable
from typing import Final

MOST_ADDED: Final = 32
"""Rooms in a name; `homeserver/services/streams/sync_tokens.py` reads as many."""


def name_of(state_nid: int) -> str:
    """The name of a state that is stored."""
    return str(state_nid)


def stored_nid(name: str) -> int:
    """The number of the stored state that a name begins with."""
    return int(name.partition(".")[0])


def added_to(name: str, added: Iterable[tuple[int, bool]]) -> str | None:
    """The name of the state that has these rooms besides (their numbers, and whether each is a
    direct chat); None if they are too many for a name."""
    longer = "".join([name, *[f".{room_nid << 1 | is_direct:x}" for room_nid, is_direct in added]])
    return longer if longer.count(".") <= MOST_ADDED else None


def added_in(name: str) -> list[tuple[int, bool]]:
    """The rooms that a name adds to the stored state."""
    _, *added = name.split(".")
    return [(number >> 1, bool(number & 1)) for number in (int(each, 16) for each in added)]

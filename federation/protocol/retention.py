"""Computes how long the messages of a room are kept, by its m.room.retention event and the server's
rules.

Lifetimes are milliseconds since an event's `origin_server_ts`. State events are always kept.

proposal: MSC1763
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from federation.protocol.events import StateKey

RETENTION: Final = StateKey("m.room.retention", "")
LONGEST: Final = 2**53 - 1
UNBOUNDED: Final = LONGEST + 1
"""A lifetime that never ends, for a room that sets none: longer than any that it could set."""


class RetentionRules(msgspec.Struct, frozen=True):
    """The retention rules of the server's configuration. None: no rule."""

    default_max: int | None = None
    """The lifetime in rooms that set none."""
    shortest: int | None = None
    longest: int | None = None
    """The bounds of the lifetimes that rooms set."""

    def effective(self, of_room: int | None) -> int:
        """Return the lifetime of a room's messages. `of_room`: the result of `read_max_lifetime`.

        A room that sets no upper bound gets `longest`.
        """
        wanted = self.default_max if of_room is None else of_room
        if wanted is None:
            return UNBOUNDED
        if self.shortest is not None and wanted < self.shortest:
            return self.shortest
        return wanted if self.longest is None else min(wanted, self.longest)


def read_max_lifetime(content: Mapping[str, Any]) -> int | None:
    """Return the longest lifetime in an m.room.retention event.

    UNBOUNDED if it only has a lower bound. None if it has no bound, as after a redaction, or is
    malformed.
    """
    longest, least = content.get("max_lifetime"), content.get("min_lifetime")
    if not all(value is None or is_lifetime(value) for value in (longest, least)):
        return None
    if longest is None and least is None:
        return None
    if longest is not None and least is not None and longest < least:
        return None
    return UNBOUNDED if longest is None else int(longest)


def is_lifetime(value: object) -> bool:
    """Return whether a JSON value is a valid lifetime: a whole number from 0 to `LONGEST`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LONGEST

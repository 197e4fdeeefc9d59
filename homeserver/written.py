"""Whom what a node writes concerns, as it tells the others: so that there too only those are woken.

What is told in words too many concerns everybody.
"""

from collections.abc import Collection, Iterable
from typing import Final, TypeVar

import msgspec

KIND: Final = "written"
"""Of notes to other nodes."""
LONGEST: Final = 5_000
"""About how many bytes a note has."""
_NUMBER: Final = 20
T = TypeVar("T")


class Concerned(msgspec.Struct):
    """Whom something concerns."""

    rooms: dict[int, None] = msgspec.field(default_factory=dict)
    """Numbers of rooms: their members."""
    people: dict[str, None] = msgspec.field(default_factory=dict)
    """Who shares a room with these."""
    users: dict[str, None] = msgspec.field(default_factory=dict)
    """These themselves."""


class Written(msgspec.Struct, array_like=True):
    """What a node has written since it told the others last."""

    ranges: list[tuple[int, int]] = msgspec.field(default_factory=list)
    """(after, upto) in the one sequence, in order."""
    rooms: list[int] = msgspec.field(default_factory=list)
    people: list[str] = msgspec.field(default_factory=list)
    users: list[str] = msgspec.field(default_factory=list)
    is_for_all: bool = False

    @property
    def upto(self) -> int:
        """The highest position."""
        return self.ranges[-1][1]

    def with_more(self, after: int, upto: int, concerned: Concerned) -> "Written":
        """This, and what was written then."""
        ranges = list(self.ranges)
        if ranges and ranges[-1][1] == after:
            ranges[-1] = (ranges[-1][0], upto)
        else:
            ranges.append((after, upto))
        # of those left out others do not know whom they concern, so they wake everybody there
        ranges = ranges[-LONGEST // (4 * _NUMBER) :]
        if self.is_for_all:
            return Written(ranges, is_for_all=True)
        more = Written(
            ranges,
            _union(self.rooms, concerned.rooms),
            _union(self.people, concerned.people),
            _union(self.users, concerned.users),
        )
        names = sum(len(each.encode()) + 3 for each in (*more.people, *more.users))
        if names + _NUMBER * (len(more.rooms) + len(ranges)) > LONGEST:
            return Written(ranges, is_for_all=True)
        return more


def without(ranges: Iterable[tuple[int, int]], told: Collection[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of these stretches once others are taken out."""
    left = list(ranges)
    for after, upto in told:
        left = [
            (begin, end)
            for low, high in left
            for begin, end in ((low, min(high, after)), (max(low, upto), high))
            if begin < end
        ]
    return left


def _union(some: list[T], others: Collection[T]) -> list[T]:
    return list(dict.fromkeys([*some, *others])) if others else some

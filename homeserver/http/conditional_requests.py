"""Conditional requests and range requests.

Only a single range is served. A list of ranges gets the whole file, as HTTP allows.

spec: RFC 9110, sections 8.8.3, 13.1.2, 13.1.5 and 14
"""

from collections.abc import Sequence
from typing import Final

import msgspec

_MAX_DIGITS: Final = 18


class ByteRange(msgspec.Struct, frozen=True):
    """A byte range, from `start` up to but not including `end`."""

    start: int
    end: int


class RangeNotSatisfiable(Exception):
    """The range begins after the end of the file."""


def matches_etag(if_none_match: Sequence[str], etag: str) -> bool:
    """Return whether the client already has this version. `etag` includes its quotes."""
    etags = [each.strip().removeprefix("W/") for line in if_none_match for each in line.split(",")]
    return etag in etags or "*" in etags


def parse_range(range_header: str, if_range: str | None, etag: str, size: int) -> ByteRange | None:
    """Return the requested range, or None for the whole file. Raises `RangeNotSatisfiable`."""
    unit, equals, ranges = range_header.partition("=")
    if not equals or unit.strip().lower() != "bytes" or "," in ranges or "-" not in ranges:
        return None
    if if_range is not None and if_range.strip() != etag:
        return None
    first, _, last = (each.strip() for each in ranges.partition("-"))
    if (
        not (_is_number(first) or not first)
        or not (_is_number(last) or not last)
        or not (first or last)
    ):
        return None
    if not first:
        if int(last) == 0 or size == 0:
            raise RangeNotSatisfiable
        return ByteRange(max(0, size - int(last)), size)
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise RangeNotSatisfiable
    return ByteRange(int(first), min(size, int(last) + 1) if last else size)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS

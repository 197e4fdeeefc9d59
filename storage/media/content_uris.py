"""The addresses of files (`mxc://server/id`) as they stand in what is stored, wherever in it."""

import re
from typing import Final, NamedTuple

MOST: Final = 2000
"""Addresses that are read in one text. An event of 64 KiB has room for 1,300 that are written as
packs of stickers write them."""

_ADDRESS: Final = re.compile(rb"mxc:\\?/\\?/([A-Za-z0-9.:\[\]-]{1,255})\\?/([A-Za-z0-9_-]{1,255})")
"""JSON that clients wrote may have a backslash before a slash."""


class MediaAddress(NamedTuple):
    """Whose file it is, and its id there."""

    origin: str
    media_id: str


def find_addresses(data: bytes) -> frozenset[MediaAddress]:
    """The addresses in JSON: as values, inside of formatted text, as keys. At most `MOST`, the
    first ones."""
    if b"mxc:" not in data:
        return frozenset()
    found: set[MediaAddress] = set()
    for match in _ADDRESS.finditer(data):
        found.add(MediaAddress(match[1].decode(), match[2].decode()))
        if len(found) == MOST:
            break
    return frozenset(found)

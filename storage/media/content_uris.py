"""Finds the content URIs (`mxc://server/id`) in stored JSON, in any field."""

import re
from typing import Final, NamedTuple

MAX_URIS: Final = 2000
"""The maximum number of content URIs read from one text. An event of 64 KiB has room for 1,300 as
sticker packs write them."""

_CONTENT_URI: Final = re.compile(
    rb"mxc:\\?/\\?/([A-Za-z0-9.:\[\]-]{1,255})\\?/([A-Za-z0-9_-]{1,255})"
)
"""JSON from clients may have a backslash before a slash."""


class ContentURI(NamedTuple):
    """A content URI: the server of the file, and its ID there."""

    origin: str
    media_id: str


def find_content_uris(data: bytes) -> frozenset[ContentURI]:
    """Return the content URIs in JSON: values, parts of formatted text, keys. At most `MAX_URIS`,
    the first ones."""
    if b"mxc:" not in data:
        return frozenset()
    found: set[ContentURI] = set()
    for match in _CONTENT_URI.finditer(data):
        found.add(ContentURI(match[1].decode(), match[2].decode()))
        if len(found) == MAX_URIS:
            break
    return frozenset(found)

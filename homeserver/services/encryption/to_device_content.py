"""Checks the contents of to-device messages, usually without decoding them. A content that no
client can parse would break the recipient's `/sync` forever.

Decoding and encoding every content would be the largest cost of a message to many devices. So
msgspec leaves the contents undecoded when it reads a body. It checks that they are JSON, but not
that text is UTF-8, that numbers are in range, or how deep the values nest. This module checks the
rest, because other servers and some clients cannot read values that nest too deep or integers of
hundreds of digits.

A quick check searches the bytes of all contents of a request for non-ASCII text, arrays, long
numbers, exponents and deep nesting. Only contents with one of these are decoded, checked and
encoded again, although they may be valid. `tests/encryption/test_to_device_contents.py` decodes the
contents that pass the quick check, to check that they are valid.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from federation.protocol.canonical_json import MAX_SENT_DEPTH, check_readable, count_openings
from federation.protocol.errors import BadJson
from homeserver.http.parameters import json_decoder

_UNUSUAL: Final = re.compile(rb":[- \t\r\n]*+[0-9.](?:[0-9.]{17}|[0-9.]*[eE])")
"""Matches each number that may be too large (long, or with an exponent) in text without arrays.
It fails quickly at all other colons."""

_OBJECT: Final = ord("{")

_read: Final = json_decoder(dict[str, Any], may_be_empty=False)


def check_contents(contents: Sequence[msgspec.Raw]) -> list[bytes]:
    """Return the contents, each a JSON object that every client can read. Equal neighbours become
    the same object. Raises BadJson, NotJson.

    `contents`: the raw values of a body, which msgspec did not decode.
    """
    found: list[bytes] = []
    distinct: list[bytes] = []
    # contents that are not encrypted per device are usually all equal
    if contents and contents.count(contents[0]) == len(contents):
        distinct = [bytes(contents[0])]
        found = distinct * len(contents)
    else:
        previous: msgspec.Raw | None = None
        encoded = b""
        for content in contents:
            if content != previous:
                previous, encoded = content, bytes(content)
                distinct.append(encoded)
            found.append(encoded)
    if [content[0] for content in distinct].count(_OBJECT) < len(distinct):
        raise BadJson("The content of a message has to be an object")
    if _is_plain(b"".join(distinct)) and all(map(_is_shallow, distinct)):
        return found
    checked = {
        content: content if _is_plain(content) and _is_shallow(content) else _reencode(content)
        for content in distinct
    }
    return [checked[content] for content in found]


def is_unreadable(content: Mapping[str, Any]) -> bool:
    """Return whether a content from another server fails the checks for our own clients."""
    try:
        check_readable(content, MAX_SENT_DEPTH)
    except BadJson:
        return True
    return False


def _is_plain(contents: bytes) -> bool:
    return contents.isascii() and b"[" not in contents and _UNUSUAL.search(contents) is None


def _is_shallow(content: bytes) -> bool:
    return count_openings(content) <= MAX_SENT_DEPTH


def _reencode(content: bytes) -> bytes:
    """Decode, check and encode a content. Raises BadJson, NotJson."""
    value = _read(content)
    check_readable(value, MAX_SENT_DEPTH)
    return msgspec.json.encode(value)

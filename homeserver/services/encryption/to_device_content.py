"""What clients send to devices, checked without taking it apart: a message that no client can read
would end the `/sync` of whom it is for, for ever.

To make objects of the contents, and bytes of those again, costs more than anything else that a
message to many devices takes. While a body is read msgspec skips over them, and sees that they are
JSON, but neither that text is UTF-8, nor that numbers are such as can be kept, nor how deep they
nest. This is seen here, mostly of all contents at once, on the side of caution: what is not plainly
well is read and written anew. What nests deeper than is sent, and integers of hundreds of digits,
other servers could not read, nor could some clients. `tests/http/test_message_contents.py` holds
what is let through against reading it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from federation.protocol.canonical_json import MAX_SENT_DEPTH, check_readable, count_openings
from federation.protocol.errors import BadJson
from homeserver.http.parameters import json_decoder

_UNUSUAL: Final = re.compile(rb":[- \t\r\n]*+[0-9.](?:[0-9.]{17}|[0-9.]*[eE])")
"""Finds every number that is long or has an exponent, and may be too large, where there are no
arrays. It gives up soon at each of the other colons, which are nearly all."""

_OBJECT: Final = ord("{")

_read: Final = json_decoder(dict[str, Any], may_be_empty=False)


def check_contents(contents: Sequence[msgspec.Raw]) -> list[bytes]:
    """The contents, each a JSON object that every client can read; one that equals the one before
    is the same object. Raises BadJson, NotJson.

    `contents`: what msgspec skipped over in reading a body.
    """
    found: list[bytes] = []
    unlike: list[bytes] = []
    if contents and contents.count(contents[0]) == len(
        contents
    ):  # as is usual of what is not encrypted for each
        unlike = [bytes(contents[0])]
        found = unlike * len(contents)
    else:
        before: msgspec.Raw | None = None
        kept = b""
        for content in contents:
            if content != before:
                before, kept = content, bytes(content)
                unlike.append(kept)
            found.append(kept)
    if [content[0] for content in unlike].count(_OBJECT) < len(unlike):
        raise BadJson("The content of a message has to be an object")
    if _is_plain(b"".join(unlike)) and all(map(_is_shallow, unlike)):
        return found
    anew = {
        content: content if _is_plain(content) and _is_shallow(content) else _write_anew(content)
        for content in unlike
    }
    return [anew[content] for content in found]


def is_unreadable(content: Mapping[str, Any]) -> bool:
    """Whether a content that another server sent is none that we would let through."""
    try:
        check_readable(content, MAX_SENT_DEPTH)
    except BadJson:
        return True
    return False


def _is_plain(contents: bytes) -> bool:
    return contents.isascii() and b"[" not in contents and _UNUSUAL.search(contents) is None


def _is_shallow(content: bytes) -> bool:
    return count_openings(content) <= MAX_SENT_DEPTH


def _write_anew(content: bytes) -> bytes:
    """What was read of it. Raises BadJson, NotJson."""
    value = _read(content)
    check_readable(value, MAX_SENT_DEPTH)
    return msgspec.json.encode(value)

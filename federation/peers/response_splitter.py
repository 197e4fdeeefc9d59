"""Splits the lists of events in a response that is too long to be parsed as a whole.

Parsing the complete JSON would block the reactor, and a response that consists of empty objects
would take many times its size in memory. This module only looks at brackets and strings. Each event
is parsed separately later, and may then turn out to be invalid JSON.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from federation.protocol.canonical_json import check_text_depth
from federation.protocol.dense_json import MOST_VALUES, STRING_OR_REST
from federation.protocol.errors import BadJson
from federation.protocol.events import MAX_PDU_BYTES

BYTES_PER_TURN: Final = 1 << 20
"""Bytes between two turns of the reactor, which take some milliseconds."""
PARSED_BYTES_PER_TURN: Final = 256 << 10
"""Bytes that are parsed between two turns of the reactor. As empty objects they take some
milliseconds."""
MAX_EVENT_BYTES: Final = 512 << 10
"""Longest event in bytes: a multiple of the size limit, as JSON can be written in many ways."""
MAX_REST_BYTES: Final = 1 << 20
"""Bytes outside the lists."""
MAX_OTHER_VALUES: Final = 100
"""Values that the outermost object and the lists may hold besides events."""
_STRING: Final = rb'"(?:[^"\\]++|\\.)*+"'
_PLAIN: Final = rb'[^\]\[{}"]++|' + _STRING


def _nested(levels: int) -> bytes:
    """Return a pattern of a list or object with this nesting depth. It never backtracks."""
    inner = rb"(?!)"
    for _ in range(levels):
        inner = rb"[\[{](?:" + _PLAIN + rb"|" + inner + rb")*+[\]}]"
    return inner


_SHALLOW_VALUE: Final = re.compile(_nested(6), re.DOTALL)
"""Matches nearly all events at once."""
_COMPLETE_STRING: Final = re.compile(_STRING, re.DOTALL)
_TOKEN: Final = re.compile(STRING_OR_REST + rb"|[\]\[{}]", re.DOTALL)
_BEGIN: Final = re.compile(rb'[\]\[{}"]')
_QUOTE, _OPEN, _OPEN_LIST, _CLOSE, _CLOSE_LIST = b'"{[}]'


class Yielder:
    """Lets the reactor run after a certain number of bytes has been parsed."""

    def __init__(self, *, clock: IReactorTime, bytes_per_turn: int = PARSED_BYTES_PER_TURN) -> None:
        """`bytes_per_turn`: bytes between two turns of the reactor."""
        self._clock = clock
        self._bytes_per_turn = bytes_per_turn
        self._done = 0

    async def after(self, size: int) -> None:
        """Record parsed bytes, and yield if enough were parsed. Concurrent callers yield too."""
        self._done += size
        if self._done >= self._bytes_per_turn:
            await pause(self._clock)
            self._done = 0


class TooManyEvents(ValueError):
    """A response contains too many events."""


class SplitResponse(msgspec.Struct, frozen=True):
    """A response and the lists that were split off from it."""

    lists: Mapping[str, Sequence[msgspec.Raw]]
    """The objects in each list, in order."""
    rest: bytes
    """The response with these lists empty."""


async def split_lists(
    body: bytes,
    fields: Collection[str],
    max_objects: int,
    clock: IReactorTime,
    *,
    max_object_bytes: int = MAX_EVENT_BYTES,
) -> SplitResponse:
    """Return the objects in these lists of a response.

    Values other than objects are skipped, and a missing list is empty. `max_object_bytes`: limit of
    one object. Raises TooManyEvents above `max_objects`. Raises ValueError if one of them or the
    rest is too long, or if the body is no object.
    """
    found: dict[str, list[msgspec.Raw]] = {field: [] for field in fields}
    names = {msgspec.json.encode(field): field for field in fields}
    view = memoryview(body)
    into: list[msgspec.Raw] | None = None
    outside: list[memoryview] = []
    begun, size = 0, 0
    name, count = b"", 0
    at, pause_at = _find(body, 0), BYTES_PER_TURN
    if body[at : at + 1] != b"{":
        raise ValueError("it is no JSON object")
    at += 1
    while True:
        at = _find(body, at)
        if at >= pause_at:
            pause_at = at + BYTES_PER_TURN
            await pause(clock)
        count += 1
        if count > max_objects + MAX_OTHER_VALUES:
            raise TooManyEvents(f"it has more than {max_objects} events")
        byte = body[at] if at < len(body) else None
        if byte == _QUOTE:
            end = _end_of_string(body, at)
            name = body[at:end]
        elif byte == _OPEN_LIST and into is None and name in names:
            into, end = found[names[name]], at + 1
            outside.append(view[begun:end])
            size += end - begun
        elif byte == _CLOSE_LIST and into is not None:
            into, end, begun = None, at + 1, at
        elif byte in (_OPEN, _OPEN_LIST):
            end = _end_of_value(body, at, max_object_bytes)
            if into is not None and byte == _OPEN:
                into.append(msgspec.Raw(view[at:end]))
        elif byte == _CLOSE and into is None and not body[at + 1 :].strip():
            if size + at + 1 - begun > MAX_REST_BYTES:
                raise ValueError("it has too much data besides its events")
            return SplitResponse(found, b"".join([*outside, view[begun : at + 1]]))
        else:
            raise ValueError("it is no JSON object")
        at = end


def _find(body: bytes, at: int) -> int:
    """Return the position of the next bracket or string."""
    token = _BEGIN.search(body, at)
    return len(body) if token is None else token.start()


def _end_of_string(body: bytes, at: int) -> int:
    token = _COMPLETE_STRING.match(body, at, at + MAX_EVENT_BYTES)
    if token is None:
        raise ValueError("it has a string that is too long or unterminated")
    return token.end()


def is_one_object(body: bytes) -> bool:
    """Return whether a text is one object, judged by brackets and strings, at any depth."""
    try:
        return body.startswith(b"{") and _end_of_value(body, 0, len(body)) == len(body)
    except ValueError:
        return False


def parse_piece(piece: bytes | msgspec.Raw) -> Mapping[str, Any]:
    """Parse a piece. Return an empty mapping if it is no object or nests too deeply."""
    try:
        value = msgspec.json.decode(piece)
        check_text_depth(bytes(piece))
    except (ValueError, RecursionError, BadJson):
        return {}
    return value if isinstance(value, dict) else {}


def parse_event_piece(piece: msgspec.Raw) -> Mapping[str, Any]:
    """Parse a piece as `parse_piece`. Return an empty mapping if it is longer than any event."""
    length = len(memoryview(piece))
    if length > MAX_EVENT_BYTES or (
        length > MAX_PDU_BYTES and bytes(piece).count(b",") > MAX_PDU_BYTES
    ):
        return {}
    event = parse_piece(piece)
    return (
        event
        if length <= MAX_PDU_BYTES or len(msgspec.json.encode(event)) <= 2 * MAX_PDU_BYTES
        else {}
    )


def _end_of_value(body: bytes, at: int, max_bytes: int) -> int:
    """Return the end of the list or object that starts here."""
    shallow = _SHALLOW_VALUE.match(body, at, at + max_bytes)
    if shallow is not None:
        return shallow.end()
    depth = 0
    for token in islice(_TOKEN.finditer(body, at, at + max_bytes), MOST_VALUES):
        byte = body[token.start()]
        if byte in (_OPEN, _OPEN_LIST):
            depth += 1
        elif byte in (_CLOSE, _CLOSE_LIST):
            depth -= 1
            if not depth:
                return token.end()
    raise ValueError("it has an event that is too long or unterminated")


async def pause(clock: IReactorTime) -> None:
    """Let the reactor run once."""
    next_turn: Deferred[None] = Deferred()
    call = clock.callLater(0, next_turn.callback, None)
    try:
        await next_turn
    finally:
        if call.active():
            call.cancel()

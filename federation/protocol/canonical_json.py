"""Parses JSON from outside, and encodes canonical JSON, over which hashes and signatures are made.

Laws:
- For any bytes, `decode_json` returns a value or raises a `MatrixError`. The value consists only of
  dicts with string keys, lists, strings without lone surrogates, ints, finite floats, bools and
  None, nested at most `MAX_DEPTH` deep. So other code need not check this again.
- If an object contains a key twice, the last value counts, as on every other server (RFC 8259
  leaves this open). Hashes and signatures are checked against the parsed value. So they protect the
  value that this server uses, not one that another parser might read.

Events, EDUs and requests are encoded with msgspec, which is faster than the library
`canonicaljson`. With sorted keys, the output of msgspec is canonical JSON, except for floats:
msgspec writes `1e16`, and all other servers write `1e+16`. So values with floats, which only old
rooms and EDUs contain, are encoded by `canonicaljson.encode_canonical_json`. A property test
compares the two encoders. Code that does not need the speed calls `canonicaljson` directly.

spec: appendices#canonical-json, rooms/v6#canonical-json
"""

from itertools import accumulate
from typing import Any, Final

import msgspec
from canonicaljson import encode_canonical_json

from federation.protocol.errors import BadJson, NotJson

MAX_DEPTH: Final = 256
"""Highest nesting of objects and arrays in JSON that we read or sign. The interpreter's own limit
is not usable for stored data: it is a thousand levels in Python 3.11, and ten thousand in 3.13."""

MAX_SENT_DEPTH: Final = 240
"""Highest nesting in data that our users send. It is lower than `MAX_DEPTH`, so that other servers
can still read the data when it is nested in a request or an event."""

LONGEST_INTEGER_BITS: Final = 1023
"""Integers with more bits are infinite as doubles, or nearly so."""

MAX_SAFE_INTEGER: Final = 2**53 - 1
"""Integers beyond ± this are no canonical JSON. spec: appendices#canonical-json"""

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="deterministic").encode
_STEPS: Final = bytes.maketrans(b"{[]}", b"\x01\x01\xff\xff")
"""A level down, or up: 1 and -1."""
_NEITHER: Final = bytes(each for each in range(256) if each not in b'{[]}"')


def decode_json(data: bytes | bytearray | memoryview, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text in UTF-8.

    Raises `NotJson` for what is no JSON (NaN and Infinity among it), `BadJson` for JSON that nests
    too deep or has numbers too big to be kept.
    """
    try:
        value = _decode(data)
    except msgspec.ValidationError as error:
        raise BadJson(f"The JSON cannot be accepted: {error}") from error
    except msgspec.DecodeError as error:
        raise NotJson(f"Not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise NotJson("Not valid JSON: the text is not UTF-8") from error
    except RecursionError as error:
        raise BadJson("The JSON is nested too deep") from error
    check_text_depth(bytes(data), max_depth)
    return value


def decode_object(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """As `decode_json`, and the value is an object; else `BadJson`."""
    value = decode_json(data)
    if type(value) is not dict:
        raise BadJson("The JSON must be an object")
    return value


def check_depth(value: object, limit: int = MAX_DEPTH) -> None:
    """Raises `BadJson` for a value with more than `limit` levels of objects and arrays."""
    level: list[Any] = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            if (kind := type(item)) is dict or kind is list
            for child in (item.values() if kind is dict else item)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise BadJson("The JSON is nested too deep")


def check_readable(value: object, limit: int = MAX_DEPTH) -> None:
    """Raises `BadJson` for values that some receivers cannot read: more than `limit` levels, and
    integers too large for a double. Some parsers then refuse the whole text."""
    check_depth(value, limit)
    items: list[Any] = [value]
    extend = items.extend
    for item in items:
        kind = type(item)
        if kind is dict:
            extend(item.values())
        elif kind is list:
            extend(item)
        elif kind is int and item.bit_length() > LONGEST_INTEGER_BITS:
            raise BadJson("An integer is out of range")


def check_text_depth(text: bytes, limit: int = MAX_DEPTH) -> None:
    """As `check_depth`, of a text that is known to be JSON."""
    if len(text) <= 2 * limit or count_openings(text) <= limit:
        return
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(
            b'\\"', b""
        )  # a quote is now the begin or the end of a string
    outside = b"".join(text.translate(_STEPS, _NEITHER).split(b'"')[::2])
    if max(accumulate(memoryview(outside).cast("b")), default=0) > limit:
        raise BadJson("The JSON is nested too deep")


def count_openings(text: bytes) -> int:
    """Return the number of opening brackets, including those in strings. JSON nests no deeper than
    this. Removing the brackets is much faster than counting them."""
    return len(text) - len(text.replace(b"{", b"").replace(b"[", b""))


def check_strict(value: object) -> None:
    """Raises `BadJson` for what canonical JSON does not allow: floats, and integers beyond ±(2^53 -
    1).

    Events of versions with `strict_canonical_json` are checked with it. spec:
    rooms/v6#canonical-json
    """
    items: list[Any] = [value]
    extend = items.extend
    for item in items:
        kind = type(item)
        if kind is str:
            continue
        if kind is dict:
            extend(item.values())
        elif kind is list or kind is tuple:
            extend(item)
        elif kind is int:
            if not -MAX_SAFE_INTEGER <= item <= MAX_SAFE_INTEGER:
                raise BadJson("Integers must be between -(2^53 - 1) and 2^53 - 1")
        elif kind is float:
            raise BadJson("Numbers must be integers")
        elif item is not None and kind is not bool:
            raise BadJson(f"This is no JSON value: {kind.__name__}")


def encode_canonical(value: object) -> bytes:
    """The canonical JSON of a value; floats and big integers are written as old rooms do.

    Raises `BadJson` for values that have no JSON form.
    """
    if _has_float(value):
        try:
            return encode_canonical_json(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadJson(f"This value has no canonical JSON form: {error}") from error
    return encode_checked(value)


def encode_strict(value: object) -> bytes:
    """As `encode_canonical`, and raises `BadJson` for what `check_strict` refuses."""
    check_strict(value)
    return encode_checked(value)


def encode_checked(value: object) -> bytes:
    """The canonical JSON of a value that is known to have no floats (it passed `check_strict`, or
    is of our making).

    `msgspec.Raw` in it is copied as it is, and must be canonical. Raises `BadJson` for values with
    no JSON form.
    """
    try:
        return _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadJson(f"This value has no canonical JSON form: {error}") from error


def _has_float(value: object) -> bool:
    """Whether a float is in it, at any depth."""
    items: list[Any] = [value]
    extend = items.extend
    for item in items:
        kind = type(item)
        if kind is str:
            continue
        if kind is dict:
            extend(item.values())
        elif kind is list or kind is tuple:
            extend(item)
        elif kind is float:
            return True
    return False

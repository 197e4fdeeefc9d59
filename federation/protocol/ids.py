"""Matrix identifiers: their grammar, and a type for each kind, so that a type checker refuses code
that passes a user id as a room id.

`parse_…` returns the identifier for a text from outside, or raises `InvalidParam` with an error
text. `is_…` returns whether a text is such an identifier. `domain_of` and `localpart_of` expect
identifiers that have been checked.

The grammar allows server names with a port above 65535, which cannot exist. User ids and room ids
with such a server name may occur in events, and all servers have to agree on the validity of an
event. So `is_user_id` and `is_room_id` accept such a port. `parse_user_id` and `is_server_name`
refuse it, so no request is ever sent to such a server.

`parse_user_id` also accepts historical user ids, which may have other characters than new ones.
`parse_new_user_id` makes the id of a new user of this server and allows only today's characters.

spec: appendices#identifier-grammar
"""

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, NewType

from federation.protocol.errors import InvalidParam, InvalidUsername

UserID = NewType("UserID", str)
RoomID = NewType("RoomID", str)
EventID = NewType("EventID", str)
RoomAlias = NewType("RoomAlias", str)
ServerName = NewType("ServerName", str)
DeviceID = NewType("DeviceID", str)
KeyID = NewType("KeyID", str)
"""Algorithm and name of a key, such as `ed25519:a_xyz`. spec: appendices#signing-details"""

MAX_ID_BYTES: Final = 255
"""Length of every identifier with a sigil, including sigil and domain, in UTF-8. spec:
appendices#identifier-grammar"""
ALL_DEVICES: Final = "*"
"""Stands for all devices of a user in to-device messages, so no device may have this id."""

MAX_PORT: Final = 65535

MAX_LABEL: Final = 63
"""Length of a part of a host name."""

_SERVER_NAME = re.compile(
    r"(?P<host>(?P<dns>[0-9A-Za-z.-]{1,255})|\[(?P<ipv6>[0-9A-Fa-f:.]{2,45})\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_DOTTED_QUAD = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_NEW_LOCALPART = re.compile(r"[a-z0-9._=/+-]+")
_HASH_ID = re.compile(r"[$!][0-9A-Za-z_+/-]{43}")
_NAMESPACED = re.compile(r"[a-z][a-z0-9._-]{0,254}")
_OPAQUE = re.compile(r"[0-9A-Za-z._~-]{1,255}")
_KEY_ID = re.compile(r"[a-z0-9_]+:[^\s:\"\\,=]+", re.ASCII)


# ---- servers


def is_server_name(text: str) -> bool:
    """Whether it is a host name, an IPv4 or a bracketed IPv6 literal, with or without a port, which
    has 16 bits.

    spec: appendices#server-name
    """
    return len(text) <= MAX_ID_BYTES and 0 <= _port_in(text) <= MAX_PORT


@lru_cache(maxsize=1024)  # those of few servers come again and again
def _port_in(text: str) -> int:
    """The port, of five digits at most, that a server's name says; 0 where it says none; -1: it is
    outside of the grammar."""
    match = _SERVER_NAME.fullmatch(text)
    if match is None:
        return -1
    if match["ipv6"] is not None:
        is_host = _is_ipv6(match["ipv6"])
    else:
        is_host = _DOTTED_QUAD.fullmatch(match["dns"]) is None or _is_ipv4(match["dns"])
    return int(match["port"] or 0) if is_host else -1


def could_be_found(server: ServerName) -> bool:
    """Whether there can be a server of that name on a network: a name in DNS has no empty or long
    label, and no port is 0. Identifiers may name others.

    spec: RFC 1035, section 2.3.4
    """
    match = _SERVER_NAME.fullmatch(server)
    if match is None or not 0 < int(match["port"] or 1) <= MAX_PORT:
        return False
    labels = (match["dns"] or "ipv6").removesuffix(".").split(".")
    return all(0 < len(label) <= MAX_LABEL for label in labels)


def parse_server_name(text: str) -> ServerName:
    """Raises `InvalidParam`. Case is kept: server names are compared case-sensitively."""
    if not is_server_name(text):
        raise InvalidParam(f"Not a valid server name: {_shown(text)}")
    return ServerName(text)


def host_of(server_name: str) -> str:
    """The server name without its port; an IPv6 literal keeps its brackets."""
    host, separator, port = server_name.rpartition(":")
    return host if separator and port.isascii() and port.isdigit() else server_name


def is_ip_literal(server_name: str) -> bool:
    """Whether the host is an IPv4 or IPv6 address rather than a name."""
    host = host_of(server_name)
    return _is_ipv6(host[1:-1]) if host.startswith("[") and host.endswith("]") else _is_ipv4(host)


def registered_domain_of(server_name: str) -> str:
    """Return the domain that somebody has to register for such server names, as a good guess.

    It is the last two labels, or three if the last two look like `co.uk`. An address counts as it
    is. Use it only to share out capacity: a wrong guess makes unrelated servers share theirs.
    """
    host = host_of(server_name).lower()
    if is_ip_literal(server_name):
        return host
    labels = host.split(".")
    is_deeper = len(labels) > 2 and len(labels[-1]) == 2 and len(labels[-2]) <= 3
    return ".".join(labels[-3 if is_deeper else -2 :])


def _is_ipv4(text: str) -> bool:
    # Leading zeros are allowed by the grammar, but ipaddress refuses them since they are read as
    # octal here and there.
    if _DOTTED_QUAD.fullmatch(text) is None:
        return False
    try:
        IPv4Address(".".join(str(int(part)) for part in text.split(".")))
    except AddressValueError:
        return False
    return True


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True


# ---- users


def is_user_id(text: str) -> bool:
    """Whether it is a user id, historical ones included.

    Those have localparts of any characters but `:` and NUL, even none. spec:
    appendices#historical-user-ids
    """
    return _has_localpart_and_domain(text, "@")


def parse_user_id(text: str) -> UserID:
    """A user id of anywhere, historical ones included, of a server that there can be. Raises
    `InvalidParam`."""
    if not is_user_id(text) or not is_server_name(domain_of(text)):
        raise InvalidParam(f"Not a valid user ID: {_shown(text)}")
    return UserID(text)


def is_compliant_user_id(text: str) -> bool:
    """Return whether clients may see this user id outside events.

    spec: appendices#historical-user-ids
    """
    return (
        is_user_id(text)
        and len(localpart_of(text)) > 0
        and all("!" <= char <= "~" for char in localpart_of(text))
    )


def parse_new_user_id(localpart: str, domain: ServerName) -> UserID:
    """The id of a user whom this server creates: only the characters that today's grammar allows.

    Raises `InvalidUsername`. spec: appendices#user-identifiers
    """
    if _NEW_LOCALPART.fullmatch(localpart) is None:
        raise InvalidUsername("User names may only have the characters a-z, 0-9 and . _ = - / +")
    user_id = f"@{localpart}:{domain}"
    if len(user_id) > MAX_ID_BYTES:
        raise InvalidUsername(f"User IDs may not be longer than {MAX_ID_BYTES} bytes")
    return UserID(user_id)


# ---- rooms, events, aliases


def is_hash_id(text: str) -> bool:
    """Whether, sigil apart, it is a SHA-256 hash in unpadded base64: an event id from version 3, a
    room id from 12."""
    return _HASH_ID.fullmatch(text) is not None


def is_room_id(text: str) -> bool:
    """Whether it is a room id: `!opaque:domain`, or from room version 12 `!` and a hash. spec:
    appendices#room-ids"""
    return _has_localpart_and_domain(text, "!") or (text.startswith("!") and is_hash_id(text))


def parse_room_id(text: str) -> RoomID:
    """Raises `InvalidParam`."""
    if not is_room_id(text):
        raise InvalidParam(f"Not a valid room ID: {_shown(text)}")
    return RoomID(text)


def is_event_id(text: str) -> bool:
    """Whether it is an event id of any room version. They are opaque, so only sigil, length and NUL
    are looked at.

    spec: appendices#event-ids
    """
    return len(text) > 1 and text[0] == "$" and _fits(text) and "\0" not in text


def parse_event_id(text: str) -> EventID:
    """Raises `InvalidParam`."""
    if not is_event_id(text):
        raise InvalidParam(f"Not a valid event ID: {_shown(text)}")
    return EventID(text)


def is_room_alias(text: str) -> bool:
    """spec: appendices#room-aliases"""
    return _has_localpart_and_domain(text, "#") and is_server_name(domain_of(text))


def parse_room_alias(text: str) -> RoomAlias:
    """Raises `InvalidParam`."""
    if not is_room_alias(text):
        raise InvalidParam(f"Not a valid room alias: {_shown(text)}")
    return RoomAlias(text)


# ---- devices, keys, names without a sigil


def parse_device_id(text: str) -> DeviceID:
    """Any text of 1 to 255 bytes without NUL: the specification sets no grammar. Raises
    `InvalidParam`."""
    if not text or not _fits(text) or "\0" in text:
        raise InvalidParam(f"Not a valid device ID: {_shown(text)}")
    return DeviceID(text)


def parse_key_id(text: str) -> KeyID:
    """`algorithm:name`. Raises `InvalidParam`. spec: appendices#signing-details"""
    if len(text) > MAX_ID_BYTES or _KEY_ID.fullmatch(text) is None:
        raise InvalidParam(f"Not a valid key ID: {_shown(text)}")
    return KeyID(text)


def is_namespaced(text: str) -> bool:
    """spec: appendices#common-namespaced-identifier-grammar"""
    return _NAMESPACED.fullmatch(text) is not None


def is_opaque_id(text: str) -> bool:
    """spec: appendices#opaque-identifiers"""
    return _OPAQUE.fullmatch(text) is not None


# ---- parts


def domain_of(identifier: str) -> ServerName:
    """The server that gave out a user id, a room alias, or an id of an older room or event: what
    follows the first `:`.

    Raises `InvalidParam` for ids that name no server.
    """
    _, separator, domain = identifier.partition(":")
    if not separator:
        raise InvalidParam(f"This identifier names no server: {_shown(identifier)}")
    return ServerName(domain)


def localpart_of(identifier: str) -> str:
    """Return the text between the sigil and the first `:`."""
    return identifier[1:].partition(":")[0]


def _has_localpart_and_domain(text: str, sigil: str) -> bool:
    if text[:1] != sigil or not _fits(text) or "\0" in text:
        return False
    _, separator, domain = text.partition(":")
    return bool(separator) and _port_in(domain) >= 0


def _fits(text: str) -> bool:
    """Whether it takes at most 255 bytes of UTF-8; what has no UTF-8 form (a lone surrogate) does
    not fit anywhere."""
    if text.isascii():
        return len(text) <= MAX_ID_BYTES
    try:
        return len(text.encode()) <= MAX_ID_BYTES
    except UnicodeEncodeError:
        return False


def _shown(text: str) -> str:
    """A hostile text, short and printable, for an error message."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")

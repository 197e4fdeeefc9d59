"""Parses the member list of a closed federation, and maps request paths to the rights that they
need. It does no I/O.

The format is this project's own:

    {"name": "…", "serial": 7, "issued": 1790000000, "expires": 1790600000, "members": [
        {"server": "north.example", "verify_keys": {"ed25519:a": "…"}, "deny": ["invites", "media"]}
    ]}

Laws:
- A list with any invalid member is refused as a whole. If only that member were left out, its
  server would be shut out and nobody would notice.
- A list with an unknown name in `deny` is refused too. If the name were ignored, the member would
  keep a right that the federation denies it.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Annotated, Final
from urllib.parse import unquote

import msgspec

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import KeyID, ServerName, is_server_name
from federation.protocol.signing import parse_public_key

MAX_MEMBERS: Final = 20_000
MAX_KEYS: Final = 20
"""Keys of one member."""


class Right(Enum):
    """A right that the federation may deny a member."""

    INVITES = "invites"
    """Invites to our users, and invites from them."""
    MEDIA = "media"
    """Files, in both directions."""
    DIRECTORY = "directory"
    """Room directories, aliases and space hierarchies, in both directions."""
    PROFILES = "profiles"
    """Queries of profiles, in both directions."""
    WRITING = "writing"
    """Events that the member's users send. Only their own joins, leaves and knocks are accepted
        without this right."""


_RIGHT_OF_PATH: Final[tuple[tuple[str, Right], ...]] = (
    ("/_matrix/federation/v1/invite/", Right.INVITES),
    ("/_matrix/federation/v2/invite/", Right.INVITES),
    ("/_matrix/federation/v1/exchange_third_party_invite/", Right.INVITES),
    ("/_matrix/federation/v1/3pid/onbind", Right.INVITES),
    ("/_matrix/federation/v1/media/", Right.MEDIA),
    ("/_matrix/media/", Right.MEDIA),
    ("/_matrix/federation/v1/publicRooms", Right.DIRECTORY),
    ("/_matrix/federation/v1/query/directory", Right.DIRECTORY),
    ("/_matrix/federation/v1/hierarchy/", Right.DIRECTORY),
    ("/_matrix/federation/unstable/org.matrix.msc2946/hierarchy/", Right.DIRECTORY),
    ("/_matrix/federation/v1/query/profile", Right.PROFILES),
)


def right_of(path: str) -> Right | None:
    """Return the right that a request between servers needs, or None if membership is enough. A
    percent-encoded path is decoded first."""
    path = unquote(path)
    for prefix, right in _RIGHT_OF_PATH:
        if path.startswith(prefix):
            return right
    return None


class BadMemberList(ValueError):
    """A list that cannot be used; the text says why."""


class Member(msgspec.Struct, frozen=True):
    """A server of the federation."""

    server_name: ServerName
    keys: Mapping[KeyID, bytes]
    """Its keys, if the list pins them. Otherwise they are requested from the server, as usual."""
    denied: frozenset[Right]


class MemberList(msgspec.Struct, frozen=True):
    """A list of valid form. Times are in seconds."""

    name: str
    serial: int
    issued: int
    expires: int
    members: Mapping[str, Member]
    """By the server's name in lower case."""


class _Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    server: str
    verify_keys: Annotated[dict[str, str], msgspec.Meta(max_length=MAX_KEYS)] = {}
    deny: tuple[Right, ...] = ()


class _List(msgspec.Struct, frozen=True):
    serial: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    issued: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    expires: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    members: Annotated[tuple[_Member, ...], msgspec.Meta(max_length=MAX_MEMBERS)]
    name: Annotated[str, msgspec.Meta(max_length=200)] = ""


_decode = msgspec.json.Decoder(_List).decode


def parse_member_list(payload: bytes) -> MemberList:
    """A list whose signature was checked. Raises BadMemberList."""
    try:
        said = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMemberList(f"it is not of the form of a list: {error}") from error
    members: dict[str, Member] = {}
    for each in said.members:
        if not is_server_name(each.server):
            raise BadMemberList(f"{each.server[:300]!r} is no name of a server")
        name = each.server.lower()
        if name in members:
            raise BadMemberList(f"{name} is on it twice")
        members[name] = Member(ServerName(each.server), _read_keys(each), frozenset(each.deny))
    return MemberList(said.name, said.serial, said.issued, said.expires, MappingProxyType(members))


def _read_keys(member: _Member) -> Mapping[KeyID, bytes]:
    keys: dict[KeyID, bytes] = {}
    for key_id, key in member.verify_keys.items():
        try:
            keys[KeyID(key_id)] = parse_public_key(key_id, key)
        except (ValueError, InvalidParam) as error:
            raise BadMemberList(
                f"the key {key_id[:100]!r} of {member.server} is none: {error}"
            ) from error
    return MappingProxyType(keys)

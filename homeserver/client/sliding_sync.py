"""Sliding sync in two forms: the unstable form, which released clients use, and the stable form of
the final proposal. Proposal: MSC4186."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

import msgspec

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import UserID, is_opaque_id, is_room_id
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.client.sliding_extensions import (
    MAX_NAMES,
    ExtensionsBody,
    NameList,
    Natural,
    Text,
    read_extensions,
)
from homeserver.http.parameters import json_decoder
from homeserver.services.presence.presence import Presence
from homeserver.services.sliding_sync.request import (
    ALL_MEMBERS,
    ANY,
    MEMBER,
    ExtensionRequests,
    ListFilters,
    ListRequest,
    RequiredState,
    RoomConfig,
    SlidingRequest,
    StateClause,
    StatePattern,
)
from homeserver.services.sliding_sync.sliding_sync import SlidingSync

MAX_LISTS: Final = 100
MAX_SUBSCRIPTIONS: Final = 100
MAX_RANGES: Final = 100
MAX_PATTERNS: Final = 200
MAX_UNSTABLE_KEY_LENGTH: Final = 64
"""The longest list key, in the unstable form. The stable form allows any opaque identifier."""
MAX_CONN_ID_LENGTH: Final = 255
MAX_EVENTS: Final = 1000
MAX_BODY: Final = 256 * 1024
ALL_MEMBER_PATTERNS: Final = frozenset({ALL_MEMBERS, (ANY, ANY)})
LAZY: Final = "$LAZY"
ME: Final = "$ME"
MAX_INDEX: Final = 2**53

CACHED_CONFIGS: Final = 512
MAX_CACHED_PATTERNS: Final = 50
CACHED_BODIES: Final = 1024
MAX_CACHED_BODY: Final = 4096
"""The longest body to cache, in bytes. Longer bodies are parsed each time."""

RoomTypes = Annotated[list[Text | None], msgspec.Meta(max_length=MAX_NAMES)]
PresenceState = Literal["offline", "online", "unavailable"]
_PRESENCE_STATES: Final[Mapping[str, PresenceState]] = {
    "offline": "offline",
    "online": "online",
    "unavailable": "unavailable",
}


class FiltersBody(msgspec.Struct, frozen=True):
    """The filters of a list, in both forms."""

    is_dm: bool | None = None
    spaces: NameList | None = None
    is_encrypted: bool | None = None
    is_invite: bool | None = None
    is_invited: bool | None = None
    room_types: RoomTypes | None = None
    not_room_types: RoomTypes | None = None
    tags: NameList | None = None
    not_tags: NameList | None = None
    room_name_like: Text | None = None


class PatternBody(msgspec.Struct, frozen=True):
    """A pattern for state entries. An absent field matches anything."""

    type: Text | None = None
    state_key: Text | None = None


class RequiredStateBody(msgspec.Struct, frozen=True):
    """The required state, in the stable form."""

    include: tuple[PatternBody, ...] | None = None
    exclude: tuple[PatternBody, ...] | None = None
    lazy_members: bool | None = None


class UnstableRoom(msgspec.Struct, frozen=True):
    """The requested timeline and state of a room."""

    timeline_limit: Natural | None = None
    required_state: tuple[tuple[Text, Text], ...] | None = None


class UnstableList(UnstableRoom, frozen=True):
    """A list of rooms."""

    ranges: list[tuple[Natural, Natural]] | None = None
    slow_get_all_rooms: bool | None = None
    filters: FiltersBody | None = None


class StableRoom(msgspec.Struct, frozen=True):
    """The requested timeline and state of a room."""

    timeline_limit: Natural
    required_state: RequiredStateBody | None = None


class StableList(StableRoom, frozen=True):
    """A list of rooms."""

    range: tuple[Natural, Natural] | None = None
    filters: FiltersBody | None = None


class UnstableBody(msgspec.Struct, frozen=True):
    """A request in the unstable form."""

    conn_id: str | None = None
    txn_id: str | None = None
    lists: dict[str, UnstableList] | None = None
    room_subscriptions: dict[str, UnstableRoom] | None = None
    extensions: ExtensionsBody | None = None


class StableBody(msgspec.Struct, frozen=True):
    """A request in the stable form."""

    conn_id: str | None = None
    pos: str | None = None
    timeout: Natural | None = None
    set_presence: str | None = None
    lists: dict[str, StableList] | None = None
    room_subscriptions: dict[str, StableRoom] | None = None
    extensions: ExtensionsBody | None = None


@endpoint(
    "POST",
    "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync",
    auth=Auth.GUEST,
    max_body=MAX_BODY,
    while_suspended=True,
    long_poll=True,
)
async def post_unstable_sliding_sync(
    sliding_sync: SlidingSync,
    presence: Presence,
    caller: Requester,
    *,
    body: bytes = b"",
    pos: str | None = None,
    timeout: int = 0,
    set_presence: PresenceState | None = None,
) -> dict[str, Any]:
    """Return updates of the requested rooms and extensions, in the unstable form."""
    max_events = sliding_sync.max_events
    parsed = (_parse_unstable_cached if len(body) <= MAX_CACHED_BODY else _parse_unstable)(
        body, caller.user_id, max_events
    )
    request = SlidingRequest(
        caller=caller,
        conn_id=parsed.conn_id,
        pos=pos or None,
        timeout_ms=timeout,
        stable=False,
        lists=parsed.lists,
        subscriptions=parsed.subscriptions,
        extensions=parsed.extensions,
    )
    presence.start_sync(caller, set_presence)
    try:
        response = await sliding_sync.sync(request)
    finally:
        presence.end_sync(caller)
    return response if parsed.txn_id is None else {**response, "txn_id": parsed.txn_id}


@endpoint(
    "POST",
    "/_matrix/client/v4/sync",
    auth=Auth.GUEST,
    max_body=MAX_BODY,
    while_suspended=True,
    long_poll=True,
)
async def post_sliding_sync(
    sliding_sync: SlidingSync,
    presence: Presence,
    caller: Requester,
    *,
    body: StableBody = StableBody(),
) -> dict[str, Any]:
    """Return updates of the requested rooms and extensions, in the stable form."""
    lists, subscriptions = body.lists or {}, body.room_subscriptions or {}
    _check(body.conn_id, lists, subscriptions)
    set_presence = None if body.set_presence is None else _PRESENCE_STATES.get(body.set_presence)
    if set_presence is None and body.set_presence is not None:
        raise InvalidParam(f"set_presence must be one of {', '.join(_PRESENCE_STATES)}")
    max_events = sliding_sync.max_events
    request = SlidingRequest(
        caller=caller,
        conn_id=body.conn_id or "",
        pos=body.pos or None,
        timeout_ms=body.timeout or 0,
        stable=True,
        lists={name: _stable_list(wanted, max_events) for name, wanted in lists.items()},
        subscriptions={
            id: _stable_config(wanted, max_events)
            for id, wanted in subscriptions.items()
            if is_room_id(id)
        },
        extensions=read_extensions(body.extensions or ExtensionsBody()),
    )
    presence.start_sync(caller, set_presence)
    try:
        return await sliding_sync.sync(request)
    finally:
        presence.end_sync(caller)


def _check(
    conn_id: str | None, lists: Mapping[str, object], subscriptions: Mapping[str, object]
) -> None:
    if conn_id is not None and (len(conn_id) > MAX_CONN_ID_LENGTH or "\0" in conn_id):
        raise InvalidParam("The conn_id is too long or contains a NUL")
    if len(lists) > MAX_LISTS or len(subscriptions) > MAX_SUBSCRIPTIONS:
        raise InvalidParam(
            f"At most {MAX_LISTS} lists and {MAX_SUBSCRIPTIONS} subscriptions are allowed"
        )
    if not all(map(is_opaque_id, lists)):
        raise InvalidParam(
            "A list key may contain letters, digits and . _ ~ -, and has at most 255 characters"
        )


class _UnstableRequest(msgspec.Struct, frozen=True, gc=False):
    """A parsed request body in the unstable form."""

    conn_id: str
    txn_id: str | None
    lists: Mapping[str, ListRequest]
    subscriptions: Mapping[str, RoomConfig]
    extensions: ExtensionRequests


def _parse_unstable(body: bytes, user_id: UserID, max_events: int) -> _UnstableRequest:
    """Parse a body in the unstable form. Raises BadJson, NotJson, InvalidParam."""
    decoded: UnstableBody = _decode_unstable(body)
    lists, subscriptions = decoded.lists or {}, decoded.room_subscriptions or {}
    _check(decoded.conn_id, lists, subscriptions)
    if any(len(name) > MAX_UNSTABLE_KEY_LENGTH for name in lists):
        raise InvalidParam(f"A list key may have at most {MAX_UNSTABLE_KEY_LENGTH} characters")
    return _UnstableRequest(
        decoded.conn_id or "",
        decoded.txn_id,
        {name: _unstable_list(wanted, user_id, max_events) for name, wanted in lists.items()},
        {
            id: _unstable_config(wanted, user_id, max_events)
            for id, wanted in subscriptions.items()
            if is_room_id(id)
        },
        read_extensions(decoded.extensions or ExtensionsBody()),
    )


_decode_unstable: Final = json_decoder(UnstableBody, may_be_empty=True)
_parse_unstable_cached = lru_cache(CACHED_BODIES)(_parse_unstable)
"""A client sends the same body again and again; its position is in the query string."""


def _unstable_list(wanted: UnstableList, user_id: UserID, max_events: int) -> ListRequest:
    ranges = None if wanted.slow_get_all_rooms else wanted.ranges
    return ListRequest(
        _ranges(ranges), _unstable_config(wanted, user_id, max_events), _filters(wanted.filters)
    )


def _unstable_config(wanted: UnstableRoom, user_id: UserID, max_events: int) -> RoomConfig:
    patterns = wanted.required_state or ()
    make = (
        _cached_unstable_config if len(patterns) <= MAX_CACHED_PATTERNS else _make_unstable_config
    )
    return make(_timeline_limit(wanted.timeline_limit, max_events), patterns, user_id)


def _make_unstable_config(
    timeline_limit: int, patterns: Sequence[StatePattern], user_id: UserID
) -> RoomConfig:
    _check_patterns(patterns)
    lazy = (MEMBER, LAZY) in patterns
    include = frozenset(
        (type, str(user_id) if key == ME else key)
        for type, key in patterns
        if (type, key) != (MEMBER, LAZY)
    )
    # All state with lazy members: only the needed members are sent
    exclude = (
        frozenset({(MEMBER, ANY)}) if lazy and (ANY, ANY) in include else frozenset[StatePattern]()
    )
    clauses = {StateClause(include, exclude)} if include else set()
    if exclude:
        own = frozenset(pattern for pattern in include if pattern[0] == MEMBER)
        clauses |= {StateClause(own)} if own else set()
    return RoomConfig(timeline_limit, RequiredState(frozenset(clauses), lazy))


_cached_unstable_config = lru_cache(CACHED_CONFIGS)(_make_unstable_config)
"""A client asks for the same configuration each time. Returning the same object avoids comparing it
with the configuration of the previous request."""


def _stable_list(wanted: StableList, max_events: int) -> ListRequest:
    ranges = None if wanted.range is None else [wanted.range]
    return ListRequest(
        _ranges(ranges), _stable_config(wanted, max_events), _filters(wanted.filters)
    )


def _stable_config(wanted: StableRoom, max_events: int) -> RoomConfig:
    required = wanted.required_state or RequiredStateBody()
    patterns = len(required.include or ()) + len(required.exclude or ())
    make = _cached_stable_config if patterns <= MAX_CACHED_PATTERNS else _make_stable_config
    return make(_timeline_limit(wanted.timeline_limit, max_events), required)


def _make_stable_config(timeline_limit: int, required: RequiredStateBody) -> RoomConfig:
    include, exclude = _patterns(required.include or ()), _patterns(required.exclude or ())
    _check_patterns([*include, *exclude])
    clauses = {StateClause(include, exclude)} if include else set()
    if required.lazy_members and include & ALL_MEMBER_PATTERNS:
        # Only the needed members and the named ones are sent, not all
        others, named = (
            include - {ALL_MEMBERS},
            frozenset((MEMBER, key) for type, key in include if _matches_one_member(type, key)),
        )
        clauses = {StateClause(others, exclude | {ALL_MEMBERS})} if others else set()
        clauses |= {StateClause(named, exclude)} if named else set()
    return RoomConfig(
        timeline_limit, RequiredState(frozenset(clauses), bool(required.lazy_members))
    )


def _matches_one_member(type: str, state_key: str) -> bool:
    """Return whether the pattern matches the membership of one named user."""
    return type in (MEMBER, ANY) and state_key != ANY


_cached_stable_config = lru_cache(CACHED_CONFIGS)(_make_stable_config)


def _patterns(bodies: Iterable[PatternBody]) -> frozenset[StatePattern]:
    return frozenset(
        (ANY if body.type is None else body.type, ANY if body.state_key is None else body.state_key)
        for body in bodies
    )


def _check_patterns(patterns: Sequence[StatePattern]) -> None:
    if len(patterns) > MAX_PATTERNS:
        raise InvalidParam(f"A required_state may have at most {MAX_PATTERNS} entries")
    if any("\0" in part for pattern in patterns for part in pattern):
        raise InvalidParam("A type or state key in required_state contains a NUL")


def _ranges(ranges: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]] | None:
    if ranges is None:
        return None
    if len(ranges) > MAX_RANGES:
        raise InvalidParam(f"A list may have at most {MAX_RANGES} ranges")
    if any(first > last for first, last in ranges):
        raise InvalidParam("A range may not end before it begins")
    return [(min(first, MAX_INDEX), min(last, MAX_INDEX)) for first, last in ranges]


def _timeline_limit(limit: int | None, max_events: int) -> int:
    """Clamp a requested limit to the operator's limit `max_events`; a negative one means no
    limit."""
    return min(limit or 0, MAX_EVENTS if max_events < 0 else min(max_events, MAX_EVENTS))


def _filters(body: FiltersBody | None) -> ListFilters:
    if body is None:
        return ListFilters()
    return ListFilters(
        is_dm=body.is_dm,
        spaces=None if body.spaces is None else frozenset(filter(is_room_id, body.spaces)),
        is_encrypted=body.is_encrypted,
        is_invite=body.is_invite if body.is_invited is None else body.is_invited,
        room_types=None if body.room_types is None else frozenset(body.room_types),
        not_room_types=None if body.not_room_types is None else frozenset(body.not_room_types),
        tags=_set(body.tags),
        not_tags=_set(body.not_tags),
        name_like=body.room_name_like,
    )


def _set(names: Sequence[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)

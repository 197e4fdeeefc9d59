"""Sliding sync in its two forms: that of the released clients, and the accepted one. Proposal:
MSC4186."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

import msgspec

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import UserID, is_opaque_id, is_room_id
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.client.sliding_extensions import (
    MOST_NAMES,
    ExtensionsBody,
    Names,
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
    Clause,
    Extensions,
    ListFilters,
    ListRequest,
    Pattern,
    RequiredState,
    RoomConfig,
    SlidingRequest,
)
from homeserver.services.sliding_sync.sliding_sync import SlidingSync

MOST_LISTS: Final = 100
MOST_SUBSCRIPTIONS: Final = 100
MOST_RANGES: Final = 100
MOST_PATTERNS: Final = 200
LONGEST_UNSTABLE_KEY: Final = 64
"""Of a list, in the form of the released clients; in the accepted one it may be as long as any
opaque identifier."""
LONGEST_CONN_ID: Final = 255
MOST_EVENTS: Final = 1000
MAX_BODY: Final = 256 * 1024
ALL_OF_MEMBERS: Final = frozenset({ALL_MEMBERS, (ANY, ANY)})
LAZY: Final = "$LAZY"
ME: Final = "$ME"
FAR: Final = 2**53

REMEMBERED: Final = 512
MOST_REMEMBERED_PATTERNS: Final = 50
REMEMBERED_BODIES: Final = 1024
MOST_REMEMBERED_BYTES: Final = 4096
"""Of a body: longer ones are read anew each time."""

RoomTypes = Annotated[list[Text | None], msgspec.Meta(max_length=MOST_NAMES)]
PresenceState = Literal["offline", "online", "unavailable"]
_PRESENCE_STATES: Final[Mapping[str, PresenceState]] = {
    "offline": "offline",
    "online": "online",
    "unavailable": "unavailable",
}


class FiltersBody(msgspec.Struct, frozen=True):
    """Which rooms a list shows, in both forms."""

    is_dm: bool | None = None
    spaces: Names | None = None
    is_encrypted: bool | None = None
    is_invite: bool | None = None
    is_invited: bool | None = None
    room_types: RoomTypes | None = None
    not_room_types: RoomTypes | None = None
    tags: Names | None = None
    not_tags: Names | None = None
    room_name_like: Text | None = None


class PatternBody(msgspec.Struct, frozen=True):
    """Entries of the state. What is absent matches anything."""

    type: Text | None = None
    state_key: Text | None = None


class RequiredBody(msgspec.Struct, frozen=True):
    """Which state is wanted, in the accepted form."""

    include: tuple[PatternBody, ...] | None = None
    exclude: tuple[PatternBody, ...] | None = None
    lazy_members: bool | None = None


class UnstableRoom(msgspec.Struct, frozen=True):
    """How much of a room is wanted."""

    timeline_limit: Natural | None = None
    required_state: tuple[tuple[Text, Text], ...] | None = None


class UnstableList(UnstableRoom, frozen=True):
    """One list."""

    ranges: list[tuple[Natural, Natural]] | None = None
    slow_get_all_rooms: bool | None = None
    filters: FiltersBody | None = None


class StableRoom(msgspec.Struct, frozen=True):
    """How much of a room is wanted."""

    timeline_limit: Natural
    required_state: RequiredBody | None = None


class StableList(StableRoom, frozen=True):
    """One list."""

    range: tuple[Natural, Natural] | None = None
    filters: FiltersBody | None = None


class UnstableBody(msgspec.Struct, frozen=True):
    """A request of the released clients."""

    conn_id: str | None = None
    txn_id: str | None = None
    lists: dict[str, UnstableList] | None = None
    room_subscriptions: dict[str, UnstableRoom] | None = None
    extensions: ExtensionsBody | None = None


class StableBody(msgspec.Struct, frozen=True):
    """A request in the accepted form."""

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
    """What is new in the rooms that the client looks at, as the released clients ask for it."""
    most = sliding_sync.most_events
    asked = (_remembered_asked if len(body) <= MOST_REMEMBERED_BYTES else _read_asked)(
        body, caller.user_id, most
    )
    request = SlidingRequest(
        caller=caller,
        conn_id=asked.conn_id,
        pos=pos or None,
        timeout_ms=timeout,
        stable=False,
        lists=asked.lists,
        subscriptions=asked.subscriptions,
        extensions=asked.extensions,
    )
    presence.arrive(caller, set_presence)
    try:
        answer = await sliding_sync.sync(request)
    finally:
        presence.leave(caller)
    return answer if asked.txn_id is None else {**answer, "txn_id": asked.txn_id}


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
    """What is new in the rooms that the client looks at, in the accepted form."""
    lists, subscriptions = body.lists or {}, body.room_subscriptions or {}
    _check(body.conn_id, lists, subscriptions)
    set_presence = None if body.set_presence is None else _PRESENCE_STATES.get(body.set_presence)
    if set_presence is None and body.set_presence is not None:
        raise InvalidParam(f"set_presence is one of {', '.join(_PRESENCE_STATES)}")
    most = sliding_sync.most_events
    request = SlidingRequest(
        caller=caller,
        conn_id=body.conn_id or "",
        pos=body.pos or None,
        timeout_ms=body.timeout or 0,
        stable=True,
        lists={name: _stable_list(wanted, most) for name, wanted in lists.items()},
        subscriptions={
            id: _stable_config(wanted, most)
            for id, wanted in subscriptions.items()
            if is_room_id(id)
        },
        extensions=read_extensions(body.extensions or ExtensionsBody()),
    )
    presence.arrive(caller, set_presence)
    try:
        return await sliding_sync.sync(request)
    finally:
        presence.leave(caller)


def _check(
    conn_id: str | None, lists: Mapping[str, object], subscriptions: Mapping[str, object]
) -> None:
    if conn_id is not None and (len(conn_id) > LONGEST_CONN_ID or "\0" in conn_id):
        raise InvalidParam("The conn_id is too long, or not printable")
    if len(lists) > MOST_LISTS or len(subscriptions) > MOST_SUBSCRIPTIONS:
        raise InvalidParam(
            f"At most {MOST_LISTS} lists and {MOST_SUBSCRIPTIONS} subscriptions are allowed"
        )
    if not all(map(is_opaque_id, lists)):
        raise InvalidParam(
            "The key of a list is made of letters, digits and . _ ~ -, and has at most 255 of them"
        )


class _Asked(msgspec.Struct, frozen=True, gc=False):
    """What a body of the released clients says."""

    conn_id: str
    txn_id: str | None
    lists: Mapping[str, ListRequest]
    subscriptions: Mapping[str, RoomConfig]
    extensions: Extensions


def _read_asked(body: bytes, user_id: UserID, most: int) -> _Asked:
    """Raises BadJson, NotJson, InvalidParam."""
    read: UnstableBody = _decode_unstable(body)
    lists, subscriptions = read.lists or {}, read.room_subscriptions or {}
    _check(read.conn_id, lists, subscriptions)
    if any(len(name) > LONGEST_UNSTABLE_KEY for name in lists):
        raise InvalidParam(f"The key of a list may have at most {LONGEST_UNSTABLE_KEY} bytes")
    return _Asked(
        read.conn_id or "",
        read.txn_id,
        {name: _unstable_list(wanted, user_id, most) for name, wanted in lists.items()},
        {
            id: _unstable_config(wanted, user_id, most)
            for id, wanted in subscriptions.items()
            if is_room_id(id)
        },
        read_extensions(read.extensions or ExtensionsBody()),
    )


_decode_unstable: Final = json_decoder(UnstableBody, may_be_empty=True)
_remembered_asked = lru_cache(REMEMBERED_BODIES)(_read_asked)
"""A client sends the same body again and again: only its query says how far it is."""


def _unstable_list(wanted: UnstableList, user_id: UserID, most: int) -> ListRequest:
    ranges = None if wanted.slow_get_all_rooms else wanted.ranges
    return ListRequest(
        _ranges(ranges), _unstable_config(wanted, user_id, most), _filters(wanted.filters)
    )


def _unstable_config(wanted: UnstableRoom, user_id: UserID, most: int) -> RoomConfig:
    patterns = wanted.required_state or ()
    make = _remembered_unstable if len(patterns) <= MOST_REMEMBERED_PATTERNS else _make_unstable
    return make(_timeline_limit(wanted.timeline_limit, most), patterns, user_id)


def _make_unstable(timeline_limit: int, patterns: Sequence[Pattern], user_id: UserID) -> RoomConfig:
    _check_patterns(patterns)
    lazy = (MEMBER, LAZY) in patterns
    include = frozenset(
        (type, str(user_id) if key == ME else key)
        for type, key in patterns
        if (type, key) != (MEMBER, LAZY)
    )
    # all state and lazy members: the members are those that are needed, not all
    exclude = frozenset({(MEMBER, ANY)}) if lazy and (ANY, ANY) in include else frozenset[Pattern]()
    clauses = {Clause(include, exclude)} if include else set()
    if exclude:
        own = frozenset(pattern for pattern in include if pattern[0] == MEMBER)
        clauses |= {Clause(own)} if own else set()
    return RoomConfig(timeline_limit, RequiredState(frozenset(clauses), lazy))


_remembered_unstable = lru_cache(REMEMBERED)(_make_unstable)
"""A client asks for the same each time; it then is the same object, which spares comparing it with
what was sent."""


def _stable_list(wanted: StableList, most: int) -> ListRequest:
    ranges = None if wanted.range is None else [wanted.range]
    return ListRequest(_ranges(ranges), _stable_config(wanted, most), _filters(wanted.filters))


def _stable_config(wanted: StableRoom, most: int) -> RoomConfig:
    required = wanted.required_state or RequiredBody()
    patterns = len(required.include or ()) + len(required.exclude or ())
    make = _remembered_stable if patterns <= MOST_REMEMBERED_PATTERNS else _make_stable
    return make(_timeline_limit(wanted.timeline_limit, most), required)


def _make_stable(timeline_limit: int, required: RequiredBody) -> RoomConfig:
    include, exclude = _patterns(required.include or ()), _patterns(required.exclude or ())
    _check_patterns([*include, *exclude])
    clauses = {Clause(include, exclude)} if include else set()
    if required.lazy_members and include & ALL_OF_MEMBERS:
        # the members are those that are needed and those that are named, not all
        others, named = (
            include - {ALL_MEMBERS},
            frozenset((MEMBER, key) for type, key in include if _names(type, key)),
        )
        clauses = {Clause(others, exclude | {ALL_MEMBERS})} if others else set()
        clauses |= {Clause(named, exclude)} if named else set()
    return RoomConfig(
        timeline_limit, RequiredState(frozenset(clauses), bool(required.lazy_members))
    )


def _names(type: str, state_key: str) -> bool:
    """Whether it is the membership of one user that is asked for, or with other state also that."""
    return type in (MEMBER, ANY) and state_key != ANY


_remembered_stable = lru_cache(REMEMBERED)(_make_stable)


def _patterns(bodies: Iterable[PatternBody]) -> frozenset[Pattern]:
    return frozenset(
        (ANY if body.type is None else body.type, ANY if body.state_key is None else body.state_key)
        for body in bodies
    )


def _check_patterns(patterns: Sequence[Pattern]) -> None:
    if len(patterns) > MOST_PATTERNS:
        raise InvalidParam(f"A required_state may have at most {MOST_PATTERNS} entries")
    if any("\0" in part for pattern in patterns for part in pattern):
        raise InvalidParam("No event has such a type or state key")


def _ranges(ranges: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]] | None:
    if ranges is None:
        return None
    if len(ranges) > MOST_RANGES:
        raise InvalidParam(f"A list may have at most {MOST_RANGES} ranges")
    if any(first > last for first, last in ranges):
        raise InvalidParam("A range may not end before it begins")
    return [(min(first, FAR), min(last, FAR)) for first, last in ranges]


def _timeline_limit(limit: int | None, most: int) -> int:
    """`most`: as many as the operator allows; negative: no bound of theirs."""
    return min(limit or 0, MOST_EVENTS if most < 0 else min(most, MOST_EVENTS))


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

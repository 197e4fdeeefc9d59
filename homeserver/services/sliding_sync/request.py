"""Defines the structures of a parsed sliding sync request. They serve both forms of the request:
the stable form, and the unstable form that released clients use.

Proposal: MSC4186.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from homeserver.api.requester import Requester

MEMBER: Final = "m.room.member"
ANY: Final = "*"
ALL_MEMBERS: Final = (MEMBER, ANY)

StatePattern = tuple[str, str]
"""An event type and a state key; `*` is any."""


class StateClause(msgspec.Struct, frozen=True, gc=False):
    """State that matches one of `include` and none of `exclude`."""

    include: frozenset[StatePattern]
    exclude: frozenset[StatePattern] = frozenset()

    def matches(self, type: str, state_key: str) -> bool:
        """Whether this entry of the state is asked for."""
        return _matches(self.include, type, state_key) and not _matches(
            self.exclude, type, state_key
        )

    @property
    def all_members(self) -> bool:
        """Whether every membership is asked for."""
        excluded = any(type in (MEMBER, ANY) for type, _ in self.exclude)
        return not excluded and any(
            type in (MEMBER, ANY) and key == ANY for type, key in self.include
        )


class RequiredState(msgspec.Struct, frozen=True, gc=False):
    """The state that is asked for: what any clause matches, and the members that the timeline
    needs."""

    clauses: frozenset[StateClause] = frozenset()
    lazy_members: bool = False

    def matches(self, type: str, state_key: str) -> bool:
        """Whether this entry of the state is asked for, apart from lazy members."""
        return any(clause.matches(type, state_key) for clause in self.clauses)

    def exact(self) -> set[StatePattern]:
        """Return the entries that are asked for by name."""
        return {
            pattern for clause in self.clauses for pattern in clause.include if ANY not in pattern
        }

    def complete_types(self) -> set[str] | None:
        """Return the types whose entries may all be asked for; None if any type may be."""
        types: set[str] = set()
        for clause in self.clauses:
            for type, state_key in clause.include:
                if type == ANY:
                    return None
                if state_key == ANY:
                    types.add(type)
        return types

    @property
    def all_members(self) -> bool:
        """Whether every membership is asked for."""
        return any(clause.all_members for clause in self.clauses)

    def covers(self, other: "RequiredState") -> bool:
        """Whether a client that was sent this lacks nothing of the other."""
        return other.clauses <= self.clauses and not self.lacks_members_of(other)

    def lacks_members_of(self, other: "RequiredState") -> bool:
        """Whether a client that was sent this may lack members that the other's timeline needs."""
        return other.lazy_members and not self.lazy_members and not self.all_members


def merge_states(states: Iterable[RequiredState]) -> RequiredState:
    """Merge what several lists ask for: members lazily if one says so and none asks for all of
    them."""
    wanted = list(states)
    clauses = frozenset(clause for state in wanted for clause in state.clauses)
    lazy = any(state.lazy_members for state in wanted) and not any(
        clause.all_members for clause in clauses
    )
    return RequiredState(clauses, lazy)


class RoomConfig(msgspec.Struct, frozen=True, gc=False):
    """The part of a room that the client asks for."""

    timeline_limit: int
    required_state: RequiredState


def merge_configs(configs: Sequence[RoomConfig]) -> RoomConfig:
    """Merge the configs of a room that is in several lists or subscriptions."""
    if len(configs) == 1:
        return configs[0]
    return RoomConfig(
        max(config.timeline_limit for config in configs),
        merge_states(config.required_state for config in configs),
    )


class ListFilters(msgspec.Struct, frozen=True, gc=False):
    """The filters of a list. None does not filter."""

    is_dm: bool | None = None
    spaces: frozenset[str] | None = None
    is_encrypted: bool | None = None
    is_invite: bool | None = None
    room_types: frozenset[str | None] | None = None
    not_room_types: frozenset[str | None] | None = None
    tags: frozenset[str] | None = None
    not_tags: frozenset[str] | None = None
    name_like: str | None = None

    @property
    def by_account_data(self) -> bool:
        """Whether the filters depend on the user's direct chats and tags."""
        return any(value is not None for value in (self.is_dm, self.tags, self.not_tags))

    @property
    def by_state(self) -> bool:
        """Whether the filters depend on the state of rooms."""
        return any(
            value is not None
            for value in (self.is_encrypted, self.room_types, self.not_room_types, self.name_like)
        )


NO_FILTERS: Final = ListFilters()


class ListRequest(msgspec.Struct, frozen=True, gc=False):
    """One list. `ranges` are inclusive; None: every room."""

    ranges: Sequence[tuple[int, int]] | None
    config: RoomConfig
    filters: ListFilters = NO_FILTERS


class ExtensionScope(msgspec.Struct, frozen=True, gc=False):
    """The lists and subscriptions for which an extension is wanted. None: all."""

    lists: frozenset[str] | None = None
    rooms: frozenset[str] | None = None


class ToDeviceRequest(msgspec.Struct, frozen=True, gc=False):
    since: int
    """0: from the oldest stored message."""
    limit: int


class TypingRequest(msgspec.Struct, frozen=True, gc=False):
    name: str
    """The name that the client uses for the extension."""
    scope: ExtensionScope


class ThreadSubscriptionsRequest(msgspec.Struct, frozen=True, gc=False):
    name: str
    """The name that the client uses for the extension."""
    limit: int


class ThreadsRequest(msgspec.Struct, frozen=True, gc=False):
    name: str
    """The name that the client uses for the extension."""
    with_roots: bool
    """Whether the client wants all threads with new events, also those whose events are in the
    response."""
    limit: int


class StickyRequest(msgspec.Struct, frozen=True, gc=False):
    name: str
    """The name that the client uses for the extension."""
    since: int
    """0: all sticky events."""
    limit: int


class ProfilesRequest(msgspec.Struct, frozen=True, gc=False):
    name: str
    """The name that the client uses for the extension."""
    scope: ExtensionScope
    fields: frozenset[str]
    """`*` is every field."""


class ExtensionRequests(msgspec.Struct, frozen=True, gc=False):
    """The extensions that the client asks for. None or False: not."""

    to_device: ToDeviceRequest | None = None
    e2ee: bool = False
    account_data: ExtensionScope | None = None
    receipts: ExtensionScope | None = None
    typing: TypingRequest | None = None
    thread_subscriptions: ThreadSubscriptionsRequest | None = None
    profiles: ProfilesRequest | None = None
    sticky: StickyRequest | None = None
    threads: ThreadsRequest | None = None


class SlidingRequest(msgspec.Struct, frozen=True, gc=False):
    """One request."""

    caller: Requester
    conn_id: str
    pos: str | None
    timeout_ms: int
    stable: bool
    """In the stable form, not the unstable one of the released clients."""
    lists: Mapping[str, ListRequest] = msgspec.field(default_factory=dict)
    subscriptions: Mapping[str, RoomConfig] = msgspec.field(default_factory=dict)
    extensions: ExtensionRequests = ExtensionRequests()


def _matches(patterns: frozenset[StatePattern], type: str, state_key: str) -> bool:
    return (
        (type, state_key) in patterns
        or (type, ANY) in patterns
        or (ANY, state_key) in patterns
        or (ANY, ANY) in patterns
    )

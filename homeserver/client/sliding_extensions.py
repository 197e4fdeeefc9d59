"""Parses the extensions in requests of sliding sync. The two forms of sliding sync
(`sliding_sync.py`) share them.

Proposals: MSC3885 (to_device), MSC3884 (e2ee), MSC3959 (account_data), MSC3960 (receipts), MSC4508
(typing), MSC4308 (thread_subscriptions), MSC4262 (profiles), MSC4480 (sticky_events), MSC4360
(threads).
"""

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from federation.protocol.errors import InvalidParam
from homeserver.services.rooms.thread_subscriptions import MAX_CHANGES
from homeserver.services.rooms.thread_updates import MAX_UPDATES
from homeserver.services.sliding_sync.profiles import ALL_FIELDS
from homeserver.services.sliding_sync.request import (
    ANY,
    ExtensionRequests,
    ExtensionScope,
    ProfilesRequest,
    StickyRequest,
    ThreadsRequest,
    ThreadSubscriptionsRequest,
    ToDeviceRequest,
    TypingRequest,
)

MAX_MESSAGES: Final = 100
MAX_FIELDS: Final = 100
MAX_NAMES: Final = 500
"""The largest number of spaces, tags, lists or rooms that one field may name."""
UNSTABLE_PROFILES: Final = "org.matrix.msc4262.profiles"
UNSTABLE_STICKY: Final = "org.matrix.msc4354.sticky_events"
UNSTABLE_SUBSCRIPTIONS: Final = "io.element.msc4308.thread_subscriptions"
UNSTABLE_THREADS: Final = "io.element.msc4360.threads"
UNSTABLE_TYPING: Final = "org.matrix.msc4508.typing"
MAX_PATTERN_LENGTH: Final = 255
"""The largest length of a type or state key; no event has a longer one."""

Text = Annotated[str, msgspec.Meta(max_length=MAX_PATTERN_LENGTH)]
NameList = Annotated[list[Text], msgspec.Meta(max_length=MAX_NAMES)]
Natural = Annotated[int, msgspec.Meta(ge=0)]


class SinceExtension(msgspec.Struct, frozen=True):
    """An extension with its own since token."""

    enabled: bool | None = None
    since: Text | None = None
    limit: Natural | None = None


class RoomsExtension(msgspec.Struct, frozen=True):
    """An extension that may be limited to some rooms."""

    enabled: bool | None = None
    lists: NameList | None = None
    rooms: NameList | None = None


class ProfilesExtension(RoomsExtension, frozen=True):
    """The profiles extension, with the wanted profile fields."""

    fields: list[Text] | None = None


class ThreadsExtension(msgspec.Struct, frozen=True):
    """The threads extension."""

    enabled: bool | None = None
    include_roots: bool | None = None
    limit: Natural | None = None


class ExtensionsBody(msgspec.Struct, frozen=True):
    """The known extensions. Others are ignored."""

    to_device: SinceExtension | None = None
    e2ee: RoomsExtension | None = None
    account_data: RoomsExtension | None = None
    receipts: RoomsExtension | None = None
    typing: RoomsExtension | None = None
    thread_subscriptions: SinceExtension | None = None
    unstable_thread_subscriptions: SinceExtension | None = msgspec.field(
        default=None, name=UNSTABLE_SUBSCRIPTIONS
    )
    threads: ThreadsExtension | None = None
    unstable_threads: ThreadsExtension | None = msgspec.field(default=None, name=UNSTABLE_THREADS)
    sticky_events: SinceExtension | None = None
    unstable_sticky_events: SinceExtension | None = msgspec.field(
        default=None, name=UNSTABLE_STICKY
    )
    profiles: ProfilesExtension | None = None
    unstable_profiles: ProfilesExtension | None = msgspec.field(
        default=None, name=UNSTABLE_PROFILES
    )
    unstable_typing: RoomsExtension | None = msgspec.field(default=None, name=UNSTABLE_TYPING)


def read_extensions(body: ExtensionsBody) -> ExtensionRequests:
    """Convert the request body into `ExtensionRequests`. Raises InvalidParam."""
    return ExtensionRequests(
        to_device=_to_device(body.to_device),
        e2ee=body.e2ee is not None and bool(body.e2ee.enabled),
        account_data=_scope(body.account_data),
        receipts=_scope(body.receipts),
        typing=_typing("typing", body.typing) or _typing(UNSTABLE_TYPING, body.unstable_typing),
        thread_subscriptions=_subscriptions("thread_subscriptions", body.thread_subscriptions)
        or _subscriptions(UNSTABLE_SUBSCRIPTIONS, body.unstable_thread_subscriptions),
        profiles=_profiles("profiles", body.profiles)
        or _profiles(UNSTABLE_PROFILES, body.unstable_profiles),
        sticky=_sticky("sticky_events", body.sticky_events)
        or _sticky(UNSTABLE_STICKY, body.unstable_sticky_events),
        threads=_threads("threads", body.threads)
        or _threads(UNSTABLE_THREADS, body.unstable_threads),
    )


def _sticky(name: str, body: SinceExtension | None) -> StickyRequest | None:
    if body is None or not body.enabled:
        return None
    limit = MAX_MESSAGES if body.limit is None else max(1, min(body.limit, MAX_MESSAGES))
    return StickyRequest(name, _since(name, body.since), limit)


def _since(name: str, since: str | None) -> int:
    since = since or "0"
    if not (since.isascii() and since.isdigit() and len(since) <= 18):
        raise InvalidParam(f"The since token of {name} is not from this server")
    return int(since)


def _typing(name: str, body: RoomsExtension | None) -> TypingRequest | None:
    scope = _scope(body)
    return None if scope is None else TypingRequest(name, scope)


def _profiles(name: str, body: ProfilesExtension | None) -> ProfilesRequest | None:
    scope = _scope(body)
    if body is None or scope is None:
        return None
    if body.fields is not None and len(body.fields) > MAX_FIELDS:
        raise InvalidParam(f"At most {MAX_FIELDS} profile fields can be requested by name")
    return ProfilesRequest(
        name, scope, ALL_FIELDS if body.fields is None else frozenset(body.fields)
    )


def _threads(name: str, body: ThreadsExtension | None) -> ThreadsRequest | None:
    if body is None or not body.enabled:
        return None
    limit = MAX_UPDATES if body.limit is None else max(1, min(body.limit, MAX_UPDATES))
    return ThreadsRequest(name, bool(body.include_roots), limit)


def _subscriptions(name: str, body: SinceExtension | None) -> ThreadSubscriptionsRequest | None:
    if body is None or not body.enabled:
        return None
    return ThreadSubscriptionsRequest(
        name, MAX_CHANGES if body.limit is None else max(1, body.limit)
    )


def _to_device(body: SinceExtension | None) -> ToDeviceRequest | None:
    if body is None or not body.enabled:
        return None
    return ToDeviceRequest(
        _since("to_device", body.since),
        max(1, min(MAX_MESSAGES if body.limit is None else body.limit, MAX_MESSAGES)),
    )


def _scope(body: RoomsExtension | None) -> ExtensionScope | None:
    if body is None or not body.enabled:
        return None
    return ExtensionScope(_named(body.lists), _named(body.rooms))


def _named(names: Sequence[str] | None) -> frozenset[str] | None:
    return None if names is None or ANY in names else frozenset(names)

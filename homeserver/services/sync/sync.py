"""/sync: returns what is new for a user since a token, or everything for an initial sync; waits
until something is new.

Laws:
- A response covers a range of the stream. It ends at the newest position when the response is
  computed, or earlier if not all to-device messages fit (`device_sections.py`).
- A request subscribes to changes before it reads, so it misses none.
- The cost depends on the changes only. For a client that is up to date, the rooms with changes are
  known from memory.

A section of the response is read by a class of its own: `RoomSection`, `DeviceSectionReader`,
`AccountDataSection`, `PresenceSection`.

spec: client-server-api#syncing
"""

from collections.abc import Awaitable, Callable, Set
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from twisted.internet.interfaces import IReactorTime

from federation.rooms.current_states import CurrentStates
from federation.rooms.history.past_memberships import PastMemberships
from federation.rooms.memberships import Memberships
from federation.rooms.partial_rooms import PartialRooms
from homeserver.cluster.notifier import Notifier
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.account_data.invite_permissions import InvitePermissions
from homeserver.services.ephemeral.typing import Typing
from homeserver.services.push.unread_counts import UnreadCounts
from homeserver.services.rooms.invited_rooms import InvitedRooms
from homeserver.services.rooms.room_caches import RoomCaches
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.account_data import AccountDataSection, global_account_data
from homeserver.services.sync.device_sections import DeviceSectionReader
from homeserver.services.sync.ephemeral import EphemeralSection
from homeserver.services.sync.joined_rooms import JoinedRooms
from homeserver.services.sync.plain_messages import PlainMessages
from homeserver.services.sync.presence import PresenceSection
from homeserver.services.sync.request import SyncRange, SyncRequest
from homeserver.services.sync.response import SyncResponse, build_body
from homeserver.services.sync.room_summary import RoomSummaries
from homeserver.services.sync.rooms import RoomSection, UserState
from homeserver.services.sync.sticky_events import StickyEventReader
from homeserver.services.sync.unread_changes import UnreadChanges
from storage.account_data.account_data import AccountDataStore
from storage.engine.streams import Streams
from storage.rooms.receipts import ReceiptStore
from storage.rooms.rooms import RoomStore

MAX_TIMEOUT_MS: Final = 5 * 60_000


class SyncParts(msgspec.Struct, frozen=True, kw_only=True):
    """The services that /sync reads from."""

    rooms: RoomStore
    memberships: Memberships
    joined: JoinedRooms
    summaries: RoomSummaries
    invited: InvitedRooms
    unread: UnreadCounts
    receipts: ReceiptStore
    account_data: AccountDataStore
    room_caches: RoomCaches
    typing: Typing
    recent: RecentChanges
    past_memberships: PastMemberships
    states: CurrentStates
    ignored_users: IgnoredUsers
    permissions: InvitePermissions
    devices: DeviceSectionReader
    presence: PresenceSection
    sticky: StickyEventReader
    partial: PartialRooms
    plain_messages: PlainMessages


class Sync:
    """Answers /sync."""

    def __init__(
        self,
        *,
        parts: SyncParts,
        streams: Streams,
        notifier: Notifier,
        clock: IReactorTime,
        catch_up: Callable[[], Awaitable[int]],
    ) -> None:
        """`catch_up` reads what other nodes wrote, and returns the position up to which all is
        readable."""
        self._streams = streams
        self._notifier = notifier
        self._clock = clock
        self._catch_up = catch_up
        self._memberships = parts.memberships
        self._ignored = parts.ignored_users
        self._typing = parts.typing
        self._joined = parts.joined
        self._devices = parts.devices
        self._presence = parts.presence
        self._unread_changes = UnreadChanges(recent=parts.recent, unread=parts.unread)
        self._account_data = AccountDataSection(
            store=parts.account_data, cache=parts.room_caches.account_data, recent=parts.recent
        )
        self._rooms = RoomSection(
            rooms=parts.rooms,
            memberships=parts.memberships,
            past_memberships=parts.past_memberships,
            states=parts.states,
            partial=parts.partial,
            recent=parts.recent,
            typing=parts.typing,
            permissions=parts.permissions,
            joined=parts.joined,
            invited=parts.invited,
            ephemeral=EphemeralSection(
                streams=streams,
                recent=parts.recent,
                receipts=parts.room_caches.receipts,
                unread=parts.unread,
                typing=parts.typing,
            ),
            account_data=self._account_data,
            sticky=parts.sticky,
            unread=parts.unread,
        )

    async def sync(self, request: SyncRequest, timeout_ms: int) -> dict[str, Any]:
        """Answer at once if anything is new or everything is asked for; else on a change or the
        timeout."""
        request = await self._check_since(request)
        if request.loads_lazily:
            self._joined.begin(request)
        body = await self._wait(request, timeout_ms)
        if request.loads_lazily:
            self._joined.end(request, (), body["next_batch"])  # also if no room is in it
        return body

    async def _wait(self, request: SyncRequest, timeout_ms: int) -> dict[str, Any]:
        """Compute the response again after each change, until there is something in it."""
        seconds = min(timeout_ms, MAX_TIMEOUT_MS) / 1000
        if request.since is None or request.full_state or seconds <= 0:
            return (await self._compute(request)).body
        deadline = self._clock.seconds() + seconds
        listener = self._notifier.listen(request.caller)
        self._presence.watch(request, listener)
        try:
            while True:
                response = await self._compute(request)
                remaining = deadline - self._clock.seconds()
                if (
                    response.has_changes
                    or remaining <= 0
                    or not await listener.wait(self._clock, remaining)
                ):
                    return response.body
        finally:
            self._presence.unwatch(listener)
            listener.close()

    async def _check_since(self, request: SyncRequest) -> SyncRequest:
        """Check the token. A position that does not exist yet makes it an initial sync.

        Another node may be ahead of this one, so that is checked first. Else the client knew a
        newer database than this one.
        """
        since = request.since
        if since is None:
            return request
        if since.position > self._streams.current() and since.position > await self._catch_up():
            return replace(request, since=None, token="")
        self._typing.advance_to(since.ephemeral)
        own = await self._typing.without_foreign_rooms(request.caller.user_id, since)
        return request if own is since else replace(request, since=own)

    async def _compute(self, request: SyncRequest) -> SyncResponse:
        """Compute the response as of now."""
        since = request.since
        typed = () if since is None else since.typing_rooms
        stopped = self._typing.find_stopped(typed)
        now = SyncToken(self._streams.current(), self._typing.position, typing_rooms=typed)
        if since == now and not stopped and not request.full_state:
            devices = await self._devices.read_nothing_new(request)
            return SyncResponse(build_body(now, devices), has_changes=False)
        span = SyncRange(0 if since is None else since.position, now.position)
        waiting = await self._devices.find_messages(request, span)
        span = SyncRange(span.since, waiting.upto)
        token = SyncToken(
            max(span.upto, span.since),
            self._typing.position,
            waiting.fetched,
            tuple(nid for nid in typed if nid not in stopped),
        )
        user = await self._read_user(request, span)
        devices = await self._devices.read(request, span, waiting.messages)
        rooms, token = await self._rooms.read(request, span, token, user)
        account_data = global_account_data(request, user.account_data.global_data)
        presence = await self._presence.read(request, span, user.memberships, user.ignored)
        body = build_body(token, devices, account_data, presence, rooms)
        return SyncResponse(body, bool(rooms or account_data or presence) or devices.has_changes)

    async def _read_user(self, request: SyncRequest, span: SyncRange) -> UserState:
        user_id = request.caller.user_id
        memberships = await self._memberships.of_user(user_id)
        version = self._ignored.version
        changed = await self._account_data.read(request, span)
        changed_counts: Set[int] = frozenset()
        if request.since is None:
            ignored = self._ignored.add(user_id, changed.global_data, version)
        else:
            ignored = await self._ignored.of_user(user_id)
            changed_counts = await self._unread_changes.find(
                user_id, span.since, memberships, changed
            )
        return UserState(memberships, ignored, changed, changed_counts)

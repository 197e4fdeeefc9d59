"""The extensions of a response: everything except the rooms.

Each extension has a method; `read` calls those that the client asks for. Proposals: MSC3885
(to_device), MSC3884 (e2ee), MSC3959 (account_data), MSC3960 (receipts), MSC4508 (typing), MSC4308
(thread_subscriptions), MSC4262 (profiles), MSC4480 (sticky_events), MSC4360 (threads).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.relations import read_relation
from homeserver.services.account_data.account_data_cache import AccountDataCache
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.filters.event_filters import NO_FILTER
from homeserver.services.push.push_rules import account_data_events
from homeserver.services.rooms.thread_subscriptions import ThreadSubscriptions
from homeserver.services.rooms.thread_updates import ThreadKey, ThreadUpdates
from homeserver.services.sliding_sync.connections import (
    LIVE,
    SlidingConnection,
    StateChanges,
    not_live,
)
from homeserver.services.sliding_sync.lists import RoomSelection
from homeserver.services.sliding_sync.profiles import ProfileReader
from homeserver.services.sliding_sync.receipts import ReceiptReader
from homeserver.services.sliding_sync.request import (
    ExtensionScope,
    ProfilesRequest,
    SlidingRequest,
    StickyRequest,
    ThreadsRequest,
    ThreadSubscriptionsRequest,
    ToDeviceRequest,
    TypingRequest,
)
from homeserver.services.sliding_sync.room_update import SlidingRoomUpdate
from homeserver.services.sliding_sync.sent_typing import SentTyping, TypingView
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.device_sections import DeviceSectionReader
from homeserver.services.sync.ephemeral import typing_event
from homeserver.services.sync.request import STATE_AFTER, SyncRange, SyncRequest
from homeserver.services.sync.sticky_events import StickyEventReader
from storage.account_data.account_data import AccountDataStore, UserAccountData
from storage.engine.streams import Topic
from storage.events.relations import THREAD
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomStore
from storage.rooms.sticky_events import StickyRow

GLOBAL: Final = 0
"""Stands for global account data, in place of a room number."""

MAX_SINGLE_ROOMS: Final = 50
"""Up to this number of rooms, read the account data of each; of more, read all of the user's."""


class ExtensionParts(msgspec.Struct, frozen=True, kw_only=True):
    """The services that extensions are read from."""

    devices: DeviceSectionReader
    account_data: AccountDataStore
    account_data_cache: AccountDataCache
    receipts: ReceiptReader
    recent: RecentChanges
    rooms: RoomStore
    ignored: IgnoredUsers
    threads: ThreadSubscriptions
    profiles: ProfileReader
    sticky: StickyEventReader
    sent_typing: SentTyping
    thread_updates: ThreadUpdates


class ExtensionInput(msgspec.Struct, frozen=True, gc=False):
    """The input from which all extensions of one response are read."""

    request: SlidingRequest
    connection: SlidingConnection
    selection: RoomSelection
    updates: Sequence[SlidingRoomUpdate]
    """The rooms in the response."""
    token: SyncToken
    changes: StateChanges
    """The state of the connection, in which extensions record what they send."""


class ExtensionResponse(msgspec.Struct, gc=False):
    """The extensions of a response."""

    body: dict[str, Any] = {}
    """The JSON, by the name of the extension."""
    has_changes: bool = False
    """Whether anything is new, so that the request ends its wait."""
    typing: TypingView | None = None
    """The typing users that the client knows with this response; None if it did not ask."""

    def add(self, name: str, content: object, *, has_changes: bool) -> None:
        """Add an extension."""
        self.body[name] = content
        self.has_changes = self.has_changes or has_changes


class ExtensionReader:
    """Reads the extensions of responses."""

    def __init__(self, parts: ExtensionParts) -> None:
        self._parts = parts

    async def read(
        self,
        request: SlidingRequest,
        connection: SlidingConnection,
        selection: RoomSelection,
        updates: Sequence[SlidingRoomUpdate],
        token: SyncToken,
        changes: StateChanges,
    ) -> ExtensionResponse:
        """Read the extensions that the request asks for, up to the token."""
        reading = ExtensionInput(request, connection, selection, updates, token, changes)
        response = ExtensionResponse()
        wanted = request.extensions
        if wanted.to_device is not None:
            await self._add_to_device(reading, wanted.to_device, response)
        if wanted.e2ee:
            await self._add_e2ee(reading, response)
        if wanted.account_data is not None or connection.state.account_data:
            await self._add_account_data(reading, wanted.account_data, response)
        if wanted.receipts is None:
            self._parts.receipts.end(request, connection, set(), changes)
        else:
            await self._add_receipts(reading, wanted.receipts, response)
        if wanted.typing is not None:
            await self._add_typing(reading, wanted.typing, response)
        if wanted.thread_subscriptions is not None:
            await self._add_thread_subscriptions(reading, wanted.thread_subscriptions, response)
        if wanted.profiles is None:
            changes.set_profiles(None)
        else:
            await self._add_profiles(reading, wanted.profiles, response)
        if wanted.sticky is not None:
            sticky = await self._sticky(reading, wanted.sticky)
            response.add(wanted.sticky.name, sticky, has_changes=bool(sticky))
        if wanted.threads is not None and (threads := await self._threads(reading, wanted.threads)):
            response.add(wanted.threads.name, threads, has_changes=True)
        return response

    def end(
        self,
        request: SlidingRequest,
        connection: SlidingConnection,
        view: TypingView | None,
        pos: str,
    ) -> bool:
        """Record who types, as sent with the response that has this `pos`.

        False if another response with the same `pos` sent something else.
        """
        return view is None or self._parts.sent_typing.record(
            connection.key, request.pos, pos, view
        )

    async def _add_to_device(
        self, reading: ExtensionInput, wanted: ToDeviceRequest, response: ExtensionResponse
    ) -> None:
        """Add messages since a token of their own, which outlives the connection."""
        upto = reading.token.position
        if wanted.since > upto:
            response.add(
                "to_device", {"next_batch": str(wanted.since), "events": []}, has_changes=False
            )
            return
        request = _as_sync(reading.request, SyncToken(wanted.since, 0))
        messages, reached, _ = await self._parts.devices.find_messages(
            request, SyncRange(wanted.since, upto)
        )
        if len(messages) > wanted.limit:
            messages = messages[: wanted.limit]
            reached = messages[-1].position
        events = [msgspec.Raw(message.content) for message in messages]
        response.add(
            "to_device", {"next_batch": str(reached), "events": events}, has_changes=bool(events)
        )

    async def _add_e2ee(self, reading: ExtensionInput, response: ExtensionResponse) -> None:
        connection, upto = reading.connection, reading.token.position
        moved = connection.token is not None and connection.position < upto
        request = _as_sync(reading.request, connection.token if moved else None)
        devices = await self._parts.devices.read(request, SyncRange(connection.position, upto), ())
        section: dict[str, Any] = {
            "device_one_time_keys_count": devices.counts.one_time,
            "device_unused_fallback_key_types": devices.counts.unused_fallback,
        }
        if connection.token is not None:
            section["device_lists"] = devices.lists
        response.add("e2ee", section, has_changes=devices.has_changes)

    async def _add_receipts(
        self, reading: ExtensionInput, wanted: ExtensionScope, response: ExtensionResponse
    ) -> None:
        receipts = await self._parts.receipts.read(
            reading.request,
            reading.connection,
            _rooms_in(wanted, reading.selection) & reading.selection.joined,
            reading.updates,
            reading.token.position,
            reading.changes,
        )
        response.add("receipts", {"rooms": receipts}, has_changes=bool(receipts))

    async def _add_typing(
        self, reading: ExtensionInput, wanted: TypingRequest, response: ExtensionResponse
    ) -> None:
        connection = reading.connection
        scope = _rooms_in(wanted.scope, reading.selection) & reading.selection.joined
        initial = {update.room.room_nid for update in reading.updates if update.initial}
        found = self._parts.sent_typing.move(
            connection.key, reading.request.pos, connection.token, scope, initial
        )
        events: dict[str, Any] = {}
        if found.rooms:
            rooms = await self._parts.rooms.get_rooms_by_nid(found.rooms)
            ignored = await self._parts.ignored.of_user(UserID(connection.key.user_id))
            events = {
                rooms[nid].room_id: typing_event(users, ignored)
                for nid, users in found.rooms.items()
            }
        response.typing = found.view
        response.add(wanted.name, {"rooms": events}, has_changes=bool(events) and found.has_changes)

    async def _add_thread_subscriptions(
        self,
        reading: ExtensionInput,
        wanted: ThreadSubscriptionsRequest,
        response: ExtensionResponse,
    ) -> None:
        user_id, since = reading.request.caller.user_id, reading.connection.position
        threads: dict[str, Any] = {}
        if self._parts.recent.concerns_user(user_id, Topic.THREAD_SUBSCRIPTION, since):
            threads = await self._parts.threads.read(
                user_id, since, reading.token.position, wanted.limit, next_key="prev_batch"
            )
        response.add(wanted.name, threads, has_changes=bool(threads))

    async def _add_profiles(
        self, reading: ExtensionInput, wanted: ProfilesRequest, response: ExtensionResponse
    ) -> None:
        selection = reading.selection
        scope = _rooms_in(wanted.scope, selection) & selection.joined
        users, sent = await self._parts.profiles.read(
            reading.request.caller.user_id,
            wanted.fields,
            reading.connection,
            scope,
            {nid for nid in scope if selection.configs[nid].required_state.lazy_members},
            reading.updates,
            reading.token.position,
        )
        reading.changes.set_profiles(sent)
        content = {"users": users} if users else {}
        response.add(wanted.name, content, has_changes=bool(users) or bool(sent.pending))

    async def _add_account_data(
        self, reading: ExtensionInput, wanted: ExtensionScope | None, response: ExtensionResponse
    ) -> None:
        scope = set() if wanted is None else {GLOBAL, *_rooms_in(wanted, reading.selection)}
        data = await self._account_data(reading, scope)
        if wanted is not None:
            response.add("account_data", data, has_changes=bool(data["global"] or data["rooms"]))

    async def _account_data(self, reading: ExtensionInput, scope: set[int]) -> dict[str, Any]:
        """Return what is new in the scope, and everything of rooms that start over."""
        user_id, changes = reading.request.caller.user_id, reading.changes
        known = reading.connection.state.account_data
        initial = {update.room.room_nid for update in reading.updates if update.initial}
        new = (scope - known.keys()) | (scope & initial)
        missed = {nid: since for nid, since in not_live(known) if nid in scope and nid not in new}
        found = await self._read_account_data(user_id, new)
        if known:
            found |= await self._find_changed_account_data(reading, scope, new, missed)
        for nid in (*new, *missed):
            changes.set_account_data(nid, LIVE)
        by_nid = await self._parts.rooms.get_rooms_by_nid(nid for nid in found if nid != GLOBAL)
        rooms = {by_nid[nid].room_id: _events(data) for nid, data in found.items() if nid != GLOBAL}
        global_events = account_data_events(user_id, found.get(GLOBAL, {}), first=GLOBAL in new)
        return {"global": global_events, "rooms": rooms}

    async def _find_changed_account_data(
        self, reading: ExtensionInput, scope: set[int], new: set[int], missed: Mapping[int, int]
    ) -> dict[int, Mapping[str, bytes]]:
        """Return the changes in rooms that the client has, and changes that it missed earlier.
        Record what it misses outside the scope."""
        user_id, upto, position = (
            reading.request.caller.user_id,
            reading.token.position,
            reading.connection.position,
        )
        has_changed = position < upto and self._parts.recent.concerns_user(
            user_id, Topic.ACCOUNT_DATA, position
        )
        if not has_changed and not missed:
            return {}
        since = min([position, *missed.values()])
        latest = await self._by_room(
            await self._parts.account_data.get_account_data_since(user_id, since, upto)
        )
        found: dict[int, Mapping[str, bytes]] = {}
        known = reading.connection.state.account_data
        for nid, data in latest.items():
            if nid in missed or (has_changed and nid in scope and nid not in new):
                found[nid] = data
            elif has_changed and nid not in scope and known.get(nid) == LIVE:
                reading.changes.set_account_data(nid, position)
        return found

    async def _read_account_data(
        self, user_id: UserID, new: set[int]
    ) -> dict[int, Mapping[str, bytes]]:
        """Return all account data of some rooms."""
        if not new:
            return {}
        if GLOBAL in new or len(new) > MAX_SINGLE_ROOMS:
            all_data = await self._by_room(await self._parts.account_data_cache.of_user(user_id))
            return {nid: data for nid, data in all_data.items() if nid in new}
        by_nid = await self._parts.rooms.get_rooms_by_nid(new)
        ids = {room.room_id: nid for nid, room in by_nid.items()}
        rooms = await self._parts.account_data_cache.of_rooms(user_id, ids)
        return {ids[room_id]: data for room_id, data in rooms.items()}

    async def _by_room(self, data: UserAccountData) -> dict[int, Mapping[str, bytes]]:
        """Return account data by room number; GLOBAL stands for global account data."""
        rooms = await self._parts.rooms.get_rooms(data.rooms)
        by_room: dict[int, Mapping[str, bytes]] = {
            rooms[room_id].room_nid: entries
            for room_id, entries in data.rooms.items()
            if room_id in rooms
        }
        if data.global_data:
            by_room[GLOBAL] = data.global_data
        return by_room

    async def _threads(self, reading: ExtensionInput, wanted: ThreadsRequest) -> dict[str, Any]:
        """Return the threads with new events. A new connection has missed nothing yet."""
        connection, since = reading.connection, reading.connection.position
        if connection.token is None or since >= reading.token.position:
            return {}
        recent = self._parts.recent.rooms_since(reading.request.caller.user_id, since)
        return await self._parts.thread_updates.read(
            reading.request.caller,
            None if recent is None else recent.events,
            since,
            reading.token.position,
            wanted.limit,
            None if wanted.with_roots else _count_replies(reading.updates, since),
        )

    async def _sticky(self, reading: ExtensionInput, wanted: StickyRequest) -> dict[str, Any]:
        """Return sticky events since a token of their own, of all rooms in a list, in its window or
        not.

        The oldest come first, up to the limit. A room that was joined since then has all of them.
        """
        sticky, since, upto = self._parts.sticky, wanted.since, reading.token.position
        joined = await self._find_sticky_rooms(reading.selection)
        if not joined:
            return {}
        new = {nid for nid, row in joined.items() if row.position > since}
        ignored = await self._parts.ignored.of_user(reading.request.caller.user_id)
        shown = {seen.event.nid for update in reading.updates for seen in update.shown}
        ranges = {nid: (0 if nid in new else since, upto) for nid in joined}
        found, reached = _limit_sticky(
            await sticky.find(ranges, shown, ignored), since, upto, wanted.limit
        )
        if not found:
            return {}
        events = await sticky.present(reading.request.caller, joined, found)
        rooms = await self._parts.rooms.get_rooms_by_nid(events)
        return {
            "next_batch": str(reached),
            "rooms": {rooms[nid].room_id: {"events": each} for nid, each in events.items()},
        }

    async def _find_sticky_rooms(self, selection: RoomSelection) -> dict[int, MembershipRow]:
        """Return the joined rooms of lists and subscriptions that may have sticky events."""
        sticky_rooms = await self._parts.sticky.rooms() & selection.rows.keys()
        if not sticky_rooms:
            return {}
        rows = [
            row
            for listed in selection.listed.values()
            for row in listed
            if row.room_nid in sticky_rooms
        ]
        rows += [
            selection.rows[nid] for nid in selection.subscribed.values() if nid in sticky_rooms
        ]
        return {row.room_nid: row for row in rows if row.membership == "join"}


def _limit_sticky(
    found: Mapping[int, Sequence[StickyRow]], since: int, upto: int, limit: int
) -> tuple[dict[int, list[StickyRow]], int]:
    """Drop all but the oldest sticky events up to the limit. Also return the position up to which
    they go."""
    positions = sorted(
        row.position for rows in found.values() for row in rows if row.position > since
    )
    reached = positions[limit - 1] if len(positions) > limit else upto
    limited = {nid: [row for row in rows if row.position <= reached] for nid, rows in found.items()}
    return {nid: rows for nid, rows in limited.items() if rows}, reached


def _as_sync(request: SlidingRequest, since: SyncToken | None) -> SyncRequest:
    return SyncRequest(
        request.caller, since, NO_FILTER, full_state=False, state_section=STATE_AFTER
    )


def _count_replies(updates: Sequence[SlidingRoomUpdate], since: int) -> dict[ThreadKey, int]:
    """Count the new events of each thread that the response shows."""
    counts: dict[ThreadKey, int] = {}
    for update in updates:
        for seen in update.shown:
            relation = read_relation(seen.event.event)
            if (
                relation is not None
                and relation.rel_type == THREAD
                and (seen.event.position or 0) > since
            ):
                thread = update.room.room_nid, relation.target
                counts[thread] = counts.get(thread, 0) + 1
    return counts


def _rooms_in(scope: ExtensionScope, selection: RoomSelection) -> set[int]:
    """Return the rooms for which the client wants an extension."""
    found: set[int] = set()
    for name, window in selection.windows.items():
        if scope.lists is None or name in scope.lists:
            found.update(window)
    found.update(
        nid
        for room_id, nid in selection.subscribed.items()
        if scope.rooms is None or room_id in scope.rooms
    )
    return found


def _events(data: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [{"type": type, "content": msgspec.Raw(content)} for type, content in data.items()]

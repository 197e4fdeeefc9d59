"""The endpoints that preceded /sync: `/events`, `/initialSync`, and `/rooms/{room_id}/initialSync`.
Clients still preview rooms with the last of them. The initial sync of /sync is in `sync.py`.

Laws:
- These endpoints use the tokens of /sync.
- No event is omitted between two responses of `/events`. If there are more than fit, the response
  ends at the last event that fits, and the next response continues there.
- `/initialSync` has no pages. It returns invites and the rooms with the latest changes, as many as
  fit. A client gets another room with `/rooms/{room_id}/initialSync`, or all rooms with /sync.

spec: client-server-api#room-previews, client-server-api#get_matrixclientv3roomsroomidinitialsync,
client-server-api#get_matrixclientv3initialsync, client-server-api#get_matrixclientv3events
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden, NotFound
from federation.protocol.ids import EventID, RoomID
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents
from federation.rooms.memberships import Memberships
from federation.rooms.visibility import VisibleEvent
from homeserver.api.requester import Requester
from homeserver.cluster.notifier import Notifier
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.account_data.invite_permissions import InvitePermissions
from homeserver.services.directory.shadow_ban import HiddenRoomChanges
from homeserver.services.ephemeral.typing import Typing
from homeserver.services.filters.event_filters import NO_FILTER, RoomEventFilter
from homeserver.services.push.push_rules import account_data_events
from homeserver.services.rooms.client_events import ClientEvents, present_state_event
from homeserver.services.rooms.invited_rooms import InvitedRooms
from homeserver.services.rooms.reading import ReadAccess, RoomReading
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.ephemeral import receipt_events, typing_event, visible_receipts
from homeserver.services.sync.presence import PresenceSection
from homeserver.services.sync.request import STATE_BEFORE, SyncRange, SyncRequest
from homeserver.services.sync.rooms import LEFT
from homeserver.services.sync.sync import MAX_TIMEOUT_MS
from storage.account_data.account_data import AccountDataStore
from storage.engine.streams import Streams
from storage.events.timelines import Direction, TimelineStore
from storage.rooms.memberships import MembershipRow
from storage.rooms.receipts import ReceiptStore
from storage.rooms.recency import RoomRecencyStore
from storage.rooms.rooms import RoomStore

MAX_EVENTS: Final = 100
"""Events in a response of /events."""
MAX_MESSAGES: Final = 100
"""Messages of a room in an initial response."""
MAX_ROOMS: Final = 100
"""Rooms in a response of /initialSync."""
MAX_STATE_BYTES: Final = 16 * 1024 * 1024
"""Size of the state after which a response of /initialSync takes no further rooms."""

_ALL_EVENTS: Final = RoomEventFilter()


class InitialSyncParts(msgspec.Struct, frozen=True):
    """The services that the older endpoints read from."""

    engine: RoomEngine
    events: RoomEvents
    reading: RoomReading
    rooms: RoomStore
    hidden_changes: HiddenRoomChanges
    memberships: Memberships
    timelines: TimelineStore
    client_events: ClientEvents
    account_data: AccountDataStore
    receipts: ReceiptStore
    typing: Typing
    recent: RecentChanges
    ignored_users: IgnoredUsers
    permissions: InvitePermissions
    presence: PresenceSection
    recency: RoomRecencyStore
    invited: InvitedRooms


class InitialSync:
    """Answers the older endpoints."""

    def __init__(
        self, *, parts: InitialSyncParts, streams: Streams, notifier: Notifier, clock: IReactorTime
    ) -> None:
        self._parts = parts
        self._streams = streams
        self._notifier = notifier
        self._clock = clock

    async def get_room(self, caller: Requester, room_id: RoomID, limit: int) -> dict[str, Any]:
        """Return a room as it is now, or as it was when the caller left it, with its latest
        messages. Raises Forbidden."""
        return await self._room(caller, room_id, self._now(), limit)

    async def get_all(self, caller: Requester, limit: int, *, archived: bool) -> dict[str, Any]:
        """Return the caller's rooms; with `archived` also those that they left."""
        now = self._now()
        memberships = await self._parts.memberships.of_user(caller.user_id)
        rows = await self._newest(
            [row for row in memberships.values() if not row.forgotten], archived=archived
        )
        rooms = await self._parts.rooms.get_rooms_by_nid(row.room_nid for row in rows)
        data = await self._parts.account_data.get_account_data(caller.user_id)
        rooms_json: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            room_id = RoomID(rooms[row.room_nid].room_id)
            if row.membership == "join" or row.membership in LEFT:
                if size > MAX_STATE_BYTES:
                    continue
                try:
                    response = await self._room(caller, room_id, now, limit)
                except Forbidden:
                    continue  # a declined invite: the caller was never in the room
                size += len(bytes(response["state"]))
                rooms_json.append(response)
            elif row.membership == "invite" and not await self._parts.permissions.hides(row):
                invite = await self._parts.invited.find_membership_event(rooms[row.room_nid], row)
                if invite is not None:
                    shown = present_state_event(invite, with_room_id=True)
                    rooms_json.append({"room_id": room_id, "membership": "invite", "invite": shown})
        return {
            "end": str(now),
            "presence": await self._presence(caller, None, now),
            "rooms": rooms_json,
            "account_data": account_data_events(caller.user_id, data.global_data, first=True),
        }

    async def _newest(
        self, rows: Sequence[MembershipRow], *, archived: bool
    ) -> Sequence[MembershipRow]:
        """Return the rooms of a response of /initialSync: invites, then those with the latest
        changes."""
        invites = [row for row in rows if row.membership == "invite"]
        inside = [
            row for row in rows if row.membership == "join" or (archived and row.membership in LEFT)
        ]
        joined = [row.room_nid for row in inside if row.membership == "join"]
        latest = await self._parts.recency.get_latest_positions(joined)
        latest_change = {row.room_nid: row.position for row in inside} | dict(latest)
        inside.sort(key=lambda row: latest_change[row.room_nid], reverse=True)
        invites.sort(key=lambda row: row.position, reverse=True)
        return [*invites, *inside][:MAX_ROOMS]

    async def get_events(
        self, caller: Requester, room_id: RoomID | None, since: SyncToken | None, timeout_ms: int
    ) -> dict[str, Any]:
        """Return the changes since a token (None: since now) in one room, or in all of the caller's
        rooms; wait for them.

        Raises Forbidden for a room that the caller may not see.
        """
        room_nid = None
        if room_id is not None:
            room_nid = (
                await self._parts.reading.find_access(caller.user_id, room_id)
            ).snapshot.room.room_nid
        if since is not None:
            self._parts.typing.advance_to(since.ephemeral)
        now = self._now()
        if since is None or since.position > now.position:
            since = now
        deadline = self._clock.seconds() + min(timeout_ms, MAX_TIMEOUT_MS) / 1000
        listener = self._notifier.listen(caller, room_nid)
        if room_id is None:
            self._parts.presence.watch(_request(caller, since), listener)
        try:
            while True:
                chunk, end = await self._read_changes(caller, room_id, since)
                remaining = deadline - self._clock.seconds()
                if chunk or remaining <= 0 or not await listener.wait(self._clock, remaining):
                    return {"start": str(since), "end": str(end), "chunk": chunk}
        finally:
            self._parts.presence.unwatch(listener)
            listener.close()

    async def get_event(self, caller: Requester, event_id: EventID) -> msgspec.Raw:
        """Return an event of any room. Raises NotFound."""
        event = (await self._parts.events.get_in_any_room([event_id])).get(event_id)
        if event is None:
            raise NotFound("There is no such event, or you may not see it")
        return await self._parts.reading.get_event(caller, event.event.room_id, event_id)

    async def _room(
        self, caller: Requester, room_id: RoomID, now: SyncToken, limit: int
    ) -> dict[str, Any]:
        parts, limit = self._parts, max(0, min(limit, MAX_MESSAGES))
        reader = await parts.reading.find_access(caller.user_id, room_id)
        messages: dict[str, Any] = {"chunk": []}
        if limit:
            page = await parts.reading.get_messages(
                caller, room_id, Direction.BACKWARDS, str(now), None, limit, _ALL_EVENTS
            )
            messages["chunk"] = page["chunk"][::-1]
            if "end" in page:
                messages["start"] = page["end"]
        room_nid = reader.snapshot.room.room_nid
        of_room = await parts.account_data.get_rooms_account_data(caller.user_id, [room_id])
        entries = of_room.get(room_id, {})
        is_public = await parts.hidden_changes.is_listed(caller, room_nid)
        response: dict[str, Any] = {
            "room_id": room_id,
            "messages": {**messages, "end": str(now)},
            "state": await parts.reading.get_state(caller, room_id),
            "visibility": "public" if is_public else "private",
            "account_data": [
                {"type": type, "content": msgspec.Raw(content)} for type, content in entries.items()
            ],
        }
        if reader.membership is not None:
            response["membership"] = reader.membership.membership
        return response

    async def _read_changes(
        self, caller: Requester, room_id: RoomID | None, since: SyncToken
    ) -> tuple[list[Any], SyncToken]:
        """Return the changes since the token, and the token after them."""
        now = self._now()
        readers = await self._readers(caller, room_id, since)
        ranges = dict.fromkeys(readers, (since.position, now.position))
        pages = await self._parts.timelines.get_next(ranges, MAX_EVENTS) if ranges else {}
        arrivals = sorted(
            (arrival.position, arrival.event_nid, nid)
            for nid, page in pages.items()
            for arrival in page
        )
        is_complete = len(arrivals) < MAX_EVENTS
        arrivals = arrivals[:MAX_EVENTS]
        seen: list[tuple[int, VisibleEvent]] = []
        for nid in {nid for _, _, nid in arrivals}:
            nids = {event_nid: position for position, event_nid, of in arrivals if of == nid}
            shown = await self._parts.reading.get_visible(
                caller, readers[nid], list(nids), _ALL_EVENTS
            )
            seen += [(nids[each.event.nid], each) for each in shown]
        seen.sort(key=lambda each: each[0])
        chunk: list[Any] = await self._parts.client_events.present(
            caller.user_id, caller.device_id, [each for _, each in seen], with_room_id=True
        )
        if not is_complete:
            return chunk, SyncToken(arrivals[-1][0], since.ephemeral)
        joined = {nid: reader for nid, reader in readers.items() if _membership(reader) == "join"}
        chunk += await self._ephemeral(caller, joined, since, now)
        if room_id is None:
            chunk += await self._presence(caller, since, now)
        return chunk, now

    async def _readers(
        self, caller: Requester, room_id: RoomID | None, since: SyncToken
    ) -> Mapping[int, ReadAccess]:
        """Return readers of the requested room, or of those of the caller's rooms that have
        changes."""
        parts = self._parts
        if room_id is not None:
            reader = await parts.reading.find_access(caller.user_id, room_id)
            return {reader.snapshot.room.room_nid: reader}
        rows = await parts.memberships.of_user(caller.user_id)
        changed = parts.recent.rooms_since(caller.user_id, since.position)
        typing = parts.typing.changed_rooms(since.ephemeral)
        wanted = [
            row
            for row in rows.values()
            if (changed is None or row.room_nid in changed.events | changed.receipts | typing)
            and (row.membership == "join" or row.position > since.position)
            and not await parts.permissions.hides(row)
        ]
        return await self._open(wanted)

    async def _open(self, rows: Collection[MembershipRow]) -> Mapping[int, ReadAccess]:
        rooms = await self._parts.rooms.get_rooms_by_nid(row.room_nid for row in rows)
        readers = {}
        for row in rows:
            snapshot = await self._parts.engine.get_snapshot(RoomID(rooms[row.room_nid].room_id))
            readers[row.room_nid] = ReadAccess(snapshot, row, snapshot.state)
        return readers

    async def _ephemeral(
        self, caller: Requester, readers: Mapping[int, ReadAccess], since: SyncToken, now: SyncToken
    ) -> list[dict[str, Any]]:
        """Return the receipts and typing notifications of rooms that the caller is in."""
        ranges = dict.fromkeys(readers, (since.position, now.position))
        receipts = await self._parts.receipts.get_receipts(ranges) if ranges else {}
        ignored = await self._parts.ignored_users.of_user(caller.user_id)
        found: list[dict[str, Any]] = []
        for nid, rows in receipts.items():
            shown = visible_receipts(rows, caller.user_id, ignored)
            found += [
                {**event, "room_id": readers[nid].snapshot.room_id}
                for event in receipt_events(shown)
            ]
        for nid, users in self._parts.typing.get_changed(readers, since.ephemeral).items():
            room_id = readers[nid].snapshot.room_id
            found.append({**typing_event(users, ignored), "room_id": room_id})
        return found

    async def _presence(
        self, caller: Requester, since: SyncToken | None, now: SyncToken
    ) -> list[msgspec.Raw]:
        """Return the presence of users who share a room with the caller."""
        rows = await self._parts.memberships.of_user(caller.user_id)
        ignored = await self._parts.ignored_users.of_user(caller.user_id)
        span = SyncRange(0 if since is None else since.position, now.position)
        return await self._parts.presence.read(_request(caller, since), span, rows, ignored)

    def _now(self) -> SyncToken:
        return SyncToken(self._streams.current(), self._parts.typing.position)


def _request(caller: Requester, since: SyncToken | None) -> SyncRequest:
    """Return the equivalent request of /sync."""
    return SyncRequest(caller, since, NO_FILTER, full_state=False, state_section=STATE_BEFORE)


def _membership(reader: ReadAccess) -> str | None:
    return None if reader.membership is None else reader.membership.membership

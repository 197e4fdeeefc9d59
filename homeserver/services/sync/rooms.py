"""The `rooms` section of a /sync response: join, leave, invite and knock.

This module finds the rooms with changes, and sorts them by the user's membership. Other modules
read the content of each room: `joined_rooms.py` (timeline, state, summary), `ephemeral.py`,
`account_data.py`, `sticky_events.py` and `invited_rooms.py`.

A room with partial state is sent only to clients that load members lazily. Other clients get it
when the state is complete. Clients with lazy loading then get the state again, since it may have
changed.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

import msgspec

from federation.rooms.current_states import CurrentStates
from federation.rooms.history.past_memberships import PastMemberships
from federation.rooms.joins.out_of_room import is_out_of_room
from federation.rooms.memberships import Memberships
from federation.rooms.partial_rooms import PartialRooms
from federation.rooms.visibility import VisibleEvent
from homeserver.services.account_data.invite_permissions import InvitePermissions
from homeserver.services.ephemeral.typing import Typing
from homeserver.services.push.unread_counts import OwnReceipts, UnreadCounts
from homeserver.services.rooms.client_events import present_stripped
from homeserver.services.rooms.invited_rooms import InvitedRooms
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.account_data import AccountDataSection
from homeserver.services.sync.ephemeral import EphemeralSection
from homeserver.services.sync.joined_rooms import JoinedRooms, own_state_after
from homeserver.services.sync.request import SyncRange, SyncRequest
from homeserver.services.sync.response import add_unread_counts
from homeserver.services.sync.room_update import RoomUpdate
from homeserver.services.sync.sticky_events import StickyEventReader
from storage.account_data.account_data import UserAccountData
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.rooms import RoomRow, RoomStore

LEFT: Final = frozenset({"leave", "ban"})


class UserState(msgspec.Struct, frozen=True, gc=False):
    """The user's data that is read before the rooms."""

    memberships: Mapping[int, MembershipRow]
    ignored: Set[str]
    account_data: UserAccountData
    """The new part of it."""
    changed_counts: Set[int]
    """Rooms whose unread counts may have changed although no event says so."""


class _Rooms(msgspec.Struct, gc=False):
    """The rooms with changes, by their part of the section."""

    joined: list[RoomUpdate] = []
    left: list[RoomUpdate] = []
    invited: list[MembershipRow] = []
    """Invites and knocks."""


class RoomSection:
    """Reads the `rooms` section."""

    # More than ten: a room's section has many parts, each with its own reader.
    def __init__(
        self,
        *,
        rooms: RoomStore,
        memberships: Memberships,
        past_memberships: PastMemberships,
        states: CurrentStates,
        partial: PartialRooms,
        recent: RecentChanges,
        typing: Typing,
        permissions: InvitePermissions,
        joined: JoinedRooms,
        invited: InvitedRooms,
        ephemeral: EphemeralSection,
        account_data: AccountDataSection,
        sticky: StickyEventReader,
        unread: UnreadCounts,
    ) -> None:
        self._rooms = rooms
        self._memberships = memberships
        self._past_memberships = past_memberships
        self._states = states
        self._partial = partial
        self._recent = recent
        self._typing = typing
        self._permissions = permissions
        self._joined = joined
        self._invited = invited
        self._ephemeral = ephemeral
        self._account_data = account_data
        self._sticky = sticky
        self._unread = unread

    async def read(
        self, request: SyncRequest, span: SyncRange, token: SyncToken, user: UserState
    ) -> tuple[dict[str, Any], SyncToken]:
        """Return the parts of the section that are not empty, and the token of the response.

        The token names the rooms in which the client shows somebody typing.
        """
        rows = await self._find_candidates(request, span, user)
        if not rows:
            return {}, token
        by_nid = await self._rooms.get_rooms_by_nid(row.room_nid for row in rows)
        allows_room = request.filter.room.allows_room
        rows = [
            row
            for row in rows
            if allows_room(by_nid[row.room_nid].room_id) and not _is_forgotten(request, row)
        ]
        if not rows:
            return {}, token
        rooms = await self._sort(request, span, rows, by_nid)
        await self._joined.fill(request, [*rooms.joined, *rooms.left], span, token, user.ignored)
        await self._fill_left_rooms(request, rooms.left)
        own = await self._ephemeral.fill_receipts(request, span, rooms.joined, user.ignored)
        typed = self._ephemeral.fill_typing(request, rooms.joined, token.typing_rooms, user.ignored)
        if typed != token.typing_rooms:
            token = msgspec.structs.replace(token, typing_rooms=typed)
        await self._account_data.fill_rooms(
            request, [*rooms.joined, *rooms.left], user.account_data
        )
        await self._fill_sticky_events(request, span, rooms.joined, user.ignored)
        for update in rooms.joined:
            update.counts_changed = (
                update.counts_changed or update.room.room_nid in user.changed_counts
            )
        if request.since is not None and not request.full_state:
            rooms.joined = [update for update in rooms.joined if update.has_changes(user.ignored)]
        return await self._to_json(request, rooms, by_nid, user.ignored, own), token

    async def _find_candidates(
        self, request: SyncRequest, span: SyncRange, user: UserState
    ) -> Sequence[MembershipRow]:
        """Return the memberships, at the end of the range, of the rooms that may have changes."""
        rows = await self._find_changed(request, span, user)
        if any(row.position > span.upto for row in rows):
            past_rows = [await self._past_memberships.at(row, span.upto) for row in rows]
            rows = [row for row in past_rows if row is not None]
        partial = await self._partial.get_all()
        if partial and not request.loads_lazily:
            rows = [row for row in rows if not _lacks_state(row, partial, span)]
        return rows

    async def _find_changed(
        self, request: SyncRequest, span: SyncRange, user: UserState
    ) -> Sequence[MembershipRow]:
        rows = user.memberships
        if request.since is None or request.full_state:
            return list(rows.values())
        changed = self._recent.rooms_since(request.caller.user_id, span.since)
        if changed is None:
            return list(rows.values())
        wanted = user.changed_counts | changed.events | changed.receipts
        wanted |= self._typing.changed_rooms(request.since.ephemeral)
        wanted |= self._typing.find_stopped(request.since.typing_rooms)
        if user.account_data.rooms:
            rooms = await self._rooms.get_rooms(user.account_data.rooms)
            wanted |= {room.room_nid for room in rooms.values()}
        if len(wanted) < len(rows):
            return [rows[room_nid] for room_nid in wanted if room_nid in rows]
        return [row for row in rows.values() if row.room_nid in wanted]

    async def _sort(
        self,
        request: SyncRequest,
        span: SyncRange,
        rows: Sequence[MembershipRow],
        by_nid: Mapping[int, RoomRow],
    ) -> _Rooms:
        """Sort the rooms into the parts of the section."""
        rooms = _Rooms()
        partial = await self._partial.get_all()
        for row in rows:
            room, has_moved = by_nid[row.room_nid], span.since < row.position <= span.upto
            if row.membership == "join":
                update = await self._begin_joined(request, span, row, room, has_moved)
                _apply_partial_state(request, span, update, partial.get(row.room_nid))
                rooms.joined.append(update)
            elif row.membership in LEFT:
                if has_moved and (request.since is not None or request.filter.room.include_leave):
                    was_joined = request.since is not None and await self._states.was_joined_at(
                        row, span.since
                    )
                    rooms.left.append(RoomUpdate(room, row, span.since, not was_joined))
            elif has_moved and not await self._permissions.hides(row):
                rooms.invited.append(row)
        return rooms

    async def _begin_joined(
        self,
        request: SyncRequest,
        span: SyncRange,
        row: MembershipRow,
        room: RoomRow,
        has_moved: bool,
    ) -> RoomUpdate:
        """Decide how much of a joined room the client needs."""
        if request.since is None:
            return RoomUpdate(room, row, 0, full_state=True)
        if request.full_state:
            return RoomUpdate(room, row, span.since, full_state=True)
        if has_moved:
            if not await self._states.was_joined_at(row, span.since):
                return RoomUpdate(room, row, 0, full_state=True)
            if await self._past_memberships.has_joined_since(row, span.since):
                # a device that forgot the room in between has nothing of it
                return RoomUpdate(room, row, span.since, full_state=True, has_rejoined=True)
        return RoomUpdate(room, row, span.since, full_state=False)

    async def _fill_left_rooms(self, request: SyncRequest, left: Sequence[RoomUpdate]) -> None:
        """Add the leave event of rooms that this server is not in: a declined invite, a retracted
        knock."""
        for update in left:
            if is_out_of_room(update.own):
                event = await self._invited.find_membership_event(update.room, update.own)
                update.shown = [] if event is None else [VisibleEvent(event, update.own.membership)]
                update.state = own_state_after(request, update)

    async def _fill_sticky_events(
        self, request: SyncRequest, span: SyncRange, joined: Sequence[RoomUpdate], ignored: Set[str]
    ) -> None:
        """Add the sticky events that the timelines do not show. Filters do not apply to them."""
        if (await self._sticky.rooms()).isdisjoint([update.room.room_nid for update in joined]):
            return
        ranges = {update.room.room_nid: (update.since, span.upto) for update in joined}
        shown = {seen.event.nid for update in joined for seen in update.shown}
        found = await self._sticky.find(ranges, shown, ignored)
        if found:
            own = {update.room.room_nid: update.own for update in joined}
            events = await self._sticky.present(request.caller, own, found)
            for update in joined:
                update.sticky = events.get(update.room.room_nid, ())

    async def _to_json(
        self,
        request: SyncRequest,
        rooms: _Rooms,
        by_nid: Mapping[int, RoomRow],
        ignored: Set[str],
        own: OwnReceipts | None,
    ) -> dict[str, Any]:
        section: dict[str, Any] = {}
        if rooms.joined:
            json = await self._joined.to_json(request, rooms.joined)
            await self._add_counts(request, rooms.joined, json, ignored, own)
            section["join"] = json
        if rooms.left:
            section["leave"] = await self._joined.to_json(request, rooms.left)
        for row in rooms.invited:
            stripped = present_stripped(await self._invited.get_stripped(row))
            part = section.setdefault(row.membership, {})
            part[by_nid[row.room_nid].room_id] = {f"{row.membership}_state": {"events": stripped}}
        return section

    async def _add_counts(
        self,
        request: SyncRequest,
        joined: Sequence[RoomUpdate],
        json: Mapping[str, dict[str, Any]],
        ignored: Set[str],
        own: OwnReceipts | None,
    ) -> None:
        """Add the unread counts to the rooms."""
        rows = [update.own for update in joined if update.counts is None]
        counts = (
            await self._unread.get_counts(request.caller.user_id, rows, ignored, own)
            if rows
            else {}
        )
        for update in joined:
            count = counts[update.room.room_nid] if update.counts is None else update.counts
            add_unread_counts(request, json[update.room.room_id], count)


def _apply_partial_state(
    request: SyncRequest, span: SyncRange, update: RoomUpdate, room: PartialRoom | None
) -> None:
    """Send the full state of a room again once it is no longer partial."""
    if room is None:
        return
    update.has_partial_state = room.completed_position is None
    if room.completed_position is not None and span.since < room.completed_position <= span.upto:
        update.full_state = True
        if not request.loads_lazily:
            update.since = 0


def _lacks_state(row: MembershipRow, partial: Mapping[int, PartialRoom], span: SyncRange) -> bool:
    """Whether the user is in a room with partial state at the end of the range."""
    room = partial.get(row.room_nid)
    if room is None or row.membership != "join":
        return False
    return room.completed_position is None or room.completed_position > span.upto


def _is_forgotten(request: SyncRequest, row: MembershipRow) -> bool:
    """Whether the room is forgotten, and the user's other devices know already that it was left."""
    return row.forgotten and (request.since is None or row.position <= request.since.position)

"""/sync: everything that is new for a user since a token, or all of it; waiting for something to be
new.

Laws:
- An answer covers a stretch of the one sequence, up to its head when work on it began: what comes
  later is in the next.
- Who wants to wait listens before looking.
- A room of which only a part of the state is here is told to those who load members lazily. The
  others are told all of it when all is here; then the first ones get its state again, since
  something of it may be otherwise.
- The cost is that of what has changed. For a client that is up to date the rooms to look at are
  known from memory.

spec: client-server-api#syncing
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import RoomID, UserID
from federation.rooms.current_states import CurrentStates
from federation.rooms.history.past_memberships import PastMemberships
from federation.rooms.joins.out_of_room import is_outside
from federation.rooms.memberships import Memberships
from federation.rooms.partial_rooms import PartialRooms
from federation.rooms.visibility import Seen
from homeserver.cluster.notifier import Notifier
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.account_data.invite_permissions import InvitePermissions
from homeserver.services.ephemeral.typing import Typing
from homeserver.services.push.push_rules import account_data_events
from homeserver.services.push.unread_counts import OwnReceipts, UnreadCounts
from homeserver.services.rooms.client_events import present_stripped
from homeserver.services.rooms.invited_rooms import InvitedRooms
from homeserver.services.rooms.room_data import BesideRooms
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.answer import frame, has_news, joined_section
from homeserver.services.sync.devices import DeviceNewsReader
from homeserver.services.sync.joined import JoinedRooms, RoomWork, own_state_after
from homeserver.services.sync.messages import MessagesAlone, Usual
from homeserver.services.sync.plain_messages import PlainMessageReader
from homeserver.services.sync.presence import PresenceReader
from homeserver.services.sync.recounts import Recounts
from homeserver.services.sync.request import Range, SyncRequest
from homeserver.services.sync.room_summary import RoomSummaries
from homeserver.services.sync.sticky import StickyReader
from storage.account_data.account_data import AccountData, AccountDataStore
from storage.engine.streams import Streams, Topic
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.receipts import ReceiptRow, ReceiptStore
from storage.rooms.rooms import RoomRow, RoomStore

MAX_TIMEOUT_MS: Final = 5 * 60_000
LEFT: Final = frozenset({"leave", "ban"})
ANYTIME: Final = 2**62
"""Beyond all positions."""


class SyncParts(msgspec.Struct, frozen=True):
    """What an answer is made of."""

    rooms: RoomStore
    memberships: Memberships
    joined: JoinedRooms
    summaries: RoomSummaries
    invited: InvitedRooms
    unread: UnreadCounts
    receipts: ReceiptStore
    account_data: AccountDataStore
    beside: BesideRooms
    typing: Typing
    recent: RecentChanges
    past: PastMemberships
    states: CurrentStates
    ignored: IgnoredUsers
    permissions: InvitePermissions
    devices: DeviceNewsReader
    presence: PresenceReader
    sticky: StickyReader
    partial: PartialRooms
    plain: PlainMessageReader


class Sync:
    """Answers /sync."""

    def __init__(
        self,
        parts: SyncParts,
        streams: Streams,
        notifier: Notifier,
        clock: IReactorTime,
        catch_up: Callable[[], Awaitable[int]],
    ) -> None:
        """`catch_up` learns of what other nodes wrote, and gives the position up to which all can
        be read."""
        self._parts = parts
        self._streams = streams
        self._notifier = notifier
        self._clock = clock
        self._catch_up = catch_up
        self._recounts = Recounts(parts.recent, parts.unread)
        self._messages = MessagesAlone(
            parts.recent,
            parts.memberships,
            parts.rooms,
            parts.partial,
            parts.ignored,
            parts.devices,
            parts.joined,
            parts.unread,
            parts.plain,
        )

    async def sync(self, request: SyncRequest, timeout_ms: int) -> dict[str, Any]:
        """The answer: at once if anything is new (or all is wanted), else when something is, or
        after the timeout."""
        usual = self._find_usual(request)
        if usual is not None and (usual[1] or timeout_ms <= 0):
            answer = usual[0]
        else:
            request = await self._check_since(request)
            if request.loads_lazily:
                self._parts.joined.begin(request)
            answer = await self._answer(request, timeout_ms)
        if request.loads_lazily:
            self._parts.joined.end(
                request, (), answer["next_batch"]
            )  # also where there was no room in it
        return answer

    def _find_usual(self, request: SyncRequest) -> Usual | None:
        """The answer of now, where there are messages at most, all of it is in memory, and the
        client was not told that somebody types."""
        if request.since is None or request.since.typed:
            return None
        return self._messages.find(
            request, SyncToken(self._streams.current(), self._parts.typing.position)
        )

    async def _answer(self, request: SyncRequest, timeout_ms: int) -> dict[str, Any]:
        seconds = min(timeout_ms, MAX_TIMEOUT_MS) / 1000
        if request.since is None or request.full_state or seconds <= 0:
            answer, _ = await self._compute(request)
            return answer
        deadline = self._clock.seconds() + seconds
        listener = self._notifier.listen(request.caller)
        self._parts.presence.watch(request, listener)
        try:
            while True:
                answer, is_news = await self._compute(request)
                remaining = deadline - self._clock.seconds()
                if is_news or remaining <= 0 or not await listener.wait(self._clock, remaining):
                    return answer
        finally:
            self._parts.presence.unwatch(listener)
            listener.close()

    async def _check_since(self, request: SyncRequest) -> SyncRequest:
        """The request as it is answered; for a position that is not reached yet, as the one for all
        there is.

        Another node may be ahead of us, which is looked after; else the database is an older one
        than the client knew.
        """
        if request.since is None:
            return request
        if (
            request.since.position > self._streams.current()
            and request.since.position > await self._catch_up()
        ):
            return replace(request, since=None, token="")
        self._parts.typing.meet(request.since.ephemeral)
        since = await self._parts.typing.only_own(request.caller.user_id, request.since)
        return request if since is request.since else replace(request, since=since)

    async def _compute(self, request: SyncRequest) -> tuple[dict[str, Any], bool]:
        """An answer for now, and whether there is anything in it."""
        usual = self._find_usual(request)
        if usual is not None:
            return usual
        parts = self._parts
        since = request.since
        now = self._now(since)
        typed = () if since is None else since.typed
        over = parts.typing.find_over(typed)
        if not over:
            if since is not None and not request.full_state and since == now:
                # nothing has happened to anybody
                news = await parts.devices.read_nothing_new(request)
                return frame(since, news), False
            usual = await self._messages.read(request, now)
            if usual is not None:
                return usual
        span = Range(0 if since is None else since.position, self._streams.current())
        messages, upto, fetched = await parts.devices.find_messages(request, span)
        span = Range(span.since, upto)
        typed = tuple(nid for nid in typed if nid not in over)
        token = SyncToken(max(span.upto, span.since), parts.typing.position, fetched, typed)
        user_id = request.caller.user_id
        rows = await parts.memberships.of_user(user_id)
        heard = parts.ignored.heard
        data = await self._read_account_data(request, span)
        if since is None:
            ignored = parts.ignored.learn(user_id, data.everywhere, heard)
        else:
            ignored = await parts.ignored.of_user(user_id)
        recounted: Set[int] = frozenset()
        if since is not None:
            recounted = await self._recounts.find(user_id, span.since, rows, data)
        candidates = await self._find_rooms(request, span, rows, data, recounted)
        if any(row.position > span.upto for row in candidates):
            then = [await parts.past.at(row, span.upto) for row in candidates]
            candidates = [row for row in then if row is not None]
        partial = await parts.partial.get_all()
        if partial and not request.loads_lazily:
            candidates = [row for row in candidates if not _is_held_back(row, partial, span)]
        rooms = await parts.rooms.get_rooms_by_nid(row.room_nid for row in candidates)
        candidates = [
            row
            for row in candidates
            if request.filter.room.allows_room(rooms[row.room_nid].room_id)
            and not _is_forgotten(request, row)
        ]
        devices = await parts.devices.read(request, span, messages)
        sections: dict[str, Any] = {}
        if candidates:
            token, sections = await self._rooms(
                request, span, token, candidates, rooms, data, ignored, recounted
            )
        account_data = _account_data_events(request, data.everywhere)
        presence = await parts.presence.read(request, span, rows, ignored)
        answer = frame(token, devices, account_data, presence, sections)
        return answer, bool(sections or account_data or presence) or devices.is_news

    def _now(self, since: SyncToken | None) -> SyncToken:
        """The token of an answer by which nothing of who types changes."""
        return SyncToken(
            self._streams.current(),
            self._parts.typing.position,
            typed=() if since is None else since.typed,
        )

    async def _read_account_data(self, request: SyncRequest, span: Range) -> AccountData:
        store, user_id = self._parts.account_data, request.caller.user_id
        if request.since is None:
            return await self._parts.beside.account_data.of_user(user_id)
        if not self._parts.recent.concerns_user(user_id, Topic.ACCOUNT_DATA, span.since):
            return AccountData()
        return await store.get_account_data_since(user_id, span.since, span.upto)

    async def _find_rooms(
        self,
        request: SyncRequest,
        span: Range,
        rows: Mapping[int, MembershipRow],
        data: AccountData,
        recounted: Set[int],
    ) -> list[MembershipRow]:
        """The memberships of the rooms that may have something for this answer."""
        if request.since is None or request.full_state:
            return list(rows.values())
        changed = self._parts.recent.rooms_since(request.caller.user_id, span.since)
        if changed is None:
            return list(rows.values())
        typing, since = self._parts.typing, request.since
        wanted = recounted | changed.events | changed.receipts
        wanted |= typing.changed_rooms(since.ephemeral) | typing.find_over(since.typed)
        if data.rooms:
            wanted |= {
                room.room_nid for room in (await self._parts.rooms.get_rooms(data.rooms)).values()
            }
        if len(wanted) < len(rows):
            return [rows[room_nid] for room_nid in wanted if room_nid in rows]
        return [row for row in rows.values() if row.room_nid in wanted]

    async def _rooms(
        self,
        request: SyncRequest,
        span: Range,
        token: SyncToken,
        candidates: Sequence[MembershipRow],
        rooms: Mapping[int, RoomRow],
        data: AccountData,
        ignored: Set[str],
        recounted: Set[int],
    ) -> tuple[SyncToken, dict[str, Any]]:
        """The sections of the answer, and its token, which names the rooms where somebody types."""
        partial = await self._parts.partial.get_all()
        joined: list[RoomWork] = []
        left: list[RoomWork] = []
        outside: list[MembershipRow] = []
        for row in candidates:
            moved = span.since < row.position <= span.upto
            if row.membership == "join":
                whole = request.since is None or request.full_state
                is_back = False
                if moved and not whole:
                    whole = not await self._parts.states.was_joined_at(row, span.since)
                    is_back = not whole and await self._parts.past.has_come_since(row, span.since)
                since = 0 if whole and not request.full_state else span.since
                whole = (
                    whole or is_back
                )  # a device that forgot the room meanwhile has nothing of it any more
                part = partial.get(row.room_nid)
                if (
                    part is not None
                    and part.completed is not None
                    and span.since < part.completed <= span.upto
                ):
                    whole = True
                    since = since if request.loads_lazily else 0
                in_part = part is not None and part.completed is None
                joined.append(RoomWork(rooms[row.room_nid], row, since, whole, in_part, is_back))
            elif row.membership in LEFT:
                if moved and (request.since is not None or request.filter.room.include_leave):
                    whole = request.since is None or not await self._parts.states.was_joined_at(
                        row, span.since
                    )
                    left.append(RoomWork(rooms[row.room_nid], row, span.since, whole))
            elif moved and not await self._parts.permissions.hides(row):
                outside.append(row)
        token = replace(token, typed=self._note_typing(request, joined, token.typed))
        await self._parts.joined.fill(request, [*joined, *left], span, token, ignored)
        await self._fill_departures(request, left)
        own = await self._fill_beside(request, span, joined, left, data, ignored)
        await self._fill_sticky(request, span, joined, ignored)
        for work in joined:
            work.is_recounted = work.is_recounted or work.room.room_nid in recounted
        if request.since is not None and not request.full_state:
            joined = [work for work in joined if has_news(work, ignored)]
        rows = [work.own for work in joined]
        counts = await self._parts.unread.get_counts(request.caller.user_id, rows, ignored, own)
        sections: dict[str, Any] = {}
        json = await self._parts.joined.to_json(request, [*joined, *left])
        if joined:
            sections["join"] = joined_section(request, joined, json, counts)
        if left:
            sections["leave"] = {work.room.room_id: json[work.room.room_id] for work in left}
        for row in outside:
            stripped = present_stripped(await self._parts.invited.get_stripped(row))
            section = sections.setdefault(row.membership, {})
            section[rooms[row.room_nid].room_id] = {f"{row.membership}_state": {"events": stripped}}
        return token, sections

    async def _fill_departures(self, request: SyncRequest, left: Sequence[RoomWork]) -> None:
        """The leaving of rooms that this server is not in: an invite was declined, or a knock taken
        back."""
        for work in left:
            if is_outside(work.own):
                event = await self._parts.invited.find_own(work.room, work.own)
                work.shown = [] if event is None else [Seen(event, work.own.membership)]
                work.state = own_state_after(request, work)

    async def _fill_sticky(
        self, request: SyncRequest, span: Range, joined: Sequence[RoomWork], ignored: Set[str]
    ) -> None:
        """The sticky events that the timelines do not show. No filter applies to them."""
        if (await self._parts.sticky.rooms()).isdisjoint([work.room.room_nid for work in joined]):
            return
        ranges = {work.room.room_nid: (work.since, span.upto) for work in joined}
        shown = {seen.event.nid for work in joined for seen in work.shown}
        found = await self._parts.sticky.find(ranges, shown, ignored)
        if found:
            own = {work.room.room_nid: work.own for work in joined}
            events = await self._parts.sticky.present(request.caller, own, found)
            for work in joined:
                work.sticky = events.get(work.room.room_nid, ())

    def _note_typing(
        self, request: SyncRequest, works: Sequence[RoomWork], typed: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Say of each room who types there, where a device is to be told; the rooms of which it
        then has been told that somebody does."""
        typing, since = self._parts.typing, request.since
        wanted = request.filter.room.ephemeral
        is_quiet = typing.is_quiet_since(None if since is None else since.ephemeral)
        if (is_quiet and (since is None or not since.typed)) or not wanted.allows("m.typing", None):
            return typed
        found = self._find_typing(request, works)
        told: dict[int, Sequence[UserID]] = {}
        for work in works:
            if work.room.room_nid in found and wanted.allows_room(work.room.room_id):
                work.typing = told[work.room.room_nid] = found[work.room.room_nid]
        return typing.name_typed(typed, told)

    def _find_typing(
        self, request: SyncRequest, works: Sequence[RoomWork]
    ) -> Mapping[int, Sequence[UserID]]:
        """Who types in the rooms, where a device has to be told. One that may know nothing of a
        room is told where anybody types; if it may know something as well, also that they type no
        more: who says by their token that they were told so, even if it is not known here that
        anybody did."""
        typing = self._parts.typing
        begun = [work.room.room_nid for work in works if request.since is None or work.is_begun]
        found = typing.get_changed(begun, None)
        if request.since is None:
            return found
        known = [work.room.room_nid for work in works if work.is_back or not work.is_begun]
        over = dict.fromkeys(typing.find_over(request.since.typed) & set(known), ())
        return {**over, **typing.get_changed(known, request.since.ephemeral), **found}

    async def _fill_beside(
        self,
        request: SyncRequest,
        span: Range,
        works: Sequence[RoomWork],
        left: Sequence[RoomWork],
        data: AccountData,
        ignored: Set[str],
    ) -> OwnReceipts | None:
        """Receipts, typing and account data of the rooms that the user is in; account data of those
        that they left. The user's own receipts, where these are read whole and are those of now."""
        own: OwnReceipts | None = None
        wanted = request.filter.room
        user_id = request.caller.user_id
        is_quiet = all(work.typing is None for work in works)
        changed = (
            self._parts.recent.rooms_since(user_id, span.since)
            if request.since is not None
            else None
        )
        is_known = not any(work.is_begun for work in (*works, *left))
        if is_quiet and is_known and changed is not None and not (changed.receipts or data.rooms):
            return None  # messages alone, as mostly
        by_nid = {work.room.room_nid: work for work in works}
        reading = [
            nid
            for nid, work in by_nid.items()
            if changed is None or nid in changed.receipts or work.is_begun
        ]
        if reading and wanted.ephemeral.allows("m.receipt", None):
            is_now, heard = span.upto == self._streams.current(), self._parts.unread.heard
            # a receipt that has just moved, at another node too, is found where it is now, or
            # nowhere
            whole_range = (0, ANYTIME if is_now else span.upto)
            ranges = {
                nid: whole_range if by_nid[nid].is_begun else (by_nid[nid].since, span.upto)
                for nid in reading
            }
            by_room = await self._parts.beside.receipts.get_receipts(ranges)
            if is_now:
                whole = {nid: by_room[nid] for nid, (after, _) in ranges.items() if after == 0}
                own = OwnReceipts(
                    {
                        nid: [row for row in rows if row.user_id == user_id]
                        for nid, rows in whole.items()
                    },
                    heard,
                )
            for nid, receipts in by_room.items():
                shown = visible_receipts(
                    [row for row in receipts if row.position <= span.upto], user_id, ignored
                )
                if shown and wanted.ephemeral.allows_room(by_nid[nid].room.room_id):
                    by_nid[nid].ephemeral += receipt_events(shown)
        for work in works:
            if work.typing is not None:
                work.ephemeral.append(typing_event(work.typing, ignored))
        kept = data.rooms
        if request.since is not None:
            new = [work.room.room_id for work in (*works, *left) if work.is_begun]
            if new:
                of_new = await self._parts.beside.account_data.of_rooms(user_id, new)
                kept = {**kept, **{room_id: of_new.get(room_id, {}) for room_id in new}}
        for work in (*works, *left):
            room_id = RoomID(work.room.room_id)
            entries = kept.get(room_id, {})
            if wanted.account_data.allows_room(room_id):
                work.account_data = [
                    {"type": type, "content": msgspec.Raw(content)}
                    for type, content in entries.items()
                    if wanted.account_data.allows(type, None)
                ]
        return own


def _is_held_back(row: MembershipRow, partial: Mapping[int, PartialRoom], span: Range) -> bool:
    """Whether the user is in a room of which a part of the state is lacking, at the end of the
    stretch."""
    room = partial.get(row.room_nid)
    return (
        room is not None
        and row.membership == "join"
        and (room.completed is None or room.completed > span.upto)
    )


def _is_forgotten(request: SyncRequest, row: MembershipRow) -> bool:
    """Whether the room is forgotten, and that it was left is not news: the other devices have to
    hear of that."""
    return row.forgotten and (request.since is None or row.position <= request.since.position)


def typing_event(typing: Iterable[UserID], ignored: Set[str]) -> dict[str, Any]:
    """Who types, but for whom the user ignores. spec: client-server-api#mtyping"""
    return {
        "type": "m.typing",
        "content": {"user_ids": [user_id for user_id in typing if user_id not in ignored]},
    }


def visible_receipts(
    receipts: Iterable[ReceiptRow], user_id: UserID, ignored: Set[str]
) -> list[ReceiptRow]:
    """Those that the user may see and wants to: their own, and public ones of whom they do not
    ignore."""
    return [
        row
        for row in receipts
        if row.user_id == user_id
        or (row.receipt_type != "m.read.private" and row.user_id not in ignored)
    ]


def receipt_events(receipts: Iterable[ReceiptRow]) -> list[dict[str, Any]]:
    """The receipts as m.receipt events: one, but where a user has several on one event, of
    different threads.

    spec: client-server-api#mreceipt
    """
    contents: list[dict[str, Any]] = []
    for row in receipts:
        data: dict[str, Any] = {"ts": row.ts}
        if row.thread_id:
            data["thread_id"] = row.thread_id
        for content in contents:
            users = content.setdefault(row.event_id, {}).setdefault(row.receipt_type, {})
            if row.user_id not in users:
                users[row.user_id] = data
                break
        else:
            contents.append({row.event_id: {row.receipt_type: {row.user_id: data}}})
    return [{"type": "m.receipt", "content": content} for content in contents]


def _account_data_events(
    request: SyncRequest, entries: Mapping[str, bytes]
) -> list[dict[str, Any]]:
    """Account data of no room, as far as the filter lets it through."""
    allows = request.filter.account_data.allows
    events = account_data_events(request.caller.user_id, entries, first=request.since is None)
    return [event for event in events if allows(event["type"], None)]

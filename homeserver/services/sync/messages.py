"""The usual answer of /sync: to a client that has everything up to its token, since which people
wrote messages and did nothing else, and of whose device maybe others knew something to tell it.

Laws:
- It is what `sync.py` gives for the same request by looking at everything that there may be news
  of. That nothing is new but messages is learned by one look at what happened lately, whoever it
  concerns; then only the rooms with messages are read.
- Where anything else happened, or what happened is not known from memory, there is no such answer.
"""

from collections.abc import Mapping, Sequence, Set
from operator import attrgetter
from typing import Any, Final

from federation.rooms.memberships import Memberships
from federation.rooms.partial_rooms import PartialRooms, was_whole
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.push.unread_counts import UnreadCounts
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.answer import add_counts, frame, has_news, joined_section
from homeserver.services.sync.devices import NO_LISTS, DeviceNews, DeviceNewsReader
from homeserver.services.sync.joined import JoinedRooms, RoomWork
from homeserver.services.sync.lazy_members import Member
from homeserver.services.sync.plain_messages import PlainMessageReader
from homeserver.services.sync.request import Range, SyncRequest
from storage.encryption.to_device import DeviceMessage
from storage.engine.streams import Topic
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.rooms import RoomStore

NO_EVENTS: Final[Mapping[str, list[Any]]] = {"events": []}

Usual = tuple[dict[str, Any], bool]
"""An answer, and whether there is anything in it."""

_room_nid: Final = attrgetter("room_nid")
_own: Final = attrgetter("own")


class MessagesAlone:
    """Answers with messages."""

    def __init__(
        self,
        recent: RecentChanges,
        memberships: Memberships,
        rooms: RoomStore,
        partial: PartialRooms,
        ignored: IgnoredUsers,
        devices: DeviceNewsReader,
        joined: JoinedRooms,
        unread: UnreadCounts,
        plain: PlainMessageReader,
    ) -> None:
        self._recent = recent
        self._memberships = memberships
        self._rooms = rooms
        self._partial = partial
        self._ignored = ignored
        self._devices = devices
        self._joined = joined
        self._unread = unread
        self._plain = plain

    def find(self, request: SyncRequest, now: SyncToken) -> Usual | None:
        """The answer of now, where all of it is in memory. None: see `read`."""
        since, caller = request.since, request.caller
        if since is None or request.full_state or since.to_device is not None:
            return None
        if since.ephemeral != now.ephemeral or since.position > now.position:
            return None
        changed = self._recent.messages_since(caller.user_id, since.position)
        span = Range(since.position, now.position)
        if changed is None or not self._devices.nothing_waits(caller, span):
            return None
        counts = self._devices.known_counts(caller)
        rows, partial = self._memberships.known_of(caller.user_id), self._partial.known
        if counts is None or rows is None or partial is None:
            return None
        members = self._joined.begin(request) if request.loads_lazily else None
        devices = DeviceNews((), NO_LISTS, counts)
        own = _own_rows(changed, rows, partial, span) if changed else ()
        if not own:
            return None if own is None else (frame(now, devices), False)
        rooms = self._tell_plainly(request, span, own, members)
        return None if rooms is None else (frame(now, devices, sections={"join": rooms}), True)

    async def read(self, request: SyncRequest, now: SyncToken) -> Usual | None:
        """The answer of now. None: it takes more than messages."""
        since, user_id = request.since, request.caller.user_id
        if since is None or request.full_state or since.to_device is not None:
            return None
        if since.ephemeral != now.ephemeral:
            return None  # somebody types, or has come or gone
        span = Range(since.position, now.position)
        changed = self._recent.messages_since(user_id, span.since)
        messages: Sequence[DeviceMessage] = ()
        if changed is None:
            changed = self._recent.messages_since(user_id, span.since, beside=Topic.TO_DEVICE)
            if changed is None:
                return None
            waiting = await self._devices.find_messages(request, span)
            if waiting.upto != span.upto or waiting.fetched is not None:
                return None  # there are more than one answer takes
            messages = waiting.messages
        elif not self._devices.nothing_waits(request.caller, span):
            return None
        rows, partial = await self._memberships.of_user(user_id), await self._partial.get_all()
        own = _own_rows(changed, rows, partial, span)
        if own is None:
            return None
        devices = DeviceNews(messages, NO_LISTS, await self._devices.get_counts(request.caller))
        members = self._joined.begin(request) if request.loads_lazily else None
        rooms: dict[str, dict[str, Any]] | None = {}
        if own:
            rooms = self._tell_plainly(request, span, own, members)
            if rooms is None:
                rooms = await self._read_rooms(request, span, now, own)
        return frame(now, devices, sections={"join": rooms} if rooms else {}), bool(
            rooms or messages
        )

    def _tell_plainly(
        self,
        request: SyncRequest,
        span: Range,
        own: Sequence[MembershipRow],
        members: Set[Member] | None,
    ) -> dict[str, dict[str, Any]] | None:
        """The rooms, if in all of them there is nothing but messages to tell; else None. `members`:
        those that the device has, if it loads them lazily."""
        filter = request.filter
        if not filter.passes_all_messages or filter.room.state.include_redundant_members:
            return None
        limit = self._joined.limit_of(filter.room.timeline)
        told: dict[str, dict[str, Any]] = {}
        for row in own:
            found = self._plain.find(
                request.caller, row, span.since, span.upto, limit=limit, members=members
            )
            if found is None or found.counts is None:
                return None
            room = told[found.room_id] = {
                "timeline": {
                    "events": found.events,
                    "limited": False,
                    "prev_batch": found.prev_batch,
                },
                request.state_section: NO_EVENTS,
                "account_data": NO_EVENTS,
                "ephemeral": NO_EVENTS,
                "summary": {},
            }
            add_counts(request, room, found.counts)
        return told

    async def _read_rooms(
        self, request: SyncRequest, span: Range, token: SyncToken, own: Sequence[MembershipRow]
    ) -> dict[str, dict[str, Any]]:
        user_id, wanted = request.caller.user_id, request.filter.room
        rooms = await self._rooms.get_rooms_by_nid(map(_room_nid, own))
        ignored = await self._ignored.of_user(user_id)
        works = [
            RoomWork(room, row, span.since, whole_state=False)
            for row in own
            if wanted.allows_room((room := rooms[row.room_nid]).room_id)
        ]
        await self._joined.fill(request, works, span, token, ignored)
        works = [work for work in works if has_news(work, ignored)]
        counts = await self._unread.get_counts(user_id, list(map(_own, works)), ignored)
        return joined_section(request, works, await self._joined.to_json(request, works), counts)


def _own_rows(
    changed: Set[int],
    rows: Mapping[int, MembershipRow],
    partial: Mapping[int, PartialRoom],
    span: Range,
) -> list[MembershipRow] | None:
    """The user's memberships of those of the changed rooms that they are in. None if a room is to
    be told of anew. `rows`: all that they have; `partial`: the rooms that were entered with a part
    of their state."""
    own: list[MembershipRow] = []
    for nid in changed:
        row = rows.get(nid)
        if row is None:
            continue
        if row.position > span.since or (partial and not was_whole(partial, nid, span.since)):
            return None
        if row.membership == "join":
            own.append(row)
    return own

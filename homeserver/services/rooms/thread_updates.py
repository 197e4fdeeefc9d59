"""Finds threads with new events in a user's rooms, for sliding sync. If a response has no space for
all of these threads, a separate endpoint returns the others in pages.

A response and its pages cover a range of positions. They list each thread that has events in the
range. A thread with many replies may be listed twice (see `storage.rooms.thread_updates`). If a
thread has several events in the range, its entry contains a token with which `/relations` returns
the events before the newest one. The token of the next page holds the position where that page
starts, and the end of the range. Events after the range are left to the next sync.

Proposal: MSC4360.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import EventID
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.memberships import Memberships
from federation.rooms.visibility import Visibility, VisibleEvent, without_content
from homeserver.api.requester import Requester
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.rooms.client_events import ClientEvents
from homeserver.services.streams.sync_tokens import SyncToken, format_room_token, parse_room_token
from storage.engine.streams import Streams
from storage.events.timelines import TimelinePlace
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomStore
from storage.rooms.thread_updates import ThreadUpdateRow, ThreadUpdateStore

MAX_UPDATES: Final = 100
"""The maximum number of threads of one response."""

_TOKEN: Final = re.compile(r"([0-9]{1,18})_([0-9]{1,18})", re.ASCII)

ThreadKey = tuple[int, str]
"""Number of the room, ID of the root."""


class ThreadUpdates:
    """Reads which threads have new events."""

    def __init__(
        self,
        *,
        store: ThreadUpdateStore,
        rooms: RoomStore,
        events: RoomEvents,
        memberships: Memberships,
        visibility: Visibility,
        client_events: ClientEvents,
        ignored_users: IgnoredUsers,
        streams: Streams,
    ) -> None:
        self._store = store
        self._rooms = rooms
        self._events = events
        self._memberships = memberships
        self._visibility = visibility
        self._client_events = client_events
        self._ignored = ignored_users
        self._streams = streams

    async def read(
        self,
        caller: Requester,
        room_nids: Collection[int] | None,
        after: int,
        upto: int,
        limit: int,
        delivered: Mapping[ThreadKey, int] | None,
    ) -> dict[str, Any]:
        """Return updates for a client that has seen all up to `after`; empty for none. `room_nids`:
        the rooms with changes since then; None: unknown. `delivered`: the number of events of each
        thread that the client gets anyway; None: the client wants all threads, with their roots."""
        updates, next_token = await self._read(
            caller, room_nids, after, upto, upto, limit, delivered
        )
        response: dict[str, Any] = {"updates": updates} if updates else {}
        if next_token is not None:
            response["prev_batch"] = next_token
        return response

    async def get_page(
        self, caller: Requester, from_: str | None, to: str | None, limit: int
    ) -> dict[str, Any]:
        """Return a page of threads, going back. It may be short or empty if few threads have many
        events. Raises InvalidParam."""
        if limit < 1:
            raise InvalidParam("A page has at least one entry")
        last = upto = self._streams.current()
        after = 0
        if from_ is not None:
            match = _TOKEN.fullmatch(from_)
            if match is None:
                raise InvalidParam("from: not a token that this server gave out")
            last, upto = int(match[1]), int(match[2])
        if to is not None:
            place = parse_room_token(to)
            if not isinstance(place, SyncToken):
                raise InvalidParam("to: not a position of sliding sync")
            after = place.position
        chunk, next_token = await self._read(caller, None, after, upto, last, limit, None)
        return (
            {"chunk": chunk} if next_token is None else {"chunk": chunk, "next_batch": next_token}
        )

    async def _read(
        self,
        caller: Requester,
        room_nids: Collection[int] | None,
        after: int,
        upto: int,
        last: int,
        limit: int,
        delivered: Mapping[ThreadKey, int] | None,
    ) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Return the threads by room ID and root, and a token for the rest."""
        own = await self._memberships.of_user(caller.user_id)
        joined = {nid: row for nid, row in own.items() if row.membership == "join"}
        included = joined.keys() if room_nids is None else joined.keys() & room_nids
        limit = min(limit, MAX_UPDATES)
        ignored = await self._ignored.of_user(caller.user_id)
        max_rows = limit + (0 if delivered is None else len(delivered))
        page = await self._store.get_updates(included, after, upto, last, max_rows, ignored)
        rows, reached = page.rows, page.reached
        if delivered is not None:
            rows = [
                row
                for row in rows
                if not row.is_complete or delivered.get((row.room_nid, row.root), 0) < row.count
            ]
        if len(rows) > limit:
            reached = rows[limit].position
        next_token = None if reached is None else f"{reached}_{upto}"
        rows = rows[:limit]
        newest = await self._events.get_events(row.newest.event_nid for row in rows) if rows else {}
        seen = {each.event.nid for each in await self._see(caller, joined, newest.values())}
        rows = [row for row in rows if row.newest.event_nid in seen]
        roots: dict[str, Any] = {}
        if delivered is None:
            # a thread always comes with its root; for a reader who may not see the root,
            # `/relations` is refused and `/threads` omits it
            roots = await self._present_roots(caller, joined, rows, ignored)
            rows = [row for row in rows if row.root in roots]
        rooms = await self._rooms.get_rooms_by_nid({row.room_nid for row in rows})
        updates: dict[str, dict[str, Any]] = {}
        for row in rows:
            update: dict[str, Any] = {}
            if row.root in roots:
                update["thread_root"] = roots[row.root]
            if row.count > 1 or not row.is_complete:
                update["prev_batch"] = format_room_token(
                    TimelinePlace(row.newest.depth, row.newest.event_nid - 1)
                )
            updates.setdefault(rooms[row.room_nid].room_id, {})[row.root] = update
        return updates, next_token

    async def _present_roots(
        self,
        caller: Requester,
        joined: Mapping[int, MembershipRow],
        rows: Sequence[ThreadUpdateRow],
        ignored: Collection[str],
    ) -> dict[str, Any]:
        """Return the roots that the user may see, with their aggregations."""
        of_rooms = {row.root: row.room_nid for row in rows}
        known = await self._events.get_in_any_room(map(EventID, of_rooms)) if of_rooms else {}
        roots = [event for root, event in known.items() if event.room_nid == of_rooms[root]]
        seen = await self._see(caller, joined, roots)
        seen = [
            without_content(each) if each.event.event.sender in ignored else each for each in seen
        ]
        presented = await self._client_events.present(
            caller.user_id, caller.device_id, seen, with_room_id=False
        )
        return {each.event.event.event_id: form for each, form in zip(seen, presented, strict=True)}

    async def _see(
        self, caller: Requester, joined: Mapping[int, MembershipRow], events: Iterable[StoredEvent]
    ) -> list[VisibleEvent]:
        by_room: dict[int, list[StoredEvent]] = {}
        for event in events:
            by_room.setdefault(event.room_nid, []).append(event)
        seen: list[VisibleEvent] = []
        for nid, of_room in by_room.items():
            seen += await self._visibility.filter(caller.user_id, joined[nid], of_room)
        return seen

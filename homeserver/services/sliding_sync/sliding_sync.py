"""Sliding sync: the rooms that a client looks at, and what is new in them; waiting for something to
be new.

Laws:
- An answer covers a stretch of the one sequence, as one of /sync does. Every request is answered
  from what it says and what the server remembers of its connection; nothing of it is kept but that.
- An answer has an end, whatever a client asks for: rooms that no longer fit in are as those outside
  the windows, and the next answer, which comes at once, goes on with them.
- The state after an answer is written before the answer goes out, and only if it is another one.
- The cost is that of what has changed in the windows, whatever the number of the user's rooms:
  which rooms have news is known from memory, and only they are looked at.

Proposal: MSC4186.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Set
from operator import attrgetter
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import UserID
from federation.rooms.current_states import CurrentStates
from federation.rooms.history.past_memberships import PastMemberships
from federation.rooms.memberships import Memberships
from federation.rooms.partial_rooms import PartialRooms
from homeserver.cluster.notifier import Notifier
from homeserver.services.account_data.room_account_data_cache import KeptAccountData
from homeserver.services.ephemeral.typing import Typing
from homeserver.services.rooms.receipt_cache import KeptReceipts
from homeserver.services.rooms.room_data import BesideRooms
from homeserver.services.sliding_sync.connections import (
    LIVE,
    Connection,
    Connections,
    StateChanges,
)
from homeserver.services.sliding_sync.count_news import CountNews
from homeserver.services.sliding_sync.empty_answers import EmptyAnswers
from homeserver.services.sliding_sync.extensions import ExtensionReader
from homeserver.services.sliding_sync.lists import RoomLists, Selection, news_of, was_inside
from homeserver.services.sliding_sync.messages import Answer, MessagesInView, lists_json, view_of
from homeserver.services.sliding_sync.portions import make_entries
from homeserver.services.sliding_sync.request import SlidingRequest
from homeserver.services.sliding_sync.room_work import RoomWork
from homeserver.services.sliding_sync.rooms import RoomEntries
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.lazy_members import Member
from homeserver.services.sync.plain_messages import PlainMessageReader
from homeserver.services.sync.timeline_pages import NewestPages
from storage.engine.streams import Streams
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.rooms import RoomStore

MAX_TIMEOUT_MS: Final = 5 * 60_000

_is_told: Final = attrgetter("is_told")


class SlidingParts(msgspec.Struct, frozen=True):
    """What an answer is made of."""

    connections: Connections
    lists: RoomLists
    entries: RoomEntries
    extensions: ExtensionReader
    rooms: RoomStore
    memberships: Memberships
    states: CurrentStates
    past: PastMemberships
    recent: RecentChanges
    typing: Typing
    partial: PartialRooms
    empty: EmptyAnswers
    counts: CountNews
    plain: PlainMessageReader
    beside: BesideRooms
    pages: NewestPages

    @property
    def caches(self) -> Mapping[str, KeptReceipts | KeptAccountData | NewestPages]:
        """Those of which metrics tell."""
        return {
            "receipts": self.beside.receipts,
            "account_data": self.beside.account_data,
            "newest_pages": self.pages,
        }


class SlidingSync:
    """Answers sliding sync."""

    def __init__(
        self,
        parts: SlidingParts,
        streams: Streams,
        notifier: Notifier,
        clock: IReactorTime,
        catch_up: Callable[[], Awaitable[int]],
        *,
        most_events: int,
        view_bytes: int,
    ) -> None:
        """`catch_up` learns how far other nodes have written. `most_events` of a room are in one
        answer; negative: no bound. `view_bytes`: about how much of what clients look at is
        remembered."""
        self.most_events = most_events
        self._parts = parts
        self._streams = streams
        self._notifier = notifier
        self._clock = clock
        self._catch_up = catch_up
        self._messages = MessagesInView(
            parts.recent,
            parts.lists,
            parts.memberships,
            parts.rooms,
            parts.partial,
            parts.entries,
            parts.extensions,
            streams,
            parts.plain,
            capacity=view_bytes,
        )

    async def sync(self, request: SlidingRequest) -> dict[str, Any]:
        """The answer: at once if anything is new or the connection is, else when something is, or
        after the timeout.

        Raises UnknownPos.
        """
        connection = await self._parts.connections.find(request)
        members = self._parts.entries.begin(request, connection)
        if connection.token is not None:
            self._parts.typing.meet(connection.token.ephemeral)
        request = await self._check_tokens(request)
        seconds = min(request.timeout_ms, MAX_TIMEOUT_MS) / 1000
        if connection.token is None or seconds <= 0:
            return await self._finish(
                request, connection, await self._compute(request, connection, members)
            )
        deadline = self._clock.seconds() + seconds
        listener = self._notifier.listen(request.caller)
        try:
            while True:
                answer = await self._compute(request, connection, members)
                remaining = deadline - self._clock.seconds()
                if (
                    answer.is_news
                    or remaining <= 0
                    or not await listener.wait(self._clock, remaining)
                ):
                    return await self._finish(request, connection, answer)
        finally:
            listener.close()

    async def _check_tokens(self, request: SlidingRequest) -> SlidingRequest:
        """The request; extensions' own tokens that are ahead of all there is, as those for all
        there is: see `pos`."""
        to_device, sticky = request.extensions.to_device, request.extensions.sticky
        highest = max(to_device.since if to_device else 0, sticky.since if sticky else 0)
        if highest <= self._streams.current():
            return request
        now = await self._catch_up()
        if to_device is not None and to_device.since > now:
            to_device = replace(to_device, since=0)
        if sticky is not None and sticky.since > now:
            sticky = replace(sticky, since=0)
        return replace(
            request, extensions=replace(request.extensions, to_device=to_device, sticky=sticky)
        )

    async def _finish(
        self, request: SlidingRequest, connection: Connection, answer: Answer
    ) -> dict[str, Any]:
        connections, extensions = self._parts.connections, self._parts.extensions
        token = answer.token
        typed: tuple[int, ...] = ()
        if request.extensions.typing is not None:
            typed = token.typed if answer.typing is None else answer.typing.typed
        if typed != token.typed:
            token = replace(token, typed=typed)
        pos = await connections.keep(connection, answer.state, token)
        if not extensions.end(request, connection, answer.typing, pos):
            pos = await connections.keep(connection, answer.state, token, anew=True)
            extensions.end(request, connection, answer.typing, pos)
        self._parts.entries.end(request, connection, answer.newly_sent, pos)
        if answer.view is not None:
            self._messages.keep(connection.key, answer.view, pos)
        return {"pos": pos, **answer.body}

    async def _compute(
        self, request: SlidingRequest, connection: Connection, members: set[Member]
    ) -> Answer:
        """An answer for now."""
        parts = self._parts
        token = self._now(connection)
        upto = token.position
        if not token.typed or not parts.typing.find_over(
            token.typed
        ):  # else a client is told by the ordinary way
            if (
                token == connection.token
                and (empty := parts.empty.find(request, connection, token)) is not None
            ):
                return Answer(empty, False, token, connection.state, set())
            messages = await self._messages.read(request, connection, token, members)
            if messages is not None:
                return messages
        selection = await parts.lists.select(request, connection)
        recounted: Set[int] = frozenset()
        if connection.token is not None and not request.stable:
            recounted = await parts.counts.find(
                request.caller.user_id,
                connection.position,
                upto,
                connection.state.rooms.keys(),
                selection.rows,
            )
        works = await self._find_works(request, connection, selection, recounted)
        newly_sent: set[Member] = set()
        entries, told = await make_entries(
            parts.entries, request, connection, works, upto, members, newly_sent
        )
        told_nids = {work.room.room_nid for work in told}
        if len(told) < len(works):
            selection = selection.without({work.room.room_nid for work in works} - told_nids)
        changes = StateChanges(connection.state)
        extensions = await parts.extensions.read(
            request, connection, selection, told, token, changes
        )
        for work in told:
            changes.set_room(
                work.room.room_nid, work.result(), is_joined=work.own.membership == "join"
            )
        await self._end_others(request, connection, selection, told_nids, recounted, changes)
        body: dict[str, Any] = {
            "lists": lists_json(selection),
            "rooms": entries,
            "extensions": extensions.answer,
        }
        is_news = any(map(_is_told, told)) or extensions.is_news or len(told) < len(works)
        state = changes.result()
        if not is_news and state is connection.state and token == self._now(connection):
            self._parts.empty.keep(request, connection, token, body)
        lasts = selection.lasts and len(told) == len(works) and extensions.is_all
        view = view_of(request, selection, state) if lasts else None
        return Answer(body, is_news, token, state, newly_sent, view, extensions.typing)

    def _now(self, connection: Connection) -> SyncToken:
        """The token of an answer by which nothing of who types changes."""
        typed = () if connection.token is None else connection.token.typed
        return SyncToken(self._streams.current(), self._parts.typing.position, typed=typed)

    async def _find_works(
        self,
        request: SlidingRequest,
        connection: Connection,
        selection: Selection,
        recounted: Set[int],
    ) -> list[RoomWork]:
        """The rooms of the windows and subscriptions in which there may be something to tell.

        `recounted`: those whose counts may be others.
        """
        parts = self._parts
        wanted: dict[int, tuple[MembershipRow, int, bool]] = {}
        counted: set[int] = set()
        sent_rooms, position = connection.state.rooms, connection.position
        recent = None
        if connection.token is not None:
            recent = parts.recent.rooms_since(UserID(connection.key.user_id), position)
        partial = await parts.partial.get_all()
        moved: Collection[int] = ()
        if request.stable:
            moved = await connection.state.moved_to_or_from_direct(
                selection.labels.direct, list(selection.configs), parts.rooms.get_rooms_by_nid
            )
        changed = selection.to_look_at(connection.state, None if recent is None else recent.events)
        others = [*moved, *(recounted & selection.configs.keys())]
        for nid in dict.fromkeys([*changed, *others]) if others else changed:
            config = selection.configs[nid]
            sent = sent_rooms.get(nid)
            grown = sent is not None and not sent.covers(config)
            row = selection.rows[nid]
            since = 0 if sent is None else connection.since(sent.upto)
            completed = _completion(partial, row)
            if completed is None and config.required_state.all_members:
                continue  # who wants all members is told of the room when they are here
            news = max(news_of(row, selection.latest), completed or 0) > since
            # a room that was out of view while its counts changed
            is_recounted = nid in recounted or (
                sent is not None
                and sent.upto != LIVE
                and not request.stable
                and row.membership == "join"
            )
            if is_recounted:
                counted.add(nid)
            if sent is None or news or is_recounted or nid in moved or (grown and was_inside(row)):
                wanted[nid] = (row, since, news)
        rooms = await parts.rooms.get_rooms_by_nid(wanted)
        named = _lists_of(selection, wanted) if request.stable else {}
        works: list[RoomWork] = []
        for nid, (row, since, news) in wanted.items():
            sent = sent_rooms.get(nid)
            initial = sent is None or (_completion(partial, row) or 0) > since
            if not initial and row.position > since:
                if row.membership == "join":
                    initial = not await parts.states.was_joined_at(
                        row, since
                    ) or await parts.past.has_come_since(row, since)
                else:
                    initial = await parts.lists.was_reset(row)
            works.append(
                RoomWork(
                    rooms[nid],
                    row,
                    selection.configs[nid],
                    sent,
                    since,
                    initial,
                    news,
                    row.was_joined,
                    rooms[nid].room_id in selection.labels.direct,
                    named.get(nid, ()),
                    is_recounted=nid in counted,
                )
            )
        return works

    async def _end_others(
        self,
        request: SlidingRequest,
        connection: Connection,
        selection: Selection,
        told: set[int],
        recounted: Set[int],
        changes: StateChanges,
    ) -> None:
        """Live rooms with news that this answer does not tell are live no longer, nor those with
        other counts."""
        if connection.token is None:
            return
        rooms = connection.state.rooms
        recent = self._parts.recent.rooms_since(request.caller.user_id, connection.position)
        candidates = rooms.keys() if recent is None else (recent.events | recounted) & rooms.keys()
        live = [
            nid
            for nid in candidates
            if nid not in told and nid in selection.rows and rooms[nid].upto == LIVE
        ]
        latest = await self._parts.lists.latest(
            [nid for nid in live if selection.rows[nid].membership == "join"]
        )
        for nid in live:
            if nid in recounted or news_of(selection.rows[nid], latest) > connection.position:
                changes.end_room(nid, connection.position)


def _lists_of(selection: Selection, wanted: Mapping[int, object]) -> dict[int, list[str]]:
    """The lists in whose windows the rooms are."""
    named: dict[int, list[str]] = {}
    for name, window in selection.windows.items():
        for nid in window:
            if nid in wanted:
                named.setdefault(nid, []).append(name)
    return named


def _completion(partial: Mapping[int, PartialRoom], row: MembershipRow) -> int | None:
    """The position from which on all of the room's state is here; None: it is not. Who is not in
    the room does not wait."""
    room = partial.get(row.room_nid)
    return 0 if room is None or row.membership != "join" else room.completed

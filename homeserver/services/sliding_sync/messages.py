"""The usual answer of sliding sync: to a client that asks the same again, since whose `pos` people
wrote messages in rooms of its windows and did nothing else.

Laws:
- It is what `sliding_sync.py` gives for the same request by selecting rooms and looking at
  everything that there may be news of. An answer tells all there is to tell up to its `pos`; so who
  asks the same again lacks only what has happened since.
- Messages do not change which rooms a list shows. One in a room of a window that begins with the
  first room moves that room up within the window: the windows have the same rooms as before. One in
  another room of the list moves that room into the window, and the last one out; where that room's
  past was told before, only the message is new, else the room.
- Where anything else happened, in whatever other room, or what happened is not known from memory,
  there is no such answer.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from operator import attrgetter
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from federation.protocol.ids import UserID
from federation.rooms.memberships import Memberships
from federation.rooms.partial_rooms import PartialRooms, was_whole
from homeserver.services.sliding_sync.connections import (
    LIVE,
    Connection,
    ConnectionState,
    StateChanges,
)
from homeserver.services.sliding_sync.extensions import ExtensionReader
from homeserver.services.sliding_sync.kept import KeptOfConnections, weigh
from homeserver.services.sliding_sync.labels import Labels
from homeserver.services.sliding_sync.lists import RoomLists, Selection
from homeserver.services.sliding_sync.portions import make_entries
from homeserver.services.sliding_sync.request import (
    Extensions,
    ListRequest,
    RoomConfig,
    SlidingRequest,
)
from homeserver.services.sliding_sync.room_entry import are_too_long
from homeserver.services.sliding_sync.room_work import RoomWork
from homeserver.services.sliding_sync.rooms import RoomEntries
from homeserver.services.sliding_sync.typing_views import View as TypingView
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.lazy_members import Member
from homeserver.services.sync.plain_messages import PlainMessageReader
from homeserver.services.sync.request import Range
from storage.engine.streams import Streams
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.rooms import RoomStore
from storage.sync.sliding_connections import ConnectionKey

ROOM: Final = 100
"""Bytes of a view, about, for each room that is in it or was told of."""

_room_nid: Final = attrgetter("room_nid")
_is_told: Final = attrgetter("is_told")


class View(msgspec.Struct, frozen=True, gc=False):
    """What a client looks at since an answer."""

    state: ConnectionState
    """What the client has with that answer."""
    stable: bool
    lists: Mapping[str, ListRequest]
    subscriptions: Mapping[str, RoomConfig]
    extensions: Extensions
    shown: Mapping[str, Any]
    """The lists as they are in the answer: they show as many rooms after a message as before."""
    labels: Labels
    configs: Mapping[int, RoomConfig]
    """What is wanted of the rooms that stay in view, in all windows, when something is said in
    them."""

    def asks_the_same_as(self, other: "View") -> bool:
        """Whether both are of the same request, which as a rule is remembered: then nothing needs
        to be compared."""
        return (
            self.lists is other.lists
            and self.subscriptions is other.subscriptions
            and self.extensions is other.extensions
        )


class Answer(msgspec.Struct, frozen=True, gc=False):
    """An answer before it has its `pos`."""

    body: dict[str, Any]
    is_news: bool
    token: SyncToken
    state: ConnectionState
    newly_sent: set[Member]
    view: View | None = None
    """What the client looks at then; None if that is not known."""
    typing: TypingView | None = None
    """What it is told of who types; None if it did not ask, or as before."""


class MessagesInView:
    """Answers with messages. Remembers of each connection what its client looks at. For the reactor
    thread."""

    def __init__(
        self,
        recent: RecentChanges,
        lists: RoomLists,
        memberships: Memberships,
        rooms: RoomStore,
        partial: PartialRooms,
        entries: RoomEntries,
        extensions: ExtensionReader,
        streams: Streams,
        plain: PlainMessageReader,
        *,
        capacity: int,
    ) -> None:
        """`capacity`: about how many bytes the views may take."""
        self._recent = recent
        self._lists = lists
        self._memberships = memberships
        self._rooms = rooms
        self._partial = partial
        self._entries = entries
        self._extensions = extensions
        self._plain = plain
        self._views = KeptOfConnections[tuple[str, View]](streams, capacity=capacity)
        """With the `pos` of the answer."""

    @property
    def weight(self) -> int:
        """About how many bytes the views take."""
        return self._views.weight

    def keep(self, key: ConnectionKey, view: View, pos: str) -> None:
        """The client has this in view from the answer with this `pos` on."""
        kept = self._views.get(key)
        former = None if kept is None else kept[0][1]
        if former is view:
            self._views.replace(key, (pos, view))
            return
        weight = _weigh_rooms(view)
        if kept is not None and former is not None and former.asks_the_same_as(view):
            weight += kept[1] - _weigh_rooms(former)
        else:
            weight += weigh((view.lists, view.subscriptions, view.extensions), set())
        self._views.put(key, (pos, view), weight)

    async def read(
        self, request: SlidingRequest, connection: Connection, now: SyncToken, members: set[Member]
    ) -> Answer | None:
        """The answer of now. None: it takes more than messages. `members`: those that the client
        has."""
        kept, token = self._views.get(connection.key), connection.token
        if kept is None or token is None:
            return None
        pos, view = kept[0]
        if pos != request.pos or view.state is not connection.state:
            return None
        if token.ephemeral != now.ephemeral or not _asks_the_same(request, view):
            return None
        user_id = request.caller.user_id
        changed = self._recent.messages_since(user_id, token.position)
        if changed is None:
            return None
        rows = self._memberships.known_of(user_id) or await self._memberships.of_user(user_id)
        partial = (
            await self._partial.get_all() if self._partial.known is None else self._partial.known
        )
        coming = [
            nid
            for nid in changed
            if nid not in view.configs and nid in rows and rows[nid].membership == "join"
        ]
        if coming:
            configs = await self._move_window(view, user_id, coming)
            if configs is None:
                return None
            view = replace(view, configs=configs)
        own = _find_own(rows, partial, view, changed, token.position)
        if own is None:
            return None
        if coming and not view.state.rooms.keys() >= set(coming):
            return await self._begin(request, connection, view, own, coming, now, members)
        in_view = view.configs if coming else None
        read = await self._extensions.read_without_news(request, connection, now, in_view, coming)
        if read is None:
            return None
        span = Range(token.position, now.position)
        if (
            len(own) == 1
            and (entry := self._make_plainly(request, view, own[0], span, members)) is not None
        ):
            body = {"lists": view.shown, "rooms": entry, "extensions": read.answer}
            return Answer(body, True, now, view.state, set(), view, read.typing)
        works = await self._make_works(view, own, token.position)
        newly_sent: set[Member] = set()
        entries: dict[str, Any] = {}
        changes = StateChanges(connection.state)
        if works:
            entries, told = await make_entries(
                self._entries, request, connection, works, now.position, members, newly_sent
            )
            if len(told) < len(works):
                return None  # the others are out of view with this answer
            for work in works:
                changes.set_room(work.room.room_nid, work.result())
        state = changes.result()
        body = {"lists": view.shown, "rooms": entries, "extensions": read.answer}
        is_news = read.is_news or any(map(_is_told, works))
        return Answer(body, is_news, now, state, newly_sent, _with_state(view, state), read.typing)

    async def _begin(
        self,
        request: SlidingRequest,
        connection: Connection,
        view: View,
        own: Sequence[MembershipRow],
        coming: Collection[int],
        now: SyncToken,
        members: set[Member],
    ) -> Answer | None:
        """The answer where messages brought rooms into view with which the client begins."""
        works = await self._make_works(view, own, connection.position)
        newly_sent: set[Member] = set()
        entries, told = await make_entries(
            self._entries, request, connection, works, now.position, members, newly_sent
        )
        if len(told) < len(works):
            return None
        changes = StateChanges(connection.state)
        new = [work for work in told if work.initial]
        read = await self._extensions.read_with_new(
            request, connection, now, view.configs, coming, new, changes
        )
        if read is None:
            return None
        for work in told:
            changes.set_room(work.room.room_nid, work.result(), is_joined=True)
        state = changes.result()
        body = {"lists": view.shown, "rooms": entries, "extensions": read.answer}
        return Answer(body, True, now, state, newly_sent, _with_state(view, state), read.typing)

    def _make_plainly(
        self,
        request: SlidingRequest,
        view: View,
        own: MembershipRow,
        span: Range,
        members: set[Member],
    ) -> dict[str, dict[str, Any]] | None:
        """The entry of a room that is in view, by its id, if there is nothing but messages to tell;
        None if there is more, or less."""
        nid, since = own.room_nid, span.since
        config, sent, bump = view.configs[nid], view.state.rooms[nid], self._entries.find_bump(nid)
        if bump is None or config.required_state is not sent.required_state:
            return None
        known = members if config.required_state.lazy_members else None
        limit, counted = config.timeline_limit, not request.stable
        found = self._plain.find(
            request.caller, own, since, span.upto, limit=limit, members=known, counted=counted
        )
        if (
            found is None
            or are_too_long(found.size)
            or (found.room_id in view.labels.direct) != sent.is_direct
        ):
            return None
        entry: dict[str, Any] = {
            "timeline": found.events,
            "num_live": len(found.events),
            "prev_batch": found.prev_batch,
        }
        if bump > since:
            entry["bump_stamp"] = bump
        if sent.is_direct:
            entry["is_dm"] = True
        if found.counts is not None:
            total = found.counts.total
            entry["notification_count"], entry["highlight_count"] = (
                total.notifications,
                total.highlights,
            )
        else:
            entry["membership"] = own.membership
            if view.lists:
                entry["lists"] = list(view.lists)
        return {found.room_id: entry}

    async def _move_window(
        self, view: View, user_id: UserID, coming: Sequence[int]
    ) -> Mapping[int, RoomConfig] | None:
        """What is wanted of the rooms in view once these came to the front of the only list; None
        where it takes more to know that."""
        if len(view.lists) != 1 or view.subscriptions:
            return None
        (wanted,) = view.lists.values()
        front = await self._lists.front(user_id, wanted, view.labels)
        if front is None:
            return None
        configs = dict.fromkeys(front, wanted.config)
        # others come into view as well where still more has happened meanwhile
        return configs if configs.keys() - view.configs.keys() == set(coming) else None

    async def _make_works(
        self, view: View, own: Sequence[MembershipRow], since: int
    ) -> list[RoomWork]:
        rooms = await self._rooms.get_rooms_by_nid(map(_room_nid, own))
        return [
            RoomWork(
                room := rooms[row.room_nid],
                row,
                view.configs[row.room_nid],
                sent := view.state.rooms.get(row.room_nid),
                0 if sent is None else since,
                initial=sent is None,
                has_news=True,
                was_in=True,
                is_direct=room.room_id in view.labels.direct,
                in_lists=list(view.lists),
            )
            for row in own
        ]


def view_of(request: SlidingRequest, selection: Selection, state: ConnectionState) -> View:
    """What the client looks at that was told all there is of the selection."""
    return View(
        state,
        request.stable,
        request.lists,
        request.subscriptions,
        request.extensions,
        lists_json(selection),
        selection.labels,
        _staying(request, selection),
    )


def _with_state(view: View, state: ConnectionState) -> View:
    return view if state is view.state else replace(view, state=state)


def _find_own(
    rows: Mapping[int, MembershipRow],
    partial: Mapping[int, PartialRoom],
    view: View,
    changed: Set[int],
    since: int,
) -> list[MembershipRow] | None:
    """The user's memberships of rooms in view with messages; None if there are messages in others,
    or a room is to be told of anew. `rows`: all that they have; `partial`: the rooms that were
    entered with a part of their state."""
    own: list[MembershipRow] = []
    for nid in changed:
        row = rows.get(nid)
        if row is None:
            continue
        if row.position > since:
            return None
        if row.membership != "join":
            continue
        config, sent = view.configs.get(nid), view.state.rooms.get(nid)
        if config is None:
            return None
        if sent is None:
            if nid in partial:
                return None
        elif (
            sent.upto != LIVE
            or not sent.covers(config)
            or (partial and not was_whole(partial, nid, since))
        ):
            return None
        own.append(row)
    return own


def _weigh_rooms(view: View) -> int:
    return ROOM * (1 + len(view.configs) + len(view.state.rooms))


def lists_json(selection: Selection) -> dict[str, Any]:
    """The lists as they go into the answer."""
    return {name: {"count": count} for name, count in selection.counts.items()}


def _staying(request: SlidingRequest, selection: Selection) -> Mapping[int, RoomConfig]:
    """The rooms that are in the same windows after a message in one of them as before."""
    if not request.lists:
        return selection.configs
    for wanted in request.lists.values():
        if wanted.ranges is not None and (len(wanted.ranges) != 1 or wanted.ranges[0][0] != 0):
            return {}
    first, *others = selection.windows.values()
    if not others and not selection.subscribed:
        return selection.configs
    return {nid: selection.configs[nid] for nid in set(first).intersection(*others)}


def _asks_the_same(request: SlidingRequest, view: View) -> bool:
    """Whether the request is that of the answer; messages to the device may be asked for from
    another place on."""
    if request.stable != view.stable:
        return False
    asked, before = request.extensions, view.extensions
    if (
        request.lists is view.lists
        and request.subscriptions is view.subscriptions
        and asked is before
    ):
        return True  # mostly: what it asks is remembered
    if request.lists != view.lists or request.subscriptions != view.subscriptions:
        return False
    return asked == before or replace(asked, to_device=None) == replace(before, to_device=None)

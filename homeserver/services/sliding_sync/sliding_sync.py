"""Sliding sync: returns what is new in the rooms in a client's view; waits until something is new.

Laws:
- Like a response of /sync, a response covers a range of the stream. Its content depends on the
  request and on the stored state of the connection. Only lazily loaded members and typing users
  also depend on what this node remembers: they may be sent again.
- A response has a bounded size. Rooms that do not fit are treated like rooms outside the windows;
  the next response, which is sent at once, continues with them.
- The state of the connection after a response is stored before the response is sent. No write is
  needed if the state did not change, or if the `pos` lists what was added (`pos.py`).
- For a client that keeps up, the cost depends on the changes in the windows, not on the number of
  the user's rooms: the rooms with changes are known from memory, and only these are read.

The parts of a response are made in `lists.py` (which rooms), `room_entries.py` (what is new in
each) and `extensions.py`.

Proposal: MSC4186.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from operator import attrgetter
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import UserID
from federation.rooms.current_states import CurrentStates
from federation.rooms.history.past_memberships import PastMemberships
from federation.rooms.partial_rooms import PartialRooms
from homeserver.cluster.notifier import Notifier
from homeserver.services.account_data.account_data_cache import AccountDataCache
from homeserver.services.ephemeral.typing import Typing
from homeserver.services.rooms.receipt_cache import ReceiptCache
from homeserver.services.rooms.room_caches import RoomCaches
from homeserver.services.sliding_sync.batches import make_entries
from homeserver.services.sliding_sync.connections import (
    LIVE,
    ConnectionState,
    SlidingConnection,
    SlidingConnections,
    StateChanges,
)
from homeserver.services.sliding_sync.extensions import ExtensionReader
from homeserver.services.sliding_sync.lists import (
    RoomLists,
    RoomSelection,
    knows_room,
    latest_change,
)
from homeserver.services.sliding_sync.request import SlidingRequest
from homeserver.services.sliding_sync.room_entries import RoomEntries
from homeserver.services.sliding_sync.room_update import SlidingRoomUpdate
from homeserver.services.sliding_sync.sent_typing import TypingView
from homeserver.services.sliding_sync.unread_changes import SlidingUnreadChanges
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.lazy_members import RoomMember
from storage.engine.streams import Streams
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.rooms import RoomStore

MAX_TIMEOUT_MS: Final = 5 * 60_000

_has_changes: Final = attrgetter("has_changes")


class SlidingParts(msgspec.Struct, frozen=True, kw_only=True):
    """The services that sliding sync reads from."""

    connections: SlidingConnections
    lists: RoomLists
    entries: RoomEntries
    extensions: ExtensionReader
    rooms: RoomStore
    states: CurrentStates
    past_memberships: PastMemberships
    recent: RecentChanges
    typing: Typing
    partial: PartialRooms
    unread_changes: SlidingUnreadChanges
    room_caches: RoomCaches

    @property
    def caches(self) -> Mapping[str, ReceiptCache | AccountDataCache]:
        """The caches that have metrics."""
        return {
            "receipts": self.room_caches.receipts,
            "account_data": self.room_caches.account_data,
        }


class SlidingResponse(msgspec.Struct, frozen=True, gc=False):
    """A response before it has its `pos`."""

    body: dict[str, Any]
    has_changes: bool
    """Whether anything is new, so that the request ends its wait."""
    token: SyncToken
    state: ConnectionState
    """The state of the connection with this response."""
    new_members: set[RoomMember]
    """The lazily loaded members that it carries."""
    typing: TypingView | None = None
    """The typing users that the client knows with this response; None if it did not ask."""


class SlidingSync:
    """Answers sliding sync."""

    def __init__(
        self,
        *,
        parts: SlidingParts,
        streams: Streams,
        notifier: Notifier,
        clock: IReactorTime,
        catch_up: Callable[[], Awaitable[int]],
        max_events: int,
    ) -> None:
        """`catch_up` reads what other nodes wrote, and returns the position up to which all is
        readable.

        `max_events`: the operator's bound for the events of one room; negative for none.
        """
        self.max_events = max_events
        self._parts = parts
        self._streams = streams
        self._notifier = notifier
        self._clock = clock
        self._catch_up = catch_up

    async def sync(self, request: SlidingRequest) -> dict[str, Any]:
        """Answer at once if the connection or anything in it is new; else on a change or the
        timeout.

        Raises UnknownPos.
        """
        connection = await self._parts.connections.find(request)
        members = self._parts.entries.begin(request, connection)
        if connection.token is not None:
            self._parts.typing.advance_to(connection.token.ephemeral)
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
                response = await self._compute(request, connection, members)
                remaining = deadline - self._clock.seconds()
                if (
                    response.has_changes
                    or remaining <= 0
                    or not await listener.wait(self._clock, remaining)
                ):
                    return await self._finish(request, connection, response)
        finally:
            listener.close()

    async def _check_tokens(self, request: SlidingRequest) -> SlidingRequest:
        """Reset tokens of extensions that are ahead of the head: they are from another database."""
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
        self, request: SlidingRequest, connection: SlidingConnection, response: SlidingResponse
    ) -> dict[str, Any]:
        """Store the state of the connection, and add its `pos` to the response."""
        connections, extensions = self._parts.connections, self._parts.extensions
        token = response.token
        typed = () if response.typing is None else response.typing.typed
        if typed != token.typing_rooms:
            token = replace(token, typing_rooms=typed)
        pos = await connections.store(connection, response.state, token)
        if not extensions.end(request, connection, response.typing, pos):
            pos = await connections.store(connection, response.state, token, force=True)
            extensions.end(request, connection, response.typing, pos)
        self._parts.entries.end(request, connection, response.new_members, pos)
        return {"pos": pos, **response.body}

    async def _compute(
        self, request: SlidingRequest, connection: SlidingConnection, members: set[RoomMember]
    ) -> SlidingResponse:
        """Compute the response as of now. `members`: the lazily loaded members that the client
        has."""
        parts = self._parts
        typed = () if connection.token is None else connection.token.typing_rooms
        token = SyncToken(self._streams.current(), parts.typing.position, typing_rooms=typed)
        selection = await parts.lists.select(request, connection)
        changed_counts: Set[int] = frozenset()
        if connection.token is not None and not request.stable:
            changed_counts = await parts.unread_changes.find(
                request.caller.user_id,
                connection.position,
                token.position,
                connection.state.rooms.keys(),
                selection.rows,
            )
        updates = await self._find_updates(request, connection, selection, changed_counts)
        new_members: set[RoomMember] = set()
        entries: dict[str, dict[str, Any]] = {}
        done: Sequence[SlidingRoomUpdate] = updates
        if updates:
            entries, done = await make_entries(
                parts.entries, request, connection, updates, token.position, members, new_members
            )
        done_nids = {update.room.room_nid for update in done}
        is_cut = len(done) < len(updates)
        if is_cut:
            selection = selection.without({update.room.room_nid for update in updates} - done_nids)
        changes = StateChanges(connection.state)
        extensions = await parts.extensions.read(
            request, connection, selection, done, token, changes
        )
        for update in done:
            is_joined = update.own.membership == "join"
            changes.set_room(update.room.room_nid, update.result(), is_joined=is_joined)
        await self._end_others(request, connection, selection, done_nids, changed_counts, changes)
        body: dict[str, Any] = {
            "lists": {name: {"count": count} for name, count in selection.counts.items()},
            "rooms": entries,
            "extensions": extensions.body,
        }
        has_changes = any(map(_has_changes, done)) or extensions.has_changes or is_cut
        return SlidingResponse(
            body, has_changes, token, changes.result(), new_members, extensions.typing
        )

    async def _find_updates(
        self,
        request: SlidingRequest,
        connection: SlidingConnection,
        selection: RoomSelection,
        changed_counts: Set[int],
    ) -> list[SlidingRoomUpdate]:
        """Find the rooms of the windows and subscriptions that may have changes.

        `changed_counts`: rooms whose unread counts may have changed.
        """
        parts, state = self._parts, connection.state
        recent = None
        if connection.token is not None:
            recent = parts.recent.rooms_since(UserID(connection.key.user_id), connection.position)
        candidates = selection.rooms_to_check(state, None if recent is None else recent.events)
        moved: Collection[int] = ()
        if request.stable:
            moved = await state.find_changed_direct(
                selection.labels.direct, list(selection.configs), parts.rooms.get_rooms_by_nid
            )
        others = [*moved, *(changed_counts & selection.configs.keys())]
        if others:
            candidates = list(dict.fromkeys([*candidates, *others]))
        if not candidates:
            return []
        partial = await parts.partial.get_all()
        updates: list[SlidingRoomUpdate] = []
        rooms = await parts.rooms.get_rooms_by_nid(candidates)
        for nid in candidates:
            completed = _completion(partial, selection.rows[nid])
            if completed is None and selection.configs[nid].required_state.all_members:
                continue  # with partial state, not all members are known yet
            update = SlidingRoomUpdate(
                rooms[nid],
                selection.rows[nid],
                selection.configs[nid],
                state.rooms.get(nid),
                is_direct=rooms[nid].room_id in selection.labels.direct,
            )
            _compare(request, connection, selection, changed_counts, update, completed)
            if update.may_have_changes or nid in moved:
                update.initial = await self._is_initial(update, completed)
                updates.append(update)
        if request.stable and updates:
            named = selection.lists_of({update.room.room_nid for update in updates})
            for update in updates:
                update.in_lists = named.get(update.room.room_nid, ())
        return updates

    async def _is_initial(self, update: SlidingRoomUpdate, completed: int | None) -> bool:
        """Whether the client starts over with the room."""
        own, since = update.own, update.since
        if update.sent is None or (completed or 0) > since:
            return True
        if own.position <= since:
            return False
        if own.membership != "join":
            return await self._parts.lists.was_reset(own)
        was_joined = await self._parts.states.was_joined_at(own, since)
        return not was_joined or await self._parts.past_memberships.has_joined_since(own, since)

    async def _end_others(
        self,
        request: SlidingRequest,
        connection: SlidingConnection,
        selection: RoomSelection,
        done: Set[int],
        changed_counts: Set[int],
        changes: StateChanges,
    ) -> None:
        """Record which live rooms have changes that are not in this response: they are no longer
        live."""
        if connection.token is None:
            return
        rooms = connection.state.rooms
        recent = self._parts.recent.rooms_since(request.caller.user_id, connection.position)
        candidates = (
            rooms.keys() if recent is None else (recent.events | changed_counts) & rooms.keys()
        )
        live = [
            nid
            for nid in candidates
            if nid not in done and nid in selection.rows and rooms[nid].upto == LIVE
        ]
        if not live:
            return
        latest = await self._parts.lists.latest(
            [nid for nid in live if selection.rows[nid].membership == "join"]
        )
        for nid in live:
            if (
                nid in changed_counts
                or latest_change(selection.rows[nid], latest) > connection.position
            ):
                changes.mark_not_live(nid, connection.position)


def _compare(
    request: SlidingRequest,
    connection: SlidingConnection,
    selection: RoomSelection,
    changed_counts: Set[int],
    update: SlidingRoomUpdate,
    completed: int | None,
) -> None:
    """Determine what of the room the client may lack."""
    nid, own, sent = update.room.room_nid, update.own, update.sent
    update.since = 0 if sent is None else connection.since(sent.upto)
    update.has_new_events = max(latest_change(own, selection.latest), completed or 0) > update.since
    was_out_of_view = sent is not None and sent.upto != LIVE
    update.counts_changed = nid in changed_counts or (
        was_out_of_view and not request.stable and own.membership == "join"
    )
    wants_more = sent is not None and not sent.covers(update.config) and knows_room(own)
    update.may_have_changes = (
        sent is None or update.has_new_events or update.counts_changed or wants_more
    )


def _completion(partial: Mapping[int, PartialRoom], row: MembershipRow) -> int | None:
    """Return the position from which the room's state is complete; None while it is partial.

    A user who is not in the room does not wait for it.
    """
    room = partial.get(row.room_nid)
    return 0 if room is None or row.membership != "join" else room.completed_position

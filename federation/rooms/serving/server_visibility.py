"""Decides which events of a room another server may see: those that any of its users may see.

A server that is not in the room now sees nothing. Events that arrived after the server joined are
visible without a query. For an older event the history visibility decides. If it is `invited` or
`joined`, the memberships of that server's users (200 at most) are read too, in one batch per page.
No server gets the content of messages that are older than the room's retention period. A server
that joined after a user was erased does not get the content of that user's older messages
(`federation/rooms/erased_senders.py`).

spec: client-server-api#room-history-visibility,
server-server-api#backfilling-and-retrieving-missing-events
"""

from collections.abc import Sequence
from typing import Final

from federation.protocol.events import StateKey
from federation.protocol.ids import ServerName
from federation.protocol.visibility import (
    HISTORY_VISIBILITY,
    HistoryVisibility,
    is_visible_to_server,
    read_visibility,
)
from federation.rooms.erased_senders import ErasedSenders
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.history.retention import RoomRetentionCache
from federation.rooms.room_servers import RoomServers
from storage.rooms.memberships import MembershipStore
from storage.state.state_tree import StateTreeStore

MAX_USERS_CHECKED: Final = 200
"""Users of a server whose memberships are checked."""


class ServerVisibility:
    """Checks which events of a page another server may see. Use this class only on the reactor
    thread."""

    def __init__(
        self,
        *,
        trees: StateTreeStore,
        events: RoomEvents,
        membership_store: MembershipStore,
        servers: RoomServers,
        retention: RoomRetentionCache | None = None,
        erased: ErasedSenders | None = None,
    ) -> None:
        self._erased = erased
        self._lifetimes = retention
        self._trees = trees
        self._events = events
        self._membership_store = membership_store
        self._servers = servers

    async def find_visible(
        self, server: ServerName, room_nid: int, events: Sequence[StoredEvent]
    ) -> list[bool]:
        """Return for each of the events, of one room, whether a server in the room may see it in
        full."""
        seen = await self._see_by_history(server, room_nid, events)
        joined = (await self._servers.in_room(room_nid)).get(server)
        if self._erased is not None and joined is not None and await self._erased.get():
            hidden = [await self._erased.hides_from_server(joined, stored) for stored in events]
            seen = [
                visible and not is_hidden for visible, is_hidden in zip(seen, hidden, strict=True)
            ]
        if self._lifetimes is None:
            return seen
        oldest = await self._lifetimes.get_oldest_shown(room_nid)
        return [
            visible and not stored.is_expired(oldest)
            for stored, visible in zip(events, seen, strict=True)
        ]

    async def _see_by_history(
        self, server: ServerName, room_nid: int, events: Sequence[StoredEvent]
    ) -> list[bool]:
        since = (await self._servers.in_room(room_nid)).get(server)
        if since is None:
            return [False] * len(events)  # it has left since it sent the request
        # it has been in the room ever since; and outliers are only sent as part of a state
        seen = [
            stored.is_outlier or (stored.position is not None and stored.position >= since)
            for stored in events
        ]
        older = [stored for stored, visible in zip(events, seen, strict=True) if not visible]
        if not older:
            return seen
        visibilities = await self._get_visibilities(room_nid, older)
        restricted = [
            stored
            for stored, visibility in zip(older, visibilities, strict=True)
            if visibility in (HistoryVisibility.INVITED, HistoryVisibility.JOINED)
        ]
        memberships = await self._get_memberships_at(room_nid, server, restricted)
        visible_nids = {
            stored.nid
            for stored, visibility in zip(older, visibilities, strict=True)
            if is_visible_to_server(
                stored.event,
                server,
                visibility=visibility,
                memberships=memberships.get(stored.nid, ()),
                joined_later=True,
            )
        }
        return [
            visible or stored.nid in visible_nids
            for stored, visible in zip(events, seen, strict=True)
        ]

    async def _get_visibilities(
        self, room_nid: int, events: Sequence[StoredEvent]
    ) -> list[HistoryVisibility]:
        """Return the history visibility before each of the events."""
        before = await self._get_entries_before(room_nid, events, [HISTORY_VISIBILITY])
        loaded = await self._events.get_events(
            {nid for entries in before for nid in entries.values()}
        )
        found = []
        for entries in before:
            nid = entries.get(HISTORY_VISIBILITY)
            found.append(read_visibility(None if nid is None else loaded[nid].event))
        return found

    async def _get_memberships_at(
        self, room_nid: int, server: ServerName, events: Sequence[StoredEvent]
    ) -> dict[int, set[str | None]]:
        """Return the memberships of a server's users before each of the events, by event number."""
        if not events:
            return {}
        users = await self._membership_store.get_users_of_server(
            room_nid, server, MAX_USERS_CHECKED
        )
        keys = [StateKey("m.room.member", user_id) for user_id in users]
        before = await self._get_entries_before(room_nid, events, keys)
        loaded = await self._events.get_events(
            {nid for entries in before for nid in entries.values()}
        )
        return {
            stored.nid: {loaded[nid].event.membership for nid in entries.values()}
            for stored, entries in zip(events, before, strict=True)
        }

    async def _get_entries_before(
        self, room_nid: int, events: Sequence[StoredEvent], keys: Sequence[StateKey]
    ) -> list[dict[StateKey, int]]:
        """Return entries of the state before each of the events."""
        after = await self._trees.get_entries_of(
            room_nid, (stored.state_root for stored in events), keys
        )
        before = []
        for stored in events:
            entries = {StateKey(*key): nid for key, nid in after[stored.state_root].items()}
            if stored.event.state_key is not None and stored.event.key in keys:
                entries.pop(stored.event.key, None)
                if stored.replaces is not None:
                    entries[stored.event.key] = stored.replaces
            before.append(entries)
        return before

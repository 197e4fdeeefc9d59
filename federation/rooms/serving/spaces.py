"""Reads spaces from the database, and serves them to other servers.

Many rooms and their children are read in one batch.

spec: client-server-api#spaces, server-server-api#spaces
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from federation.protocol.errors import NotFound
from federation.protocol.ids import RoomID, ServerName
from federation.protocol.space_hierarchy import SPACE, RemoteHierarchy
from federation.protocol.stripped_state import strip_event
from federation.rooms.events import RoomEvents
from federation.rooms.serving.summaries import SummaryVisibility, summarise_room
from storage.rooms.memberships import MembershipStore
from storage.rooms.spaces import ChildRow, SpaceStore
from storage.rooms.summaries import RoomSummaryStore, SummaryRow

MAX_SERVED_CHILDREN: Final = 100
"""Children of a space in one response to a server, which can request the children's hierarchies."""


class StoredSpaceRoom(msgspec.Struct, frozen=True):
    """A room that this server has stored."""

    row: SummaryRow
    children: Sequence[ChildRow]
    """In order; empty if the room is no space."""
    has_local_members: bool
    """A local user is in it, so the stored state is up to date."""


class RemoteSpaces(Protocol):
    """Asks other servers about rooms that this server is not in."""

    async def get_hierarchies(
        self, rooms: Mapping[RoomID, Sequence[ServerName]], *, suggested_only: bool
    ) -> Mapping[RoomID, RemoteHierarchy]:
        """Return the hierarchies of rooms from the servers that know them, as far as found.

        Responses and refusals are cached for some minutes, because each page of a hierarchy
        requests the same rooms again.
        """
        ...


class Spaces:
    """Reads spaces from the database, and serves them."""

    def __init__(
        self,
        *,
        summaries: RoomSummaryStore,
        spaces: SpaceStore,
        membership_store: MembershipStore,
        events: RoomEvents,
        previews: SummaryVisibility,
    ) -> None:
        self._summaries = summaries
        self._spaces = spaces
        self._membership_store = membership_store
        self._events = events
        self._previews = previews

    async def load(self, room_ids: Collection[RoomID]) -> Mapping[RoomID, StoredSpaceRoom]:
        """Return the rooms that this server has stored; makes three queries."""
        rows = await self._summaries.get_summaries_by_id(room_ids)
        if not rows:
            return {}
        spaces = [row.room_nid for row in rows.values() if row.room_type == SPACE]
        children = await self._spaces.get_children(spaces) if spaces else {}
        local = await self._membership_store.get_rooms_with_local_members(
            row.room_nid for row in rows.values()
        )
        return {
            RoomID(room_id): StoredSpaceRoom(
                row, children.get(row.room_nid, ()), row.room_nid in local
            )
            for room_id, row in rows.items()
        }

    async def load_children_state(
        self, rooms: Collection[StoredSpaceRoom], *, suggested_only: bool
    ) -> Mapping[int, list[dict[str, Any]]]:
        """Return the stripped m.space.child events of each room, in the order of the children.

        spec:
        client-server-api#get_matrixclientv1roomsroomidhierarchy_response-200_strippedchildstateevent
        """
        wanted = {
            room.row.room_nid: select_children(room.children, suggested_only) for room in rooms
        }
        events = await self._events.get_events(
            child.event_nid for children in wanted.values() for child in children
        )
        return {
            room_nid: [
                {**strip_event(event.event), "origin_server_ts": event.event.origin_server_ts}
                for child in children
                if (event := events.get(child.event_nid)) is not None
            ]
            for room_nid, children in wanted.items()
        }

    async def load_contents(
        self, children: Collection[ChildRow]
    ) -> Mapping[str, Mapping[str, Any]]:
        """Return the contents of the m.space.child events of these children, by child."""
        events = await self._events.get_events(child.event_nid for child in children)
        return {
            child.child_id: events[child.event_nid].event.content
            for child in children
            if child.event_nid in events
        }

    async def answer_server(
        self, server: ServerName, room_id: RoomID, *, suggested_only: bool
    ) -> dict[str, Any]:
        """Return the hierarchy of a space for another server, with its inaccessible children.

        Raises NotFound. spec: server-server-api#get_matrixfederationv1hierarchyroomid
        """
        known = await self.load([room_id])
        root = known.get(room_id)
        if (
            root is None
            or not root.has_local_members
            or not await self._previews.find_visible_to_server(server, [root.row])
        ):
            raise NotFound("This server does not have the room, or you may not see it")
        wanted = select_children(root.children, suggested_only)[:MAX_SERVED_CHILDREN]
        found = await self.load([RoomID(link.child_id) for link in wanted])
        local = {child_id: child for child_id, child in found.items() if child.has_local_members}
        visible = await self._previews.find_visible_to_server(
            server, [child.row for child in local.values()]
        )
        shown = [local[child] for link in wanted if (child := RoomID(link.child_id)) in local]
        sent = [child for child in shown if child.row.room_nid in visible]
        states = await self.load_children_state([root, *sent], suggested_only=suggested_only)
        return {
            "room": summarise_room(root.row) | {"children_state": states[root.row.room_nid]},
            "children": [
                summarise_room(child.row) | {"children_state": states[child.row.room_nid]}
                for child in sent
            ],
            "inaccessible_children": [
                child.row.room_id for child in shown if child.row.room_nid not in visible
            ],
        }


def select_children(children: Sequence[ChildRow], suggested_only: bool) -> Sequence[ChildRow]:
    """Return all children, or the suggested ones."""
    return [child for child in children if child.suggested] if suggested_only else children

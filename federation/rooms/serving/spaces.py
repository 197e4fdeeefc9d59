"""Spaces as this server knows them: rooms with their children, many in one go; what other servers
are told of a space.

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
from federation.rooms.serving.summaries import Previews, summarise_room
from storage.rooms.memberships import MembershipStore
from storage.rooms.spaces import ChildRow, SpaceStore
from storage.rooms.summaries import RoomSummaryStore, SummaryRow

MAX_CHILDREN_FOR_SERVERS: Final = 100
"""How many children of a space other servers are told of at once; they ask on for what they want to
know more of."""


class KnownRoom(msgspec.Struct, frozen=True):
    """A room that this server knows."""

    row: SummaryRow
    children: Sequence[ChildRow]
    """In their order; none where the room is no space."""
    is_ours: bool
    """Somebody of this server is in it, so what is known of it is not out of date."""


class RemoteSpaces(Protocol):
    """Asks other servers about rooms that this server is not in."""

    async def get_hierarchies(
        self, rooms: Mapping[RoomID, Sequence[ServerName]], *, suggested_only: bool
    ) -> Mapping[RoomID, RemoteHierarchy]:
        """What servers tell of these rooms, each with the servers that know it; what nobody tells
        of is missing.

        Answers, refusals too, are remembered for some minutes: pages of one tree ask for the same
        rooms again.
        """
        ...


class Spaces:
    """Reads spaces."""

    def __init__(
        self,
        summaries: RoomSummaryStore,
        spaces: SpaceStore,
        membership_store: MembershipStore,
        events: RoomEvents,
        previews: Previews,
    ) -> None:
        self._summaries = summaries
        self._spaces = spaces
        self._membership_store = membership_store
        self._events = events
        self._previews = previews

    async def load(self, room_ids: Collection[RoomID]) -> Mapping[RoomID, KnownRoom]:
        """Those of the rooms that this server knows: three queries."""
        rows = await self._summaries.get_summaries_by_id(room_ids)
        if not rows:
            return {}
        spaces = [row.room_nid for row in rows.values() if row.room_type == SPACE]
        children = await self._spaces.get_children(spaces) if spaces else {}
        ours = await self._membership_store.get_rooms_of_ours(row.room_nid for row in rows.values())
        return {
            RoomID(room_id): KnownRoom(row, children.get(row.room_nid, ()), row.room_nid in ours)
            for room_id, row in rows.items()
        }

    async def load_children_state(
        self, rooms: Collection[KnownRoom], *, suggested_only: bool
    ) -> Mapping[int, list[dict[str, Any]]]:
        """For each of the rooms its m.space.child events, stripped, in the order of the children.

        spec:
        client-server-api#get_matrixclientv1roomsroomidhierarchy_response-200_strippedchildstateevent
        """
        wanted = {
            room.row.room_nid: wanted_children(room.children, suggested_only) for room in rooms
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
        """What the m.space.child events of these children say, by child."""
        events = await self._events.get_events(child.event_nid for child in children)
        return {
            child.child_id: events[child.event_nid].event.content
            for child in children
            if child.event_nid in events
        }

    async def answer_server(
        self, server: ServerName, room_id: RoomID, *, suggested_only: bool
    ) -> dict[str, Any]:
        """What another server is told of a space: the room, its children, and which of these it can
        do nothing with.

        Raises NotFound. spec: server-server-api#get_matrixfederationv1hierarchyroomid
        """
        known = await self.load([room_id])
        root = known.get(room_id)
        if (
            root is None
            or not root.is_ours
            or not await self._previews.visible_to_server(server, [root.row])
        ):
            raise NotFound("This server does not know the room, or may not tell you of it")
        links = wanted_children(root.children, suggested_only)[:MAX_CHILDREN_FOR_SERVERS]
        found = await self.load([RoomID(link.child_id) for link in links])
        ours = {child_id: child for child_id, child in found.items() if child.is_ours}
        visible = await self._previews.visible_to_server(
            server, [child.row for child in ours.values()]
        )
        shown = [ours[child] for link in links if (child := RoomID(link.child_id)) in ours]
        told = [child for child in shown if child.row.room_nid in visible]
        states = await self.load_children_state([root, *told], suggested_only=suggested_only)
        return {
            "room": summarise_room(root.row) | {"children_state": states[root.row.room_nid]},
            "children": [
                summarise_room(child.row) | {"children_state": states[child.row.room_nid]}
                for child in told
            ],
            "inaccessible_children": [
                child.row.room_id for child in shown if child.row.room_nid not in visible
            ],
        }


def wanted_children(children: Sequence[ChildRow], suggested_only: bool) -> Sequence[ChildRow]:
    """All of the children, or those that the space suggests."""
    return [child for child in children if child.suggested] if suggested_only else children

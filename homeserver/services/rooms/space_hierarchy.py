"""The tree of rooms below a space, in pages, with the rooms that the user may know of.

Laws:
- Pages are stateless. A token contains the last room that was shown. For the next page, the walk
  starts again at the root, and the rooms after that one are shown. This takes a few queries for
  each level of the tree. Any node can answer, and no token expires.
- Each room is shown once, at its first place in the walk; so loops end.
- Rooms in the database are read level by level, ahead of the walk. Remote servers are queried
  only for rooms without local members, when the walk reaches such a room. Then up to
  `MAX_PER_QUERY` of these rooms are queried together: the one that was reached, and the next ones.

spec: client-server-api#spaces
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from federation.protocol.errors import Forbidden, InvalidParam
from federation.protocol.ids import RoomID, ServerName, UserID
from federation.protocol.space_hierarchy import (
    SPACE,
    RemoteHierarchy,
    RemoteRoom,
    is_suggested,
    read_via,
)
from federation.rooms.serving.spaces import RemoteSpaces, Spaces, StoredSpaceRoom, select_children
from federation.rooms.serving.summaries import SummaryVisibility, summarise_room
from storage.rooms.spaces import ChildRow

DEFAULT_PAGE: Final = 50
MAX_PAGE: Final = 100
MAX_DEPTH: Final = 50
MAX_ROOMS: Final = 10_000
"""The maximum number of rooms of a tree that are visited."""
MAX_QUERIED: Final = 500
"""The maximum number of rooms that other servers are queried for, for one page; most responses are
cached."""
MAX_PER_QUERY: Final = 20
READ_AHEAD: Final = 2000
"""The maximum number of rooms that are read before the walk reaches them."""

_TOKEN: Final = re.compile(r"([0-9]{1,6})_([01])_([0-9]{1,3})_(!.{1,255})", re.ASCII | re.DOTALL)


class _Token(msgspec.Struct, frozen=True):
    """The progress of the previous pages, and the parameters of the request."""

    shown: int
    suggested_only: bool
    max_depth: int
    last: RoomID

    def __str__(self) -> str:
        return f"{self.shown}_{int(self.suggested_only)}_{self.max_depth}_{self.last}"


class _Link(msgspec.Struct, frozen=True):
    """A link from a space to one of its children."""

    child_id: RoomID
    depth: int
    row: ChildRow | None
    """The row of a local space."""
    via: Sequence[ServerName] = ()
    """The servers that a remote space names."""


class SpaceHierarchy:
    """Returns pages of trees of rooms."""

    def __init__(
        self, *, spaces: Spaces, previews: SummaryVisibility, remote: RemoteSpaces
    ) -> None:
        self._spaces = spaces
        self._previews = previews
        self._remote = remote

    async def get_page(
        self,
        user_id: UserID,
        room_id: RoomID,
        *,
        suggested_only: bool,
        max_depth: int | None,
        limit: int | None,
        from_: str | None,
    ) -> dict[str, Any]:
        """Return a page of the tree below a room. Raises Forbidden, InvalidParam.

        spec: client-server-api#get_matrixclientv1roomsroomidhierarchy
        """
        if limit is not None and limit < 1:
            raise InvalidParam("limit has to be greater than zero")
        if max_depth is not None and max_depth < 0:
            raise InvalidParam("max_depth cannot be negative")
        depth = MAX_DEPTH if max_depth is None else min(max_depth, MAX_DEPTH)
        token = None if from_ is None else _parse_token(from_)
        if token is not None and (token.suggested_only, token.max_depth) != (suggested_only, depth):
            raise InvalidParam("suggested_only and max_depth cannot change from page to page")
        page = min(limit or DEFAULT_PAGE, MAX_PAGE)
        walk = _Walk(
            spaces=self._spaces,
            previews=self._previews,
            remote=self._remote,
            user_id=user_id,
            suggested_only=suggested_only,
            max_depth=depth,
        )
        found, start = await walk.run(room_id, token, page + 1)
        if not found:
            raise Forbidden("You may not look at this room, or it does not exist")
        shown = found[start : start + page]
        response: dict[str, Any] = {
            "rooms": await self._present(shown, suggested_only=suggested_only)
        }
        if len(found) > start + page:
            response["next_batch"] = str(
                _Token(start + page, suggested_only, depth, _id_of(shown[-1]))
            )
        return response

    async def _present(
        self, rooms: Sequence[StoredSpaceRoom | RemoteRoom], *, suggested_only: bool
    ) -> list[dict[str, Any]]:
        known = [room for room in rooms if isinstance(room, StoredSpaceRoom)]
        states = await self._spaces.load_children_state(known, suggested_only=suggested_only)
        return [
            summarise_room(room.row) | {"children_state": states[room.row.room_nid]}
            if isinstance(room, StoredSpaceRoom)
            else {
                **room.summary,
                "children_state": _children_of(room, suggested_only=suggested_only),
            }
            for room in rooms
        ]


class _Walk:
    """A walk through a tree, depth first."""

    def __init__(
        self,
        *,
        spaces: Spaces,
        previews: SummaryVisibility,
        remote: RemoteSpaces,
        user_id: UserID,
        suggested_only: bool,
        max_depth: int,
    ) -> None:
        self._spaces = spaces
        self._previews = previews
        self._remote = remote
        self._user_id = user_id
        self._suggested_only = suggested_only
        self._max_depth = max_depth
        self._known: dict[RoomID, StoredSpaceRoom | None] = {}
        """Rooms that were looked up locally; None: unknown."""
        self._visible: set[int] = set()
        self._remote_rooms: dict[RoomID, RemoteRoom | None] = {}
        """Summaries from other servers; None: there is none, or the user may not know of the
        room."""
        self._queried = 0

    async def run(
        self, root: RoomID, token: _Token | None, count: int
    ) -> tuple[list[StoredSpaceRoom | RemoteRoom], int]:
        """Return the rooms from the root on, in order, and where among them the page of at most
        `count` rooms begins."""
        found: list[StoredSpaceRoom | RemoteRoom] = []
        start = 0 if token is None else None
        seen: set[RoomID] = set()
        stack = [_Link(root, 0, None)]
        await self._load([root], 0)
        while stack and len(seen) < MAX_ROOMS:
            link = stack.pop()
            if link.child_id in seen:
                continue
            seen.add(link.child_id)
            room = await self._find(link, stack, seen)
            if room is None:
                continue
            found.append(room)
            if start is None and token is not None and link.child_id == token.last:
                start = len(found)
            if start is not None and len(found) >= start + count:
                break
            if link.depth < self._max_depth:
                links = self._links(room, link.depth + 1)
                if links:
                    await self._load([each.child_id for each in links], link.depth + 1)
                    stack += reversed(links)
        if start is None:  # the last room of the previous page is gone
            assert token is not None
            start = min(token.shown, len(found))
        return found, start

    async def _find(
        self, link: _Link, stack: Sequence[_Link], seen: Collection[RoomID]
    ) -> StoredSpaceRoom | RemoteRoom | None:
        """Return the room at the end of a link, as far as the user may know of it."""
        room_id = link.child_id
        known = self._known.get(room_id)
        if known is None or not known.has_local_members:
            if room_id not in self._remote_rooms:
                await self._query(
                    [link, *(each for each in reversed(stack) if each.child_id not in seen)]
                )
            remote_room = self._remote_rooms.get(room_id)
            if remote_room is not None:
                return remote_room
        return known if known is not None and known.row.room_nid in self._visible else None

    def _links(self, room: StoredSpaceRoom | RemoteRoom, depth: int) -> list[_Link]:
        if isinstance(room, StoredSpaceRoom):
            return [
                _Link(RoomID(child.child_id), depth, child)
                for child in select_children(room.children, self._suggested_only)
            ]
        return [
            _Link(RoomID(event["state_key"]), depth, None, read_via(event["content"]))
            for event in _children_of(room, suggested_only=self._suggested_only)
        ]

    async def _load(self, room_ids: Collection[RoomID], depth: int) -> None:
        """Read rooms that the walk will reach, and also what is below them while there are few."""
        frontier = [room_id for room_id in dict.fromkeys(room_ids) if room_id not in self._known]
        while frontier:
            found = await self._spaces.load(frontier)
            self._known.update((room_id, found.get(room_id)) for room_id in frontier)
            self._visible |= await self._previews.find_visible_to_user(
                self._user_id, [room.row for room in found.values()]
            )
            if depth >= self._max_depth:
                return
            depth += 1
            below = dict.fromkeys(
                RoomID(child.child_id)
                for room in found.values()
                if room.row.room_nid in self._visible
                for child in select_children(room.children, self._suggested_only)
            )
            frontier = [room_id for room_id in below if room_id not in self._known]
            if len(self._known) + len(frontier) > READ_AHEAD:
                return

    async def _query(self, links: Sequence[_Link]) -> None:
        """Query other servers for the first of these rooms, and for the next ones without local
        members."""
        queried: dict[RoomID, _Link] = {}
        for link in links:
            known = self._known.get(link.child_id)
            if (
                link.child_id in self._remote_rooms
                or link.child_id in queried
                or (known is not None and known.has_local_members)
            ):
                continue
            queried[link.child_id] = link
            if len(queried) >= MAX_PER_QUERY:
                break
        self._remote_rooms.update(dict.fromkeys(queried))
        self._queried += len(queried)
        if self._queried > MAX_QUERIED:
            return
        contents = await self._spaces.load_contents(
            [link.row for link in queried.values() if link.row is not None]
        )
        rooms = {
            room_id: link.via if link.row is None else read_via(contents.get(room_id, {}))
            for room_id, link in queried.items()
        }
        responses = await self._remote.get_hierarchies(rooms, suggested_only=self._suggested_only)
        for room_id in queried:
            if room_id in responses:
                await self._add_response(room_id, responses[room_id])

    async def _add_response(self, room_id: RoomID, response: RemoteHierarchy) -> None:
        if await self._previews.is_remote_room_visible(self._user_id, response.room.summary):
            self._remote_rooms[room_id] = response.room
        for child_id in response.inaccessible:
            self._remote_rooms.setdefault(child_id, None)
        for child_id, child in response.children.items():
            # a child space without its own children is queried when the walk reaches it
            if child.children_state is not None or child.summary.get("room_type") != SPACE:
                may_know = await self._previews.is_remote_room_visible(self._user_id, child.summary)
                self._remote_rooms.setdefault(child_id, child if may_know else None)


def _children_of(room: RemoteRoom, *, suggested_only: bool) -> list[Mapping[str, Any]]:
    if room.summary.get("room_type") != SPACE:
        return []
    return [
        event
        for event in room.children_state or ()
        if not suggested_only or is_suggested(event["content"])
    ]


def _id_of(room: StoredSpaceRoom | RemoteRoom) -> RoomID:
    return (
        RoomID(room.row.room_id)
        if isinstance(room, StoredSpaceRoom)
        else RoomID(room.summary["room_id"])
    )


def _parse_token(text: str) -> _Token:
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise InvalidParam("Not a token that this endpoint gave out")
    return _Token(int(match[1]), match[2] == "1", int(match[3]), RoomID(match[4]))

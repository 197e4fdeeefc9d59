"""In which rooms a client of sliding sync was told who types, and up to when: a room may leave its windows and come back.

In memory alone: typing is over in seconds. After a restart, and where too many clients are connected, what is told is as it
is for rooms that were in view all the time.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Set
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from homeserver.services.stream_tokens import SyncToken
from homeserver.services.typing import Typing
from storage.sliding_connections import ConnectionKey

MOST_CONNECTIONS: Final = 20_000
MOST_ROOMS_LEFT: Final = 500
"""Rooms out of view that are remembered of a connection, the latest to leave."""


FindLive = Callable[[], Set[int]]


class View(msgspec.Struct, frozen=True, gc=False):
    """What a client has been told at some position."""

    rooms: frozenset[int]
    """Those in view: of them all is told up to that position."""
    left: Mapping[int, int]
    """Those that were before, and the ephemeral position up to which all is told of each."""


class TypingViews:
    """The views of all connections. For the reactor thread."""

    def __init__(self, typing: Typing) -> None:
        self._typing = typing
        self._views: OrderedDict[ConnectionKey, dict[SyncToken, View]] = OrderedDict()

    def move(
        self, key: ConnectionKey, before: SyncToken | None, after: SyncToken, rooms: Set[int], find_live: FindLive
    ) -> Mapping[int, list[UserID]]:
        """Who types in the rooms that are in view now, where a client that stands at `before` has to be told.

        It will stand at `after`. `find_live` gives the rooms of which it was told all there is up to `before`, for want of a
        view.
        """
        known = self._views.get(key, {})
        view = None if before is None else known.get(before)
        if view is None:
            view = View(frozenset(rooms & find_live()), {})
        found: dict[int, list[UserID]] = {}
        if before is not None and not self._typing.is_quiet_since(before.ephemeral):
            changed = self._typing.changed_rooms(before.ephemeral) & rooms & view.rooms
            found.update(self._typing.get_changed(changed, before.ephemeral))
        if rooms == view.rooms:
            moved = view
        else:
            for nid in rooms - view.rooms:
                found.update(self._typing.get_changed([nid], view.left.get(nid)))
            moved = View(frozenset(rooms), _left(view, before, rooms))
        self._views[key] = {after: moved} if before is None else {before: view, after: moved}
        self._views.move_to_end(key)
        if len(self._views) > MOST_CONNECTIONS:
            self._views.popitem(last=False)
        return found

    def stay(self, key: ConnectionKey, before: SyncToken | None, after: SyncToken) -> None:
        """The client will stand at `after`, with the same rooms in view; nobody has begun or ceased to type meanwhile."""
        view = None if before is None else self._views.get(key, {}).get(before)
        if before is not None and view is not None:
            self._views[key] = {before: view, after: view}
            self._views.move_to_end(key)


def _left(view: View, before: SyncToken | None, rooms: Set[int]) -> Mapping[int, int]:
    left = {nid: position for nid, position in view.left.items() if nid not in rooms}
    if before is not None:
        left.update((nid, before.ephemeral) for nid in view.rooms if nid not in rooms)
    for nid in list(left)[: max(0, len(left) - MOST_ROOMS_LEFT)]:
        del left[nid]
    return left

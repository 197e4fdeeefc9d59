"""In which rooms a client of sliding sync was told who types, and up to when: a room may leave its windows and come back. Then the
client is told anew who types there: it gave up what it knew, or should have. Proposal: MSC4508.

In memory alone: typing is over in seconds. Of a client of which it is not known, since the server was started anew or
remembers others, everything that is known of who types is told: what it had before can only be put right by that. It does not
end waiting by itself, or a client that is forgotten again and again would never wait.
"""

from collections.abc import Mapping, Set
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from homeserver.services.sliding_sync.kept import KeptOfConnections
from homeserver.services.stream_tokens import SyncToken
from homeserver.services.typing import Typing
from storage.sliding_connections import ConnectionKey
from storage.streams import Streams

MOST_ROOMS_LEFT: Final = 500
"""Rooms out of view that are remembered of a connection, the latest to leave."""
ENTRY: Final = 512
"""Bytes for a connection, about."""
ROOM: Final = 100
"""Bytes for a room of a view, about."""


class View(msgspec.Struct, frozen=True, gc=False):
    """What a client has been told at some position."""

    rooms: frozenset[int]
    """Those in view: of them all is told up to that position."""
    left: Mapping[int, int]
    """Those that were before, and the ephemeral position up to which all is told of each."""


class Typists(msgspec.Struct, frozen=True, gc=False):
    """Who types, as far as a client is to be told."""

    rooms: Mapping[int, list[UserID]]
    is_news: bool
    """Whether something has changed since the client heard last, or came into view."""


class TypingViews:
    """The views of all connections. For the reactor thread."""

    def __init__(self, typing: Typing, streams: Streams, *, capacity: int) -> None:
        """`capacity`: about how many bytes are kept."""
        self._typing = typing
        self._views = KeptOfConnections[Mapping[SyncToken, View]](streams, capacity=capacity)

    @property
    def weight(self) -> int:
        """About how many bytes are kept."""
        return self._views.weight

    def move(self, key: ConnectionKey, before: SyncToken | None, after: SyncToken, rooms: Set[int]) -> Typists:
        """Who types in the rooms that are in view now, where a client that stands at `before` has to be told.

        It will stand at `after`.
        """
        if before is None:
            found = self._typing.get_changed(rooms, None)
            self._keep(key, {after: View(frozenset(rooms), {})})
            return Typists(found, bool(found))
        changed: Set[int] = frozenset()
        if not self._typing.is_quiet_since(before.ephemeral):
            changed = self._typing.changed_rooms(before.ephemeral) & rooms
        view = self._find(key, before)
        if view is None:
            self._keep(key, {after: View(frozenset(rooms), {})})
            return Typists(self._typing.get_known(rooms), bool(changed))
        told = dict(self._typing.get_changed(changed & view.rooms, before.ephemeral))
        moved = view
        if rooms != view.rooms:
            for nid in rooms - view.rooms:
                if nid not in view.left and len(view.left) >= MOST_ROOMS_LEFT:
                    told.update(self._typing.get_known([nid]))  # it may be one of those that are no longer remembered
                    continue
                told.update(self._typing.get_changed([nid], None))
                if nid in view.left:  # that nobody types any more, to who has not given up what they knew
                    told.update(self._typing.get_changed([nid], view.left[nid]))
            moved = View(frozenset(rooms), _left(view, before, rooms))
        self._keep(key, {before: view, after: moved})
        return Typists(told, bool(told))

    def stay(self, key: ConnectionKey, before: SyncToken, after: SyncToken) -> None:
        """The client will stand at `after`, with the same rooms in view; nobody has begun or ceased to type meanwhile."""
        view = self._find(key, before)
        if view is not None:
            self._views.replace(key, {before: view, after: view})

    def _find(self, key: ConnectionKey, at: SyncToken) -> View | None:
        kept = self._views.get(key)
        return None if kept is None else kept[0].get(at)

    def _keep(self, key: ConnectionKey, views: Mapping[SyncToken, View]) -> None:
        """Of two views the one is mostly the other."""
        self._views.put(key, views, ENTRY + ROOM * max(len(view.rooms) + len(view.left) for view in views.values()))


def _left(view: View, before: SyncToken, rooms: Set[int]) -> Mapping[int, int]:
    left = {nid: position for nid, position in view.left.items() if nid not in rooms}
    left.update((nid, before.ephemeral) for nid in view.rooms if nid not in rooms)
    for nid in list(left)[: max(0, len(left) - MOST_ROOMS_LEFT)]:
        del left[nid]
    return left

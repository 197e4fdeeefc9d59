"""The typing notifications that were sent to sliding sync clients: for which rooms, and up to which
position.

A room may leave the windows of a client and come back. Then the client gets the typing users again,
since clients should drop them when a room leaves the view. Proposal: MSC4508.

The typing users of a response are recorded under its `pos`. A response may get lost, and the
response to the repeated request may differ. The `pos` has to tell which of the two a client has
received, so no two responses with different typing users have the same `pos`.

The record is in memory only, because typing ends within seconds. After a restart or an eviction, a
client without a record gets all typing users, which replaces what it has. Such a repetition does
not end a long poll; otherwise a client whose record is evicted repeatedly would never wait. The
`pos` also names the rooms in which the client shows somebody typing (`SyncToken.typing_rooms`), so
a client without a record still learns that typing has ended.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Final

import msgspec
from msgspec.structs import replace

from federation.protocol.ids import UserID
from homeserver.services.ephemeral.typing import Typing
from homeserver.services.sliding_sync.connection_cache import ConnectionCache
from homeserver.services.streams.sync_tokens import SyncToken
from storage.cache import drop_oldest
from storage.engine.streams import Streams
from storage.sync.sliding_connections import SlidingConnectionKey

MAX_FORMER_ROOMS: Final = 500
"""Rooms that left the view of a connection and are recorded, the latest ones."""
ENTRY_BYTES: Final = 512
"""Bytes of a connection, about."""
MAX_RESPONSES: Final = 8
"""Recorded responses of a connection, as many as its stored states: mostly two."""
ROOM_BYTES: Final = 100
"""Bytes of a room in a view, about."""


class TypingView(msgspec.Struct, frozen=True, gc=False):
    """The typing users that a client knows at some position."""

    rooms: frozenset[int]
    """The rooms in view: everything up to that position was sent."""
    left: Mapping[int, int]
    """Rooms that left the view, with the ephemeral position up to which everything was sent."""
    is_complete: bool = True
    """Whether these are all rooms that ever were in view."""
    typed: tuple[int, ...] = ()
    """As in `SyncToken`, of the rooms in view."""


class TypingChanges(msgspec.Struct, frozen=True, gc=False):
    """The typing notifications of a response."""

    rooms: Mapping[int, Sequence[UserID]]
    has_changes: bool
    """Whether anything changed, or came into view, since the client's last response."""
    view: TypingView
    """The typing users that the client knows with these."""


TypingViews = Mapping[str, TypingView]
"""The views that a connection was sent, by the `pos` of the response."""


class SentTyping:
    """Records the views of all connections. Use this class only on the reactor thread."""

    def __init__(self, *, typing: Typing, streams: Streams, capacity: int) -> None:
        """`capacity`: the size in bytes, about."""
        self._typing = typing
        self._views = ConnectionCache[TypingViews](streams=streams, capacity=capacity)

    @property
    def weight(self) -> int:
        """The size of all views in bytes, about."""
        return self._views.weight

    def move(
        self,
        key: SlidingConnectionKey,
        pos: str | None,
        before: SyncToken | None,
        rooms: Set[int],
        initial: Set[int] = frozenset(),
    ) -> TypingChanges:
        """Return the typing users of the rooms in view, as far as a client with this `pos` needs
        them.

        `before` is the token in the `pos`. The client starts over with the rooms in `initial`.
        """
        if before is None:
            found = self._typing.get_changed(rooms, None)
            typed = self._typing.update_token((), found)
            return TypingChanges(found, bool(found), TypingView(frozenset(rooms), {}, typed=typed))
        changed: Set[int] = frozenset()
        if not self._typing.is_unchanged_since(before.ephemeral):
            changed = self._typing.changed_rooms(before.ephemeral) & rooms
        view = self.find(key, pos)
        shown = [nid for nid in before.typing_rooms if nid in rooms]
        sent: dict[int, Sequence[UserID]] = dict.fromkeys(self._typing.find_stopped(shown), ())
        if view is None:
            has_changes = bool(changed or sent)
            sent.update(self._typing.get_typing_users(rooms))
            typed = self._typing.update_token(shown, sent)
            return TypingChanges(
                sent, has_changes, TypingView(frozenset(rooms), {}, is_complete=False, typed=typed)
            )
        if changed:
            sent.update(self._typing.get_changed(changed & view.rooms, before.ephemeral))
        if initial:
            sent.update(self._typing.get_changed(initial & rooms, None))
        if rooms != view.rooms:
            sent.update(self._find_entering(view, rooms - view.rooms))
            view = TypingView(frozenset(rooms), *_left(view, before, rooms), view.typed)
        typed = self._typing.update_token(shown, sent) if shown or sent else ()
        if typed != view.typed:
            view = replace(view, typed=typed)
        return TypingChanges(sent, bool(sent), view)

    def _find_entering(self, view: TypingView, room_nids: Set[int]) -> dict[int, Sequence[UserID]]:
        """Find the typing users of rooms that come into view."""
        found: dict[int, Sequence[UserID]] = {}
        for nid in room_nids:
            if nid not in view.left and not view.is_complete:
                # it may have been in view and is no longer recorded
                found.update(self._typing.get_typing_users([nid]))
                continue
            found.update(self._typing.get_changed([nid], None))
            # also that nobody types any more, if the client did not drop what it knew
            if nid in view.left:
                found.update(self._typing.get_changed([nid], view.left[nid]))
        return found

    def find(self, key: SlidingConnectionKey, pos: str | None) -> TypingView | None:
        """Return the view of a client with this `pos`, if it is recorded."""
        view_and_tokens = self._views.get(key)
        return None if view_and_tokens is None or pos is None else view_and_tokens[0].get(pos)

    def record(
        self, key: SlidingConnectionKey, before: str | None, pos: str, view: TypingView
    ) -> bool:
        """Record the view of a response. `before` is the `pos` of the request, `pos` that of the
        response.

        Returns False and records nothing if another response with the same `pos` differs, in rooms
        where somebody types or did lately.
        """
        views: Mapping[str, TypingView]
        views, weight = self._views.get(key) or ({}, 0)
        if self._differs(views.get(pos), view):
            return False
        is_unchanged = 0 < len(views) <= 2 and all(each is view for each in views.values())
        if before is not None and is_unchanged and list(views)[-1] == before:
            self._views.put(key, {before: view, pos: view}, weight)  # mostly
            return True
        known = {} if before is None else _since(views, before)
        known[pos] = view
        drop_oldest(known, MAX_RESPONSES)
        distinct = {id(each): each for each in known.values()}
        weight = ENTRY_BYTES + ROOM_BYTES * sum(
            len(each.rooms) + len(each.left) for each in distinct.values()
        )
        self._views.put(key, known, weight)
        return True

    def _differs(self, sent: TypingView | None, view: TypingView) -> bool:
        """Whether another response with the same `pos` sent something else."""
        if sent is None or sent is view:
            return False
        others = {nid for nid, _ in sent.left.items() ^ view.left.items()} | (
            sent.rooms ^ view.rooms
        )
        return bool(self._typing.get_typing_users(others))


def _since(views: Mapping[str, TypingView], pos: str) -> dict[str, TypingView]:
    """The views from a response on, if it is recorded: the client has that one, so older ones are
    out of date."""
    if pos not in views:
        return dict(views)
    keys = list(views)
    return {key: views[key] for key in keys[keys.index(pos) :]}


def _left(view: TypingView, before: SyncToken, rooms: Set[int]) -> tuple[Mapping[int, int], bool]:
    """The rooms that left the view, and whether these are all."""
    left = {**view.left, **dict.fromkeys(view.rooms - rooms, before.ephemeral)}
    for nid in rooms - view.rooms:
        left.pop(nid, None)
    too_many = len(left) - MAX_FORMER_ROOMS
    for nid in list(left)[:too_many] if too_many > 0 else ():
        del left[nid]
    return left, view.is_complete and too_many <= 0

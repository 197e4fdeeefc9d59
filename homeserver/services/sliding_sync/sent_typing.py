"""In which rooms a client of sliding sync was told who types, and up to when: a room may leave its
windows and come back. Then the client is told anew who types there: it gave up what it knew, or
should have. Proposal: MSC4508.

What a client was told goes by the `pos` of the answer, which may get lost: so no two answers with
different views have the same one.

In memory alone: typing is over in seconds. Of a client of which it is not known, since the server
was started anew or remembers others, everything that is known of who types is told: what it had
before can only be put right by that. It does not end waiting by itself, or a client that is
forgotten again and again would never wait. That nobody types any more where it was told so before a
start is known from its `pos` (`SyncToken.typed`).
"""

from collections.abc import Mapping, Sequence, Set
from typing import Final

import msgspec
from msgspec.structs import replace

from federation.protocol.ids import UserID
from homeserver.services.ephemeral.typing import Typing
from homeserver.services.sliding_sync.connection_cache import ConnectionCache
from homeserver.services.streams.sync_tokens import SyncToken
from storage.engine.streams import Streams
from storage.sync.sliding_connections import ConnectionKey

MOST_ROOMS_LEFT: Final = 500
"""Rooms out of view that are remembered of a connection, the latest to leave."""
ENTRY: Final = 512
"""Bytes for a connection, about."""
MOST_ANSWERS: Final = 8
"""As many as states of a connection are kept: mostly two, the `pos` with which the client came and
that of the answer."""
ROOM: Final = 100
"""Bytes for a room of a view, about."""


class TypingView(msgspec.Struct, frozen=True, gc=False):
    """What a client has been told at some position."""

    rooms: frozenset[int]
    """Those in view: of them all is told up to that position."""
    left: Mapping[int, int]
    """Those that were before, and the ephemeral position up to which all is told of each."""
    is_whole: bool = True
    """Whether these are all that ever were in view."""
    typed: tuple[int, ...] = ()
    """As in `SyncToken`, of the rooms in view."""


class TypingChanges(msgspec.Struct, frozen=True, gc=False):
    """Who types, as far as a client is to be told."""

    rooms: Mapping[int, Sequence[UserID]]
    has_changes: bool
    """Whether something has changed since the client heard last, or came into view."""
    view: TypingView
    """What the client has been told with that."""


class SentTyping:
    """The views of all connections. For the reactor thread."""

    def __init__(self, typing: Typing, streams: Streams, *, capacity: int) -> None:
        """`capacity`: about how many bytes are kept."""
        self._typing = typing
        self._views = ConnectionCache[Mapping[str, TypingView]](streams, capacity=capacity)

    @property
    def weight(self) -> int:
        """About how many bytes are kept."""
        return self._views.weight

    def move(
        self,
        key: ConnectionKey,
        pos: str | None,
        before: SyncToken | None,
        rooms: Set[int],
        begun: Set[int] = frozenset(),
    ) -> TypingChanges:
        """Who types in the rooms that are in view now, where a client that has come with this `pos`
        has to be told. `before`: what it stands at. With the rooms in `begun` it begins anew."""
        if before is None:
            found = self._typing.get_changed(rooms, None)
            return TypingChanges(
                found,
                bool(found),
                TypingView(frozenset(rooms), {}, typed=self._typing.name_typed((), found)),
            )
        changed: Set[int] = frozenset()
        if not self._typing.is_quiet_since(before.ephemeral):
            changed = self._typing.changed_rooms(before.ephemeral) & rooms
        view = self.find(key, pos)
        typed = [nid for nid in before.typed if nid in rooms]
        told: dict[int, Sequence[UserID]] = dict.fromkeys(self._typing.find_over(typed), ())
        if view is None:
            has_changes = bool(changed or told)
            told.update(self._typing.get_known(rooms))
            view = TypingView(
                frozenset(rooms), {}, is_whole=False, typed=self._typing.name_typed(typed, told)
            )
            return TypingChanges(told, has_changes, view)
        if changed:
            told.update(self._typing.get_changed(changed & view.rooms, before.ephemeral))
        if begun:
            told.update(self._typing.get_changed(begun & rooms, None))
        if rooms != view.rooms:
            for nid in rooms - view.rooms:
                if nid not in view.left and not view.is_whole:
                    told.update(
                        self._typing.get_known([nid])
                    )  # it may be one of those that are no longer remembered
                    continue
                told.update(self._typing.get_changed([nid], None))
                if (
                    nid in view.left
                ):  # that nobody types any more, to who has not given up what they knew
                    told.update(self._typing.get_changed([nid], view.left[nid]))
            view = TypingView(frozenset(rooms), *_left(view, before, rooms), view.typed)
        names = self._typing.name_typed(typed, told) if typed or told else ()
        if names != view.typed:
            view = replace(view, typed=names)
        return TypingChanges(told, bool(told), view)

    def find(self, key: ConnectionKey, pos: str | None) -> TypingView | None:
        """What a client has been told that has this `pos`, if that is known."""
        kept = self._views.get(key)
        return None if kept is None or pos is None else kept[0].get(pos)

    def keep(self, key: ConnectionKey, before: str | None, pos: str, view: TypingView) -> bool:
        """A client that has come with the one `pos` is told this, with the answer that has the
        other one. False, and it is not kept, where an answer with that `pos` told the client
        something else, of rooms where somebody types or did lately."""
        kept = self._views.get(key)
        told = None if kept is None else kept[0].get(pos)
        if told is not None and told is not view:
            others = {nid for nid, _ in told.left.items() ^ view.left.items()} | (
                told.rooms ^ view.rooms
            )
            if self._typing.get_known(others):
                return False
        if kept is not None and before is not None and len(kept[0]) <= 2:
            answers = list(kept[0].items())
            if answers[0][1] is view and answers[-1][1] is view and answers[-1][0] == before:
                self._views.replace(
                    key, {before: view, pos: view}
                )  # mostly: it is told what it was told before
                return True
        known = {} if kept is None or before is None else dict(kept[0])
        if (
            before in known
        ):  # the client has that for sure, and with it no longer what it had before
            for each in list(known):
                if each == before:
                    break
                del known[each]
        known[pos] = view
        while len(known) > MOST_ANSWERS:
            del known[next(iter(known))]
        views = {id(each): each for each in known.values()}
        weight = ENTRY + ROOM * sum(len(each.rooms) + len(each.left) for each in views.values())
        self._views.put(key, known, weight)
        return True


def _left(view: TypingView, before: SyncToken, rooms: Set[int]) -> tuple[Mapping[int, int], bool]:
    """The rooms out of view, and whether these are all."""
    left = {**view.left, **dict.fromkeys(view.rooms - rooms, before.ephemeral)}
    for nid in rooms - view.rooms:
        left.pop(nid, None)
    too_many = len(left) - MOST_ROOMS_LEFT
    for nid in list(left)[:too_many] if too_many > 0 else ():
        del left[nid]
    return left, view.is_whole and too_many <= 0

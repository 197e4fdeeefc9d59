"""Who is typing where: in memory, each notice with an end. Who leaves a room types there no more.
Nodes tell one another, and a node that starts asks the others.

Positions are of the ephemeral counter: a client that comes with one from before the start is told
where anybody types. That nobody does any more in the other rooms is not known here then; but the
client's token names those of which it was told that somebody does.

spec: client-server-api#typing-notifications
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from federation.protocol.ids import ServerName, UserID, domain_of
from federation.rooms.memberships import Memberships
from homeserver.cluster.notifier import Notifier
from homeserver.cluster.notify import NodeNotes
from homeserver.services.streams.ephemeral_counter import EphemeralCounter
from homeserver.services.streams.latest_changes import LatestChanges
from homeserver.services.streams.sync_tokens import MOST_TYPED, SyncToken
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow

MAX_TIMEOUT_MS: Final = 120_000
DEFAULT_TIMEOUT_MS: Final = 30_000
LONGER_ELSEWHERE: Final = 1.0
"""Seconds after which what another node told ends by itself: mostly that node says so."""
MAX_ROOMS: Final = 10_000
"""Of how many rooms the latest change is remembered."""

KIND: Final = "typing"
CROSSED: Final = "typing_crossed"
ASKED: Final = "typing_asked"
"""Of notes to other nodes."""

Subscriber = Callable[[int, UserID, bool], None]
"""Called with the number of a room, a user, and whether they type there; may not raise and may not
block."""


class TypingNote(msgspec.Struct, frozen=True, array_like=True):
    """What a node tells the others."""

    position: int
    room_nid: int
    user_id: UserID
    timeout_ms: int
    """0: they type no longer."""
    is_own: bool
    """Whether it is a user of this server who said so."""


class CrossedNote(msgspec.Struct, frozen=True, array_like=True):
    """Somebody has stopped typing in a room, and up to that position the node that tells so has
    answered clients without knowing it: one that comes from there would never hear of it."""

    position: int
    room_nid: int


class Question(msgspec.Struct, frozen=True, array_like=True):
    """A node has begun to hear others: each is to tell it who types, of those that it was told of
    itself."""


class Typing:
    """The notices of all rooms. For the reactor thread."""

    def __init__(
        self,
        notifier: Notifier,
        clock: IReactorTime,
        counter: EphemeralCounter,
        memberships: Memberships,
        streams: Streams,
        notes: NodeNotes | None,
    ) -> None:
        """`notes`: how other nodes are told; None where there are none."""
        self._notifier = notifier
        self._clock = clock
        self._counter = counter
        self._memberships = memberships
        self._notes = notes
        self._subscribers: tuple[Subscriber, ...] = ()
        self._forgot_until = clock.seconds() + MAX_TIMEOUT_MS / 1000 + LONGER_ELSEWHERE
        """Until then somebody may stop of whom clients heard before the start that they type."""
        self._ends: dict[int, dict[UserID, IDelayedCall]] = {}
        self._told_here: set[tuple[int, UserID]] = set()
        """Of these notices (rooms and users) those that no other node has told."""
        self._changed: LatestChanges[int] = LatestChanges(MAX_ROOMS, counter.position)
        """By room."""
        streams.subscribe(self._on_changes, Topic.MEMBERSHIP)
        if notes is not None:
            notes.register(KIND, TypingNote, self._hear_node)
            notes.register(CROSSED, CrossedNote, self._hear_crossed)
            notes.register(ASKED, Question, self._hear_question)
            notes.ask(ASKED, Question())

    @property
    def position(self) -> int:
        """The head of the ephemeral counter."""
        return self._counter.position

    def meet(self, position: int) -> None:
        """A client comes with this ephemeral position: another node may have given it out, and told
        of all up to there."""
        if self._notes is not None:
            self._counter.meet(position)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Hear of whoever of this server begins or ends typing, or goes on."""
        self._subscribers += (subscriber,)

    def put(self, room_nid: int, user_id: UserID, timeout_ms: int | None) -> None:
        """One of this server's users, who is in the room, says that they type for so long, or
        (None) no longer."""
        if timeout_ms is None:
            self.stop(room_nid, user_id)
        else:
            self.start(room_nid, user_id, timeout_ms)
        self._tell_nodes(room_nid, user_id, timeout_ms, is_own=True)
        for subscriber in self._subscribers:
            subscriber(room_nid, user_id, timeout_ms is not None)

    async def receive(
        self, origin: ServerName, room_nid: int, user_id: UserID, *, is_typing: bool
    ) -> None:
        """What another server says of one of its users; nothing comes of it where they are not its,
        or not in the room.

        spec: server-server-api#typing-notifications
        """
        if domain_of(user_id) != origin:
            return
        if not is_typing:
            self.stop(room_nid, user_id)
        elif await self._memberships.find_joined([(room_nid, user_id)]):
            self.start(room_nid, user_id, DEFAULT_TIMEOUT_MS)
        else:
            return
        self._tell_nodes(room_nid, user_id, DEFAULT_TIMEOUT_MS if is_typing else None, is_own=False)

    def start(
        self, room_nid: int, user_id: UserID, timeout_ms: int, position: int | None = None
    ) -> None:
        """The user types, and will be taken to do so for that long. `position`: where another node
        told so, which says when that ends."""
        users = self._ends.setdefault(room_nid, {})
        known = users.get(user_id)
        seconds = min(max(timeout_ms, 1), MAX_TIMEOUT_MS) / 1000
        if position is None:
            self._told_here.add((room_nid, user_id))
        else:
            self._told_here.discard((room_nid, user_id))
            seconds += LONGER_ELSEWHERE
        if known is not None and known.active():
            known.reset(seconds)
            return
        users[user_id] = self._clock.callLater(seconds, self._end, room_nid, user_id)
        self._change(room_nid, position)

    def stop(self, room_nid: int, user_id: UserID, position: int | None = None) -> None:
        """The user has stopped typing. `position`: as for `start`."""
        users = self._ends.get(room_nid)
        if not users or user_id not in users:
            return
        call = users.pop(user_id)
        self._told_here.discard((room_nid, user_id))
        if call.active():
            call.cancel()
        if not users:
            del self._ends[room_nid]
        self._change(room_nid, position)

    def _end(self, room_nid: int, user_id: UserID) -> None:
        self.stop(room_nid, user_id)
        self._tell_nodes(room_nid, user_id, None, is_own=False)

    def get_changed(
        self, room_nids: Iterable[int], since: int | None
    ) -> Mapping[int, list[UserID]]:
        """Who types in those of the rooms where that has changed since the position; None: where
        anybody types.

        For a position from before all that is remembered: where anybody types, or did lately.
        """
        found: dict[int, list[UserID]] = {}
        start = self._changed.complete_from
        for room_nid in room_nids:
            if since is None or not start <= since <= self._counter.position:
                if room_nid in self._ends or (
                    since is not None and since < start and room_nid in self._changed
                ):
                    found[room_nid] = list(self._ends.get(room_nid, ()))
            elif self._changed.get(room_nid) > since:
                found[room_nid] = list(self._ends.get(room_nid, ()))
        return found

    def get_known(self, room_nids: Iterable[int]) -> Mapping[int, list[UserID]]:
        """Who types in those of the rooms where anybody does, or did lately as far as that is
        remembered."""
        ends, changed = self._ends, self._changed
        return {nid: list(ends.get(nid, ())) for nid in room_nids if nid in ends or nid in changed}

    def find_over(self, room_nids: Iterable[int]) -> set[int]:
        """Those of the rooms in which nobody types, as far as is known here."""
        return {room_nid for room_nid in room_nids if room_nid not in self._ends}

    def is_quiet_since(self, since: int | None) -> bool:
        """Whether nobody types, and nobody has stopped since the position."""
        return not self._ends and (since is None or since == self._counter.position)

    def changed_rooms(self, since: int) -> set[int]:
        """The rooms where something has changed since the position; as far as `get_changed`
        tells."""
        if since == self._counter.position:
            return set()
        if since < self._changed.complete_from:
            return self._ends.keys() | set(self._changed)
        if since > self._counter.position:
            return set(self._ends)
        return set(self._changed.since(since))

    async def only_own(self, user_id: UserID, token: SyncToken) -> SyncToken:
        """The token of a client, with none but rooms that the user is in: it may be made up, and an
        answer that says of other rooms whether somebody types there would be no less so for telling
        it by its own token."""
        if not token.typed:
            return token
        rows = await self._memberships.of_user(user_id)
        own = tuple(
            nid
            for nid in dict.fromkeys(token.typed)
            if nid in rows and rows[nid].membership == "join"
        )
        return token if own == token.typed else replace(token, typed=own)

    @staticmethod
    def name_typed(before: Iterable[int], told: Mapping[int, Sequence[UserID]]) -> tuple[int, ...]:
        """For a token: of which rooms a client has been told that somebody types there, that had
        been told so of some `before`."""
        known = [nid for nid in dict.fromkeys(before) if nid not in told]
        return tuple([*known, *(nid for nid, users in told.items() if users)][-MOST_TYPED:])

    def _on_changes(self, changes: Sequence[Change]) -> None:
        if not self._ends:
            return
        for change in changes:
            row = change.detail
            if (
                change.topic is Topic.MEMBERSHIP
                and isinstance(row, MembershipRow)
                and row.membership != "join"
            ):
                user_id = UserID(row.user_id)
                if user_id in self._ends.get(row.room_nid, ()):
                    self.stop(row.room_nid, user_id)
                    self._tell_nodes(row.room_nid, user_id, None, is_own=False)

    def _tell_nodes(
        self, room_nid: int, user_id: UserID, timeout_ms: int | None, *, is_own: bool
    ) -> None:
        if self._notes is not None:
            duration = 0 if timeout_ms is None else min(max(timeout_ms, 1), MAX_TIMEOUT_MS)
            note = TypingNote(self._counter.position, room_nid, user_id, duration, is_own)
            self._notes.put(KIND, (room_nid, user_id), note)

    def _hear_node(self, _node: int, note: TypingNote) -> None:
        """What another node was told of. Of our own users the one of the nodes that sends tells
        other servers."""
        if note.timeout_ms:
            self.start(note.room_nid, note.user_id, note.timeout_ms, note.position)
        else:
            has_crossed = note.position <= self._counter.position
            if note.user_id in self._ends.get(note.room_nid, ()):
                self.stop(note.room_nid, note.user_id, note.position)
            elif self._clock.seconds() < self._forgot_until:
                self._change(note.room_nid, note.position)
            if has_crossed and self._notes is not None:
                self._notes.put(
                    CROSSED, note.room_nid, CrossedNote(self._counter.position, note.room_nid)
                )
        if note.is_own:
            for subscriber in self._subscribers:
                subscriber(note.room_nid, note.user_id, note.timeout_ms > 0)

    def _hear_crossed(self, _node: int, note: CrossedNote) -> None:
        self._change(note.room_nid, note.position)

    def _hear_question(self, _node: int, _note: Question) -> None:
        for room_nid, user_id in self._told_here:
            left = self._ends[room_nid][user_id].getTime() - self._clock.seconds()
            self._tell_nodes(room_nid, user_id, int(left * 1000), is_own=False)

    def _change(self, room_nid: int, position: int | None) -> None:
        taken = self._counter.next() if position is None else self._counter.take(position)
        self._changed.record(room_nid, taken)
        self._notifier.wake_room(room_nid)

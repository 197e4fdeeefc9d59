"""Typing notifications: in memory, each with a timeout.

A user who leaves a room stops typing. Nodes send each other the changes. A node that starts asks
the other nodes who is typing. Each of them answers with the notifications that it received itself,
from clients or remote servers.

Positions are ephemeral positions. A client with a position from before the start of this node gets
all rooms with typing users. It must also be notified of rooms in which users have stopped typing,
but after a restart the node does not know these rooms. So a client's token names the rooms for
which the client received typing users.

spec: client-server-api#typing-notifications
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from federation.protocol.ids import ServerName, UserID, domain_of
from federation.rooms.memberships import Memberships
from homeserver.cluster.node_messages import NodeMessages
from homeserver.cluster.notifier import Notifier
from homeserver.services.streams.ephemeral_counter import EphemeralCounter
from homeserver.services.streams.latest_changes import LatestChanges
from homeserver.services.streams.sync_tokens import MAX_TYPING_ROOMS, SyncToken
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.rooms.memberships import MembershipRow

MAX_TIMEOUT_MS: Final = 120_000
DEFAULT_TIMEOUT_MS: Final = 30_000
REMOTE_GRACE_SECONDS: Final = 1.0
"""Added to the timeout of a notification from another node, which usually sends its end."""
MAX_ROOMS: Final = 10_000
"""Rooms whose latest change is stored."""

KIND: Final = "typing"
STOP_MISSED: Final = "typing_crossed"
QUERY: Final = "typing_asked"
"""Kinds of messages to other nodes."""

Subscriber = Callable[[int, UserID, bool], None]
"""Called with the number of a room, a user, and whether they type; may not raise or block."""


class TypingMessage(msgspec.Struct, frozen=True, array_like=True):
    """A message to other nodes: a user starts or stops typing."""

    position: int
    room_nid: int
    user_id: UserID
    timeout_ms: int
    """0: the user stops typing."""
    is_own: bool
    """Whether the change came from a client of this server."""


class MissedStopMessage(msgspec.Struct, frozen=True, array_like=True):
    """A message to other nodes: a user stopped typing in a room, but the sending node answered
    clients up to `position` without knowing it. A client with such a position would miss the
    stop."""

    position: int
    room_nid: int


class TypingQuery(msgspec.Struct, frozen=True, array_like=True):
    """A message of a starting node: each other node answers with the typing notifications that it
    received itself."""


class Typing:
    """The typing users of all rooms. Used only on the reactor thread."""

    def __init__(
        self,
        *,
        notifier: Notifier,
        clock: IReactorTime,
        counter: EphemeralCounter,
        memberships: Memberships,
        streams: Streams,
        messages: NodeMessages | None,
    ) -> None:
        """`messages`: sends messages to other nodes; None on a single node."""
        self._notifier = notifier
        self._clock = clock
        self._counter = counter
        self._memberships = memberships
        self._messages = messages
        self._subscribers: tuple[Subscriber, ...] = ()
        self._unknown_until = clock.seconds() + MAX_TIMEOUT_MS / 1000 + REMOTE_GRACE_SECONDS
        """Until then, users may stop typing who started before the start of this node."""
        self._timers: dict[int, dict[UserID, IDelayedCall]] = {}
        """The timeouts of typing users by room."""
        self._from_this_node: set[tuple[int, UserID]] = set()
        """Rooms and typing users whose notification this node received from a client or a remote
        server, not from another node."""
        self._changed: LatestChanges[int] = LatestChanges(
            capacity=MAX_ROOMS, complete_from=counter.position
        )
        """The latest change of each room."""
        streams.subscribe(self._on_changes, Topic.MEMBERSHIP, stage=Stage.NOTIFY)
        if messages is not None:
            messages.subscribe(KIND, TypingMessage, self._on_message)
            messages.subscribe(STOP_MISSED, MissedStopMessage, self._on_missed_stop)
            messages.subscribe(QUERY, TypingQuery, self._on_query)
            messages.send_on_connect(QUERY, TypingQuery())

    @property
    def position(self) -> int:
        """The head of the ephemeral counter."""
        return self._counter.position

    def advance_to(self, position: int) -> None:
        """Advance to a client's ephemeral position, which another node may have assigned."""
        if self._messages is not None:
            self._counter.advance_to(position)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call the subscriber whenever a local user starts, continues or stops typing."""
        self._subscribers += (subscriber,)

    def set_typing(self, room_nid: int, user_id: UserID, timeout_ms: int | None) -> None:
        """Set that a local user, who is in the room, types for that long; None: stops typing."""
        if timeout_ms is None:
            self.stop(room_nid, user_id)
        else:
            self.start(room_nid, user_id, timeout_ms)
        self._send_message(room_nid, user_id, timeout_ms, is_own=True)
        for subscriber in self._subscribers:
            subscriber(room_nid, user_id, timeout_ms is not None)

    async def receive(
        self, origin: ServerName, room_nid: int, user_id: UserID, *, is_typing: bool
    ) -> None:
        """Receive a typing notification of another server. Ignore it if the user does not belong to
        the server or is not in the room.

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
        self._send_message(
            room_nid, user_id, DEFAULT_TIMEOUT_MS if is_typing else None, is_own=False
        )

    def start(
        self, room_nid: int, user_id: UserID, timeout_ms: int, position: int | None = None
    ) -> None:
        """Set that a user types, with a timeout. `position`: that of another node's message; that
        node also sends the end."""
        users = self._timers.setdefault(room_nid, {})
        known = users.get(user_id)
        seconds = min(max(timeout_ms, 1), MAX_TIMEOUT_MS) / 1000
        if position is None:
            self._from_this_node.add((room_nid, user_id))
        else:
            self._from_this_node.discard((room_nid, user_id))
            seconds += REMOTE_GRACE_SECONDS
        if known is not None and known.active():
            known.reset(seconds)
            return
        users[user_id] = self._clock.callLater(seconds, self._end, room_nid, user_id)
        self._record_change(room_nid, position)

    def stop(self, room_nid: int, user_id: UserID, position: int | None = None) -> None:
        """Set that a user stopped typing. `position`: as for `start`."""
        users = self._timers.get(room_nid)
        if not users or user_id not in users:
            return
        call = users.pop(user_id)
        self._from_this_node.discard((room_nid, user_id))
        if call.active():
            call.cancel()
        if not users:
            del self._timers[room_nid]
        self._record_change(room_nid, position)

    def _end(self, room_nid: int, user_id: UserID) -> None:
        self.stop(room_nid, user_id)
        self._send_message(room_nid, user_id, None, is_own=False)

    def get_changed(
        self, room_nids: Iterable[int], since: int | None
    ) -> Mapping[int, list[UserID]]:
        """Return the typing users of the rooms with changes after `since`.

        If `since` is None: of all rooms with typing users. If it is too old: of rooms with typing
        users or recent changes.
        """
        found: dict[int, list[UserID]] = {}
        start = self._changed.complete_from
        for room_nid in room_nids:
            if since is None or not start <= since <= self._counter.position:
                if room_nid in self._timers or (
                    since is not None and since < start and room_nid in self._changed
                ):
                    found[room_nid] = list(self._timers.get(room_nid, ()))
            elif self._changed.get(room_nid) > since:
                found[room_nid] = list(self._timers.get(room_nid, ()))
        return found

    def get_typing_users(self, room_nids: Iterable[int]) -> Mapping[int, list[UserID]]:
        """Return the typing users of those rooms that have any, or had a recent change."""
        ends, changed = self._timers, self._changed
        return {nid: list(ends.get(nid, ())) for nid in room_nids if nid in ends or nid in changed}

    def find_stopped(self, room_nids: Iterable[int]) -> set[int]:
        """Return those of the rooms in which nobody types."""
        return {room_nid for room_nid in room_nids if room_nid not in self._timers}

    def is_unchanged_since(self, since: int | None) -> bool:
        """Return whether nobody types, and nobody stopped after `since`."""
        return not self._timers and (since is None or since == self._counter.position)

    def changed_rooms(self, since: int) -> set[int]:
        """Return the rooms with changes after `since`; for an old position, return what
        `get_changed` returns."""
        if since == self._counter.position:
            return set()
        if since < self._changed.complete_from:
            return self._timers.keys() | set(self._changed)
        if since > self._counter.position:
            return set(self._timers)
        return set(self._changed.since(since))

    async def without_foreign_rooms(self, user_id: UserID, token: SyncToken) -> SyncToken:
        """Return the token without rooms that the user is not joined to. A client can make up a
        token, and the response must not reveal whether somebody types in other rooms."""
        if not token.typing_rooms:
            return token
        rows = await self._memberships.of_user(user_id)
        own = tuple(
            nid
            for nid in dict.fromkeys(token.typing_rooms)
            if nid in rows and rows[nid].membership == "join"
        )
        return token if own == token.typing_rooms else replace(token, typing_rooms=own)

    @staticmethod
    def update_token(
        before: Iterable[int], sent: Mapping[int, Sequence[UserID]]
    ) -> tuple[int, ...]:
        """Return the rooms for the next token: those `before` without a change in `sent`, and those
        with typing users in `sent`."""
        known = [nid for nid in dict.fromkeys(before) if nid not in sent]
        return tuple([*known, *(nid for nid, users in sent.items() if users)][-MAX_TYPING_ROOMS:])

    def _on_changes(self, changes: Sequence[Change]) -> None:
        if not self._timers:
            return
        for change in changes:
            row = change.detail
            if (
                change.topic is Topic.MEMBERSHIP
                and isinstance(row, MembershipRow)
                and row.membership != "join"
            ):
                user_id = UserID(row.user_id)
                if user_id in self._timers.get(row.room_nid, ()):
                    self.stop(row.room_nid, user_id)
                    self._send_message(row.room_nid, user_id, None, is_own=False)

    def _send_message(
        self, room_nid: int, user_id: UserID, timeout_ms: int | None, *, is_own: bool
    ) -> None:
        if self._messages is not None:
            duration = 0 if timeout_ms is None else min(max(timeout_ms, 1), MAX_TIMEOUT_MS)
            message = TypingMessage(self._counter.position, room_nid, user_id, duration, is_own)
            self._messages.queue(KIND, (room_nid, user_id), message)

    def _on_message(self, _node: int, message: TypingMessage) -> None:
        """Apply another node's message. Subscribers are also called for local users: the node with
        the federation sender notifies other servers."""
        if message.timeout_ms:
            self.start(message.room_nid, message.user_id, message.timeout_ms, message.position)
        else:
            # clients here may have missed it
            may_have_missed = message.position <= self._counter.position
            if message.user_id in self._timers.get(message.room_nid, ()):
                self.stop(message.room_nid, message.user_id, message.position)
            elif self._clock.seconds() < self._unknown_until:
                self._record_change(message.room_nid, message.position)
            if may_have_missed and self._messages is not None:
                self._messages.queue(
                    STOP_MISSED,
                    message.room_nid,
                    MissedStopMessage(self._counter.position, message.room_nid),
                )
        if message.is_own:
            for subscriber in self._subscribers:
                subscriber(message.room_nid, message.user_id, message.timeout_ms > 0)

    def _on_missed_stop(self, _node: int, message: MissedStopMessage) -> None:
        self._record_change(message.room_nid, message.position)

    def _on_query(self, _node: int, _message: TypingQuery) -> None:
        for room_nid, user_id in self._from_this_node:
            left = self._timers[room_nid][user_id].getTime() - self._clock.seconds()
            self._send_message(room_nid, user_id, int(left * 1000), is_own=False)

    def _record_change(self, room_nid: int, position: int | None) -> None:
        recorded = (
            self._counter.next() if position is None else self._counter.adopt_position(position)
        )
        self._changed.record(room_nid, recorded)
        self._notifier.wake_room(room_nid)

"""Sends messages to the other nodes: typing, presence, and descriptions of commits
(`homeserver/cluster/outgoing_changes.py`). PostgreSQL delivers the messages by NOTIFY and does
not store them.

Messages are collected for a moment and sent together through `homeserver/cluster/peer_nodes.py`. So
a node sends at most fifty times a second, however busy the rooms are. A message has a kind and a
key. Of queued messages with the same kind and key, only the latest is sent.

A message may be lost if the database is down, or if too many messages are queued. That is
acceptable. Typing and presence soon expire, are sent again, or are requested by nodes that missed
them. If the description of a commit is lost, the other nodes find the commit when they poll the
database.

Use this module only on the reactor thread.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from storage.engine.interface import DatabaseUnavailable

INTERVAL: Final = 0.02
"""The shortest time in seconds between two sends."""
MAX_QUEUED: Final = 10_000
MAX_PAYLOADS: Final = 20
"""The largest number of payloads that are sent together; the rest follows with the next send."""
MAX_PAYLOAD_BYTES: Final = 7_000
"""The largest payload in bytes: PostgreSQL's NOTIFY takes less than 8,000."""

Send = Callable[[Sequence[str]], Awaitable[None]]
"""Sends these payloads to all other nodes. Raises DatabaseUnavailable."""


class NodeMessages:
    """The queue of outgoing messages, and the subscribers to incoming ones."""

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._send: Send | None = None
        self._subscribers: dict[str, list[Callable[[int, bytes], None]]] = {}
        self._on_connect: list[tuple[str, object]] = []
        self._queue: dict[tuple[str, Hashable], object] = {}
        self._unreadable_kinds: set[str] = set()
        """Kinds with messages that could not be decoded, which are logged only once."""
        self._is_scheduled = False
        self._not_before = 0.0

    def connect(self, send: Send | None) -> None:
        """Set how other nodes are reached; None disconnects. Queued messages are dropped on
        disconnect: they would be outdated."""
        connects = send is not None and self._send is None
        self._send = send
        if send is None:
            self._queue.clear()
        if connects:
            for kind, message in self._on_connect:
                self.queue(kind, None, message)

    def send_on_connect(self, kind: str, message: object) -> None:
        """Send this message whenever this node connects, to request the state that it missed while
        it was down or disconnected."""
        self._on_connect.append((kind, message))

    def subscribe(
        self, kind: str, type_: type[Any], subscriber: Callable[[int, Any], None]
    ) -> None:
        """Subscribe to messages of a kind with that type. `subscriber` gets the number of the
        node and the message; it must not raise or block."""
        decoder = msgspec.json.Decoder(type_)
        self._subscribers.setdefault(kind, []).append(
            lambda node, message: subscriber(node, decoder.decode(message))
        )

    @property
    def is_connected(self) -> bool:
        """Whether this node is connected to the others."""
        return self._send is not None

    def get_queued(self, kind: str, key: Hashable) -> object:
        """Return the queued message under a key, or None."""
        return self._queue.get((kind, key))

    def queue(self, kind: str, key: Hashable, message: object) -> None:
        """Queue a message, replacing a queued one with the same key."""
        if self._send is None:
            return
        if len(self._queue) < MAX_QUEUED or (kind, key) in self._queue:
            self._queue[kind, key] = message
        if not self._is_scheduled:
            self._is_scheduled = True
            self._clock.callLater(max(0.0, self._not_before - self._clock.seconds()), self._start)

    def receive(self, node: int, payload: str) -> None:
        """Receive a payload of another node. Messages that this version does not know are
        skipped."""
        unknown: set[str] = set()
        try:
            messages = msgspec.json.decode(payload, type=list[tuple[str, msgspec.Raw]])
        except (msgspec.MsgspecError, UnicodeError):
            messages = []
            unknown.add("")
        for kind, message in messages:
            try:
                for subscriber in self._subscribers.get(kind, ()):
                    subscriber(node, bytes(message))
            except (msgspec.MsgspecError, UnicodeError):
                unknown.add(kind)
        if not unknown <= self._unreadable_kinds:
            self._unreadable_kinds |= unknown  # log once: it may happen fifty times a second
            self.log.warn(
                "another node sends messages that this version does not understand: {kinds}",
                kinds=sorted(unknown),
            )

    def _start(self) -> None:
        sending = Deferred.fromCoroutine(self._send_queued())
        sending.addErrback(
            lambda failure: self.log.failure("messages could not be sent to other nodes", failure)
        )

    async def _send_queued(self) -> None:
        self._not_before = self._clock.seconds() + INTERVAL
        try:
            payloads = self._take_payloads()
            if payloads and self._send is not None:
                await self._send(payloads)
        except DatabaseUnavailable:
            pass  # the poll of the database logs it each second
        finally:
            self._is_scheduled = False
            if self._queue:
                (kind, key), message = next(iter(self._queue.items()))
                self.queue(kind, key, message)

    def _take_payloads(self) -> list[str]:
        payloads: list[str] = []
        batch: list[bytes] = []
        length = 0
        while self._queue and len(payloads) < MAX_PAYLOADS:
            first = next(iter(self._queue))
            encoded = msgspec.json.encode((first[0], self._queue.pop(first)))
            if len(encoded) > MAX_PAYLOAD_BYTES:
                continue
            if length + len(encoded) > MAX_PAYLOAD_BYTES:
                payloads.append(_payload(batch))
                batch, length = [], 0
            batch.append(encoded)
            length += len(encoded) + 1
        if batch:
            payloads.append(_payload(batch))
        return payloads


def _payload(messages: Sequence[bytes]) -> str:
    return f"[{b','.join(messages).decode()}]"

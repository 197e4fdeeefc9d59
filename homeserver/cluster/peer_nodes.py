"""Synchronises this node with the other nodes on the same database.

Changes of other nodes are visible here within some hundredths of a second: long polls wake,
redacted events leave the caches. A node that writes notifies the other nodes
(`homeserver/cluster/node_messages.py`, which also carries unstored state such as typing) and
describes what changed (`homeserver/cluster/outgoing_changes.py`). If a message is lost, a poll once
a second finds the changes. A write finds them too: nodes write one after the other, so a node that
writes sees all earlier commits of other nodes.

A write that ends a session or restricts an account is acknowledged only when it is effective on all
nodes. The commit of the write notifies the nodes (`storage/engine/postgres_notify.py`), and each
confirms when it has invalidated its caches. The wait for a node that does not confirm is at most
`TRUST_SECONDS` seconds, because no node trusts its caches for longer than that after its last poll.

Laws:

- Once a client has the response to the request that ended a token, no node accepts that token.
- A node that is disconnected from the database, or hangs, cannot confirm writes. It delays the
  response to such a write by at most `TRUST_SECONDS` seconds. If a node hangs during a write of its
  own, all other nodes' writes wait until the database ends the transaction of the hanging node
  (`write_lock_timeout` in `storage/engine/postgres_config.py`).
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from homeserver.cluster.node_messages import NodeMessages
from homeserver.cluster.outgoing_changes import KIND, CommitMessage
from storage.engine.database import Database
from storage.engine.interface import DatabaseUnavailable, NodeChannel, NodeChannelLost
from storage.engine.postgres_notify import ConfirmedWrite, EphemeralMessage, PositionApplied

POLL_SECONDS: Final = 1.0
TRUST_SECONDS: Final = 3.0
"""The time in seconds after a poll for which caches are trusted. Covers a few lost polls."""
GREETING: Final = "[]"
"""The message of a node that has just connected: a node that was alone learns that it has a
peer."""
POLLS_BETWEEN_COUNTS: Final = 15
"""The number of polls between two checks whether this node is alone."""
OWN_NOTIFICATIONS: Final = 1000
"""The number of its latest notifications that a node recognises as its own."""


class SharedCache(Protocol):
    """A cache of tokens and accounts that other nodes can make untrue."""

    def trust_until(self, seconds: float) -> None:
        """Trust the cache until this time on the monotonic clock; later, the database is read each
        time."""
        ...

    async def wait_for_invalidation(self) -> None:
        """Wait until known changes are invalidated."""
        ...


class _Waiting:
    """A write that waits until the nodes in `missing` have confirmed it."""

    def __init__(self, *, position: int, missing: set[int]) -> None:
        self.position = position
        self.missing = missing
        self.done: Deferred[None] = Deferred()


class PeerNodes:
    """Follows the changes that other nodes commit."""

    log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        cache: SharedCache,
        messages: NodeMessages,
        monotonic: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._database = database
        self._cache = cache
        self._messages = messages
        self._monotonic = monotonic
        self._polling = LoopingCall(self._start_poll)
        self._polling.clock = clock
        self._is_cut_off = False
        self._readers: IReactorFDSet | None = None
        self._connection: _NotifyConnection | None = None
        self._notified_upto = 0
        self._confirmed_upto = 0
        self._is_confirming = False
        self._written_upto = 0
        self._is_catching_up = False
        self._polls_until_count = 1
        self._greeting_due = False
        self._messages_received = 0
        self._own_writes: deque[int] = deque(maxlen=OWN_NOTIFICATIONS)
        self._confirmed_by_node: dict[int, int] = {}
        """The position that each node has confirmed."""
        self._waiting: list[_Waiting] = []
        messages.subscribe(KIND, CommitMessage, self._on_remote_write)

    @property
    def node(self) -> int:
        """The number of this node among the connected ones, or 0 while it is disconnected."""
        return 0 if self._connection is None else self._connection.node

    def start(self, readers: IReactorFDSet | None = None) -> None:
        """Start to poll. With `readers`, the node also listens for notifications, and its caches
        are trusted only while it does."""
        self._readers = readers
        if readers is not None:
            self._cache.trust_until(0.0)
            self._database.set_node_barrier(self._wait_until_confirmed)
        self._polling.start(POLL_SECONDS, now=readers is not None)

    def stop(self) -> None:
        """Stop polling and listening."""
        if self._polling.running:
            self._polling.stop()
        self._readers = None
        self._close_connection()

    def _start_poll(self) -> Deferred[None]:
        polling = Deferred.fromCoroutine(self._connect_and_poll())
        return polling.addErrback(
            lambda failure: self.log.failure("changes of other nodes could not be read", failure)
        )

    async def _connect_and_poll(self) -> None:
        """Do the work of each second, in order, so that there is one connection for
        notifications."""
        if self._readers is not None and self._connection is None:
            with suppress(DatabaseUnavailable):  # the poll logs the failure
                await self._open_connection(self._readers)
        if self._greeting_due and (connection := self._connection) is not None:
            # A node that counts itself as the only one learns of this node only by this message.
            with suppress(DatabaseUnavailable):
                await self._database.send_ephemeral(connection.node, [GREETING])
                self._greeting_due = False
        if await self._poll():
            self._confirm_writes()
        self._polls_until_count -= 1
        if self._polls_until_count <= 0:
            self._polls_until_count = POLLS_BETWEEN_COUNTS
            with suppress(DatabaseUnavailable):
                await self._count_nodes()

    def _connect(self) -> None:
        if self._connection is not None and not self._messages.is_connected:
            self._messages.connect(partial(self._database.send_ephemeral, self._connection.node))

    async def _count_nodes(self) -> None:
        """Stop sending if this node is alone, until another node connects."""
        connection, received = self._connection, self._messages_received
        if connection is None or not self._messages.is_connected:
            return
        nodes = await self._database.get_nodes()
        # More messages mean that a node has connected meanwhile.
        if nodes <= {connection.node} and received == self._messages_received:
            self._messages.connect(None)

    def _on_remote_write(self, _node: int, message: CommitMessage) -> None:
        if message.ranges:
            self._written_upto = max(self._written_upto, message.upto)
        if not self._is_catching_up and self._written_upto > self._database.streams.current():
            self._is_catching_up = True
            catching_up = Deferred.fromCoroutine(self._catch_up())
            catching_up.addErrback(
                lambda failure: self.log.failure(
                    "changes of other nodes could not be read", failure
                )
            )

    async def _catch_up(self) -> None:
        try:
            while (wanted := self._written_upto) > self._database.streams.current():
                if not await self._poll() or self._database.streams.current() < wanted:
                    self._written_upto = 0  # the poll of each second finds the rest
        finally:
            self._is_catching_up = False

    async def _poll(self) -> bool:
        """Poll once; return False if the database is unavailable. Its failure and recovery are
        logged once, not every second."""
        try:
            connection, began = self._connection, self._monotonic()
            await self._database.poll()
        except DatabaseUnavailable as error:
            if not self._is_cut_off:
                self.log.error("the database cannot be reached: {error}", error=str(error).strip())
            self._is_cut_off = True
            return False
        if self._is_cut_off:
            self.log.info("the database can be reached again")
        self._is_cut_off = False
        if connection is not None:
            await self._cache.wait_for_invalidation()
            if connection is self._connection:
                self._cache.trust_until(began + TRUST_SECONDS)
        return True

    async def _open_connection(self, readers: IReactorFDSet) -> None:
        channel = await self._database.open_node_channel()
        if channel is None:
            return
        if self._readers is None:
            channel.close()  # stopped meanwhile
            return
        self._connection = _NotifyConnection(
            channel=channel,
            readers=readers,
            take=self._on_notifications,
            lost=self._close_connection,
        )
        self._greeting_due = True
        self._connect()

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._cache.trust_until(0.0)
        self._messages.connect(None)
        connection.close()

    def _on_notifications(self, notifications: Sequence[object]) -> None:
        for notification in notifications:
            match notification:
                case ConfirmedWrite(position=position) if position not in self._own_writes:
                    self._notified_upto = max(self._notified_upto, position)
                case PositionApplied(node=node, position=position):
                    self._record_confirmed(node, position)
                case EphemeralMessage(node=node, body=body) if (
                    self._connection is not None and node != self._connection.node
                ):
                    self._messages_received += 1
                    self._connect()
                    self._messages.receive(node, body)
        self._confirm_writes()

    def _confirm_writes(self) -> None:
        if self._notified_upto > self._confirmed_upto and not self._is_confirming:
            self._is_confirming = True
            confirming = Deferred.fromCoroutine(self._confirm())
            confirming.addErrback(
                lambda failure: self.log.failure(
                    "changes could not be confirmed to other nodes", failure
                )
            )

    async def _confirm(self) -> None:
        try:
            while (
                self._notified_upto > self._confirmed_upto
                and (connection := self._connection) is not None
            ):
                upto = self._notified_upto
                if not await self._poll():
                    return
                await self._database.notify_applied(connection.node, upto)
                self._confirmed_upto = upto
        finally:
            self._is_confirming = False

    def _record_confirmed(self, node: int, position: int) -> None:
        self._confirmed_by_node[node] = max(position, self._confirmed_by_node.get(node, 0))
        for waiting in list(self._waiting):
            if waiting.position <= position:
                waiting.missing.discard(node)
                if not waiting.missing and not waiting.done.called:
                    waiting.done.callback(None)

    async def _wait_until_confirmed(self, position: int) -> None:
        """Wait until all other nodes have confirmed that position, or until none can trust older
        caches any more."""
        self._own_writes.append(position)
        committed = self._monotonic()
        waiting = _Waiting(position=position, missing=set())
        try:
            nodes = await self._database.get_nodes()
        except DatabaseUnavailable:
            pass  # nodes cannot be notified either; wait until their trust ends
        else:
            others = nodes if self._connection is None else nodes - {self._connection.node}
            self._confirmed_by_node = {
                node: upto for node, upto in self._confirmed_by_node.items() if node in others
            }
            waiting.missing = {
                node for node in others if self._confirmed_by_node.get(node, 0) < position
            }
            if not waiting.missing:
                return
        self._waiting.append(waiting)
        left = max(0.0, committed + TRUST_SECONDS - self._monotonic())
        timeout = self._clock.callLater(left, waiting.done.callback, None)
        try:
            await waiting.done
        finally:
            self._waiting.remove(waiting)
            if timeout.active():
                timeout.cancel()


@implementer(IReadDescriptor)
class _NotifyConnection:
    """The connection for notifications, which the reactor reads."""

    def __init__(
        self,
        *,
        channel: NodeChannel,
        readers: IReactorFDSet,
        take: Callable[[Sequence[object]], None],
        lost: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._readers = readers
        self._on_notifications = take
        self._lost = lost
        self.node = channel.node
        readers.addReader(self)

    def fileno(self) -> int:
        return self._channel.fileno()

    def doRead(self) -> None:
        try:
            notifications = self._channel.receive()
        except NodeChannelLost:
            self._lost()
            return
        self._on_notifications(notifications)

    def connectionLost(self, reason: Failure) -> None:
        self._lost()

    def logPrefix(self) -> str:
        return "nodes"

    def close(self) -> None:
        self._readers.removeReader(self)
        self._channel.close()

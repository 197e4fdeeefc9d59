"""Sends stream changes to the other servers that they concern, with a queue for each destination.

Laws:
- The content of durable changes comes from the stream and from tables, never from the code that
  made the change. So a restart, or a write of another node, needs no special case. The lease stores
  a position: everything up to this position is delivered or recorded as missed. After a restart,
  the sender reads the stream from there. Only typing and presence, which are not in the stream, are
  passed in directly.
- Only the node that holds the lease sends. SQLite is for one node, so there the lease is taken over
  without waiting for its expiry.
- Each destination has at most one transaction in progress, which is retried unchanged, with the
  same id. There are two exceptions: a transaction that the destination refuses is split, and after
  long pauses the catch-up sends the content in other transactions (`transaction_sender.py`).
- When one of our users joins a room, servers that share no other room with the user receive the
  latest change of the user's devices. They may still have a device list of the user from an earlier
  shared room. The change shows them that they missed earlier changes. A server that still has to
  catch up on missed events receives no such change. It receives the join when it catches up on the
  room, and the join shows it that its device list may be outdated.
- A destination that is up to date costs nothing. An unreachable one costs a row for each room in
  which it misses events (`destination.py`), and an occasional retry. One that the federation policy
  blocks costs such rows too, but it is not retried until the policy allows it again.

Receipts, typing and presence are sent to reachable servers. An unreachable server receives the
latest receipts and presence when it responds again, if this process still runs.

spec: server-server-api#transactions
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.federation_policy import FederationPolicy
from federation.peers.identity import ServerIdentity
from federation.peers.peer_backoff import PeerBackoff
from federation.protocol.ids import ServerName, UserID, is_server_name
from federation.rooms.events import RoomEvents
from federation.rooms.room_servers import RoomServers
from federation.rooms.sticky_events import StickyEvents
from federation.sender.destination import (
    MAX_QUEUED,
    NO_ANSWER_MS,
    RESTART_MS,
    Destination,
    QueuedEvent,
)
from federation.sender.transaction_sender import TransactionSender
from storage.cluster.lease_loop import LeaseLoop
from storage.cluster.leases import Lease
from storage.cluster.node_lease import NodeLease
from storage.devices.device_list_log import DeviceListLog
from storage.encryption.outgoing_to_device import OutgoingToDeviceStore
from storage.engine.database import DatabaseUnavailable
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.events import EventFlag, EventRow
from storage.federation.destinations import (
    ActivitySource,
    Backlog,
    DestinationStore,
    EventToSend,
    OwnMembershipChange,
)
from storage.rooms.memberships import MembershipRow
from storage.rooms.receipts import ReceiptRow

BATCH_SIZE: Final = 500
"""Events, and receipts, that are dispatched in one batch."""
MAX_ACTIVE_SERVERS: Final = 10_000
"""Servers whose activity one round reports to the sending node."""
PUBLIC_RECEIPT: Final = "m.read"
TOPICS: Final = frozenset(
    {Topic.EVENT, Topic.RECEIPT, Topic.DEVICE, Topic.OUTGOING_TO_DEVICE, Topic.MEMBERSHIP}
)


class FederationSender:
    """Dispatches stream changes to the destinations that they concern. Use this class only on the
    reactor thread."""

    log = Logger()

    # More than ten: it dispatches all kinds of changes.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        streams: Streams,
        lease: NodeLease,
        store: DestinationStore,
        to_device: OutgoingToDeviceStore,
        device_log: DeviceListLog,
        events: RoomEvents,
        servers: RoomServers,
        sticky: StickyEvents,
        deliveries: TransactionSender,
        identity: ServerIdentity,
        policy: FederationPolicy,
        backoff: PeerBackoff[ServerName],
        now_ms: Callable[[], int],
    ) -> None:
        self._clock = clock
        self._streams = streams
        self._lease = LeaseLoop(
            clock=clock, lease=lease, work=self, name="sender", after_round=self._exchange_activity
        )
        self._store = store
        self._to_device = to_device
        self._device_log = device_log
        self._events = events
        self._servers = servers
        self._sticky = sticky
        self._deliveries = deliveries
        self._identity = identity
        self._policy = policy
        self._unresponsive = backoff
        self._now_ms = now_ms
        self._dispatched = 0
        self._changed: set[Topic] = set()
        self._newly_joined: dict[tuple[int, ServerName], int] = {}
        """Servers that may have joined a room with sticky events, and the position of the join."""
        self._scheduled = False
        self._active_here: set[ServerName] = set()
        """Servers whose activity is yet to be reported to the sending node."""
        streams.subscribe(self._on_changes, *TOPICS, stage=Stage.SEND)
        streams.watch(self._on_remote_write, stage=Stage.SEND)

    def start(self) -> None:
        """Send from now on, as soon as this node gets the lease."""
        self._lease.start()

    async def stop(self) -> None:
        """Stop sending, and store the position up to which everything is delivered or recorded."""
        await self._lease.stop()

    def record_activity(self, server: ServerName) -> None:
        """Record that a server proved to be reachable."""
        self._unresponsive.record_answer(server)
        if self._lease.is_held:
            self._deliveries.record_activity(server)
        elif len(self._active_here) < MAX_ACTIVE_SERVERS:
            self._active_here.add(server)

    async def retry_now(self, server: ServerName) -> None:
        """Retry a server at once, for an operator.

        If another node sends, it reads the request in its next round.
        """
        self._retry_as_active(server)
        if not self._lease.is_held:
            await self._store.record_activity([server], ActivitySource.OPERATOR)

    def _retry_as_active(self, server: ServerName) -> None:
        self._deliveries.reset_activity_backoff(server)
        self.record_activity(server)

    def is_failing(self, server: ServerName) -> bool:
        """Return whether a recent transaction to the server failed."""
        destination = self._deliveries.peek(server)
        return destination is not None and destination.is_failing_at(self._now_ms())

    def is_unresponsive(self, server: ServerName) -> bool:
        """Return whether a recent transaction or other request to the server failed.

        A caller should not make a user wait for such a server.
        """
        return self.is_failing(server) or self._unresponsive.left_ms(server) > 0

    async def is_down(self, server: ServerName) -> bool:
        """Return whether the server has been unresponsive for longer than a restart takes.

        One query if another node sends. A server that asked us to wait is responsive.
        """
        if self._unresponsive.failing_ms(server) >= RESTART_MS:
            return True
        if self._lease.is_held:
            destination = self._deliveries.peek(server)
            if destination is None or destination.retry_after_ts:
                return False
            since_ts = destination.failing_since_ts
        else:
            since_ts = await self._store.get_failing_since(server)
        return since_ts is not None and self._now_ms() >= since_ts + RESTART_MS

    @property
    def is_sending(self) -> bool:
        """Whether this node sends."""
        return self._lease.is_held

    def remove(self, server: ServerName) -> None:
        """Remove the destination, after its rows in the database were deleted."""
        self._deliveries.remove(server)

    def record_no_answer(self, server: ServerName, sent_at: float) -> None:
        """Record that the server did not answer another request, which was sent at `sent_at`
        (seconds)."""
        seconds = self._clock.seconds() - sent_at
        if seconds * 1000 >= NO_ANSWER_MS:  # a failure found at once delays nobody
            self._unresponsive.record_failure(server, asked_at_ms=int(sent_at * 1000))
        self._deliveries.record_no_answer(server, seconds)

    async def send_ephemeral_edu(self, room_nid: int, key: tuple[str, str], edu: bytes) -> None:
        """Send an EDU that is soon out of date to the other servers in a room.

        Only the latest EDU with a key is sent. Unreachable servers do not receive it later.
        """
        if self._lease.is_held:
            for destination in self._find_allowed(await self._servers.in_room(room_nid)):
                if destination.failing_since_ts is None:
                    destination.add_ephemeral_edu(key, edu)
                    self._deliveries.wake(destination)

    async def send_presence(self, user_id: UserID, presence: Mapping[str, Any]) -> None:
        """Send the presence of one of our users to the servers that share a room with them.

        `presence`: an entry of `push`.

        spec: server-server-api#presence
        """
        if self._lease.is_held:
            for destination in self._find_allowed(await self._servers.of_user(user_id)):
                destination.add_presence(user_id, presence)
                self._deliveries.wake(destination)

    # ----------------------------------------------------------------------------------------------
    # the stream

    def _on_changes(self, changes: Sequence[Change]) -> None:
        if not self._lease.is_held:
            return
        for change in changes:
            if (
                change.topic in TOPICS
                and self._concerns_remote_servers(change)
                and change.topic not in self._changed
            ):
                self._changed.add(change.topic)
                self._schedule()

    def _concerns_remote_servers(self, change: Change) -> bool:
        row = change.detail
        if isinstance(row, EventRow):
            return bool(row.flags & EventFlag.TO_SEND)
        if isinstance(row, ReceiptRow):
            known = self._servers.peek(row.room_nid)
            return (
                row.receipt_type == PUBLIC_RECEIPT
                and known != {}
                and self._identity.is_local(row.user_id)
            )
        if isinstance(row, MembershipRow):
            joins = (
                row.is_local and row.membership == "join" and self._servers.peek(row.room_nid) != {}
            )
            return joins or self._record_newcomer(row)
        return change.topic is not Topic.DEVICE or not self._servers.is_known_alone

    def _record_newcomer(self, row: MembershipRow) -> bool:
        """Record a server that may have joined a room with our sticky events. Return whether so."""
        if row.is_local or row.membership != "join" or not self._sticky.may_be_in(row.room_nid):
            return False
        self._newly_joined[row.room_nid, _server_of(row.user_id)] = row.position
        return True

    def _on_remote_write(self, _after: int, _upto: int) -> None:
        if self._lease.is_held:
            self._changed |= TOPICS
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._start_dispatch)

    def _start_dispatch(self) -> None:
        Deferred.fromCoroutine(self._dispatch_all())

    async def _dispatch_all(self) -> None:
        topics = set(self._changed)
        try:
            while self._lease.is_held and self._changed:
                topics, self._changed = self._changed, set()
                if not await self._dispatch(topics):
                    self._changed |= TOPICS  # the batch was cut short: the rest may be of any topic
        except DatabaseUnavailable as error:
            self._changed |= topics
            self.log.warn("changes will be sent to other servers later: {error}", error=error)
        except Exception:  # an unexpected error: the next round retries
            self._changed |= topics
            self.log.failure("changes could not be sent to other servers")
        finally:
            self._scheduled = False

    async def _dispatch(self, topics: set[Topic]) -> bool:
        """Hand the next batch of changes to their destinations. Return whether none are left."""
        after, upto = self._dispatched, self._streams.current()
        to_wake: dict[ServerName, Destination] = {}
        backlogs: dict[str, Backlog] = {}
        events = (
            await self._store.get_events_to_send(after, upto, BATCH_SIZE)
            if Topic.EVENT in topics
            else ()
        )
        if len(events) == BATCH_SIZE:
            upto = events[-1].position
        receipts = (
            await self._store.get_receipts_to_send(after, upto, BATCH_SIZE)
            if Topic.RECEIPT in topics
            else ()
        )
        if len(receipts) == BATCH_SIZE:
            upto = receipts[-1].position
        changes = (
            await self._store.get_own_membership_changes(after, upto, BATCH_SIZE)
            if Topic.MEMBERSHIP in topics
            else ()
        )
        if len(changes) == BATCH_SIZE:
            upto = changes[-1].position
        for event in events:
            if event.position <= upto:
                queued = QueuedEvent(event.position, event.event_nid, event.room_nid)
                for destination in self._find(await self._servers_for(event)):
                    to_wake[destination.server] = destination
                    _add_event(destination, queued, backlogs)
        for receipt in receipts:
            if self._identity.is_local(receipt.user_id):
                for destination in self._find(await self._servers.in_room(receipt.room_nid)):
                    to_wake[destination.server] = destination
                    destination.add_receipt(receipt)
        if Topic.DEVICE in topics and not await self._servers.is_alone():
            for user_id, stream_id in (
                await self._device_log.get_changed_users(after, upto)
            ).items():
                for destination in self._find(await self._servers.of_user(UserID(user_id))):
                    to_wake[destination.server] = destination
                    _add_user(destination, user_id, stream_id, backlogs)
        for change in await self._find_joins(changes):
            servers = await self._servers.find_newly_shared(
                UserID(change.user_id), change.room_nid, change.position
            )
            for destination in self._find(servers):
                if not destination.is_behind:
                    to_wake[destination.server] = destination
                    destination.users.setdefault(change.user_id, change.position)
        if Topic.OUTGOING_TO_DEVICE in topics:
            for destination in self._find(
                map(ServerName, await self._to_device.get_servers(after, upto))
            ):
                to_wake[destination.server] = destination
                destination.has_to_device = True
        await self._queue_sticky_events(to_wake, backlogs)
        if backlogs:
            await self._store_backlogs(
                backlogs, [to_wake[ServerName(server)] for server in backlogs]
            )
        self._dispatched = upto
        for destination in to_wake.values():
            self._deliveries.wake(destination)
        return max(len(events), len(receipts), len(changes)) < BATCH_SIZE

    async def _find_joins(
        self, changes: Sequence[OwnMembershipChange]
    ) -> list[OwnMembershipChange]:
        """Return the membership changes by which our users joined a room."""
        local = [change for change in changes if self._identity.is_local(change.user_id)]
        stored = await self._events.get_events(change.event_nid for change in local)
        before = await self._events.get_events(
            each.replaces for each in stored.values() if each.replaces is not None
        )
        joins = []
        for change in local:
            event = stored[change.event_nid]
            former = None if event.replaces is None else before.get(event.replaces)
            if event.event.membership == "join" and (
                former is None or former.event.membership != "join"
            ):
                joins.append(change)
        return joins

    async def _queue_sticky_events(
        self, to_wake: dict[ServerName, Destination], backlogs: dict[str, Backlog]
    ) -> None:
        """Queue our sticky events from before servers joined. Proposal: MSC4354"""
        newly_joined, self._newly_joined = self._newly_joined, {}
        for (room_nid, server), position in newly_joined.items():
            if (await self._servers.in_room(room_nid)).get(server) != position:
                # it was in the room before with other users, or has left again
                continue
            rows = (await self._sticky.in_rooms({room_nid: (0, position - 1)})).get(room_nid, [])
            for row in rows:
                if self._identity.is_local(row.sender):
                    for destination in self._find([server]):
                        to_wake[destination.server] = destination
                        _add_event(
                            destination,
                            QueuedEvent(row.position, row.event_nid, room_nid),
                            backlogs,
                        )

    async def _store_backlogs(
        self, backlogs: Mapping[str, Backlog], destinations: Sequence[Destination]
    ) -> None:
        """Store what servers that are behind have missed. If that fails, the backlogs stay marked
        as unstored."""
        complete = [
            each
            for each in destinations
            if each.is_backlog_stored or backlogs[each.server].is_complete
        ]
        for destination in destinations:
            destination.is_backlog_stored = False
        await self._store.add_backlogs(backlogs)
        for destination in complete:
            destination.is_backlog_stored = True

    async def _servers_for(self, event: EventToSend) -> Collection[ServerName]:
        """Return the servers in the room at the event, and the server of a user it removes."""
        in_room = await self._servers.in_room(event.room_nid)
        servers = {server: None for server, since in in_room.items() if since <= event.position}
        if event.is_member:
            stored = (await self._events.get_events([event.event_nid]))[event.event_nid].event
            if stored.membership in ("leave", "ban") and stored.state_key is not None:
                servers[_server_of(stored.state_key)] = None
        servers.pop(_server_of(event.sender), None)
        return servers.keys()

    def _find(self, servers: Iterable[ServerName]) -> list[Destination]:
        """Return the destinations of the servers. The policy is checked at delivery."""
        return [
            self._deliveries.get_or_create(server)
            for server in servers
            if server != self._identity.server_name and is_server_name(server)
        ]

    def _find_allowed(self, servers: Iterable[ServerName]) -> list[Destination]:
        """Return the destinations that the policy allows now, for data that is soon out of date."""
        return self._find(server for server in servers if self._policy.allows(server))

    # ----------------------------------------------------------------------------------------------
    # the lease

    def is_idle(self) -> bool:
        """See `LeasedWork.is_idle`."""
        return not self._scheduled

    async def begin(self, lease: Lease) -> None:
        """Start with the destinations in the database. Raises DatabaseUnavailable."""
        rows, backlogs = await self._store.get_destinations(), await self._store.get_backlogs()
        with_to_device = await self._to_device.get_servers(0, self._streams.current())
        self._dispatched = lease.position
        self._deliveries.start(lease.epoch, rows, backlogs, with_to_device)
        self._changed |= TOPICS
        self._schedule()

    async def store_progress(self) -> int:
        """See `LeasedWork.store_progress`."""
        if self._changed:
            self._schedule()  # retry what failed
        return self._position()

    def on_lease_lost(self) -> None:
        """Stop: see `LeasedWork.on_lease_lost`."""
        self._deliveries.stop()

    async def finish(self) -> int:
        """See `LeasedWork.finish`."""
        self._deliveries.stop()
        return self._position()

    async def _exchange_activity(self) -> None:
        """Report server activity seen on this node, or read the reports of the other nodes."""
        if self._lease.is_single_node:
            return
        if self._lease.is_held:
            for server, source in (await self._store.take_activity()).items():
                if source is ActivitySource.OPERATOR:
                    self._retry_as_active(ServerName(server))
                else:
                    self.record_activity(ServerName(server))
        elif self._active_here:
            active, self._active_here = self._active_here, set()
            await self._store.record_activity(active)

    def _position(self) -> int:
        """Return the position up to which everything is delivered or recorded as missed."""
        if not self._changed and not self._scheduled:
            self._dispatched = self._streams.current()  # changes since then concern no other server
        lowest = self._deliveries.get_lowest_unstored_position()
        return max(
            self._lease.stored_position,
            self._dispatched if lowest is None else min(self._dispatched, lowest - 1),
        )


def _server_of(user_id: str) -> ServerName:
    """Return the server part, even if it is no valid name: dispatching must not fail on one."""
    return ServerName(user_id.partition(":")[2])


def _add_event(destination: Destination, event: QueuedEvent, backlogs: dict[str, Backlog]) -> None:
    if not destination.is_behind:
        destination.queue.append(event)
        if len(destination.queue) > MAX_QUEUED:
            backlogs[destination.server] = destination.fall_behind()
    elif event.room_nid not in destination.missed_rooms:
        destination.missed_rooms[event.room_nid] = event.position
        backlog = backlogs.setdefault(destination.server, Backlog())
        backlog.rooms.setdefault(event.room_nid, event.position)


def _add_user(
    destination: Destination, user_id: str, stream_id: int, backlogs: dict[str, Backlog]
) -> None:
    if user_id not in destination.users:
        destination.users[user_id] = stream_id
        if destination.is_behind:
            backlogs.setdefault(destination.server, Backlog()).users.setdefault(user_id, stream_id)

"""Tells other servers what they have to hear of: driven by the stream, a queue for each
destination.

Laws:
- What is told comes from the stream and from tables, never from whoever made the change. So a
  restart, or another node's write, is nothing special: up to the lease's position all is told or
  noted, and from there the stream is read again.
- One node sends at a time: it has the lease. On SQLite, which is for one node, it is taken by
  force.
- Of a destination one transaction is under way at a time, and is tried again under its id and with
  its content.
- A server that comes to share a room with one of our users, whatever was told it of them before, is
  told of the latest change of their devices: so it sees whether it has missed some. One that is
  behind is not: it sees them come when it hears of the room.
- A destination that has heard everything costs nothing; one that cannot be reached costs a row for
  each room of which it misses something (`destination.py`), and a try now and then. So does one
  that the policy refuses: it is told when the policy lets it.

Receipts, typing and presence are told to who can be reached; who cannot, hears the latest of them
when it can, if this process lives so long.

spec: server-server-api#transactions
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.identity import ServerIdentity
from federation.peers.peer_backoff import PeerBackoff
from federation.peers.policy import Policy
from federation.protocol.ids import ServerName, UserID, is_server_name
from federation.rooms.events import RoomEvents
from federation.rooms.room_servers import RoomServers
from federation.rooms.sticky_events import StickyEvents
from federation.sender.deliveries import Deliveries
from federation.sender.destination import (
    MAX_QUEUED,
    SHORT_SILENCE_MS,
    SILENT_MS,
    Destination,
    QueuedEvent,
)
from storage.cluster.lease_loop import LeaseLoop
from storage.cluster.leases import Lease
from storage.cluster.node_lease import NodeLease
from storage.devices.device_list_log import DeviceListLog
from storage.encryption.outgoing_to_device import OutgoingToDeviceStore
from storage.engine.database import DatabaseUnavailable
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.events import EventFlag, EventRow
from storage.federation.destinations import Backlog, DestinationStore, EventToSend, OwnMove, Word
from storage.rooms.memberships import MembershipRow
from storage.rooms.receipts import ReceiptRow

AT_ONCE: Final = 500
"""Events, and receipts, that are dispatched at once."""
MAX_HEARD: Final = 10_000
"""Servers of which is passed on in one round that they have spoken."""
PUBLIC_RECEIPT: Final = "m.read"
TOPICS: Final = frozenset(
    {Topic.EVENT, Topic.RECEIPT, Topic.DEVICE, Topic.OUTGOING, Topic.MEMBERSHIP}
)


class Sender:
    """Dispatches what happens to the destinations that it concerns. For the reactor thread."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        streams: Streams,
        lease: NodeLease,
        store: DestinationStore,
        to_device: OutgoingToDeviceStore,
        device_log: DeviceListLog,
        events: RoomEvents,
        servers: RoomServers,
        sticky: StickyEvents,
        deliveries: Deliveries,
        identity: ServerIdentity,
        policy: Policy,
        silences: PeerBackoff[ServerName],
        now_ms: Callable[[], int],
    ) -> None:
        self._clock = clock
        self._streams = streams
        self._lease = LeaseLoop(clock, lease, self, "sender", each_round=self._tell_each_other)
        self._store = store
        self._to_device = to_device
        self._device_log = device_log
        self._events = events
        self._servers = servers
        self._sticky = sticky
        self._deliveries = deliveries
        self._identity = identity
        self._policy = policy
        self._silences = silences
        self._now_ms = now_ms
        self._dispatched = 0
        self._heard: set[Topic] = set()
        self._newcomers: dict[tuple[int, ServerName], int] = {}
        """Servers that may have come into a room with sticky events, and the position of the
        join."""
        self._scheduled = False
        self._spoke_here: set[ServerName] = set()
        """Of whom the node that sends is to hear that they are there."""
        streams.subscribe(self._on_changes, *TOPICS, stage=Stage.SEND)
        streams.watch(self._on_remote_write, stage=Stage.SEND)

    def start(self) -> None:
        """Send from now on, as soon as no other node does."""
        self._lease.start()

    async def stop(self) -> None:
        """Send no more, and note how far all is told."""
        await self._lease.stop()

    def heard_from(self, server: ServerName) -> None:
        """A server has proved that it is there."""
        self._silences.record_answer(server)
        if self._lease.is_held:
            self._deliveries.heard_from(server)
        elif len(self._spoke_here) < MAX_HEARD:
            self._spoke_here.add(server)

    async def try_now(self, server: ServerName) -> None:
        """An operator says that a server is there. Where another node sends, it hears of that in
        its next round."""
        self._believe(server)
        if not self._lease.is_held:
            await self._store.note_heard([server], Word.OF_AN_OPERATOR)

    def _believe(self, server: ServerName) -> None:
        self._deliveries.forget_vain_words(server)
        self.heard_from(server)

    def is_failing(self, server: ServerName) -> bool:
        """Whether the server could not be reached a moment ago with what is to be sent there."""
        destination = self._deliveries.peek(server)
        return destination is not None and destination.is_failing_at(self._now_ms())

    def would_wait_in_vain(self, server: ServerName) -> bool:
        """Whether the server could not be reached a moment ago, or somebody else waited for it, so
        that nobody should wait for it now."""
        return self.is_failing(server) or self._silences.left_ms(server) > 0

    async def is_away(self, server: ServerName) -> bool:
        """Whether the server has not answered for longer than one takes to start again. One query,
        where another node sends. One that asked us to wait has answered."""
        if self._silences.failing_ms(server) >= SHORT_SILENCE_MS:
            return True
        if self._lease.is_held:
            destination = self._deliveries.peek(server)
            if destination is None or destination.asked_until_ts:
                return False
            since_ts = destination.failing_since_ts
        else:
            since_ts = await self._store.get_failing_since(server)
        return since_ts is not None and self._now_ms() >= since_ts + SHORT_SILENCE_MS

    @property
    def is_sending(self) -> bool:
        """Whether this is the node that sends."""
        return self._lease.is_held

    def forget(self, server: ServerName) -> None:
        """The database has nothing of that server any more."""
        self._deliveries.forget(server)

    def note_silence(self, server: ServerName, asked_at: float) -> None:
        """The server has not answered something else that we asked, at that second of the clock."""
        seconds = self._clock.seconds() - asked_at
        if (
            seconds * 1000 >= SILENT_MS
        ):  # to find out at once that a server is away costs nobody time
            self._silences.record_failure(server, asked_at_ms=int(asked_at * 1000))
        self._deliveries.note_silence(server, seconds)

    async def send_notice(self, room_nid: int, key: tuple[str, str], edu: bytes) -> None:
        """Tell the other servers in a room something that is soon out of date; the latest under a
        key is told.

        A server that cannot be reached does not hear of it: when it can, that is over.
        """
        if self._lease.is_held:
            for destination in self._find_allowed(await self._servers.in_room(room_nid)):
                if destination.failing_since_ts is None:
                    destination.add_notice(key, edu)
                    self._deliveries.wake(destination)

    async def send_presence(self, user_id: UserID, presence: Mapping[str, Any]) -> None:
        """Tell the servers that share a room with one of our users of their presence: an entry of
        `push`.

        spec: server-server-api#presence
        """
        if self._lease.is_held:
            for destination in self._find_allowed(await self._servers.of_user(user_id)):
                destination.add_presence(user_id, presence)
                self._deliveries.wake(destination)

    # ---------------------------------------------------------------------------------------------------
    # the stream

    def _on_changes(self, changes: Sequence[Change]) -> None:
        if not self._lease.is_held:
            return
        for change in changes:
            if (
                change.topic in TOPICS
                and self._concerns_others(change)
                and change.topic not in self._heard
            ):
                self._heard.add(change.topic)
                self._schedule()

    def _concerns_others(self, change: Change) -> bool:
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
            return joins or self._note_newcomer(row)
        return change.topic is not Topic.DEVICE or not self._servers.is_known_alone

    def _note_newcomer(self, row: MembershipRow) -> bool:
        """Whether a server may have come into a room where something has to be told to
        newcomers."""
        if row.is_local or row.membership != "join" or not self._sticky.may_be_in(row.room_nid):
            return False
        self._newcomers[row.room_nid, _server_of(row.user_id)] = row.position
        return True

    def _on_remote_write(self, _after: int, _upto: int) -> None:
        if self._lease.is_held:
            self._heard |= TOPICS
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._start_turn)

    def _start_turn(self) -> None:
        Deferred.fromCoroutine(self._turn())

    async def _turn(self) -> None:
        heard = set(self._heard)
        try:
            while self._lease.is_held and self._heard:
                heard, self._heard = self._heard, set()
                if not await self._dispatch(heard):
                    self._heard |= (
                        TOPICS  # a stretch was cut short: what follows it may be of any kind
                    )
        except DatabaseUnavailable as error:
            self._heard |= heard
            self.log.warn("what happened is told to other servers later: {error}", error=error)
        except Exception:  # a bug of ours: the next round tries again
            self._heard |= heard
            self.log.failure("what happened could not be told to other servers")
        finally:
            self._scheduled = False

    async def _dispatch(self, topics: set[Topic]) -> bool:
        """Hand the next stretch of the stream to the destinations that it concerns; whether that
        was all."""
        after, upto = self._dispatched, self._streams.current()
        woken: dict[ServerName, Destination] = {}
        backlogs: dict[str, Backlog] = {}
        events = (
            await self._store.get_events_to_send(after, upto, AT_ONCE)
            if Topic.EVENT in topics
            else ()
        )
        if len(events) == AT_ONCE:
            upto = events[-1].position
        receipts = (
            await self._store.get_receipts_to_send(after, upto, AT_ONCE)
            if Topic.RECEIPT in topics
            else ()
        )
        if len(receipts) == AT_ONCE:
            upto = receipts[-1].position
        moves = (
            await self._store.get_own_moves(after, upto, AT_ONCE)
            if Topic.MEMBERSHIP in topics
            else ()
        )
        if len(moves) == AT_ONCE:
            upto = moves[-1].position
        for event in events:
            if event.position <= upto:
                queued = QueuedEvent(event.position, event.event_nid, event.room_nid)
                for destination in self._find(await self._servers_for(event)):
                    woken[destination.server] = destination
                    _add_event(destination, queued, backlogs)
        for receipt in receipts:
            if self._identity.is_local(receipt.user_id):
                for destination in self._find(await self._servers.in_room(receipt.room_nid)):
                    woken[destination.server] = destination
                    destination.add_receipt(receipt)
        if Topic.DEVICE in topics and not await self._servers.is_alone():
            for user_id, stream_id in (
                await self._device_log.get_changed_users(after, upto)
            ).items():
                for destination in self._find(await self._servers.of_user(UserID(user_id))):
                    woken[destination.server] = destination
                    _add_user(destination, user_id, stream_id, backlogs)
        for move in await self._find_joins(moves):
            servers = await self._servers.newly_shared(
                UserID(move.user_id), move.room_nid, move.position
            )
            for destination in self._find(servers):
                if not destination.is_behind:
                    woken[destination.server] = destination
                    destination.users.setdefault(move.user_id, move.position)
        if Topic.OUTGOING in topics:
            for destination in self._find(
                map(ServerName, await self._to_device.get_servers(after, upto))
            ):
                woken[destination.server] = destination
                destination.has_to_device = True
        await self._tell_newcomers(woken, backlogs)
        if backlogs:
            await self._note(backlogs, [woken[ServerName(server)] for server in backlogs])
        self._dispatched = upto
        for destination in woken.values():
            self._deliveries.wake(destination)
        return max(len(events), len(receipts), len(moves)) < AT_ONCE

    async def _find_joins(self, moves: Sequence[OwnMove]) -> list[OwnMove]:
        """Those of the moves by which one of our users came in."""
        ours = [move for move in moves if self._identity.is_local(move.user_id)]
        stored = await self._events.get_events(move.event_nid for move in ours)
        before = await self._events.get_events(
            each.replaces for each in stored.values() if each.replaces is not None
        )
        joins = []
        for move in ours:
            event = stored[move.event_nid]
            former = None if event.replaces is None else before.get(event.replaces)
            if event.event.membership == "join" and (
                former is None or former.event.membership != "join"
            ):
                joins.append(move)
        return joins

    async def _tell_newcomers(
        self, woken: dict[ServerName, Destination], backlogs: dict[str, Backlog]
    ) -> None:
        """Our own sticky events from before they came. Proposal: MSC4354"""
        newcomers, self._newcomers = self._newcomers, {}
        for (room_nid, server), position in newcomers.items():
            if (await self._servers.in_room(room_nid)).get(server) != position:
                # others of its users have been there for longer, or it is not there any more
                continue
            rows = (await self._sticky.in_rooms({room_nid: (0, position - 1)})).get(room_nid, [])
            for row in rows:
                if self._identity.is_local(row.sender):
                    for destination in self._find([server]):
                        woken[destination.server] = destination
                        _add_event(
                            destination,
                            QueuedEvent(row.position, row.event_nid, room_nid),
                            backlogs,
                        )

    async def _note(
        self, backlogs: Mapping[str, Backlog], destinations: Sequence[Destination]
    ) -> None:
        """Write down what servers that are behind have missed besides. Whom that fails for stays
        unnoted."""
        noted = [each for each in destinations if each.is_noted or backlogs[each.server].is_whole]
        for destination in destinations:
            destination.is_noted = False
        await self._store.add_backlogs(backlogs)
        for destination in noted:
            destination.is_noted = True

    async def _servers_for(self, event: EventToSend) -> Collection[ServerName]:
        """The servers that were in the room by then, and that of whoever has just been put out of
        it."""
        in_room = await self._servers.in_room(event.room_nid)
        servers = {server: None for server, since in in_room.items() if since <= event.position}
        if event.is_member:
            stored = (await self._events.get_events([event.event_nid]))[event.event_nid].event
            if stored.membership in ("leave", "ban") and stored.state_key is not None:
                servers[_server_of(stored.state_key)] = None
        servers.pop(_server_of(event.sender), None)
        return servers.keys()

    def _find(self, servers: Iterable[ServerName]) -> list[Destination]:
        """The destinations that have to hear of something, be it later: the policy is asked when it
        is delivered."""
        return [
            self._deliveries.find(server)
            for server in servers
            if server != self._identity.server_name and is_server_name(server)
        ]

    def _find_allowed(self, servers: Iterable[ServerName]) -> list[Destination]:
        """Those that the policy allows now, for what is of no interest later."""
        return self._find(server for server in servers if self._policy.allows(server))

    # ----------------------------------------------------------------------------------------------------
    # the lease

    def is_idle(self) -> bool:
        """As `LeasedWork.is_idle`."""
        return not self._scheduled

    async def begin(self, lease: Lease) -> None:
        """Send what the database knows of, and what follows. Raises DatabaseUnavailable."""
        rows, backlogs = await self._store.get_destinations(), await self._store.get_backlogs()
        waiting = await self._to_device.get_servers(0, self._streams.current())
        self._dispatched = lease.position
        self._deliveries.start(lease.run, rows, backlogs, waiting)
        self._heard |= TOPICS
        self._schedule()

    async def note(self) -> int:
        """As `LeasedWork.note`."""
        if self._heard:
            self._schedule()  # what failed is tried again
        return self._position()

    def lose(self) -> None:
        """As `LeasedWork.lose`."""
        self._deliveries.stop()

    async def finish(self) -> int:
        """As `LeasedWork.finish`."""
        self._deliveries.stop()
        return self._position()

    async def _tell_each_other(self) -> None:
        """Servers speak to any node: that which sends hears of it from the others."""
        if self._lease.is_alone:
            return
        if self._lease.is_held:
            for server, word in (await self._store.take_heard()).items():
                if word is Word.OF_AN_OPERATOR:
                    self._believe(ServerName(server))
                else:
                    self.heard_from(ServerName(server))
        elif self._spoke_here:
            spoke, self._spoke_here = self._spoke_here, set()
            await self._store.note_heard(spoke)

    def _position(self) -> int:
        """Up to where all is told or noted."""
        if not self._heard and not self._scheduled:
            self._dispatched = self._streams.current()  # nothing of what came since concerns others
        lowest = self._deliveries.lowest()
        return max(
            self._lease.noted,
            self._dispatched if lowest is None else min(self._dispatched, lowest - 1),
        )


def _server_of(user_id: str) -> ServerName:
    """As a name that may be none: what is told must not stop at one."""
    return ServerName(user_id.partition(":")[2])


def _add_event(destination: Destination, event: QueuedEvent, backlogs: dict[str, Backlog]) -> None:
    if not destination.is_behind:
        destination.queue.append(event)
        if len(destination.queue) > MAX_QUEUED:
            backlogs[destination.server] = destination.fall_behind()
    elif event.room_nid not in destination.missed:
        destination.missed[event.room_nid] = event.position
        backlog = backlogs.setdefault(destination.server, Backlog())
        backlog.rooms.setdefault(event.room_nid, event.position)


def _add_user(
    destination: Destination, user_id: str, stream_id: int, backlogs: dict[str, Backlog]
) -> None:
    if user_id not in destination.users:
        destination.users[user_id] = stream_id
        if destination.is_behind:
            backlogs.setdefault(destination.server, Backlog()).users.setdefault(user_id, stream_id)

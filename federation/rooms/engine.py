"""The room engine: adds events of our users and of other servers to rooms.

Laws:
- Optimistic heads: a chain of events (`build.py`) is built on the room head without a lock. The
  write checks that the head has not moved since. If it has, the chain is built again.
- One queue per room and node: up to a hundred waiting requests to send events are built into one
  chain and written together. So concurrent senders on one node never conflict, and never fork the
  room. Events from other servers take their turn in the same queue (`in_turn`).
- A send returns after its events are durable.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import Forbidden, NotFound
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID, RoomID
from federation.protocol.policy_server import NAMING, find_naming
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from federation.rooms.build import Chain, Classify, DependsOnChain, GetPolicySignature
from federation.rooms.event_drafts import Draft, ExtraWrite
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.partial_rooms import PartialRooms
from federation.rooms.room_servers import RoomServers
from federation.rooms.snapshot import RoomSnapshot
from federation.rooms.state_view import StateView
from storage.cache import LRU
from storage.engine.database import Database
from storage.engine.interface import DatabaseUnavailable
from storage.engine.streams import Stage
from storage.engine.transaction import WriteTransaction
from storage.events.events import EventFlag
from storage.persist.room_writer import AppendResult, HeadMoved, NewEvent, RoomWriter
from storage.rooms.rooms import RoomExists, RoomHead, RoomRow, RoomStore, add_room
from storage.rooms.sent_transactions import AlreadySent, SentTransaction, select_response
from storage.state.state_tree import StateTreeStore

T = TypeVar("T")

MEMBER = "m.room.member"
MAX_REQUESTS_PER_CHAIN = 100
MAX_REBUILDS = 100
"""Another node has its own last event in memory, so it may win many times in a row."""
MAX_CHAIN_MS = 1_000
"""After this building time, because of a slow policy server, the chain is written without adding
more."""


class HeadContention(DatabaseUnavailable):
    """Other nodes write to the room so often that this node cannot add an event. Nothing was
    written, and the request can be retried."""

    def __init__(self, room_id: str) -> None:
        super().__init__(f"the head of {room_id} moved {MAX_REBUILDS} times while building upon it")


class _Request(msgspec.Struct):
    drafts: Sequence[Draft]
    done: "Deferred[list[StoredEvent]]"
    built: list[Event | StoredEvent] = msgspec.field(default_factory=list)


class _ExclusiveWork(msgspec.Struct):
    """Work that needs exclusive access to the room on this node."""

    work: Callable[[], Awaitable[Any]]
    done: "Deferred[Any]"


class _Queue(msgspec.Struct):
    waiting: list[_Request | _ExclusiveWork] = msgspec.field(default_factory=list)
    running: bool = False


class RoomEngine:
    """Reads the current state of rooms, and adds events. Use this class only on the reactor thread.

    The cache of snapshots is no `StreamCache`. A write replaces a snapshot and checks its version.
    After a write of another node, a snapshot is read again.
    """

    # More than ten: everything on the way of an event into its room.
    def __init__(
        self,
        *,
        database: Database,
        rooms: RoomStore,
        events: RoomEvents,
        servers: RoomServers,
        trees: StateTreeStore,
        writer: RoomWriter,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
        classify: Classify,
        partial: PartialRooms,
        capacity: int,
        get_policy_signature: GetPolicySignature | None = None,
    ) -> None:
        """`capacity`: rooms whose heads are cached. `get_policy_signature` gets the policy server's
        signature for events of ours; without it, no policy server is asked."""
        self._database = database
        self._rooms = rooms
        self._events = events
        self._servers = servers
        self._trees = trees
        self._writer = writer
        self._identity = identity
        self._now_ms = now_ms
        self._classify = classify
        self._partial = partial
        self._get_policy_signature = get_policy_signature
        self._snapshots: LRU[str, RoomSnapshot] = LRU(
            max_entries=capacity, on_remove=lambda room_id, _: self._checked_at.pop(room_id, None)
        )
        self.hits = 0
        self.misses = 0
        self._queues: dict[str, _Queue] = {}
        self._last_creation = 0
        self._remote_writes = 0
        self._checked_at: dict[str, int] = {}
        """By room: how many writes of other nodes there had been when its snapshot was read."""
        database.streams.watch(self._on_remote_write, stage=Stage.CACHE)
        self._log = Logger()

    async def add_policy_signature(self, snapshot: RoomSnapshot, event: Event) -> Event:
        """Return an event that was built outside the queue, with the policy server's signature.

        Raises MatrixError, RemoteError.
        """
        if self._get_policy_signature is None:
            return event
        named = find_naming(await snapshot.state.load(NAMING))
        return await self._get_policy_signature(
            snapshot.room.room_nid, event, None if named is None else named.event
        )

    def __len__(self) -> int:
        """Return the number of cached rooms."""
        return len(self._snapshots)

    async def find_snapshot(self, room_id: RoomID) -> RoomSnapshot | None:
        """Return the current snapshot of the room, or None if it is not stored."""
        snapshot = self._snapshots.get(room_id)
        if snapshot is not None and self._checked_at.get(room_id, 0) == self._remote_writes:
            self.hits += 1
            return snapshot
        self.misses += 1
        room = await self._rooms.get_room(room_id)
        return None if room is None else await self._read(room)

    async def get_snapshot(self, room_id: RoomID) -> RoomSnapshot:
        """Return the current snapshot of the room. Raises NotFound."""
        snapshot = await self.find_snapshot(room_id)
        if snapshot is None:
            raise NotFound("This server does not have the room")
        return snapshot

    def view(self, room_nid: int, root: bytes | None) -> StateView:
        """Return the state at some root of a room."""
        return StateView(trees=self._trees, events=self._events, room_nid=room_nid, root=root)

    async def send(self, room_id: RoomID, drafts: Sequence[Draft]) -> list[StoredEvent]:
        """Add the events of one request to a room, all or none; return them once they are durable.

        Raises Forbidden (also for an unknown room, like for one that the sender is not in), other
        MatrixErrors of authorization and size, AlreadySent, StateIncomplete.
        """
        snapshot = await self.find_snapshot(room_id)
        if snapshot is None:
            raise Forbidden("You are not in this room")
        if snapshot.head.partial_join is not None:
            await self._wait_for_members(snapshot, drafts)
        request = _Request(drafts, Deferred())
        self._enqueue(room_id, request)
        return await request.done

    async def check(
        self, room_id: RoomID, drafts: Sequence[Draft]
    ) -> Sequence[Event | StoredEvent]:
        """Return the events that `send` would add now, without adding them.

        For a draft that changes nothing, return the current event. The policy server is not asked.
        Raises the errors of `send` except AlreadySent.
        """
        snapshot = await self.find_snapshot(room_id)
        if snapshot is None:
            raise Forbidden("You are not in this room")
        if snapshot.head.partial_join is not None:
            await self._wait_for_members(snapshot, drafts)
        return await Chain(
            snapshot=snapshot, events=self._events, identity=self._identity, classify=self._classify
        ).add(drafts, self._now_ms())

    async def get_complete(self, room_id: RoomID) -> RoomSnapshot:
        """Return the room once its state is complete. Raises NotFound, StateIncomplete."""
        snapshot = await self.get_snapshot(room_id)
        if snapshot.head.partial_join is None:
            return snapshot
        await self._partial.wait(snapshot.room.room_nid)
        return await self.get_snapshot(room_id)

    async def _wait_for_members(self, snapshot: RoomSnapshot, drafts: Sequence[Draft]) -> None:
        """Wait for the memberships that the drafts change, if partial state lacks them."""
        targets = {
            StateKey(MEMBER, draft.state_key)
            for draft in drafts
            if draft.type == MEMBER and draft.state_key
        }
        if targets - (await snapshot.state.load(targets)).keys():
            await self._partial.wait(snapshot.room.room_nid)

    async def in_turn(self, room_id: RoomID, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` while no other work of this node changes the room.

        It is used for events from other servers. Other nodes may still move the head; the write
        detects that. `work` must not wait for the same queue.
        """
        queued = _ExclusiveWork(work, Deferred())
        self._enqueue(room_id, queued)
        result: T = await queued.done
        return result

    async def begin_chain(self, snapshot: RoomSnapshot) -> Chain:
        """Return a chain of our own events, which are sent to the other servers in the room."""
        servers = await self._servers.in_room(snapshot.room.room_nid)
        further_flags = EventFlag.TO_SEND if servers else 0
        return Chain(
            snapshot=snapshot,
            events=self._events,
            identity=self._identity,
            classify=self._classify,
            further_flags=further_flags,
            get_policy_signature=self._get_policy_signature if servers else None,
        )

    async def refresh(self, snapshot: RoomSnapshot) -> RoomSnapshot:
        """Return the current snapshot, read again after `HeadMoved`."""
        return await self._moved(snapshot) or snapshot

    def advance(
        self,
        snapshot: RoomSnapshot,
        appended: AppendResult,
        changes: Mapping[StateKey, StoredEvent | None] | None = None,
    ) -> list[StoredEvent]:
        """Cache the next snapshot of a room that was written; return the new events as stored.

        `changes`: entries that differ from the state before (None: removed), if they are not just
        those that the new events set.
        """
        return self._advance(snapshot, appended, changes)

    def _enqueue(self, room_id: RoomID, item: _Request | _ExclusiveWork) -> None:
        queue = self._queues.get(room_id)
        if queue is None:
            queue = self._queues[room_id] = _Queue()
        queue.waiting.append(item)
        if not queue.running:
            queue.running = True
            Deferred.fromCoroutine(self._drain(room_id, queue)).addErrback(
                lambda failure: self._log.failure("the queue of a room broke", failure)
            )

    async def create(
        self,
        version: RoomVersion,
        room_id: RoomID | None,
        drafts: Sequence[Draft],
        extra_write: ExtraWrite | None = None,
        prepare: Callable[[RoomID], Awaitable[None]] | None = None,
    ) -> tuple[RoomSnapshot, list[StoredEvent]]:
        """Create a room from these drafts, starting with the create event, in one write.

        `room_id` is None if it is the hash of the create event. `extra_write` runs in the same
        transaction; the `extra_write` of a draft does not. `prepare` runs before it, with the ID of
        the room. Raises the errors of authorization, and those of the callbacks.
        """
        # If a user created two rooms in one millisecond, both create events would hash to one ID.
        # The other room may be of another node, or of this one before its clock was set back. Then
        # this one is created a moment later.
        now = self._last_creation = max(self._now_ms(), self._last_creation + 1)
        placeholder = RoomRow(0, room_id or "", version.identifier, now)
        empty = RoomHead(0, (), 0, None, 0, 0)
        chain = Chain(
            snapshot=RoomSnapshot(placeholder, version, empty, self.view(0, None)),
            events=self._events,
            identity=self._identity,
            classify=self._classify,
        )
        for draft in drafts:
            await chain.add([draft], now)
        created_id = chain.built[0].room_id
        if prepare is not None:
            if room_id is None and await self.find_snapshot(created_id) is not None:
                return await self.create(version, room_id, drafts, extra_write, prepare)
            await prepare(created_id)

        def write(txn: WriteTransaction) -> tuple[RoomRow, AppendResult]:
            room, head = add_room(txn, created_id, version.identifier, now)
            extremities = [chain.built[-1].event_id]
            appended = self._writer.append(txn, room, head, chain.new, extremities, now_ms=now)
            if extra_write is not None:
                extra_write(txn, room)
            return room, appended

        self._events.expect(chain.built)
        try:
            room, appended = await self._database.write("create_room", write)
        except RoomExists:
            if room_id is not None or prepare is not None:
                raise
            return await self.create(version, room_id, drafts, extra_write)
        finally:
            self._events.stop_expecting(chain.built)
        snapshot = RoomSnapshot(room, version, empty, self.view(room.room_nid, None))
        stored = self._advance(snapshot, appended)
        return await self.get_snapshot(created_id), stored

    async def _read(self, room: RoomRow) -> RoomSnapshot:
        remote_writes = self._remote_writes
        head = await self._rooms.get_head(room.room_nid)
        cached = self._snapshots.peek(room.room_id)
        if cached is not None and cached.head.version >= head.version:
            self._keep(cached, remote_writes)
            return cached
        view = self.view(room.room_nid, head.state_root)
        snapshot = RoomSnapshot(room, ROOM_VERSIONS[room.version], head, view)
        self._keep(snapshot, remote_writes)
        return snapshot

    def _keep(self, snapshot: RoomSnapshot, remote_writes: int) -> None:
        self._snapshots.put(snapshot.room.room_id, snapshot)
        self._checked_at[snapshot.room.room_id] = remote_writes

    def _on_remote_write(self, _after: int, _upto: int) -> None:
        """Another node wrote: each room's head is compared when the room is next needed."""
        self._remote_writes += 1

    async def _drain(self, room_id: RoomID, queue: _Queue) -> None:
        try:
            while queue.waiting:
                first = queue.waiting[0]
                if isinstance(first, _ExclusiveWork):
                    del queue.waiting[0]
                    await _run_exclusively(first)
                    continue
                batch = _next_requests(queue)
                try:
                    deferred = await self._append(await self.get_snapshot(room_id), batch)
                    # after the turn at which the chain ended: events from other servers wait for at
                    # most one chain
                    at = 1 if queue.waiting and isinstance(queue.waiting[0], _ExclusiveWork) else 0
                    queue.waiting[at:at] = deferred
                except Exception as error:
                    for request in batch:
                        if not request.done.called:
                            request.done.errback(error)
        finally:
            queue.running = False
            if self._queues.get(room_id) is queue and not queue.waiting:
                del self._queues[room_id]

    async def _append(self, snapshot: RoomSnapshot, batch: Sequence[_Request]) -> list[_Request]:
        """Write one chain for these requests; return those that have to wait for the next one.

        Refusals are sent after the write, too: they may depend on events of the chain, and on the
        head that the write checks.
        """
        rebuilds = 0
        while rebuilds < MAX_REBUILDS:
            chain = await self.begin_chain(snapshot)
            now = self._now_ms()
            ready, later, refused = await self._build(chain, batch, now)
            try:
                extra_writes = [
                    draft.extra_write
                    for request in ready
                    for draft in request.drafts
                    if draft.extra_write is not None
                ]
                appended = await self._write(snapshot, chain, extra_writes, now)
            except HeadMoved:
                rebuilds += 1
                snapshot = await self._moved(snapshot) or snapshot
                continue
            except AlreadySent as error:
                batch = self._answer_repeated(batch, error)
                continue
            stored = {event.event.event_id: event for event in self._advance(snapshot, appended)}
            for new in chain.new:
                if new.sent_transaction is not None:
                    stored[EventID(new.event_id)].sent = (
                        new.sent_transaction.device_id,
                        new.sent_transaction.txn_id,
                    )
            for request, refusal in refused:
                request.done.errback(refusal)
            for request in ready:
                request.done.callback(
                    [
                        event if isinstance(event, StoredEvent) else stored[event.event_id]
                        for event in request.built
                    ]
                )
            return later
        raise HeadContention(snapshot.room.room_id)

    async def _build(
        self, chain: Chain, batch: Sequence[_Request], now: int
    ) -> tuple[list[_Request], list[_Request], list[tuple[_Request, Failure]]]:
        """Add requests to a chain; return those added, those that have to wait, and those that
        failed."""
        ready: list[_Request] = []
        later: list[_Request] = []
        refused: list[tuple[_Request, Failure]] = []
        names: set[SentTransaction] = set()
        for request in batch:
            own_names = {draft.sent for draft in request.drafts if draft.sent is not None}
            if ready and self._now_ms() - now > MAX_CHAIN_MS:
                later.append(request)
                continue
            if own_names & names:
                later.append(
                    request
                )  # the same request twice: the next chain answers the repetition
                continue
            try:
                request.built = await chain.add(request.drafts, now)
                ready.append(request)
                names |= own_names
            except DependsOnChain:
                later.append(request)
            except Exception:  # the failure of one request must not affect the others
                refused.append((request, await self._explain(own_names, Failure())))
        return ready, later, refused

    async def _explain(self, names: Iterable[SentTransaction], refusal: Failure) -> Failure:
        """Return the failure of a request, which is AlreadySent if it was sent before."""
        for sent in names:
            response = await self._database.read_quickly("get_sent_response", select_response, sent)
            if response is not None:
                return Failure(AlreadySent(sent, response))
        return refusal

    async def _moved(self, snapshot: RoomSnapshot) -> RoomSnapshot | None:
        """Return the current snapshot if the head has moved, else None."""
        head = await self._rooms.get_head(snapshot.room.room_nid)
        if head.version == snapshot.head.version:
            return None
        self._snapshots.pop(snapshot.room.room_id)
        return await self._read(snapshot.room)

    async def _write(
        self, snapshot: RoomSnapshot, chain: Chain, extra_writes: Sequence[ExtraWrite], now: int
    ) -> AppendResult:
        if not chain.new:
            if await self._moved(snapshot) is not None:
                raise HeadMoved(
                    snapshot.room.room_id
                )  # the refusals and unchanged entries may be outdated
            return AppendResult(snapshot.head, [])
        self._events.expect(chain.built)
        try:
            return await self._database.write(
                "append_events",
                self._append_in,
                snapshot,
                chain.new,
                chain.extremities,
                extra_writes,
                now,
            )
        finally:
            self._events.stop_expecting(chain.built)

    def _append_in(
        self,
        txn: WriteTransaction,
        snapshot: RoomSnapshot,
        new: Sequence[NewEvent],
        extremities: Sequence[str],
        extra_writes: Sequence[ExtraWrite],
        now: int,
    ) -> AppendResult:
        appended = self._writer.append(
            txn, snapshot.room, snapshot.head, new, extremities, now_ms=now
        )
        for each in extra_writes:
            each(txn, snapshot.room)
        return appended

    def _answer_repeated(self, batch: Sequence[_Request], error: AlreadySent) -> list[_Request]:
        remaining: list[_Request] = []
        for request in batch:
            if any(draft.sent == error.transaction for draft in request.drafts):
                request.done.errback(error)
            else:
                remaining.append(request)
        return remaining

    def _advance(
        self,
        snapshot: RoomSnapshot,
        appended: AppendResult,
        changes: Mapping[StateKey, StoredEvent | None] | None = None,
    ) -> list[StoredEvent]:
        """Make the next snapshot of the room; the new events as they are stored."""
        stored = [self._events.get_or_parse(snapshot.room, row) for row in appended.rows]
        if changes is None:
            changes = {
                event.event.key: event for event in stored if event.event.state_key is not None
            }
        state = snapshot.state.after(appended.head.state_root, changes)
        if any(event.event.redacts is not None for event in stored):
            state = self.view(snapshot.room.room_nid, appended.head.state_root)
        self._keep(
            RoomSnapshot(snapshot.room, snapshot.version, appended.head, state), self._remote_writes
        )
        return stored


def _next_requests(queue: _Queue) -> list[_Request]:
    """Take the requests that wait at the front of a queue."""
    batch: list[_Request] = []
    for item in queue.waiting[:MAX_REQUESTS_PER_CHAIN]:
        if isinstance(item, _ExclusiveWork):
            break
        batch.append(item)
    del queue.waiting[: len(batch)]
    return batch


async def _run_exclusively(queued: _ExclusiveWork) -> None:
    try:
        result = await queued.work()
    except Exception as error:
        queued.done.errback(error)
    else:
        queued.done.callback(result)

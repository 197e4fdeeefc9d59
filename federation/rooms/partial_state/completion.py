"""Completes rooms with partial state: fetches the rest of the state, rechecks the events that
arrived since the join, and applies the result in one last write.

Laws:
- Until the last write, the room is used with its partial state. Only that write delays the room's
  events.
- Fetched events are stored as they arrive. So a later attempt fetches only the missing ones.
- A room has one attempt at a time. Servers are asked in turn, first the one that we joined through.
  The pause grows after each failed attempt. Attempts end when no local user is in the room.
- Requests that need the complete state wait for the last write, for a limited time
  (`PartialRooms`). If no server sends the rest any more (`state_sources.py`), the requests continue
  with the partial state, and we retry only once an hour.
- Events that cannot be verified because keys are unavailable are left out of the state, and stored
  separately (`unverified_events.py`). They are added to the state once they are verified.
"""

from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.identity import ServerIdentity
from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.ids import EventID, RoomID, ServerName
from federation.rooms.build import make_redaction
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.membership_templates import MEMBER
from federation.rooms.memberships import Memberships
from federation.rooms.partial_rooms import PartialRooms
from federation.rooms.partial_state.completion_stores import CompletionStores
from federation.rooms.partial_state.recheck import Recheck, RecheckProgress
from federation.rooms.partial_state.state_sources import StateSources
from federation.rooms.receive.inbox import Inbox
from federation.rooms.receive.remote_states import RemoteStates
from federation.rooms.receive.state_imports import StateImports
from federation.rooms.receive.unverified_events import UnverifiedStateEvents, is_of_type
from federation.rooms.relations import read_relation
from federation.rooms.resolve import StateResolver
from federation.rooms.snapshot import RoomSnapshot
from federation.rooms.state_effects import StoredEffects, effect_of_absence
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.relations import RelationRow
from storage.partial_state.completion import CompletedRoom, LateMessage
from storage.partial_state.unverified_events import NeededIn
from storage.persist.redactions import Redaction
from storage.persist.room_writer import AppendResult, HeadMoved, StateChange
from storage.persist.state_effects import NO_EFFECT, StateEffect
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.rooms import RoomRow

ROOMS_AT_ONCE: Final = 2
"""Rooms that are completed at the same time: the state of a large room takes much memory."""
MAX_NEW: Final = 500_000
"""New events that one room may bring."""
MAX_OTHER_SERVERS: Final = 2
"""Servers that are asked for the members when the server we joined through does not answer."""
CHUNK: Final = 500
"""Entries per write."""
MAX_TRIES: Final = 20
RETRIES: Final = BackoffSchedule(5_000, 600_000)
ABANDONED_PAUSE: Final = 3600.0
"""Seconds between attempts when no request waits for the room any longer."""
POLL_SECONDS: Final = 60.0
"""Seconds between two searches for rooms that another node has joined."""
LEASE_MS: Final = 15 * 60_000
"""For this time no other node works on a room that one works on."""


class PartialRoomObserver(Protocol):
    """Receives the number of rooms with partial state. Must not raise or block."""

    def partial_rooms_changed(self, count: int) -> None:
        """The number changed."""


class RoomCompletion:
    """Completes rooms with partial state. Use this class only on the reactor thread."""

    _log = Logger()

    # More than ten: it runs all steps that complete a room, each a part of its own.
    def __init__(
        self,
        *,
        stores: CompletionStores,
        engine: RoomEngine,
        events: RoomEvents,
        memberships: Memberships,
        sources: StateSources,
        partial: PartialRooms,
        states: RemoteStates,
        imports: StateImports,
        unverified: UnverifiedStateEvents,
        recheck: Recheck,
        resolver: StateResolver,
        effects: StoredEffects,
        inbox: Inbox,
        identity: ServerIdentity,
        streams: Streams,
        clock: IReactorTime,
        observer: PartialRoomObserver,
    ) -> None:
        self._stores = stores
        self._engine = engine
        self._events = events
        self._memberships = memberships
        self._sources = sources
        self._partial = partial
        self._states = states
        self._imports = imports
        self._recheck = recheck
        self._unverified = unverified
        self._resolver = resolver
        self._effects = effects
        self._inbox = inbox
        self._identity = identity
        self._clock = clock
        self._observer = observer
        self._semaphore = DeferredSemaphore(ROOMS_AT_ONCE)
        self._working: set[int] = set()
        self._paused: dict[int, IDelayedCall] = {}
        self._attempts: dict[int, int] = {}
        self._next_poll: IDelayedCall | None = None
        self._tasks: set[Deferred[None]] = set()
        self._started = False
        streams.subscribe(self._on_changes, Topic.PARTIAL_STATE, Topic.MEMBERSHIP, stage=Stage.SEND)

    def start(self) -> None:
        """Continue what was running when the server stopped, and then poll at intervals."""
        self._started = True
        self._run(self._resume(take_over=True))

    def stop(self) -> None:
        """Stop the running work. It continues after the next start."""
        self._started = False
        if self._next_poll is not None and self._next_poll.active():
            self._next_poll.cancel()
        while self._paused:
            self._paused.popitem()[1].cancel()
        for task in list(self._tasks):
            task.cancel()

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.PARTIAL_STATE and self._started:
                room = change.detail
                if isinstance(room, PartialRoom) and room.completed_position is None:
                    # later in the reactor: the join has to finish first
                    self._pause(room.room_nid, 0)
            elif (
                isinstance(change.detail, MembershipRow)
                and change.detail.is_local
                and change.detail.room_nid
                in self._paused  # there may be a local member again, or no longer
            ):
                self._pause(change.detail.room_nid, 0)

    def _pause(self, room_nid: int, seconds: float) -> None:
        call = self._paused.pop(room_nid, None)
        if call is not None:
            call.cancel()
        self._paused[room_nid] = self._clock.callLater(seconds, self._start_work, room_nid)

    async def _resume(self, *, take_over: bool = False) -> None:
        try:
            now = int(self._clock.seconds() * 1000)
            for nid in await self._stores.partial.get_incomplete():
                if nid in self._working or nid in self._paused:
                    continue
                if take_over or await self._stores.partial.is_unleased(nid, now):
                    self._start_work(nid)
            self._observer.partial_rooms_changed(await self._stores.partial.count_incomplete())
        finally:
            if self._started:
                self._next_poll = self._clock.callLater(
                    POLL_SECONDS, lambda: self._run(self._resume())
                )

    def _start_work(self, room_nid: int) -> None:
        self._paused.pop(room_nid, None)
        if room_nid not in self._working:
            self._working.add(room_nid)
            self._run(self._work(room_nid))

    async def _work(self, room_nid: int) -> None:
        done = False
        try:
            self._observer.partial_rooms_changed(await self._stores.partial.count_incomplete())
            await self._semaphore.acquire()
            try:
                done = await self._attempt(room_nid)
            finally:
                self._semaphore.release()
        except HeadMoved:
            self._log.info("another node is at work on the state of room {nid}", nid=room_nid)
        except (RemoteError, MatrixError) as error:
            self._log.info(
                "the state of room {nid} is not complete: {error}", nid=room_nid, error=str(error)
            )
        except Exception:  # unexpected, or a database failure; the next attempt may succeed
            if self._started:
                self._log.failure("the state of room {nid} could not be completed", nid=room_nid)
        finally:
            self._working.discard(room_nid)
            if done:
                self._attempts.pop(room_nid, None)
                self._sources.delete(room_nid)
            elif self._started:
                attempts = self._attempts[room_nid] = self._attempts.get(room_nid, 0) + 1
                is_waited_for = await self._partial.find(room_nid) is not None
                self._pause(
                    room_nid, RETRIES.nth(attempts) / 1000 if is_waited_for else ABANDONED_PAUSE
                )
        if self._started:
            self._observer.partial_rooms_changed(await self._stores.partial.count_incomplete())

    async def _attempt(self, room_nid: int) -> bool:
        """Try once to complete a room; return whether it is done. Raises RemoteError,
        MatrixError."""
        partial = (await self._partial.get_all()).get(room_nid)
        room = (await self._stores.rooms.get_rooms_by_nid([room_nid]))[room_nid]
        snapshot = await self._engine.get_snapshot(RoomID(room.room_id))
        if partial is None or snapshot.head.partial_join is None:
            return True
        if not await self._memberships.local_members(room_nid):
            await self._abandon(snapshot)
            return True
        await self._stores.partial.take_lease(
            room_nid, int(self._clock.seconds() * 1000) + LEASE_MS
        )
        join = (await self._events.get_events([partial.join_nid]))[partial.join_nid]
        attempts = self._attempts.get(room_nid, 0)
        reachable = await self._sources.find(partial)
        servers = self._sources.choose(partial, reachable, attempts)
        try:
            before = await self._fetch_state_before_join(join, partial, servers, snapshot)
        except (RemoteError, MatrixError):
            age_ms = int(self._clock.seconds() * 1000) - join.event.origin_server_ts
            if self._sources.should_stop_waiting(room_nid, reachable, attempts + 1, age_ms):
                await self._abandon(snapshot)
            raise
        walk = RecheckProgress(
            StateChange(await self._store_state(room, before)),
            lambda event_id: self._fetch_gap_state(servers, snapshot, event_id, walk),
        )
        # new events have come meanwhile
        snapshot = await self._engine.get_snapshot(RoomID(room.room_id))
        if snapshot.head.partial_join != partial.join_nid:
            return False  # the room was left and joined again
        await self._recheck.recheck_all(snapshot, walk)
        known = await self._recheck.compute_current_state(snapshot, walk)
        differing = await self._write_members(room, snapshot, known)

        async def work() -> None:
            await self._finish(
                room, partial, walk, StateChange(snapshot.head.state_root), known, differing
            )
            await self._unverified.add_verified(RoomID(room.room_id))

        await self._engine.in_turn(RoomID(room.room_id), work)
        self._partial.notify(room_nid)
        self._inbox.wake(room_nid)
        self._log.info("the state of {room_id} is complete", room_id=room.room_id)
        return True

    async def _fetch_state_before_join(
        self,
        join: StoredEvent,
        partial: PartialRoom,
        servers: Sequence[ServerName],
        snapshot: RoomSnapshot,
    ) -> dict[tuple[str, str], int]:
        """Fetch the state before our join. Raises RemoteError, MatrixError.

        The server that we joined through is trusted about all of it, as at any join. Other servers
        are trusted about members only, so that no server can restore old powers or rules by
        answering instead. Two of them are asked if two answer, so that the resolution corrects what
        one leaves out or what is outdated.
        """
        others = [server for server in servers if server != partial.resident_server]
        if len(others) < len(servers):  # the server that we joined through may be asked
            try:
                return await self._fetch(
                    [ServerName(partial.resident_server)],
                    snapshot,
                    join.event.event_id,
                    needed_in=NeededIn.OUR_STATE,
                )
            except (RemoteError, MatrixError):
                if not others:
                    raise
        rules = await self._stores.trees.get_all(partial.room_nid, join.state_root)
        rules = {key: nid for key, nid in rules.items() if key[0] != MEMBER}
        answers: list[StateChange] = []
        failure: RemoteError | MatrixError = RemoteError(
            "nobody", "no server may be asked now", retryable=True
        )
        for server in others:
            try:
                entries = await self._fetch([server], snapshot, join.event.event_id, only=MEMBER)
            except (RemoteError, MatrixError) as error:
                failure = error
                continue
            members = {key: nid for key, nid in entries.items() if key[0] == MEMBER}
            answers.append(StateChange(None, members | rules))
            if len(answers) == MAX_OTHER_SERVERS:
                break
        if not answers:
            raise failure
        state = await self._resolver.resolve(
            partial.room_nid, snapshot.version, await snapshot.create_event(), answers
        )
        return {**await self._stores.trees.get_all(partial.room_nid, state.root), **state.entries}

    async def _fetch(
        self,
        servers: Sequence[ServerName],
        snapshot: RoomSnapshot,
        event_id: EventID,
        *,
        needed_in: NeededIn = NeededIn.SOME_STATE,
        only: str | None = None,
    ) -> dict[tuple[str, str], int]:
        """Fetch the state before an event from the first server that sends it.

        Events that cannot be verified are stored: as `needed_in`, and only those of type `only`.
        Raises RemoteError, MatrixError.
        """
        failure: RemoteError | MatrixError = RemoteError(
            "nobody", "no server may be asked now", retryable=True
        )
        for server in servers:
            try:
                sent = await self._states.fetch_state(
                    server, snapshot, event_id, MAX_NEW, needed_in
                )
                entries = await self._imports.get_entries(snapshot.room, sent.event_ids)
                await self._unverified.store(
                    snapshot.room.room_nid,
                    [each for each in sent.left_out if only is None or is_of_type(each, only)],
                )
                return entries
            except (RemoteError, MatrixError) as error:
                self._log.info(
                    "{server} does not send the state: {error}", server=server, error=str(error)
                )
                self._sources.record_failure(snapshot.room.room_nid, server, error)
                failure = error
        raise failure

    async def _fetch_gap_state(
        self,
        servers: Sequence[ServerName],
        snapshot: RoomSnapshot,
        event_id: EventID,
        walk: RecheckProgress,
    ) -> StateChange | None:
        """Fetch the state before an event at a gap, as a difference to the state before our join.

        Return None if no server sends it.
        """
        try:
            entries = await self._fetch(servers, snapshot, event_id)
        except (RemoteError, MatrixError):
            return None
        base = await self._stores.trees.get_all(snapshot.room.room_nid, walk.before_join.root)
        if base.keys() - entries.keys():
            return StateChange(None, entries)
        return StateChange(
            walk.before_join.root,
            {key: nid for key, nid in entries.items() if base.get(key) != nid},
        )

    async def _store_state(
        self, room: RoomRow, entries: dict[tuple[str, str], int]
    ) -> bytes | None:
        """Store the state before the join; return its root."""
        stores, nid = self._stores, room.room_nid
        root = await stores.partial.get_fetched_root(nid)
        present = await stores.trees.get_all(nid, root)
        replace_existing = any(entries.get(key) != event_nid for key, event_nid in present.items())
        left = [
            (key, event_nid)
            for key, event_nid in entries.items()
            if replace_existing or key not in present
        ]
        for start in range(0, len(left), CHUNK):
            chunk = dict(left[start : start + CHUNK])
            root = await stores.database.write(
                "add_fetched_state",
                stores.completion.add_fetched_state,
                room,
                root,
                chunk,
                replace_existing=replace_existing and not start,
            )
        return root

    async def _write_members(
        self, room: RoomRow, snapshot: RoomSnapshot, known: StateChange
    ) -> dict[tuple[str, str], int | None]:
        """Write the remote memberships of a state before it becomes the current one.

        Memberships in the partial state stay: they are as new or newer. Return the other entries
        that differ from the current state.
        """
        stores, nid = self._stores, room.room_nid
        part = await stores.trees.get_all(nid, snapshot.state.root)
        complete = {**await stores.trees.get_all(nid, known.root), **known.entries}
        rows = await stores.memberships.get_all(nid)
        new = [
            event_nid
            for (type, key), event_nid in complete.items()
            if type == MEMBER and (type, key) not in part and _may_differ(rows.get(key), event_nid)
        ]
        for start in range(0, len(new), CHUNK):
            effects = await self._effects.of(room, new[start : start + CHUNK])
            await self._write_effects(room, effects.items())
        # these are from an earlier time when we were in the room
        removed = [
            event_nid
            for user_id, (event_nid, _) in rows.items()
            if (MEMBER, user_id) not in complete
        ]
        for start in range(0, len(removed), CHUNK):
            stored = await self._events.get_events(removed[start : start + CHUNK])
            await self._write_effects(
                room,
                [
                    (event_nid, effect_of_absence(each.event, self._identity))
                    for event_nid, each in stored.items()
                ],
            )
        differing: dict[tuple[str, str], int | None] = {
            key: event_nid
            for key, event_nid in complete.items()
            if part.get(key) != event_nid
            and (key[0] != MEMBER or key in part or self._identity.is_local(key[1]))
        }
        return differing | dict.fromkeys(part.keys() - complete.keys())

    async def _write_effects(
        self, room: RoomRow, effects: Iterable[tuple[int, StateEffect]]
    ) -> None:
        remote = [
            (nid, effect)
            for nid, effect in effects
            if effect.membership and not effect.membership.is_local
        ]
        if remote:
            await self._stores.database.write(
                "add_members", self._stores.writer.apply_early_effects, room, remote
            )

    async def _finish(
        self,
        room: RoomRow,
        partial: PartialRoom,
        walk: RecheckProgress,
        part: StateChange,
        known: StateChange,
        differing: dict[tuple[str, str], int | None],
    ) -> None:
        """Recheck the events that came since, and move the head. Call it in the turn of the room.

        `part`: the current state that `differing` was computed from.
        """
        stores = self._stores
        for _ in range(MAX_TRIES):
            snapshot = await self._engine.get_snapshot(RoomID(room.room_id))
            if snapshot.head.partial_join != partial.join_nid:
                return  # another node has completed the room
            await self._recheck.recheck_all(snapshot, walk)
            state = await self._recheck.compute_current_state(snapshot, walk)
            changes = dict(differing)
            removed: dict[tuple[str, str], int] = {}
            for key, (was, now) in (await self._resolver.diff(room.room_nid, known, state)).items():
                changes[key] = now
                if now is None and was is not None:
                    removed[key] = was
            # changes that the partial state accepted since, whether or not they are kept
            moved = await self._resolver.diff(
                room.room_nid, part, StateChange(snapshot.head.state_root)
            )
            complete = await self._resolver.load(room.room_nid, state, moved)
            changes |= {key: complete[key].nid if key in complete else None for key in moved}
            completed = CompletedRoom(
                tuple((nid, event_id) for event_id, nid in walk.extremities.items()),
                state,
                await self._find_effects(room, snapshot, changes, removed),
                walk.hidden,
                *await self._find_late_events(snapshot, walk),
            )
            try:
                head = await stores.database.write(
                    "complete_partial_state",
                    stores.completion.finish,
                    room,
                    partial,
                    snapshot.head,
                    completed,
                )
            except HeadMoved:
                await self._engine.refresh(snapshot)
                continue
            new_snapshot = RoomSnapshot(
                room, snapshot.version, snapshot.head, self._engine.view(room.room_nid, None)
            )
            self._engine.advance(new_snapshot, AppendResult(head, []))
            return
        raise RuntimeError(
            f"the head of {room.room_id} moved {MAX_TRIES} times while it was completed"
        )

    async def _find_late_events(
        self, snapshot: RoomSnapshot, walk: RecheckProgress
    ) -> tuple[Sequence[RelationRow], Sequence[tuple[int, Redaction]], Sequence[LateMessage]]:
        """Return relations and redactions of events that are shown now, and which count as new."""
        children: list[RelationRow] = []
        redactions: list[tuple[int, Redaction]] = []
        for stored in walk.shown:
            event = stored.event
            relation = None if stored.redacted_by is not None else read_relation(event)
            if relation is not None:
                columns = (stored.nid, event.event_id, stored.room_nid, stored.depth)
                children.append(
                    RelationRow(
                        relation, *columns, event.type, event.sender, event.origin_server_ts
                    )
                )
            target_id = event.redacts
            target = (
                None
                if target_id is None
                else await self._events.get_event(stored.room_nid, target_id)
            )
            if target is not None and target.redacted_by is None:
                redactions.append(
                    (stored.nid, await make_redaction(snapshot, target, self._identity))
                )
        return children, redactions, await self._recheck.find_new_messages(snapshot, walk)

    async def _find_effects(
        self,
        room: RoomRow,
        snapshot: RoomSnapshot,
        changes: dict[tuple[str, str], int | None],
        removed: dict[tuple[str, str], int],
    ) -> list[tuple[int, StateEffect]]:
        """Return the effects of changed and removed entries."""
        effects = list(
            (
                await self._effects.of(room, [nid for nid in changes.values() if nid is not None])
            ).items()
        )
        absent = {key for key, nid in changes.items() if nid is None}
        was = await self._stores.trees.get_entries(room.room_nid, snapshot.state.root, absent)
        nids = {*was.values(), *(removed[key] for key in absent & removed.keys())}
        for nid, stored in (await self._events.get_events(nids)).items():
            effects.append((nid, effect_of_absence(stored.event, self._identity)))
        return [(nid, effect) for nid, effect in effects if effect != NO_EFFECT]

    async def _abandon(self, snapshot: RoomSnapshot) -> None:
        """Go on with the partial state: no server sends the rest, or no local user is left."""
        room_nid = snapshot.room.room_nid

        async def work() -> None:
            now = await self._engine.get_snapshot(snapshot.room_id)
            partial = await self._partial.find(room_nid)
            if partial is None or partial.join_nid != snapshot.head.partial_join:
                return
            head = await self._stores.database.write(
                "abandon_completion", self._stores.completion.abandon, now.room, partial, now.head
            )
            self._engine.advance(now, AppendResult(head, []), {})

        await self._engine.in_turn(snapshot.room_id, work)
        self._partial.notify(room_nid)

    def _run(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        task = Deferred.fromCoroutine(work)
        self._tasks.add(task)
        task.addErrback(self._failed)
        task.addBoth(lambda _: self._tasks.discard(task))

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("work on a room with partial state failed", failure)


def _may_differ(row: tuple[int, str] | None, event_nid: int) -> bool:
    """Return whether the stored membership may differ from that of the event: for some time the
    event may have been in no state."""
    return row is None or row[0] != event_nid or row[1] == "leave"

"""Redactions that include related events: edits, thread replies, poll responses.

Related events that exist are redacted before the request is answered, unless that fails
temporarily. Those that arrive later are redacted when they arrive. All this happens in the name of
the sender of the redaction and with their permissions. Only direct children count, and edits only
if they are valid.

The write that redacts the target also stores the redaction of related events as a task. So other
nodes continue if this node stops. Temporary failures, such as an unavailable policy server, are
retried for most of a day. If the sender of the redaction has been suspended, only their own events
are redacted. While the sender is locked or shadow-banned, the task is retried later.

Follows MSC3912.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.backoff_schedule import BackoffSchedule
from federation.protocol.errors import LimitExceeded, MatrixError, RemoteError, StateIncomplete
from federation.protocol.ids import EventID, RoomID, UserID
from federation.protocol.power_levels import PowerLevels
from federation.rooms.engine import RoomEngine
from federation.rooms.event_drafts import Draft, ExtraWrite
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.relations import read_relation
from federation.rooms.snapshot import POWER_LEVELS, RoomSnapshot
from storage.accounts.accounts import AccountStore
from storage.engine.interface import DatabaseUnavailable
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.events import EventRow
from storage.events.relations import REPLACE, RelationFilter, RelationStore
from storage.events.timelines import START, Direction
from storage.rooms.related_redactions import (
    ANY_TYPE,
    NEVER,
    RelatedRedaction,
    RelatedRedactionStore,
    add_redactions,
)
from storage.rooms.rooms import RoomStore

REDACTION: Final = "m.room.redaction"
EVENTS_PER_WRITE: Final = 50
"""The events that are redacted in one write."""
MAX_AT_START: Final = 10_000
LEASE_MS: Final = 5 * 60_000
"""After this time another node takes over the task of a node."""
RETRIES: Final = BackoffSchedule(60_000, 3_600_000)
"""The delay after a failed attempt; doubled each time."""
MAX_TRIES: Final = 24
"""The task is dropped after this many failed attempts in a row, which take most of a day. Permanent
refusals are not retried."""


class RelatedRedactionRequest(msgspec.Struct, frozen=True):
    """The relations of an event whose targets a user redacts with it."""

    user_id: UserID
    target: EventID
    rel_types: Sequence[str]
    reason: str | None
    only_own: bool
    """Only events of the same sender."""
    leased_until: int
    """The end of the lease of the request that is being answered, in milliseconds since 1970."""

    def make_tasks(self, room_nid: int) -> list[RelatedRedaction]:
        types = [ANY_TYPE] if ANY_TYPE in self.rel_types else list(dict.fromkeys(self.rel_types))
        return [
            RelatedRedaction(
                self.target,
                self.user_id,
                each,
                room_nid,
                self.reason,
                self.only_own,
                self.leased_until,
            )
            for each in types
        ]


class _RetryLater(Exception):
    """The redaction may be possible later. `after_ms`: not before that delay, as far as known."""

    def __init__(self, text: str, after_ms: int = 0) -> None:
        super().__init__(text)
        self.after_ms = after_ms


class _Progress(msgspec.Struct):
    """The progress of one attempt."""

    redacted: int = 0


class RelatedRedactions:
    """Redacts children of redacted events. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        store: RelatedRedactionStore,
        relations: RelationStore,
        accounts: AccountStore,
        rooms: RoomStore,
        engine: RoomEngine,
        events: RoomEvents,
        streams: Streams,
        clock: IReactorTime,
    ) -> None:
        self._store = store
        self._relations = relations
        self._accounts = accounts
        self._rooms = rooms
        self._engine = engine
        self._events = events
        self._clock = clock
        self._log = Logger()
        streams.subscribe(self._on_changes, Topic.EVENT, stage=Stage.SEND)

    def start(self) -> None:
        """Continue with what was not finished when the server stopped. Only for a single node, as
        others may hold leases."""
        Deferred.fromCoroutine(self.do_resume(MAX_AT_START, at_start=True)).addErrback(
            lambda failure: self._log.failure(
                "could not redact related events, which will be tried again", failure
            )
        )

    def make_request(
        self,
        user_id: UserID,
        target: EventID,
        rel_types: Sequence[str],
        reason: str | None,
        *,
        only_own: bool,
    ) -> RelatedRedactionRequest:
        """Return the task for a request that is being answered."""
        return RelatedRedactionRequest(
            user_id, target, rel_types, reason, only_own, self._now_ms() + LEASE_MS
        )

    def store_tasks(self, related: RelatedRedactionRequest) -> ExtraWrite | None:
        """Return the function that stores the task in the write of the redaction; None: there is no
        task."""
        if not related.rel_types:
            return None
        return lambda txn, room: add_redactions(txn, related.make_tasks(room.room_nid))

    async def do_redact(self, room_id: RoomID, related: RelatedRedactionRequest) -> None:
        """Redact the children of an event that the user has redacted; what fails temporarily is
        retried later."""
        snapshot = await self._engine.get_snapshot(room_id)
        for task in related.make_tasks(snapshot.room.room_nid):
            await self._work(task)

    async def do_resume(self, limit: int, *, at_start: bool = False) -> int:
        """Continue with up to `limit` tasks that failed temporarily or were abandoned; return the
        number of attempts. `at_start`: take all tasks, whatever their leases."""
        now = self._now_ms()
        until = now + LEASE_MS
        tasks = await self._store.lease_due(NEVER if at_start else now, until, limit)
        for number, task in enumerate(tasks):
            if self._now_ms() >= until:  # the leases have ended
                return number
            try:
                await self._work(task)
            except DatabaseUnavailable:  # it affects all tasks
                raise
            except Exception as error:  # a bug in one task must not stop the others
                self._log.failure(
                    "could not redact what relates to {target}, which will be tried again",
                    target=task.target,
                )
                await self._try_later(task, task.attempts + 1, _RetryLater(str(error)))
        return len(tasks)

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)

    async def _work(self, task: RelatedRedaction) -> None:
        """Try a task whose lease this node holds."""
        progress = _Progress()
        try:
            await self._redact_children(task, progress)
        except _RetryLater as error:
            await self._try_later(task, 1 if progress.redacted else task.attempts + 1, error)
        else:
            await self._store.set_finished(task)

    async def _try_later(self, task: RelatedRedaction, attempts: int, error: _RetryLater) -> None:
        if attempts < MAX_TRIES:
            wait = max(RETRIES.nth(attempts), error.after_ms)
            await self._store.postpone(task, self._now_ms() + wait, attempts)
            return
        self._log.warn(
            "gave up redacting what relates to {target}: {error}",
            target=task.target,
            error=str(error),
        )
        await self._store.set_finished(task)

    async def _redact_children(self, task: RelatedRedaction, progress: _Progress) -> None:
        """Redact the children of a task's target. Raises _RetryLater."""
        room = (await self._rooms.get_rooms_by_nid([task.room_nid]))[task.room_nid]
        snapshot = await self._engine.get_snapshot(RoomID(room.room_id))
        filter_, place = RelationFilter(None if task.rel_type == ANY_TYPE else task.rel_type), START
        while True:
            page = await self._relations.get_page(
                task.room_nid,
                task.target,
                filter_,
                place,
                None,
                Direction.FORWARDS,
                EVENTS_PER_WRITE,
            )
            await self._redact(snapshot, task, [nid for _, nid in page], progress)
            if len(page) < EVENTS_PER_WRITE:
                break
            place = page[-1][0]

    async def _redact(
        self,
        snapshot: RoomSnapshot,
        task: RelatedRedaction,
        nids: Sequence[int],
        progress: _Progress,
    ) -> None:
        """Redact those of the children that are valid and that the sender of the redaction may
        redact. Raises _RetryLater."""
        account = (await self._accounts.get_accounts([task.sender])).get(task.sender)
        if account is None or account.deactivated_ts is not None:
            return
        if account.locked or account.shadow_banned:
            raise _RetryLater("its sender is locked")
        found = await self._events.get_events(nids)
        parent = await self._events.get_event(task.room_nid, EventID(task.target))
        levels = await snapshot.state.get(POWER_LEVELS)
        create = await snapshot.create_event()
        power = PowerLevels.of(snapshot.version, None if levels is None else levels.event, create)
        sender = UserID(task.sender)
        only_own = task.only_own or account.suspended
        may_redact_others = not only_own and power.user_level(sender) >= power.redact
        content: dict[str, Any] = {} if task.reason is None else {"reason": task.reason}
        drafts = [
            Draft(REDACTION, sender, content, None, found[nid].event.event_id)
            for nid in nids
            if nid in found
            and found[nid].redacted_by is None
            and (may_redact_others or found[nid].event.sender == sender)
            and parent is not None
            and _is_valid(found[nid], parent)
        ]
        # after a failed attempt one at a time: a rate-limited policy server may accept that
        for batch in [drafts] if drafts and not task.attempts else [[draft] for draft in drafts]:
            progress.redacted += await self._send(snapshot.room_id, task, batch)

    async def _send(self, room_id: RoomID, task: RelatedRedaction, drafts: Sequence[Draft]) -> int:
        """Send redactions; return how many the room accepted. Raises _RetryLater."""
        try:
            await self._engine.send(room_id, drafts)
        except (LimitExceeded, StateIncomplete) as error:
            wait = error.fields.get("retry_after_ms", 0)
            raise _RetryLater(error.text, wait if isinstance(wait, int) else 0) from error
        except RemoteError as error:
            raise _RetryLater(str(error)) from error
        except MatrixError as error:
            if len(drafts) > 1:  # one of them may be refused, and the others not
                return sum([await self._send(room_id, task, [draft]) for draft in drafts])
            self._log.info(
                "cannot redact what relates to {target}: {error}",
                target=task.target,
                error=error.text,
            )
            return 0
        return len(drafts)

    def _on_changes(self, changes: Sequence[Change]) -> None:
        rows = [
            change.detail
            for change in changes
            if isinstance(change.detail, EventRow)
            and change.detail.position is not None
            and b'"rel_type"' in change.detail.pdu
        ]
        if rows:
            self._clock.callLater(0, self._start, [(row.room_nid, row.event_nid) for row in rows])

    def _start(self, new_events: Sequence[tuple[int, int]]) -> None:
        Deferred.fromCoroutine(self._redact_new(new_events)).addErrback(
            lambda failure: self._log.failure(
                "children of a redacted event could not be redacted", failure
            )
        )

    async def _redact_new(self, new_events: Sequence[tuple[int, int]]) -> None:
        """Redact those new events whose parents were redacted together with related events."""
        found = await self._events.get_events([event_nid for _, event_nid in new_events])
        for room_nid, event_nid in new_events:
            relation = read_relation(found[event_nid].event) if event_nid in found else None
            if relation is None:
                continue
            parent = await self._events.get_event(room_nid, EventID(relation.target))
            if parent is None or parent.redacted_by is None:
                continue
            for task in await self._store.get_redactions(relation.target):
                if task.rel_type in (ANY_TYPE, relation.rel_type) and task.room_nid == room_nid:
                    snapshot = await self._engine.get_snapshot(parent.event.room_id)
                    progress = _Progress()
                    try:
                        await self._redact(snapshot, task, [event_nid], progress)
                    except _RetryLater as error:
                        await self._store.reopen(
                            task, self._now_ms() + max(RETRIES.first_ms, error.after_ms), attempts=1
                        )
                        break
                    if progress.redacted:
                        break  # otherwise another user who redacted the parent may be allowed to


def _is_valid(child: StoredEvent, parent: StoredEvent) -> bool:
    """Whether it is a valid child of its type. spec:
    client-server-api#validity-of-replacement-events"""
    relation = read_relation(child.event)
    if relation is None or relation.rel_type != REPLACE:
        return relation is not None
    return (
        relation.has_new_content
        and child.event.sender == parent.event.sender
        and child.event.type == parent.event.type
        and parent.event.state_key is None
    )

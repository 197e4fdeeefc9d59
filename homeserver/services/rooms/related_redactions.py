"""Redactions that take along what relates to their target: edits, replies of a thread, answers of a
poll.

What is there is redacted before the request is answered, in the name of who redacted the target, as
far as they may; what comes later when it comes. It is noted in the write that redacts the target,
so that others go on with it where a server ends, and later with what cannot be redacted for now,
such as where the room's policy server is away or has no time. Only direct children count, and of
replacements those that are valid. Whoever was suspended or locked meanwhile takes along no more
than they may redact themselves.

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
from federation.rooms.drafts import Also, Draft
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.relations import read_relation
from federation.rooms.snapshot import POWER_LEVELS, RoomSnapshot
from storage.accounts.accounts import AccountStore
from storage.engine.interface import DatabaseUnavailable
from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventRow
from storage.events.relations import REPLACE, RelationStore, Wanted
from storage.events.timelines import START, Direction
from storage.rooms.related_redactions import (
    ALL_TIMES,
    ANY_TYPE,
    RelatedRedaction,
    RelatedRedactionStore,
    add_redactions,
)
from storage.rooms.rooms import RoomStore

REDACTION: Final = "m.room.redaction"
AT_ONCE: Final = 50
"""So many events are redacted in one write."""
MOST_AT_START: Final = 10_000
LEASE_MS: Final = 5 * 60_000
"""After so long somebody else goes on with what a node was at."""
RETRIES: Final = BackoffSchedule(60_000, 3_600_000)
"""After a try in vain; doubled each time."""
MOST_TRIES: Final = 24
"""One after the other that came to nothing, then it is left: most of a day. What was refused for
good is not tried again."""


class ToRedact(msgspec.Struct, frozen=True):
    """What is to go with an event that a user redacts."""

    user_id: UserID
    target: EventID
    rel_types: Sequence[str]
    reason: str | None
    only_own: bool
    """Only what they sent."""
    held_until: int
    """Until when whoever answers the request is at it, in milliseconds since 1970."""

    def notes(self, room_nid: int) -> list[RelatedRedaction]:
        types = [ANY_TYPE] if ANY_TYPE in self.rel_types else list(dict.fromkeys(self.rel_types))
        return [
            RelatedRedaction(
                self.target,
                self.user_id,
                each,
                room_nid,
                self.reason,
                self.only_own,
                self.held_until,
            )
            for each in types
        ]


class _NotNow(Exception):
    """It may be possible later. `after_ms`: not before that, by what was said."""

    def __init__(self, why: str, after_ms: int = 0) -> None:
        super().__init__(why)
        self.after_ms = after_ms


class _Progress(msgspec.Struct):
    """Of a try."""

    redacted: int = 0


class RelatedRedactions:
    """Redacts children of redacted events. For the reactor thread."""

    def __init__(
        self,
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
        streams.subscribe(self._on_changes, Topic.EVENT)

    def start(self) -> None:
        """Go on with what was not done when the server stopped: where there is no other node that
        may be at it."""
        Deferred.fromCoroutine(self.do_resume(MOST_AT_START, at_start=True)).addErrback(
            lambda failure: self._log.failure(
                "what relates to redacted events is redacted later", failure
            )
        )

    def to_redact(
        self,
        user_id: UserID,
        target: EventID,
        rel_types: Sequence[str],
        reason: str | None,
        *,
        only_own: bool,
    ) -> ToRedact:
        """What is to go with an event, by a request that is being answered."""
        return ToRedact(user_id, target, rel_types, reason, only_own, self._now_ms() + LEASE_MS)

    def noting(self, related: ToRedact) -> Also | None:
        """What is to be written with the redaction of the target, so that others may go on with it;
        None: nothing."""
        if not related.rel_types:
            return None
        return lambda txn, room: add_redactions(txn, related.notes(room.room_nid))

    async def do_redact(self, room_id: RoomID, related: ToRedact) -> None:
        """Redact the children of an event that the user has redacted; what cannot be now is
        later."""
        snapshot = await self._engine.get_snapshot(room_id)
        for note in related.notes(snapshot.room.room_nid):
            await self._work(note)

    async def do_resume(self, limit: int, *, at_start: bool = False) -> int:
        """Go on with up to so many that failed for a while, or that somebody left; with how many.
        `at_start`: with all that are not done, as nobody is at them."""
        now = self._now_ms()
        until = now + LEASE_MS
        notes = await self._store.take_due(ALL_TIMES if at_start else now, until, limit)
        for number, note in enumerate(notes):
            if self._now_ms() >= until:  # others may be at what is left
                return number
            try:
                await self._work(note)
            except DatabaseUnavailable:  # that befalls all of them
                raise
            except Exception as error:  # whatever befalls one, the others go on
                self._log.failure("what relates to {target} is redacted later", target=note.target)
                await self._try_later(note, note.tries + 1, _NotNow(str(error)))
        return len(notes)

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)

    async def _work(self, note: RelatedRedaction) -> None:
        """Try one of which this node has the lease."""
        progress = _Progress()
        try:
            await self._redact_children(note, progress)
        except _NotNow as error:
            await self._try_later(note, 1 if progress.redacted else note.tries + 1, error)
        else:
            await self._store.set_finished(note)

    async def _try_later(self, note: RelatedRedaction, tries: int, error: _NotNow) -> None:
        if tries < MOST_TRIES:
            wait = max(RETRIES.nth(tries), error.after_ms)
            await self._store.put_off(note, self._now_ms() + wait, tries)
            return
        self._log.warn(
            "what relates to {target} stays: {error}", target=note.target, error=str(error)
        )
        await self._store.set_finished(note)

    async def _redact_children(self, note: RelatedRedaction, progress: _Progress) -> None:
        """Raises _NotNow."""
        room = (await self._rooms.get_rooms_by_nid([note.room_nid]))[note.room_nid]
        snapshot = await self._engine.get_snapshot(RoomID(room.room_id))
        wanted, place = Wanted(None if note.rel_type == ANY_TYPE else note.rel_type), START
        while True:
            page = await self._relations.get_page(
                note.room_nid, note.target, wanted, place, None, Direction.FORWARDS, AT_ONCE
            )
            await self._redact(snapshot, note, [nid for _, nid in page], progress)
            if len(page) < AT_ONCE:
                break
            place = page[-1][0]

    async def _redact(
        self,
        snapshot: RoomSnapshot,
        note: RelatedRedaction,
        nids: Sequence[int],
        progress: _Progress,
    ) -> None:
        """Redact those of the children that are valid and that the sender of the redaction may
        redact. Raises _NotNow."""
        account = (await self._accounts.get_accounts([note.sender])).get(note.sender)
        if account is None or account.deactivated_ts is not None:
            return
        if account.locked or account.shadow_banned:
            raise _NotNow("its sender may do nothing")
        found = await self._events.get_events(nids)
        parent = await self._events.get_event(note.room_nid, EventID(note.target))
        levels = await snapshot.state.get(POWER_LEVELS)
        create = await snapshot.create_event()
        power = PowerLevels.of(snapshot.version, None if levels is None else levels.event, create)
        sender = UserID(note.sender)
        only_own = note.only_own or account.suspended
        may_others = not only_own and power.user_level(sender) >= power.redact
        content: dict[str, Any] = {} if note.reason is None else {"reason": note.reason}
        drafts = [
            Draft(REDACTION, sender, content, None, found[nid].event.event_id)
            for nid in nids
            if nid in found
            and found[nid].redacted_by is None
            and (may_others or found[nid].event.sender == sender)
            and parent is not None
            and _is_valid(found[nid], parent)
        ]
        # after a try in vain one after the other: a policy server that takes few of them at a time
        # takes these
        for some in [drafts] if drafts and not note.tries else [[draft] for draft in drafts]:
            progress.redacted += await self._send(snapshot.room_id, note, some)

    async def _send(self, room_id: RoomID, note: RelatedRedaction, drafts: Sequence[Draft]) -> int:
        """How many of the redactions the room has taken. Raises _NotNow."""
        try:
            await self._engine.send(room_id, drafts)
        except (LimitExceeded, StateIncomplete) as error:
            wait = error.fields.get("retry_after_ms", 0)
            raise _NotNow(error.text, wait if isinstance(wait, int) else 0) from error
        except RemoteError as error:
            raise _NotNow(str(error)) from error
        except MatrixError as error:
            if len(drafts) > 1:  # one of them, and perhaps no other
                return sum([await self._send(room_id, note, [draft]) for draft in drafts])
            self._log.info(
                "what relates to {target} stays: {error}", target=note.target, error=error.text
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

    def _start(self, places: Sequence[tuple[int, int]]) -> None:
        Deferred.fromCoroutine(self._pursue(places)).addErrback(
            lambda failure: self._log.failure(
                "children of a redacted event could not be redacted", failure
            )
        )

    async def _pursue(self, places: Sequence[tuple[int, int]]) -> None:
        """Redact those new events whose parents were redacted with all that relates to them."""
        found = await self._events.get_events([event_nid for _, event_nid in places])
        for room_nid, event_nid in places:
            relation = read_relation(found[event_nid].event) if event_nid in found else None
            if relation is None:
                continue
            parent = await self._events.get_event(room_nid, EventID(relation.target))
            if parent is None or parent.redacted_by is None:
                continue
            for note in await self._store.get_redactions(relation.target):
                if note.rel_type in (ANY_TYPE, relation.rel_type) and note.room_nid == room_nid:
                    snapshot = await self._engine.get_snapshot(parent.event.room_id)
                    progress = _Progress()
                    try:
                        await self._redact(snapshot, note, [event_nid], progress)
                    except _NotNow as error:
                        await self._store.reopen(
                            note, self._now_ms() + max(RETRIES.first_ms, error.after_ms), tries=1
                        )
                        break
                    if progress.redacted:
                        break  # else another who redacted the parent may do it


def _is_valid(child: StoredEvent, parent: StoredEvent) -> bool:
    """Whether it counts as a child of that type. spec:
    client-server-api#validity-of-replacement-events"""
    relation = read_relation(child.event)
    if relation is None or relation.rel_type != REPLACE:
        return relation is not None
    return (
        relation.is_whole
        and child.event.sender == parent.event.sender
        and child.event.type == parent.event.type
        and parent.event.state_key is None
    )

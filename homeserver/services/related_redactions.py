"""Redactions that take along what relates to their target: edits, replies of a thread, answers of a poll.

What is there is redacted before the request is answered, in the name of who redacted the target, as far as they may; what comes
later when it comes. It is noted in the write that redacts the target, so that a restart goes on with it. Only direct children count, and of
replacements those that are valid.

Follows MSC3912.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import MatrixError
from federation.protocol.ids import EventID, RoomID, UserID
from federation.protocol.power_levels import PowerLevels
from federation.rooms.drafts import Also, Draft
from federation.rooms.engine import RoomEngine
from federation.rooms.relations import read_relation
from federation.rooms.room_events import RoomEvents, StoredEvent
from federation.rooms.snapshots import POWER_LEVELS, RoomSnapshot
from storage.engine import DatabaseUnavailable
from storage.events import EventRow
from storage.related_redactions import ANY_TYPE, RelatedRedaction, RelatedRedactionStore, add_redactions
from storage.relations import REPLACE, RelationStore, Wanted
from storage.rooms import RoomStore
from storage.streams import Change, Streams, Topic
from storage.timelines import START, Direction

REDACTION: Final = "m.room.redaction"
AT_ONCE: Final = 50
"""So many events are redacted in one write."""


class ToRedact(msgspec.Struct, frozen=True):
    """What is to go with an event that a user redacts."""

    user_id: UserID
    target: EventID
    rel_types: Sequence[str]
    reason: str | None
    only_own: bool
    """Only what they sent, and nothing that comes later. That is not noted."""

    def notes(self, room_nid: int) -> list[RelatedRedaction]:
        types = [ANY_TYPE] if ANY_TYPE in self.rel_types else list(dict.fromkeys(self.rel_types))
        return [RelatedRedaction(self.target, self.user_id, each, room_nid, self.reason) for each in types]


class RelatedRedactions:
    """Redacts children of redacted events. For the reactor thread."""

    def __init__(
        self,
        store: RelatedRedactionStore,
        relations: RelationStore,
        rooms: RoomStore,
        engine: RoomEngine,
        events: RoomEvents,
        streams: Streams,
        clock: IReactorTime,
    ) -> None:
        self._store = store
        self._relations = relations
        self._rooms = rooms
        self._engine = engine
        self._events = events
        self._clock = clock
        self._log = Logger()
        streams.subscribe(self._hear, Topic.EVENT)

    def noting(self, related: ToRedact) -> Also | None:
        """What is to be written with the redaction of the target, so that a restart goes on with it; None: nothing."""
        if related.only_own or not related.rel_types:
            return None
        return lambda txn, room: add_redactions(txn, related.notes(room.room_nid))

    async def do_redact(self, room_id: RoomID, related: ToRedact) -> None:
        """Redact the children of an event that the user has redacted."""
        snapshot = await self._engine.get_snapshot(room_id)
        await self._redact_children(snapshot, related.notes(snapshot.room.room_nid), only_own=related.only_own)
        if not related.only_own:
            await self._store.set_finished(related.target, related.user_id)

    async def resume(self) -> None:
        """After a start: go on with what was begun."""
        notes = await self._store.get_unfinished()
        for (target, sender), group in groupby(notes, lambda note: (note.target, note.sender)):
            same = list(group)
            try:
                await self._resume(same)
            except DatabaseUnavailable:  # that befalls all of them
                raise
            except Exception:  # whatever befalls one, such as a policy server that is away, the others go on
                self._log.failure("what relates to {target} waits for the next start", target=target)
            else:
                await self._store.set_finished(target, sender)

    async def _resume(self, notes: Sequence[RelatedRedaction]) -> None:
        room_nid = notes[0].room_nid
        room = (await self._rooms.get_rooms_by_nid([room_nid]))[room_nid]
        await self._redact_children(await self._engine.get_snapshot(RoomID(room.room_id)), notes, only_own=False)

    async def _redact_children(
        self, snapshot: RoomSnapshot, notes: Sequence[RelatedRedaction], *, only_own: bool
    ) -> None:
        for note in notes:
            wanted, place = Wanted(None if note.rel_type == ANY_TYPE else note.rel_type), START
            while True:
                page = await self._relations.get_page(
                    note.room_nid, note.target, wanted, place, None, Direction.FORWARDS, AT_ONCE
                )
                await self._redact(snapshot, note, [nid for _, nid in page], only_own=only_own)
                if len(page) < AT_ONCE:
                    break
                place = page[-1][0]

    async def _redact(
        self, snapshot: RoomSnapshot, note: RelatedRedaction, nids: Sequence[int], *, only_own: bool
    ) -> bool:
        """Redact those of the children that are valid and that the sender of the redaction may redact; whether there were any."""
        found = await self._events.get_events(nids)
        parent = await self._events.get_event(note.room_nid, EventID(note.target))
        levels = await snapshot.state.get(POWER_LEVELS)
        create = await snapshot.create_event()
        power = PowerLevels.of(snapshot.version, None if levels is None else levels.event, create)
        sender = UserID(note.sender)
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
        if not drafts:
            return False
        try:
            await self._engine.send(snapshot.room_id, drafts)
        except MatrixError as error:
            self._log.info("what relates to {target} stays: {error}", target=note.target, error=error.text)
            return False
        return True

    def _hear(self, changes: Sequence[Change]) -> None:
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
            lambda failure: self._log.failure("children of a redacted event could not be redacted", failure)
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
                    if await self._redact(snapshot, note, [event_nid], only_own=False):
                        break  # else another who redacted the parent may do it


def _is_valid(child: StoredEvent, parent: StoredEvent) -> bool:
    """Whether it counts as a child of that type. spec: client-server-api#validity-of-replacement-events"""
    relation = read_relation(child.event)
    if relation is None or relation.rel_type != REPLACE:
        return relation is not None
    return (
        relation.is_whole
        and child.event.sender == parent.event.sender
        and child.event.type == parent.event.type
        and parent.event.state_key is None
    )

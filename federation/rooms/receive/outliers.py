"""Stores events as outliers: auth events, and the states that other servers send.

Only their signatures, hashes and auth events can be checked, because the state before them is
unknown. They are written in chunks, each event after its auth events. So a large import never
blocks the writer for long. If the import is repeated after a restart, stored events are skipped.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from msgspec.structs import replace

from federation.protocol.errors import MatrixError
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID, RoomID, ServerName
from federation.rooms.concurrency import map_concurrently
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.receipt_checks import AuthEvents, ReceivedPdu, Verdict, check_on_receipt
from federation.rooms.receive.batch import Batch, Outcome
from federation.rooms.receive.check_sources import CheckServices
from federation.rooms.receive.content_restore import ContentRestorer
from federation.rooms.receive.persist import EventPersister, new_event
from federation.rooms.receive.unaltered_copies import replace_altered
from storage.engine.database import Database
from storage.events.events import EventFlag, EventStore
from storage.persist.room_writer import NewEvent, RoomWriter
from storage.rooms.rooms import RoomRow

CHUNK = 200
"""Events per write."""


class Outliers:
    """Checks and stores outliers. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        database: Database,
        events: RoomEvents,
        store: EventStore,
        persister: EventPersister,
        writer: RoomWriter,
        services: CheckServices,
        content_restorer: ContentRestorer,
        now_ms: Callable[[], int],
    ) -> None:
        self._content_restorer = content_restorer
        self._database = database
        self._events = events
        self._store = store
        self._persister = persister
        self._writer = writer
        self._services = services
        self._now_ms = now_ms

    async def add(self, room: RoomRow, candidates: Sequence[ReceivedPdu]) -> list[Outcome]:
        """Check and store events of a room, in any order; return their outcomes in the order
        given."""
        batch = Batch(candidates=candidates, room_id=RoomID(room.room_id))
        await self._services.prefetch_keys(batch.ordered)
        for start in range(0, len(batch.ordered), CHUNK):
            await self._add_chunk(room, batch, batch.ordered[start : start + CHUNK])
        return batch.get_outcomes()

    async def _add_chunk(self, room: RoomRow, batch: Batch, chunk: Sequence[Event]) -> None:
        create_id = {name for event in chunk for name in (event.event_id, *event.auth_events)}
        known = dict(await self._events.get_in_any_room(create_id))
        earlier = await self._store.get_earlier_references(
            room.room_nid, [event.event_id for event in chunk]
        )
        signers = await self._find_signers(
            [event for event in chunk if event.event_id not in known]
        )
        copies = await replace_altered(
            self._services, room.room_nid, [batch.candidates[name] for name in signers], signers
        )
        batch.candidates.update(copies.unaltered)
        new: dict[EventID, tuple[Event, NewEvent]] = {}
        for each in chunk:
            name = each.event_id
            event = batch.candidates[name].read()
            if name in known:
                await self._content_restorer.restore(
                    RoomID(room.room_id), known[name], batch.candidates[name]
                )
                batch.outcomes[name] = Outcome(name, None, was_known=True)
                continue
            missing = [
                auth_id
                for auth_id in event.auth_events
                if auth_id not in known and auth_id not in new
            ]
            if missing:
                batch.outcomes[name] = Outcome(name, None, missing_auth=missing)
                continue
            sources = _OutlierSources(
                services=self._services, room=room, known=known, new=new, signers=signers
            )
            checked = await check_on_receipt(batch.candidates[name], RoomID(room.room_id), sources)
            is_unverified = checked.event is None and self._services.lacks_keys(event)
            batch.outcomes[name] = Outcome(
                name, checked.verdict, checked.error, is_unverified=is_unverified
            )
            if checked.event is None:
                continue
            redactions = (await self._events.get_events(earlier.redactions.get(name, ()))).values()
            flags = EventFlag.OUTLIER | (
                EventFlag.REJECTED if checked.verdict is Verdict.REJECT else 0
            )
            stored = [
                known[auth_id] for auth_id in dict.fromkeys(event.auth_events) if auth_id in known
            ]
            made = new_event(
                checked.event,
                int(flags),
                [other.nid for other in stored if other.event.state_key is not None],
                await self._persister.find_redactions(room, checked.event, redactions),
            )
            together = [auth_id for auth_id in event.auth_events if auth_id in new]
            new[name] = (checked.event, replace(made, auth_ids=together))
        if new:
            rows = [made for _, made in new.values()]
            await self._database.write(
                "add_outliers", self._writer.add_outliers, room, rows, self._now_ms()
            )

    async def _find_signers(
        self, events: Sequence[Event]
    ) -> Mapping[EventID, Collection[ServerName]]:
        """Find the signatures of all events at once, so that a server that does not answer delays
        us only once."""
        signers = await map_concurrently(self._get_signers, events, len(events))
        return {event.event_id: found for event, found in zip(events, signers, strict=True)}

    async def _get_signers(self, event: Event) -> Collection[ServerName]:
        try:
            return await self._services.get_signers(event)
        except MatrixError:
            return ()  # it does not name its required signers


class _OutlierSources:
    """Implements `receipt_checks.CheckSources` for an outlier whose auth events are stored, or are
    in the same chunk."""

    def __init__(
        self,
        *,
        services: CheckServices,
        room: RoomRow,
        known: Mapping[EventID, StoredEvent],
        new: Mapping[EventID, tuple[Event, NewEvent]],
        signers: Mapping[EventID, Collection[ServerName]],
    ) -> None:
        self._services = services
        self._room = room
        self._known = known
        self._new = new
        self._signers = signers

    async def get_signers(self, event: Event) -> Collection[ServerName]:
        return self._signers[event.event_id]

    async def get_auth_events(self, event: Event) -> AuthEvents:
        create, rejected = await self._find_create(event)
        events: list[Event] = []
        for name in event.auth_events:
            if name in self._known:
                events.append(self._known[name].event)
                is_rejected = self._known[name].rejected
            else:
                events.append(self._new[name][0])
                is_rejected = bool(self._new[name][1].flags & EventFlag.REJECTED)
            if is_rejected:
                rejected.add(name)
        return AuthEvents(events, rejected, create)

    async def _find_create(self, event: Event) -> tuple[Event | None, set[EventID]]:
        """Like `CheckServices.find_create`, but looks in the chunk first."""
        create_id = EventID("$" + self._room.room_id[1:])
        if event.version.room_id_is_create_hash and create_id in self._new:
            create, new = self._new[create_id]
            return create, {create_id} if new.flags & EventFlag.REJECTED else set()
        found, refused = await self._services.find_create(self._room, event)
        return found, set(refused)

    async def get_state_before(
        self, event: Event, keys: Collection[StateKey]
    ) -> Mapping[StateKey, Event] | None:
        return None

    async def get_current_state(
        self, keys: Collection[StateKey]
    ) -> Mapping[StateKey, Event] | None:
        return None

    async def is_room_create(self, event: Event) -> bool:
        return False

    async def is_approved(self, event: Event) -> bool:
        return True

"""Messages of a room that this server had forgotten, and has come into again: their content, as
other servers give it.

Laws:
- Nobody is believed: an event that is given has to be the one that was here, by its reference hash,
  and whole, by the hash of its content, which is among what the purge has left.
- What was redacted, before the purge or since, stays without content.
- What those who are asked have without content only is asked for no more: it would keep readers
  from what lies behind it.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from federation.protocol.event_signing import is_content_hash_valid
from federation.protocol.events import Event, compute_reference_hash, encode_event_json
from federation.protocol.ids import EventID
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.receive.persist import Placements
from federation.rooms.relations import read_relation
from federation.rooms.snapshot import RoomSnapshot
from storage.engine.database import Database
from storage.events.events import EventFlag, EventStore
from storage.media.content_uris import find_addresses
from storage.media.references import bounded
from storage.retention.history_refetch import Regained, give_up_messages, restore_messages


class Taken(msgspec.Struct, frozen=True):
    """What came of events that a server gave."""

    count: int
    """How many messages are shown again."""
    useless: frozenset[int]
    """Numbers of those that it gave, and not whole."""


class Regaining:
    """Takes such messages from what other servers give."""

    def __init__(
        self,
        database: Database,
        event_store: EventStore,
        events: RoomEvents,
        placements: Placements,
    ) -> None:
        self._database = database
        self._event_store = event_store
        self._events = events
        self._placements = placements

    async def take(self, snapshot: RoomSnapshot, given: Mapping[EventID, Event]) -> Taken:
        """Take those of these events that were forgotten."""
        room_nid = snapshot.room.room_nid
        stored = await self._events.get_by_id(room_nid, given)
        lacking = {name: each for name, each in stored.items() if each.flags & EventFlag.FORGOTTEN}
        if not lacking:
            return Taken(0, frozenset())
        waiting = await self._event_store.get_waiting(room_nid, lacking)
        regained: list[Regained] = []
        for name, each in lacking.items():
            early = await self._events.get_events(waiting.redactions.get(name, ()))
            found = await self._examine(snapshot, each, given[name], list(early.values()))
            if found is not None:
                regained.append(found)
        useless = {each.nid for each in lacking.values()} - {each.event_nid for each in regained}
        count = 0
        while regained:
            part = bounded(regained, lambda each: len(find_addresses(each.pdu or b"")))
            count += await self._database.write(
                "restore_messages", restore_messages, room_nid, part
            )
            regained = regained[len(part) :]
        return Taken(count, frozenset(useless))

    async def give_up(self, nids: Collection[int]) -> None:
        """Ask for these no more."""
        await self._database.write("give_up_messages", give_up_messages, nids)

    async def _examine(
        self,
        snapshot: RoomSnapshot,
        stored: StoredEvent,
        given: Event,
        redactions: Sequence[StoredEvent],
    ) -> Regained | None:
        """What there is to put back; None where the event is not the one, or not whole."""
        version = snapshot.version
        if compute_reference_hash(version, given.pdu) != compute_reference_hash(
            version, stored.event.pdu
        ):
            return None
        named = frozenset(redaction.nid for redaction in redactions)
        if stored.redacted_by != stored.nid:
            return Regained(stored.nid, None, None, None, named)
        effective = await self._placements.find_redactions(snapshot.room, stored.event, redactions)
        if effective:
            return Regained(stored.nid, None, effective[0].nid, None, named)
        if not is_content_hash_valid(given):
            return None
        # the signatures are those that were proved when it came
        pdu = encode_event_json(
            version, {**given.pdu, "signatures": stored.event.pdu.get("signatures", {})}
        )
        return Regained(stored.nid, pdu, None, read_relation(given), named)

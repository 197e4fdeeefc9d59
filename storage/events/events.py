"""Reads stored events in batches, as rows of plain values.

A stored event changes only in these cases:

- A redaction or a purge removes its content, or the content is restored.
- It is an outlier, and is added to the room's graph.
- It is the join by which this server enters a room, and the room's state is imported in several
  writes. Each write extends the state that is stored with the join. The join is still an outlier.
- A partial-state resync recomputes some of its columns.
- It is a forward extremity, and events that could not be verified before are added to the state
  after it (`storage/partial_state/unverified_events.py`).
- The flag `FORGOTTEN` is cleared, because the purged content will not be fetched again.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.transaction import Transaction


class EventFlag:
    """Properties of an event beyond its content. They are bits of the column `flags`.

    They are plain numbers, because each event of each response is tested, and an `IntFlag` makes a
    new object per operation.
    """

    OUTLIER: Final = 1
    """The state of the room before it is unknown."""
    REJECTED: Final = 2
    """Failed the authorization rules; its successors may refer to it, nobody sees it."""
    SOFT_FAILED: Final = 4
    """Allowed by the state before it, rejected by the current state: not shown, not built upon."""
    NOTIFIES: Final = 8
    """Notifies users with default push rules."""
    TIMELINE: Final = 16
    """In the timeline of the room: accepted, and neither outlier nor soft-failed."""
    HIGHLIGHTS: Final = 32
    """Highlighted for users with default push rules."""
    HAS_PUSH_ACTIONS: Final = 64
    """Has another outcome for some local users, stored in the table `event_push_actions`."""
    TO_SEND: Final = 256
    """This server sends it to others: made by a local user in a federated room, or forwarded for
    another server."""
    RESOLVED: Final = 512
    """Its arrival changed other entries of the current state than the one that it sets, because
    forks were resolved."""
    STATE_ADDED: Final = 1024
    """The state after it has entries beyond its past, which could be verified only later."""
    PURGED: Final = 2048
    """A message whose content was deleted by retention or by an administrator: shown to nobody."""
    FORGOTTEN: Final = 4096
    """It was purged because no local user remembered its room: other servers may still have its
    content."""
    AFTER_GAP: Final = 8192
    """Some of its previous events were missing at its arrival and could not be fetched: readers in
    the order of arrival miss these."""


_VISIBILITY_FLAGS = EventFlag.TIMELINE | EventFlag.PURGED
IS_SHOWN: Final = (
    f"(flags & {_VISIBILITY_FLAGS}) NOT IN (0, {EventFlag.PURGED}, {_VISIBILITY_FLAGS})"
)
"""SQL condition: the event is in the timeline and not purged. It repeats the expression of the
index `events_visible_by_depth`. An equality would make PostgreSQL assume that few events meet the
condition."""
IS_NOT_SHOWN: Final = f"(flags & {_VISIBILITY_FLAGS}) <> {EventFlag.TIMELINE}"
IS_UNPURGED_MESSAGE: Final = (
    f"state_key IS NULL AND (flags & {EventFlag.PURGED}) <> {EventFlag.PURGED}"
)
"""As in the index `events_messages_by_time`."""
IS_FORGOTTEN: Final = f"(flags & {EventFlag.FORGOTTEN}) <> 0"
"""As in the index `events_forgotten_by_depth`."""


class EventRow(msgspec.Struct, frozen=True, gc=False):
    """A stored event."""

    event_nid: int
    event_id: str
    room_nid: int
    position: int | None
    """The position of its arrival in the stream; None for an event that is not shown as new."""
    depth: int
    type: str
    state_key: str | None
    sender: str
    origin_server_ts: int
    """As claimed by the event, but no later than its arrival: its age counts from here."""
    flags: int
    state_root: bytes | None
    """Root of the state after the event; None for outliers."""
    replaces: int | None
    """Number of the state entry that this state event replaced."""
    redacted_by: int | None
    """Number of the redaction that removed its content. Its own number if it was purged."""
    pdu: bytes
    """Canonical JSON."""
    current_root: bytes | None = None
    """Root of the room's current state after its arrival; None: it was the state after the
    event."""
    thread_root: str | None = None
    """The root event of its thread; stored only if the event has push flags or push action rows, or
    lost its content."""


class EventSummary(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The properties of a stored event that other nodes receive with a commit."""

    room_nid: int
    position: int | None
    type: str
    flags: int


class StateEntry(msgspec.Struct, frozen=True, gc=False):
    """The state entry that an event sets, if any."""

    event_nid: int
    type: str
    state_key: str | None
    flags: int


class EarlierReferences(msgspec.Struct, frozen=True):
    """References to the given events by events that were stored before them."""

    redactions: Mapping[str, list[int]]
    """Numbers of the redactions by the ID of their target."""
    backward: frozenset[str]
    """The IDs of the events that stored events of the room name as `prev_events`."""


class ContentChanges(msgspec.Struct, frozen=True):
    """Events that lost or regained their content."""

    redacted: Sequence[str]
    """The IDs of redacted or restored events."""
    redaction_nid: int
    """The highest number of these redactions."""
    changed_rooms: frozenset[int]
    """Rooms where any message may have been purged or restored, and rooms whose state was
    completed: any of their events may be shown or hidden now."""


_COLUMNS = (
    "event_nid, event_id, room_nid, position, depth, type, state_key, sender, origin_server_ts,"
    " flags, state_root,"
    " replaces, redacted_by, pdu, current_root, thread_root"
)


class EventStore:
    """Reads the table `events`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_events(self, event_nids: Iterable[int]) -> Mapping[int, EventRow]:
        """Return events by number; unknown ones are missing."""
        nids = list(event_nids)
        read = self._database.read_quickly if len(nids) <= 50 else self._database.read
        return await read("get_events", select_events, nids)

    async def get_event_nids(self, event_ids: Iterable[str]) -> Mapping[str, int]:
        """Return the numbers of events; unknown IDs are missing."""
        return await self._database.read_quickly(
            "get_event_nids", select_event_nids, list(event_ids)
        )

    async def get_entries(
        self, room_nid: int, event_ids: Iterable[str]
    ) -> Mapping[str, StateEntry]:
        """Return the state entries that events of a room set, by ID: for many events, without their
        content."""
        return await self._database.read(
            "get_entries_by_id", _select_entries, room_nid, list(event_ids)
        )

    async def get_content_changes(self, redaction_nid: int, position: int) -> "ContentChanges":
        """Return the events redacted by redactions with a higher number, and the rooms changed
        after a position."""
        return await self._database.read_quickly(
            "get_lost_content", _select_content_changes, redaction_nid, position
        )

    async def get_earlier_references(
        self, room_nid: int, event_ids: Iterable[str]
    ) -> EarlierReferences:
        """Return stored references to events that now arrive in the room. Two queries."""
        return await self._database.read_quickly(
            "get_earlier_references", _select_earlier_references, room_nid, list(event_ids)
        )

    async def get_pdus(self, event_nids: Iterable[int]) -> Mapping[int, bytes]:
        """Return PDUs as they are stored, by number."""
        return await self._database.read("get_pdus", select_pdus, list(event_nids))


def select_events(txn: Transaction, event_nids: Iterable[int]) -> dict[int, EventRow]:
    """Do `get_events` in a transaction."""
    rows = txn.query_in(f"SELECT {_COLUMNS} FROM events WHERE event_nid IN {{keys}}", event_nids)
    return {row[0]: make_row(row) for row in rows}


def select_event_nids(txn: Transaction, event_ids: Iterable[str]) -> dict[str, int]:
    """Do `get_event_nids` in a transaction."""
    rows = txn.query_in(
        "SELECT event_id, event_nid FROM events WHERE event_id IN {keys}", event_ids
    )
    return {event_id: nid for event_id, nid in rows}


def select_flags(txn: Transaction, event_ids: Iterable[str]) -> dict[str, int]:
    """Return the flags of events by ID; unknown IDs are missing."""
    return dict(
        txn.query_in("SELECT event_id, flags FROM events WHERE event_id IN {keys}", event_ids)
    )


def select_progress(
    txn: Transaction, room_nid: int, event_ids: Iterable[str]
) -> dict[str, tuple[int, int, int]]:
    """Return for each event a value that orders receipts at it: its arrival, or 0 for a backfilled
    event, then its place in the order of the room. Unknown events are missing."""
    rows = txn.query_in(
        "SELECT event_id, COALESCE(position, 0), depth, event_nid FROM events"
        " WHERE event_id IN {keys} AND room_nid = ?",
        event_ids,
        after=(room_nid,),
    )
    return {event_id: (position, depth, nid) for event_id, position, depth, nid in rows}


def select_state_keys(txn: Transaction, event_nids: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Return the (type, state_key) of those of the events that are state events."""
    rows = txn.query_in(
        "SELECT event_nid, type, state_key FROM events"
        " WHERE event_nid IN {keys} AND state_key IS NOT NULL",
        event_nids,
    )
    return {nid: (type, state_key) for nid, type, state_key in rows}


def _select_entries(txn: Transaction, room_nid: int, event_ids: list[str]) -> dict[str, StateEntry]:
    rows = txn.query_in(
        "SELECT event_id, event_nid, type, state_key, flags FROM events"
        " WHERE room_nid = ? AND event_id IN {keys}",
        event_ids,
        before=(room_nid,),
    )
    return {event_id: StateEntry(*entry) for event_id, *entry in rows}


def select_event_ids(txn: Transaction, event_nids: Iterable[int]) -> dict[int, str]:
    """Return the IDs of events by number."""
    return dict(
        txn.query_in("SELECT event_nid, event_id FROM events WHERE event_nid IN {keys}", event_nids)
    )


def make_row(row: Row) -> EventRow:
    """Make an EventRow from a row with the columns of the table in their order."""
    return EventRow(*row)


def _select_earlier_references(
    txn: Transaction, room_nid: int, event_ids: list[str]
) -> EarlierReferences:
    redactions: dict[str, list[int]] = {}
    rows = txn.query_in(
        "SELECT redacts, event_nid FROM redactions WHERE redacts IN {keys} ORDER BY event_nid",
        event_ids,
    )
    for event_id, nid in rows:
        redactions.setdefault(event_id, []).append(nid)
    backward = txn.query_in(
        "SELECT event_id FROM backward_extremities WHERE room_nid = ? AND event_id IN {keys}",
        event_ids,
        before=(room_nid,),
    )
    return EarlierReferences(redactions, frozenset(event_id for (event_id,) in backward))


def _select_content_changes(txn: Transaction, redaction_nid: int, position: int) -> ContentChanges:
    rows = txn.query(
        "SELECT redacts, event_nid FROM redactions WHERE event_nid > ? ORDER BY event_nid",
        (redaction_nid,),
    )
    rooms = txn.query(
        "SELECT room_nid FROM purge_counts WHERE position > ?"
        " UNION SELECT room_nid FROM partial_rooms WHERE completed_position > ?",
        (position, position),
    )
    latest = rows[-1][1] if rows else redaction_nid
    restored = txn.query("SELECT event_id FROM restored_contents WHERE position > ?", (position,))
    changed = [*(redacts for redacts, _ in rows), *(event_id for (event_id,) in restored)]
    return ContentChanges(changed, latest, frozenset(nid for (nid,) in rooms))


def select_sizes(txn: Transaction, event_nids: Iterable[int]) -> dict[int, int]:
    """Return the sizes of PDUs in bytes, by number."""
    return dict(
        txn.query_in(
            "SELECT event_nid, length(pdu) FROM events WHERE event_nid IN {keys}", event_nids
        )
    )


def select_pdus(txn: Transaction, event_nids: Iterable[int]) -> dict[int, bytes]:
    """Do `get_pdus` in a transaction."""
    rows = txn.query_in("SELECT event_nid, pdu FROM events WHERE event_nid IN {keys}", event_nids)
    return {nid: bytes(pdu) for nid, pdu in rows}

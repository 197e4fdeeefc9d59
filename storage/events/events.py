"""Events as they are stored: rows of plain values, read in batches.

Nothing about a stored event changes but by a redaction or a purge, which take its content away.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.transaction import Transaction


class EventFlag:
    """What is known of an event besides its content; bits of the column `flags`.

    Plain numbers: each event of each answer is asked, and an `IntFlag` makes a new object for every
    answer.
    """

    OUTLIER: Final = 1
    """Kept without knowing the state of the room before it."""
    REJECTED: Final = 2
    """Refused by authorization; its successors may refer to it, nobody sees it."""
    SOFT_FAILED: Final = 4
    """Valid where it stands, refused by the present state: not shown, not built upon."""
    NOTIFIES: Final = 8
    """Notifies whoever has default push rules."""
    TIMELINE: Final = 16
    """Stands in the timeline of the room: accepted, and neither outlier nor soft-failed."""
    CALLS_ROOM: Final = 32
    """Is highlighted for whoever has default push rules."""
    OUTCOMES: Final = 64
    """Is something else to some users of this server: the table `push_outcomes` says what."""
    TO_SEND: Final = 256
    """This server tells others of it: made by our own users where others are in the room, or passed
    on for another server."""
    RESOLVED: Final = 512
    """With its arrival the current state changed in more, or in something else, than what it sets:
    forks were resolved."""
    MENDED: Final = 1024
    """The state after it has more than its past gives: what could be proved later only."""
    PURGED: Final = 2048
    """A message whose content is gone for good, by its age or since an administrator said so: shown
    to nobody any more."""
    FORGOTTEN: Final = 4096
    """It was purged since nobody here remembered its room: its content may be had from other
    servers."""
    AFTER_HOLE: Final = 8192
    """Some of what it follows was not here when it came, and could not be had: who reads in the
    order of arrival misses that."""


_STANDING = EventFlag.TIMELINE | EventFlag.PURGED
IS_SHOWN: Final = f"(flags & {_STANDING}) NOT IN (0, {EventFlag.PURGED}, {_STANDING})"
"""That an event stands in the timeline and was not purged; the words are those of the index
`shown_by_depth`. They are no equation, which PostgreSQL would take for a condition that few events
meet."""
IS_UNSHOWN: Final = f"(flags & {_STANDING}) <> {EventFlag.TIMELINE}"
IS_UNPURGED_MESSAGE: Final = (
    f"state_key IS NULL AND (flags & {EventFlag.PURGED}) <> {EventFlag.PURGED}"
)
"""As in the index `messages_by_time`."""
IS_FORGOTTEN: Final = f"(flags & {EventFlag.FORGOTTEN}) <> 0"
"""As in the index `forgotten_by_depth`."""


class EventRow(msgspec.Struct, frozen=True, gc=False):
    """A stored event."""

    event_nid: int
    event_id: str
    room_nid: int
    position: int | None
    """Arrival in the one sequence; None for what is not shown as new."""
    depth: int
    type: str
    state_key: str | None
    sender: str
    origin_server_ts: int
    """As the event says, but no later than when it came: from then its age counts."""
    flags: int
    state_root: bytes | None
    """Root of the state after the event; None for outliers."""
    replaces: int | None
    """Number of the state entry that this state event took the place of."""
    redacted_by: int | None
    """Number of the redaction that took its content away; its own where none did, and it was
    purged."""
    pdu: bytes
    """Canonical JSON."""
    current_root: bytes | None = None
    """Root of the room's current state once it had arrived; None: it was the state after it."""
    thread_root: str | None = None
    """The event at the root of the thread that it stands in, as far as it notifies anybody or was
    redacted."""


class EventNews(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What other nodes are told of an event that was stored."""

    room_nid: int
    position: int | None
    type: str
    flags: int


class StateEntry(msgspec.Struct, frozen=True, gc=False):
    """What an event sets in the state, if it sets anything."""

    event_nid: int
    type: str
    state_key: str | None
    flags: int


class Waiting(msgspec.Struct, frozen=True):
    """What was there before the events that it is about."""

    redactions: Mapping[str, list[int]]
    """By id of the target the numbers of the redactions that name it."""
    backward: frozenset[str]
    """Those of the events that stored events of the room name as previous."""


class LostContent(msgspec.Struct, frozen=True):
    """Which events lost their content, or have it back."""

    redacted: Sequence[str]
    """The ids of those that were redacted or restored."""
    redaction_nid: int
    """The highest number of the redactions that took it."""
    changed_rooms: frozenset[int]
    """Of which any messages may have lost it for good, or regained it; and those that have all of
    their state since: any of their events may be shown now, or no more."""


_COLUMNS = (
    "event_nid, event_id, room_nid, position, depth, type, state_key, sender, origin_server_ts, flags, state_root,"
    " replaces, redacted_by, pdu, current_root, thread_root"
)


class EventStore:
    """Readers of the table `events`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_events(self, event_nids: Iterable[int]) -> Mapping[int, EventRow]:
        """Events by number; unknown ones are missing from the answer."""
        wanted = list(event_nids)
        read = self._database.read_quickly if len(wanted) <= 50 else self._database.read
        return await read("get_events", select_events, wanted)

    async def get_event_nids(self, event_ids: Iterable[str]) -> Mapping[str, int]:
        """The numbers of events; unknown ids are missing from the answer."""
        return await self._database.read_quickly(
            "get_event_nids", select_event_nids, list(event_ids)
        )

    async def get_entries(
        self, room_nid: int, event_ids: Iterable[str]
    ) -> Mapping[str, StateEntry]:
        """What events of a room set in its state, by id: for many of them, without their
        content."""
        return await self._database.read(
            "get_entries_by_id", _select_entries, room_nid, list(event_ids)
        )

    async def get_lost_since(self, redaction_nid: int, position: int) -> "LostContent":
        """What was redacted by redactions that are numbered above one, and which rooms were changed
        after a position."""
        return await self._database.read_quickly(
            "get_lost_since", _select_lost, redaction_nid, position
        )

    async def get_waiting(self, room_nid: int, event_ids: Iterable[str]) -> Waiting:
        """What in the room has been waiting for events that now arrive. Two queries."""
        return await self._database.read_quickly(
            "get_waiting", _select_waiting, room_nid, list(event_ids)
        )

    async def get_pdus(self, event_nids: Iterable[int]) -> Mapping[int, bytes]:
        """Events as they are stored, by number."""
        return await self._database.read("get_pdus", select_pdus, list(event_nids))


def select_events(txn: Transaction, event_nids: Iterable[int]) -> dict[int, EventRow]:
    """The form of `get_events` for use inside a transaction."""
    rows = txn.query_in(f"SELECT {_COLUMNS} FROM events WHERE event_nid IN {{keys}}", event_nids)
    return {row[0]: make_row(row) for row in rows}


def select_event_nids(txn: Transaction, event_ids: Iterable[str]) -> dict[str, int]:
    """The form of `get_event_nids` for use inside a transaction."""
    rows = txn.query_in(
        "SELECT event_id, event_nid FROM events WHERE event_id IN {keys}", event_ids
    )
    return {event_id: nid for event_id, nid in rows}


def select_flags(txn: Transaction, event_ids: Iterable[str]) -> dict[str, int]:
    """The flags of events by id; unknown ids are missing from the answer."""
    return dict(
        txn.query_in("SELECT event_id, flags FROM events WHERE event_id IN {keys}", event_ids)
    )


def select_progress(
    txn: Transaction, room_nid: int, event_ids: Iterable[str]
) -> dict[str, tuple[int, int, int]]:
    """How far on in a room somebody is who has read that event, to be compared with others: by its
    arrival; what is from the past, and did not arrive as news, is before all that did (0), by its
    place in the order of the room. Events that are not known are missing."""
    rows = txn.query_in(
        "SELECT event_id, COALESCE(position, 0), depth, event_nid FROM events WHERE event_id IN {keys} AND room_nid = ?",
        event_ids,
        after=(room_nid,),
    )
    return {event_id: (position, depth, nid) for event_id, position, depth, nid in rows}


def select_state_keys(txn: Transaction, event_nids: Iterable[int]) -> dict[int, tuple[str, str]]:
    """The (type, state_key) of those of the events that are state events."""
    rows = txn.query_in(
        "SELECT event_nid, type, state_key FROM events WHERE event_nid IN {keys} AND state_key IS NOT NULL",
        event_nids,
    )
    return {nid: (type, state_key) for nid, type, state_key in rows}


def _select_entries(txn: Transaction, room_nid: int, event_ids: list[str]) -> dict[str, StateEntry]:
    rows = txn.query_in(
        "SELECT event_id, event_nid, type, state_key, flags FROM events WHERE room_nid = ? AND event_id IN {keys}",
        event_ids,
        before=(room_nid,),
    )
    return {event_id: StateEntry(*entry) for event_id, *entry in rows}


def select_event_ids(txn: Transaction, event_nids: Iterable[int]) -> dict[int, str]:
    """The ids of events by number."""
    return dict(
        txn.query_in("SELECT event_nid, event_id FROM events WHERE event_nid IN {keys}", event_nids)
    )


def make_row(row: Row) -> EventRow:
    """An EventRow of a row with the columns of the table in their order."""
    return EventRow(*row)


def _select_waiting(txn: Transaction, room_nid: int, event_ids: list[str]) -> Waiting:
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
    return Waiting(redactions, frozenset(event_id for (event_id,) in backward))


def _select_lost(txn: Transaction, redaction_nid: int, position: int) -> LostContent:
    rows = txn.query(
        "SELECT redacts, event_nid FROM redactions WHERE event_nid > ? ORDER BY event_nid",
        (redaction_nid,),
    )
    rooms = txn.query(
        "SELECT room_nid FROM purged_messages WHERE position > ?"
        " UNION SELECT room_nid FROM partial_rooms WHERE completed > ?",
        (position, position),
    )
    latest = rows[-1][1] if rows else redaction_nid
    restored = txn.query("SELECT event_id FROM restored_contents WHERE position > ?", (position,))
    changed = [*(redacts for redacts, _ in rows), *(event_id for (event_id,) in restored)]
    return LostContent(changed, latest, frozenset(nid for (nid,) in rooms))


def select_sizes(txn: Transaction, event_nids: Iterable[int]) -> dict[int, int]:
    """How many bytes the PDUs of events have, by number."""
    return dict(
        txn.query_in(
            "SELECT event_nid, length(pdu) FROM events WHERE event_nid IN {keys}", event_nids
        )
    )


def select_pdus(txn: Transaction, event_nids: Iterable[int]) -> dict[int, bytes]:
    """The form of `get_pdus` for use inside a transaction."""
    rows = txn.query_in("SELECT event_nid, pdu FROM events WHERE event_nid IN {keys}", event_nids)
    return {nid: bytes(pdu) for nid, pdu in rows}

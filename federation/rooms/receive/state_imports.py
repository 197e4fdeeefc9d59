"""Stores complete states of rooms from other servers, in chunks.

So memory holds little more than the received bytes. Events are parsed chunk by chunk, in the order
of the depth that they claim. If the servers were honest, each event then comes after its auth
events. Events that still come too early are retried in further passes, until a pass stores none of
them.
"""

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from typing import Any, Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.peers.response_splitter import Yielder, parse_event_piece
from federation.protocol.errors import BadState
from federation.protocol.ids import EventID
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.rooms.receipt_checks import ReceivedPdu, Verdict
from federation.rooms.receive.batch import Outcome
from federation.rooms.receive.outliers import Outliers
from federation.rooms.snapshot import CREATE
from storage.events.events import EventFlag, EventStore
from storage.rooms.rooms import RoomRow

CHUNK: Final = 500
"""Events that are parsed at once."""
CHUNK_BYTES: Final = 1 << 20
"""Bytes of events that are parsed at once; parsed, they may take twenty times as much. Five hundred
ordinary events are smaller."""
MAX_PASSES: Final = 20
"""More passes than the events of an honest server need."""

Pdu = Mapping[str, Any] | msgspec.Raw
Entries = dict[tuple[str, str], int]


SORT_CHUNK: Final = 20_000
"""Events that are sorted between two turns of other work: some milliseconds."""
DEPTH_CHUNK_BYTES: Final = 4 << 20
"""Bytes of events whose depth is read between two turns of other work: some milliseconds."""
MAX_CLAIMED_DEPTH: Final = 2.0**63
"""Larger depths count as this one."""


class _DepthOnly(msgspec.Struct):
    depth: float | None = None


class StateImports:
    """Imports states. Use this class only on the reactor thread."""

    def __init__(self, *, outliers: Outliers, store: EventStore, clock: IReactorTime) -> None:
        self._outliers = outliers
        self._store = store
        self._clock = clock

    async def store(self, room: RoomRow, pdus: Sequence[Pdu]) -> list[Outcome]:
        """Store events as outliers; return an outcome for each, in the order given."""
        outcomes: dict[int, Outcome] = {}
        remaining, count = await self._by_depth(pdus), len(pdus)
        for _ in range(MAX_PASSES):
            later: list[int] = []
            for chunk in _chunks(pdus, remaining):
                version = ROOM_VERSIONS[room.version]
                candidates = [
                    ReceivedPdu(version=version, pdu=as_mapping(pdus[at])) for at in chunk
                ]
                for at, outcome in zip(
                    chunk, await self._outliers.add(room, candidates), strict=True
                ):
                    outcomes[at] = outcome
                    if outcome.is_waiting:
                        later.append(at)
            if not later or len(later) == count:
                break
            remaining, count = later, len(later)
        return [outcomes[at] for at in range(len(pdus))]

    async def _by_depth(self, pdus: Sequence[Pdu]) -> Iterable[int]:
        """Return the indexes of the events ordered by claimed depth: sorted in chunks, which are
        merged while they are read."""
        yielder, depths = Yielder(clock=self._clock, bytes_per_turn=DEPTH_CHUNK_BYTES), array("d")
        for pdu in pdus:
            depths.append(_depth(pdu))
            await yielder.after(_length(pdu))
        yielder, pieces = Yielder(clock=self._clock, bytes_per_turn=1), []
        for start in range(0, len(pdus), SORT_CHUNK):
            end = min(start + SORT_CHUNK, len(pdus))
            pieces.append(sorted(range(start, end), key=depths.__getitem__))
            if end < len(pdus):
                await yielder.after(1)
        return merge(*pieces, key=depths.__getitem__)

    async def get_entries(self, room: RoomRow, event_ids: Collection[EventID]) -> Entries:
        """Return the entries of a state that is given as events, as far as these are stored.

        Raises BadState.
        """
        entries: Entries = {}
        for stored in (await self._store.get_entries(room.room_nid, event_ids)).values():
            if stored.flags & EventFlag.REJECTED:
                continue
            key = (stored.type, stored.state_key or "")
            if (
                stored.state_key is None
                or entries.setdefault(key, stored.event_nid) != stored.event_nid
            ):
                raise BadState("The state of the room has several events for one state key")
        if CREATE not in entries:
            raise BadState("The state of the room lacks its create event")
        return entries


def get_stored_ids(outcomes: Sequence[Outcome]) -> list[EventID]:
    """Return the IDs of the stored events, whether accepted or rejected."""
    return [
        outcome.event_id
        for outcome in outcomes
        if outcome.event_id is not None
        and outcome.verdict is not Verdict.DROP
        and not outcome.is_waiting
    ]


def _chunks(pdus: Sequence[Pdu], numbers: Iterable[int]) -> Iterator[Sequence[int]]:
    """Return the indexes of the events that are parsed together."""
    chunk: list[int] = []
    size = 0
    for number in numbers:
        length = _length(pdus[number])
        if chunk and (len(chunk) == CHUNK or size + length > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(number)
        size += length
    if chunk:
        yield chunk


def _length(pdu: Pdu) -> int:
    """Return the length in bytes; 0 for a parsed event."""
    return len(memoryview(pdu)) if isinstance(pdu, msgspec.Raw) else 0


def _depth(pdu: Pdu) -> float:
    if not isinstance(pdu, msgspec.Raw):
        depth = pdu.get("depth")
        return (
            max(min(depth, MAX_CLAIMED_DEPTH), -MAX_CLAIMED_DEPTH) if isinstance(depth, int) else 0
        )
    try:
        return min(msgspec.json.decode(pdu, type=_DepthOnly).depth or 0, MAX_CLAIMED_DEPTH)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


def as_mapping(pdu: Pdu) -> Mapping[str, Any]:
    """Return the event as a mapping. A value that is no object fails when it is parsed."""
    return parse_event_piece(pdu) if isinstance(pdu, msgspec.Raw) else pdu

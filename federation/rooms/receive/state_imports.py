"""States of rooms as other servers send them whole: kept chunk by chunk, so that memory holds the
bytes and little more.

An event is taken apart when its turn comes. Turns go by the depth that events claim, by which an
honest one stands after those that it rests on; what comes too early all the same has another turn,
as long as there is progress.
"""

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from typing import Any, Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.peers.event_lists import Turns, read_event
from federation.protocol.errors import BadState
from federation.protocol.ids import EventID
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.rooms.check import Candidate, Verdict
from federation.rooms.receive.batch import Outcome
from federation.rooms.receive.outliers import Outliers
from federation.rooms.snapshot import CREATE
from storage.events.events import EventFlag, EventStore
from storage.rooms.rooms import RoomRow

CHUNK: Final = 500
"""Events that are taken apart at once."""
CHUNK_BYTES: Final = 1 << 20
"""As much of them: read, it may take twenty times its bytes. Five hundred ordinary events are
shorter."""
MAX_TURNS: Final = 20
"""More turns than an honest server's events need."""

Pdu = Mapping[str, Any] | msgspec.Raw
Entries = dict[tuple[str, str], int]


SORTED_AT_ONCE: Final = 20_000
"""Events that are sorted between two turns of others, some milliseconds."""
PEEKED_AT_ONCE: Final = 4 << 20
"""Bytes of events of which the depth is looked up between two turns of others, the same."""
DEEPEST: Final = 2.0**63
"""What claims to be deeper stands beside it."""


class _Peek(msgspec.Struct):
    depth: float | None = None


class StateImports:
    """Keeps states. For the reactor thread."""

    def __init__(self, outliers: Outliers, store: EventStore, clock: IReactorTime) -> None:
        self._outliers = outliers
        self._store = store
        self._clock = clock

    async def keep(self, room: RoomRow, pdus: Sequence[Pdu]) -> list[Outcome]:
        """Keep events as outliers; an outcome for each, in the order given."""
        outcomes: dict[int, Outcome] = {}
        waiting, count = await self._by_depth(pdus), len(pdus)
        for _ in range(MAX_TURNS):
            later: list[int] = []
            for chunk in _chunks(pdus, waiting):
                version = ROOM_VERSIONS[room.version]
                candidates = [Candidate(version, as_mapping(pdus[at])) for at in chunk]
                for at, outcome in zip(
                    chunk, await self._outliers.add(room, candidates), strict=True
                ):
                    outcomes[at] = outcome
                    if outcome.is_waiting:
                        later.append(at)
            if not later or len(later) == count:
                break
            waiting, count = later, len(later)
        return [outcomes[at] for at in range(len(pdus))]

    async def _by_depth(self, pdus: Sequence[Pdu]) -> Iterable[int]:
        """The numbers of the events by the depth that they claim: sorted piece by piece, and put
        together as they are taken."""
        turns, depths = Turns(self._clock, PEEKED_AT_ONCE), array("d")
        for pdu in pdus:
            depths.append(_depth(pdu))
            await turns.after(_length(pdu))
        turns, pieces = Turns(self._clock, 1), []
        for start in range(0, len(pdus), SORTED_AT_ONCE):
            end = min(start + SORTED_AT_ONCE, len(pdus))
            pieces.append(sorted(range(start, end), key=depths.__getitem__))
            if end < len(pdus):
                await turns.after(1)
        return merge(*pieces, key=depths.__getitem__)

    async def gather(self, room: RoomRow, event_ids: Collection[EventID]) -> Entries:
        """The entries of a state that is given by its events, as far as they are kept. Raises
        BadState."""
        entries: Entries = {}
        for stored in (await self._store.get_entries(room.room_nid, event_ids)).values():
            if stored.flags & EventFlag.REJECTED:
                continue
            key = (stored.type, stored.state_key or "")
            if (
                stored.state_key is None
                or entries.setdefault(key, stored.event_nid) != stored.event_nid
            ):
                raise BadState("The state of the room has no single event for each of its entries")
        if CREATE not in entries:
            raise BadState("The state of the room lacks its create event")
        return entries


def kept_ids(outcomes: Sequence[Outcome]) -> list[EventID]:
    """The ids of those that are kept, whatever they are worth."""
    return [
        outcome.event_id
        for outcome in outcomes
        if outcome.event_id is not None
        and outcome.verdict is not Verdict.DROP
        and not outcome.is_waiting
    ]


def _chunks(pdus: Sequence[Pdu], numbers: Iterable[int]) -> Iterator[Sequence[int]]:
    """The numbers of the events that are taken apart together."""
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
    """In bytes; nothing, where it is read already."""
    return len(memoryview(pdu)) if isinstance(pdu, msgspec.Raw) else 0


def _depth(pdu: Pdu) -> float:
    if not isinstance(pdu, msgspec.Raw):
        depth = pdu.get("depth")
        return max(min(depth, DEEPEST), -DEEPEST) if isinstance(depth, int) else 0
    try:
        return min(msgspec.json.decode(pdu, type=_Peek).depth or 0, DEEPEST)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


def as_mapping(pdu: Pdu) -> Mapping[str, Any]:
    """What is no object is no event, which is found out when it is read."""
    return read_event(pdu) if isinstance(pdu, msgspec.Raw) else pdu

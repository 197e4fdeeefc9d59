"""Builds JSON responses from the stored bytes of events.

A large response is streamed chunk by chunk. So it needs neither memory for the complete response
nor a query for each event.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from federation.api.responses import FileBody, Response
from storage.events.events import EventStore
from storage.rooms.served_states import ServedState

EVENTS_AT_ONCE: Final = 500
BYTES_AT_ONCE: Final = 4 << 20
"""Bytes of PDUs in memory for one response; see `storage.rooms.served_states.MAX_PDU_BYTES`."""

Part = bytes | Sequence[tuple[int, int]]
"""Bytes, or stored events as their numbers and the sizes of their PDUs."""


def make_part(state: ServedState, event_nids: Sequence[int]) -> Part:
    """Return a part of the response with some of the state's events."""
    if state.pdus is None:
        return [(nid, state.sizes[nid]) for nid in event_nids]
    return b",".join([state.pdus[nid] for nid in event_nids])


def splice(store: EventStore, parts: Sequence[Part], name: str) -> Response:
    """Return a JSON response of these parts; `name` distinguishes it from others."""
    headers = {"Content-Type": "application/json"}
    complete = [part for part in parts if isinstance(part, bytes)]
    if len(complete) == len(parts):
        return Response(headers=headers, body=b"".join(complete))
    pieces = _Pieces(store=store, parts=parts)
    return Response(headers=headers, body=FileBody(pieces, pieces.size, f"{name}-{pieces.size}"))


class _Pieces:
    """A `FileSource` of fixed bytes and lists of stored events, read once from front to back.

    If an event is redacted after its size was read, it becomes shorter, and spaces fill the
    difference.
    """

    def __init__(self, *, store: EventStore, parts: Iterable[Part]) -> None:
        """`parts`: bytes, or events as their numbers and sizes."""
        self._store = store
        self._parts: deque[Part] = deque()
        self._ready = b""
        self.size = 0
        for part in parts:
            if isinstance(part, bytes):
                self.size += len(part)
                self._parts.append(part)
                continue
            self.size += sum(size for _, size in part) + max(len(part) - 1, 0)
            for number, chunk in enumerate(_split(part)):
                if number:
                    self._parts.append(b",")
                self._parts.append(chunk)

    async def read(self, offset: int, size: int) -> bytes:
        """Return the next bytes; `offset` is the end of the previous ones."""
        while len(self._ready) < size and self._parts:
            part = self._parts.popleft()
            self._ready += part if isinstance(part, bytes) else await self._load(part)
        piece, self._ready = self._ready[:size], self._ready[size:]
        return piece

    def close(self) -> None:
        self._parts.clear()
        self._ready = b""

    async def _load(self, events: Sequence[tuple[int, int]]) -> bytes:
        pdus = await self._store.get_pdus(nid for nid, _ in events)
        return b",".join(pdus[nid].ljust(size) for nid, size in events)


def _split(events: Sequence[tuple[int, int]]) -> Iterator[Sequence[tuple[int, int]]]:
    """Split events into chunks that are read at once."""
    chunk: list[tuple[int, int]] = []
    size = 0
    for event_nid, event_size in events:
        if chunk and (len(chunk) == EVENTS_AT_ONCE or size + event_size > BYTES_AT_ONCE):
            yield chunk
            chunk, size = [], 0
        chunk.append((event_nid, event_size))
        size += event_size
    if chunk:
        yield chunk

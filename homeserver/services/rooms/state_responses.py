"""A cache of encoded responses about the state of a room that are the same for all readers.

Responses are cached by room, state root and request. A state root always identifies the same
events, but responses can change while it stays the same:

- The joined members are read from the table of memberships, not from the state. So a membership
  change invalidates the responses of its room.
- A redaction removes the content of an event. An outlier can lose its content to an earlier
  redaction when it is added to the room's graph. Both are rare, and invalidate the responses of all
  rooms.

Use this module only on the reactor thread.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from federation.rooms.state_view import StateView
from storage.cache import StreamCache
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow

CAPACITY_DIVISOR: Final = 4
"""A response larger than this fraction of the capacity (one part in four) is not cached."""
ENTRY_OVERHEAD: Final = 200
"""Approximate bytes for a room, and for a response, besides the JSON."""

StateQuestion = tuple[str | None, ...]
"""The kind of a request for state, and its parameters."""

_Responses = dict[tuple[bytes | None, StateQuestion], bytes]
"""Responses by state root and request."""


class StateResponses:
    """Caches responses about the rooms that were requested most recently."""

    def __init__(self, *, streams: Streams, capacity: int) -> None:
        """`capacity` in bytes."""
        self._capacity = capacity
        self._rooms: StreamCache[int, _Responses] = StreamCache(
            streams,
            Topic.MEMBERSHIP,
            Topic.REDACTED,
            Topic.OUTLIER_PLACED,
            keys_of=_rooms_of,
            max_weight=capacity,
            weigh=_weigh,
        )

    @property
    def cache(self) -> StreamCache[int, _Responses]:
        """The responses by room, for metrics."""
        return self._rooms

    async def get(
        self, state: StateView, question: StateQuestion, make: Callable[[], Awaitable[object]]
    ) -> msgspec.Raw:
        """Return the response as JSON; `make` makes it if it is not cached."""
        room_nid, key = state.room_nid, (state.root, question)
        responses = self._rooms.find(room_nid)
        if responses is None:
            responses = {}
            self._rooms.put(room_nid, responses, since=self._rooms.changes)
        response = responses.get(key)
        if response is None:
            response = msgspec.json.encode(await make())
            is_current = self._rooms.find(room_nid) is responses  # otherwise it was invalidated
            if is_current and len(response) * CAPACITY_DIVISOR <= self._capacity:
                responses[key] = response
                self._rooms.reweigh(room_nid)
        return msgspec.Raw(response)


def _rooms_of(change: Change) -> Sequence[int] | None:
    return (change.detail.room_nid,) if isinstance(change.detail, MembershipRow) else None


def _weigh(_room_nid: int, responses: _Responses) -> int:
    return ENTRY_OVERHEAD + sum(ENTRY_OVERHEAD + len(response) for response in responses.values())

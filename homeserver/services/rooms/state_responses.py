"""A cache of encoded answers about the state of a room that are the same for all readers.

A state is immutable by its root. But a redaction removes the content of an event, and display
names come from the table of memberships. So a change of a membership invalidates the answers of
its room; redactions are rare, and invalidate all. For the reactor thread.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from federation.rooms.state_view import StateView
from storage.cache import StreamCache
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow

LARGEST_SHARE: Final = 4
"""An answer that takes more than one part in so many of the capacity is not cached."""
ROOM: Final = 200
"""Bytes, about, for a room, and for an answer, beside the JSON."""

Question = tuple[str | None, ...]
"""The name of a question about a state, and its parameters."""

_Answers = dict[tuple[bytes | None, Question], bytes]
"""By root of the state, and question."""


class RoomAnswers:
    """Caches the answers about the rooms that were asked for most recently."""

    def __init__(self, streams: Streams, *, capacity: int) -> None:
        """`capacity` in bytes."""
        self._capacity = capacity
        self._rooms: StreamCache[int, _Answers] = StreamCache(
            streams,
            Topic.MEMBERSHIP,
            Topic.REDACTED,
            Topic.PLACED,
            keys_of=_rooms_of,
            max_weight=capacity,
            weigh=_weigh,
        )

    @property
    def cache(self) -> StreamCache[int, _Answers]:
        """The responses by room, for metrics."""
        return self._rooms

    async def get(
        self, state: StateView, question: Question, make: Callable[[], Awaitable[object]]
    ) -> msgspec.Raw:
        """The answer as JSON; `make` makes it if it is not cached."""
        room_nid, key = state.room_nid, (state.root, question)
        answers = self._rooms.find(room_nid)
        if answers is None:
            answers = {}
            self._rooms.put(room_nid, answers, since=self._rooms.changes)
        answer = answers.get(key)
        if answer is None:
            answer = msgspec.json.encode(await make())
            is_current = self._rooms.find(room_nid) is answers  # else they were dropped meanwhile
            if is_current and len(answer) * LARGEST_SHARE <= self._capacity:
                answers[key] = answer
                self._rooms.reweigh(room_nid)
        return msgspec.Raw(answer)


def _rooms_of(change: Change) -> Sequence[int] | None:
    return (change.detail.room_nid,) if isinstance(change.detail, MembershipRow) else None


def _weigh(_room_nid: int, answers: _Answers) -> int:
    return ROOM + sum(ROOM + len(answer) for answer in answers.values())

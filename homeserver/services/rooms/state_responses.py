"""Answers that are the same for everyone who asks for the state of a room, kept encoded.

A state is immutable by its root, but two things change what is said of it: a redaction takes the
content of an event away, and names of members are read from the table of memberships. So the stream
is heard: a membership drops what is kept of its room, a redaction (rare beside the reads that it
spoils) or what another node wrote drops all. For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from federation.rooms.state_view import StateView
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow

LARGEST_SHARE: Final = 4
"""An answer that would take more than this part of the capacity is not kept."""

Question = tuple[str | None, ...]
"""What is asked of a state: the name of the question, and its parameters."""


class RoomAnswers:
    """Keeps the answers about the rooms that were asked for most recently."""

    def __init__(self, streams: Streams, *, capacity: int) -> None:
        """`capacity` in bytes."""
        self._capacity = capacity
        self._size = 0
        self._rooms: OrderedDict[int, dict[tuple[bytes | None, Question], bytes]] = OrderedDict()
        """By number of the room: answers by root of the state and question."""
        self._changes_heard = 0
        streams.subscribe(self._hear, Topic.MEMBERSHIP, Topic.REDACTED, Topic.PLACED)
        streams.watch(self._heed_others)

    async def get(
        self, state: StateView, question: Question, make: Callable[[], Awaitable[object]]
    ) -> msgspec.Raw:
        """The answer as JSON; made by `make` where it is not known."""
        room_nid, key = state.room_nid, (state.root, question)
        known = self._rooms.get(room_nid, {}).get(key)
        if known is not None:
            self._rooms.move_to_end(room_nid)
            return msgspec.Raw(known)
        heard = self._changes_heard
        answer = msgspec.json.encode(await make())
        if heard == self._changes_heard and len(answer) * LARGEST_SHARE <= self._capacity:
            self._keep(room_nid, key, answer)
        return msgspec.Raw(answer)

    def _keep(self, room_nid: int, key: tuple[bytes | None, Question], answer: bytes) -> None:
        answers = self._rooms.setdefault(room_nid, {})
        self._rooms.move_to_end(room_nid)
        self._size += len(answer) - len(answers.get(key, b""))  # two may have asked at once
        answers[key] = answer
        while self._size > self._capacity:
            self._drop(next(iter(self._rooms)))

    def _drop(self, room_nid: int) -> None:
        answers = self._rooms.pop(room_nid, {})
        self._size -= sum(len(answer) for answer in answers.values())

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change.detail, MembershipRow):
                self._changes_heard += 1
                self._drop(change.detail.room_nid)
            elif change.topic in (Topic.REDACTED, Topic.PLACED, Topic.MEMBERSHIP):
                self._heed_others(change.position, change.position)

    def _heed_others(self, _after: int, _upto: int) -> None:
        """What was said of which room may have changed is not known here."""
        self._changes_heard += 1
        self._rooms.clear()
        self._size = 0

"""Answers in which nothing was new: who asks the same again, before anything has happened to anybody, is told the same.

An answer follows from what is asked, from what the client has, and from what has happened up to a token. As long as none of
these is another, it need not be worked out again. For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from homeserver.services.sliding_sync.connections import Connection
from homeserver.services.sliding_sync.request import Extensions, ListRequest, RoomConfig, SlidingRequest
from homeserver.services.stream_tokens import SyncToken
from storage.sliding_connections import MOST_OF_A_DEVICE

ENTRY: Final = 512
"""Bytes for an answer, beside what is in it and what was asked."""

_Asked = tuple[bool, Mapping[str, ListRequest], Mapping[str, RoomConfig], Extensions]


class _Empty(msgspec.Struct, frozen=True, gc=False):
    """One answer, and what it follows from."""

    token: SyncToken
    state_nid: int | None
    asked: _Asked
    body: dict[str, Any]
    weight: int
    """About how many bytes it takes."""


class EmptyAnswers:
    """The latest one of each connection, of as many of a device as are stored (`storage/sliding_connections.py`)."""

    def __init__(self, *, capacity: int) -> None:
        """`capacity`: about how many bytes are kept, with what was asked: clients make that large or small."""
        self._capacity = capacity
        self._devices: OrderedDict[tuple[str, str], OrderedDict[str, _Empty]] = OrderedDict()
        """By user and device: answers by `conn_id`."""
        self.weight = 0
        """About how many bytes are kept."""

    def find(self, request: SlidingRequest, connection: Connection, now: SyncToken) -> dict[str, Any] | None:
        """The answer for a client that has heard of everything up to now, if it is known to be empty."""
        known = self._get(connection)
        if known is None or known.token != now or connection.token != now or known.state_nid != connection.state_nid:
            return None
        return known.body if known.asked == _asked(request) else None

    def keep(self, request: SlidingRequest, connection: Connection, now: SyncToken, body: dict[str, Any]) -> None:
        """This was an answer without news, after which the client has the same state."""
        if connection.token != now:
            return  # what was asked from an earlier position may have been told a thing that is over now
        asked, known = _asked(request), self._get(connection)
        if known is not None and known.asked == asked:
            asked, weight = known.asked, known.weight  # as a rule: the answer is not much longer than what is asked
        else:
            weight = ENTRY + _weigh(asked, set()) + _weigh(body, set())
        self._put(connection, _Empty(now, connection.state_nid, asked, body, weight))

    def _get(self, connection: Connection) -> _Empty | None:
        key = connection.key
        return self._devices.get((key.user_id, key.device_id), _NONE).get(key.conn_id)

    def _put(self, connection: Connection, empty: _Empty) -> None:
        device, conn_id = (connection.key.user_id, connection.key.device_id), connection.key.conn_id
        answers = self._devices.setdefault(device, OrderedDict())
        former = answers.pop(conn_id, None)
        answers[conn_id] = empty
        self.weight += empty.weight - (0 if former is None else former.weight)
        if len(answers) > MOST_OF_A_DEVICE:
            _, dropped = answers.popitem(last=False)
            self.weight -= dropped.weight
        self._devices.move_to_end(device)
        while self.weight > self._capacity:
            _, gone = self._devices.popitem(last=False)
            self.weight -= sum(each.weight for each in gone.values())


_NONE: Final[Mapping[str, _Empty]] = {}


def _asked(request: SlidingRequest) -> _Asked:
    return request.stable, request.lists, request.subscriptions, request.extensions


def _weigh(value: object, seen: set[int]) -> int:
    """About how many bytes a value takes, with all that it is made of; what stands in several places counts once."""
    if isinstance(value, str):
        return 64 + len(value)
    if id(value) in seen:
        return 8
    seen.add(id(value))
    if isinstance(value, msgspec.Struct):
        return 64 + sum(_weigh(getattr(value, name), seen) for name in value.__struct_fields__)
    if isinstance(value, Mapping):
        return 64 + sum(64 + _weigh(key, seen) + _weigh(each, seen) for key, each in value.items())
    if isinstance(value, list | tuple | frozenset):
        return 64 + sum(32 + _weigh(each, seen) for each in value)
    return 32

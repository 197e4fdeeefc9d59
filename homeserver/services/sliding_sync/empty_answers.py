"""Answers in which nothing was new: who asks the same again, before anything has happened to
anybody, is told the same.

An answer follows from what is asked, from what the client has, and from what has happened up to a
token. As long as none of these is another, it need not be worked out again. For the reactor thread.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from homeserver.services.sliding_sync.connections import Connection
from homeserver.services.sliding_sync.kept import KeptOfConnections, weigh
from homeserver.services.sliding_sync.request import (
    Extensions,
    ListRequest,
    RoomConfig,
    SlidingRequest,
)
from homeserver.services.streams.sync_tokens import SyncToken
from storage.engine.streams import Streams

ENTRY: Final = 512
"""Bytes for an answer, beside what is in it and what was asked."""

_Asked = tuple[bool, Mapping[str, ListRequest], Mapping[str, RoomConfig], Extensions]


class _Empty(msgspec.Struct, frozen=True, gc=False):
    """One answer, and what it follows from."""

    token: SyncToken
    state_name: str | None
    asked: _Asked
    body: dict[str, Any]


class EmptyAnswers:
    """The latest one of each connection."""

    def __init__(self, streams: Streams, *, capacity: int) -> None:
        """`capacity`: about how many bytes are kept, with what was asked: clients make that large
        or small."""
        self._kept = KeptOfConnections[_Empty](streams, capacity=capacity)

    @property
    def weight(self) -> int:
        """About how many bytes are kept."""
        return self._kept.weight

    def find(
        self, request: SlidingRequest, connection: Connection, now: SyncToken
    ) -> dict[str, Any] | None:
        """The answer for a client that has heard of everything up to now, if it is known to be
        empty."""
        kept = self._kept.get(connection.key)
        if kept is None:
            return None
        known, _ = kept
        if (
            known.token != now
            or connection.token != now
            or known.state_name != connection.state_name
        ):
            return None
        return known.body if known.asked == _asked(request) else None

    def keep(
        self, request: SlidingRequest, connection: Connection, now: SyncToken, body: dict[str, Any]
    ) -> None:
        """This was an answer without news, after which the client has the same state."""
        if connection.token != now:
            # what was asked from an earlier position may have been told a thing that is over now
            return
        asked, kept = _asked(request), self._kept.get(connection.key)
        if kept is not None and kept[0].asked == asked:
            asked, weight = (
                kept[0].asked,
                kept[1],
            )  # as a rule: the answer is not much longer than what is asked
        else:
            weight = ENTRY + weigh(asked, set()) + weigh(body, set())
        self._kept.put(connection.key, _Empty(now, connection.state_name, asked, body), weight)


def _asked(request: SlidingRequest) -> _Asked:
    return request.stable, request.lists, request.subscriptions, request.extensions

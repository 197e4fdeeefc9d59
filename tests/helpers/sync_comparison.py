"""Compares the fast path of `/sync` and sliding sync with the complete path.

Each response with a room that has only plain messages is built a second time without the fast path.
Both must be the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from homeserver.services.sliding_sync.connections import ConnectionState, SlidingConnection
from homeserver.services.sliding_sync.request import SlidingRequest
from homeserver.services.sliding_sync.sliding_sync import SlidingResponse, SlidingSync
from homeserver.services.sync.lazy_members import LazyMembers, RoomMember
from homeserver.services.sync.plain_messages import PlainMessages, PlainTimeline
from homeserver.services.sync.request import SyncRequest
from homeserver.services.sync.response import SyncResponse
from homeserver.services.sync.sync import Sync

Compared = list[SyncResponse | SlidingResponse]
"""The responses of the fast path that were compared."""


@contextmanager
def plain_timelines() -> Iterator[list[PlainTimeline]]:
    """Record the rooms that take the fast path, until the context ends."""
    rooms: list[PlainTimeline] = []
    read = PlainMessages.read

    def read_plain(self: PlainMessages, *args: Any, **keywords: Any) -> PlainTimeline | None:
        timeline = read(self, *args, **keywords)
        if timeline is not None:
            rooms.append(timeline)
        return timeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainMessages, "read", read_plain)
        yield rooms


@contextmanager
def both_ways() -> Iterator[Compared]:
    """Compare both paths until the context ends."""
    compared: Compared = []
    is_short = True
    rooms: list[PlainTimeline] = []
    read, add_sent = PlainMessages.read, LazyMembers.add_sent
    # private: only below the long poll is the same request computed twice at one position
    compute_sync, compute_sliding = Sync._compute, SlidingSync._compute

    def read_plain(self: PlainMessages, *args: Any, **keywords: Any) -> PlainTimeline | None:
        timeline = read(self, *args, **keywords) if is_short else None
        if timeline is not None:
            rooms.append(timeline)
        return timeline

    def add_members(self: LazyMembers, *args: Any) -> None:
        if is_short:  # the complete path must not record it for the fast path
            add_sent(self, *args)

    async def sync_both_ways(self: Sync, request: SyncRequest) -> SyncResponse:
        nonlocal is_short
        rooms.clear()
        short = await compute_sync(self, request)
        if rooms:
            is_short = False
            try:
                full = await compute_sync(self, request)
            finally:
                is_short = True
            assert _as_json(short) == _as_json(full)
            compared.append(short)
        return short

    async def slide_both_ways(
        self: SlidingSync,
        request: SlidingRequest,
        connection: SlidingConnection,
        members: set[RoomMember],
    ) -> SlidingResponse:
        nonlocal is_short
        rooms.clear()
        before = set(members)
        short = await compute_sliding(self, request, connection, members)
        if rooms:
            is_short = False
            try:
                full = await compute_sliding(self, request, connection, before)
            finally:
                is_short = True
            assert _as_response(short.body) == _as_response(full.body)
            assert (short.has_changes, short.token) == (full.has_changes, full.token)
            assert (short.new_members, members) == (full.new_members, before)
            assert _of_state(short.state) == _of_state(full.state)
            assert short.state.added == full.state.added or short.state is connection.state
            assert short.typing == full.typing
            compared.append(short)
        return short

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainMessages, "read", read_plain)
        patch.setattr(LazyMembers, "add_sent", add_members)
        patch.setattr(Sync, "_compute", sync_both_ways)  # private: as above
        patch.setattr(SlidingSync, "_compute", slide_both_ways)  # private: as above
        yield compared


def _as_json(response: SyncResponse) -> Any:
    return response.has_changes, msgspec.json.decode(msgspec.json.encode(response.body))


def _as_response(body: object) -> Any:
    """Return the response as JSON; sorts state events, since their order has no meaning."""
    answer = msgspec.json.decode(msgspec.json.encode(body))
    for entry in answer["rooms"].values():
        entry.get("required_state", []).sort(
            key=lambda event: (event["type"], event.get("state_key", ""))
        )
    return answer


def _of_state(state: ConnectionState) -> tuple[object, ...]:
    return state.rooms, state.receipts, state.account_data, state.profiles

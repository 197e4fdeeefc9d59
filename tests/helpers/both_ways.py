"""Where messages alone are new, both kinds of sync answer in a shorter way: here each such answer
is made in the longer way too, and has to be the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from homeserver.services.sliding_sync.connections import Connection, ConnectionState
from homeserver.services.sliding_sync.messages import Answer, MessagesInView, View
from homeserver.services.sliding_sync.new_rooms import NewRooms
from homeserver.services.sliding_sync.request import SlidingRequest
from homeserver.services.sliding_sync.sliding_sync import SlidingSync
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.lazy_members import LazyMembers, Member
from homeserver.services.sync.messages import MessagesAlone, Usual
from homeserver.services.sync.plain_messages import PlainMessageReader, PlainMessages
from homeserver.services.sync.request import SyncRequest
from homeserver.services.sync.sync import Sync


@contextmanager
def told_plainly() -> Iterator[list[PlainMessages]]:
    """The messages of rooms that are told in the shortest way, while this is open."""
    told: list[PlainMessages] = []
    find = PlainMessageReader.find

    def watched(self: PlainMessageReader, *args: Any, **keywords: Any) -> PlainMessages | None:
        found = find(self, *args, **keywords)
        if found is not None:
            told.append(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainMessageReader, "find", watched)
        yield told


@contextmanager
def begun_plainly() -> Iterator[list[dict[str, Any]]]:
    """The entries of rooms that are new to a client and told in the shorter way, while this is
    open."""
    begun: list[dict[str, Any]] = []
    tell = NewRooms.tell

    def watched(self: NewRooms, *args: Any, **keywords: Any) -> dict[str, Any] | None:
        entry = tell(self, *args, **keywords)
        if entry is not None:
            begun.append(entry)
        return entry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NewRooms, "tell", watched)
        yield begun


@contextmanager
def both_ways() -> Iterator[list[object]]:
    """Compare, while this is open. Gives the answers that were compared so far."""
    compared: list[object] = []
    is_short = True
    find_v3, read_v3, read_sliding = MessagesAlone.find, MessagesAlone.read, MessagesInView.read
    sync_v3, compute_v3, compute_sliding = Sync.sync, Sync._compute, SlidingSync._compute
    tell_new, note_members = NewRooms.tell, LazyMembers.note
    made: list[Any] = []

    def find(self: MessagesAlone, request: SyncRequest, now: SyncToken) -> Usual | None:
        answer = find_v3(self, request, now) if is_short else None
        made.append(answer)
        return answer

    async def read(self: MessagesAlone, request: SyncRequest, now: SyncToken) -> Usual | None:
        answer = await read_v3(self, request, now) if is_short else None
        made.append(answer)
        return answer

    async def read_in_view(
        self: MessagesInView,
        request: SlidingRequest,
        connection: Connection,
        now: SyncToken,
        members: set[Member],
    ) -> Answer | None:
        answer = await read_sliding(self, request, connection, now, members) if is_short else None
        made.append(answer)
        return answer

    def tell(self: NewRooms, *args: Any) -> dict[str, Any] | None:
        entry = tell_new(self, *args) if is_short else None
        if entry is not None:
            made.append(entry)
        return entry

    def note(self: LazyMembers, *args: Any) -> None:
        if (
            is_short
        ):  # what the longer way would remember does not hide that the shorter one forgets it
            note_members(self, *args)

    async def compare(self: Sync, request: SyncRequest, short: Usual) -> None:
        nonlocal is_short
        is_short = False
        try:
            whole = await compute_v3(self, request)
        finally:
            is_short = True
        assert _as_json(short) == _as_json(whole)
        compared.append(short)

    async def sync(self: Sync, request: SyncRequest, timeout_ms: int) -> dict[str, Any]:
        made.clear()
        answer = await sync_v3(self, request, timeout_ms)
        if (
            made and made[0] is not None and answer is made[0][0]
        ):  # at once, before anything was worked out
            await compare(self, request, made[0])
        return answer

    async def compute(self: Sync, request: SyncRequest) -> Usual:
        made.clear()
        short = await compute_v3(self, request)
        if any(each is not None for each in made):
            await compare(self, request, short)
        return short

    async def compute_in_view(
        self: SlidingSync, request: SlidingRequest, connection: Connection, members: set[Member]
    ) -> Any:
        nonlocal is_short
        made.clear()
        short = await compute_sliding(self, request, connection, members)
        if any(each is not None for each in made):
            is_short = False
            try:
                whole = await compute_sliding(self, request, connection, members)
            finally:
                is_short = True
            assert _as_told(short.body) == _as_told(whole.body)
            assert (short.is_news, short.token, short.newly_sent) == (
                whole.is_news,
                whole.token,
                whole.newly_sent,
            )
            assert _of_state(short.state) == _of_state(whole.state)
            if request.extensions.typing is not None and whole.typing is not None:
                # what the next `pos` says of who types; of a client that is forgotten the short way
                # has no more than the last one
                typed = short.token.typed if short.typing is None else short.typing.typed
                assert short.typing in (None, whole.typing)
                assert typed == whole.typing.typed
            assert short.state.added == whole.state.added or short.state is connection.state
            # what stays in view with the short answer is what the long one has
            assert (short.view is None) == (whole.view is None)
            if short.view is not None and whole.view is not None:
                assert _of_view(short.view) == _of_view(whole.view)
            compared.append(short.body)
        return short

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MessagesAlone, "find", find)
        patch.setattr(MessagesAlone, "read", read)
        patch.setattr(MessagesInView, "read", read_in_view)
        patch.setattr(NewRooms, "tell", tell)
        patch.setattr(LazyMembers, "note", note)
        patch.setattr(Sync, "sync", sync)
        patch.setattr(Sync, "_compute", compute)
        patch.setattr(SlidingSync, "_compute", compute_in_view)
        yield compared


def _as_json(answer: object) -> Any:
    return msgspec.json.decode(msgspec.json.encode(answer))


def _as_told(body: object) -> Any:
    """The JSON; in which order state is told says nothing."""
    answer = _as_json(body)
    for entry in answer["rooms"].values():
        entry.get("required_state", []).sort(
            key=lambda event: (event["type"], event.get("state_key", ""))
        )
    return answer


def _of_state(state: ConnectionState) -> tuple[object, ...]:
    return state.rooms, state.receipts, state.account_data, state.profiles


def _of_view(view: View) -> tuple[object, ...]:
    return dict(view.configs), view.shown, view.labels

"""Receipts that arrived before their events, and become visible with them, also on another node."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from federation.protocol.events import Event
from storage.engine.database import Database
from storage.rooms import early_receipts
from storage.rooms.early_receipts import EarlyReceipt, EarlyReceiptStore
from storage.rooms.receipts import MAIN_THREAD, UNTHREADED, NewReceipt, ReceiptStore
from tests.conftest import run_coroutine
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.peers import Peer, servers, shared_room


@pytest.fixture
def pair(database: Database, sqlite_template: Path, tmp_path: Path) -> Iterator[list[Peer]]:
    other = open_inline(copy_sqlite(sqlite_template, tmp_path))
    yield servers([other, database])
    run_coroutine(other.close(), None)


class Receipts:
    """The receipts of the first server's user in the second server's database."""

    def __init__(self, pair: list[Peer], room_nid: int) -> None:
        self.reader, self.server = pair[0].user, pair[0].server
        self.early, self.store = EarlyReceiptStore(pair[1].database), ReceiptStore(pair[1].database)
        self.room_nid = room_nid

    async def keep(
        self, event: Event | str, thread_id: str = UNTHREADED, user: str | None = None
    ) -> bool:
        event_id = event if isinstance(event, str) else event.event_id
        received = EarlyReceipt(self.room_nid, user or self.reader, thread_id, event_id, 7)
        return not await self.early.add_receipts(self.server, [received])

    async def read(self) -> dict[str, tuple[str, int | None]]:
        rows = await self.store.get_receipts_of_user(self.reader, [self.room_nid])
        return {
            row.thread_id: (row.event_id, row.event_position) for row in rows.get(self.room_nid, [])
        }


async def met(pair: list[Peer]) -> tuple[Any, Receipts, Peer]:
    """A room, and two nodes of the second server."""
    _, b = pair
    room_id, _ = await shared_room(pair)
    node = Peer(b.database, b.now, b.server, b.keys)
    return room_id, Receipts(pair, (await b.engine.get_snapshot(room_id)).room.room_nid), node


async def test_early_receipts_apply_when_any_node_receives_the_event(pair: list[Peer]) -> None:
    a, b = pair
    room_id, receipts, node = await met(pair)
    first = (await a.send(room_id, a.user, "first")).event
    assert await receipts.keep(first)
    assert await receipts.read() == {}
    await node.take(room_id, first)
    stored = await node.find(room_id, first)
    assert stored is not None
    assert await receipts.read() == {UNTHREADED: (first.event_id, stored.position)}
    assert not await receipts.keep(first)  # nothing waits for what is here
    last = (await a.send(room_id, a.user, "last")).event
    await receipts.keep(last)
    await b.take(room_id, last)
    assert (await receipts.read())[UNTHREADED][0] == last.event_id


async def test_early_receipts_wait_until_an_outlier_is_placed(pair: list[Peer]) -> None:
    a, b = pair
    room_id, receipts, _ = await met(pair)
    name = (await a.send(room_id, a.user, {"name": "Hovli"}, "m.room.name", "")).event
    await b.receiver.receive_outliers(room_id, [name.pdu])
    assert await receipts.keep(name)
    await b.take(room_id, name)
    assert (await receipts.read())[UNTHREADED][0] == name.event_id


async def test_early_receipts_apply_only_in_the_room_of_the_event(pair: list[Peer]) -> None:
    a, b = pair
    room_id, receipts, _ = await met(pair)
    root = (await a.send(room_id, a.user, "root")).event
    await b.take(room_id, root)
    relation = {"m.relates_to": {"rel_type": "m.thread", "event_id": root.event_id}}
    reply = (await a.send(room_id, a.user, {"body": "reply", **relation})).event
    for thread_id in (root.event_id, MAIN_THREAD, "$another", UNTHREADED):
        await receipts.keep(reply, thread_id)
    await receipts.keep(reply, MAIN_THREAD, "@stranger:a.test")
    await b.take(room_id, reply)
    assert set(await receipts.read()) == {root.event_id, UNTHREADED}
    strangers = await receipts.store.get_receipts_of_user("@stranger:a.test", [receipts.room_nid])
    assert strangers == {}


async def test_a_later_position_wins_though_it_was_unknown_before(pair: list[Peer]) -> None:
    a, b = pair
    room_id, receipts, _ = await met(pair)
    old, new = [(await a.send(room_id, a.user, text)).event for text in ("old", "new")]
    await receipts.keep(new)
    await b.take(room_id, old)
    stored = await b.find(room_id, old)
    assert stored is not None
    at_old = NewReceipt(
        receipts.room_nid, room_id, a.user, "m.read", UNTHREADED, old.event_id, stored.position, 0
    )
    await receipts.store.set_receipts([at_old])
    assert (await receipts.read())[UNTHREADED][0] == old.event_id
    await b.take(room_id, new)
    await receipts.store.set_receipts([at_old])
    assert (await receipts.read())[UNTHREADED][0] == new.event_id


async def test_waiting_receipts_are_bounded(
    pair: list[Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    room_id, receipts, _ = await met(pair)
    events = [(await a.send(room_id, a.user, text)).event for text in "123"]
    for bound in ("MAX_PER_SERVER", "MAX_RECEIPTS"):
        monkeypatch.setattr(early_receipts, bound, 2)
    for event, thread_id in zip(events, (MAIN_THREAD, UNTHREADED, "$x"), strict=True):
        await receipts.keep(event, thread_id)
    await b.take(room_id, *events)
    assert set(await receipts.read()) == {
        UNTHREADED
    }  # the first was one too many, the last is in no thread

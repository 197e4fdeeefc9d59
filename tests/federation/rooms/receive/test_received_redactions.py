"""Redactions from other servers: those that redact their target, and those that are not shown."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.protocol.room_versions import DEFAULT_ROOM_VERSION, ROOM_VERSIONS, RoomVersion
from federation.rooms.receipt_checks import Verdict
from storage.engine.database import Database
from tests.conftest import run_coroutine
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.peers import Peer, servers, shared_room

EachVersion = pytest.mark.parametrize(
    "version", ROOM_VERSIONS.values(), ids=lambda version: version.identifier
)


@pytest.fixture
def pair(sqlite_database: Database, sqlite_template: Path, tmp_path: Path) -> Iterator[list[Peer]]:
    other = open_inline(copy_sqlite(sqlite_template, tmp_path))
    yield servers([sqlite_database, other])
    run_coroutine(other.close(), None)


@EachVersion
async def test_a_redaction_applies_before_and_after_its_target_arrives(
    pair: list[Peer], version: RoomVersion
) -> None:
    a, b = pair
    room_id, joined = await shared_room(pair, version)
    secret = await b.fork(room_id, joined, "m.room.message", {"body": "secret"})
    redaction = await b.fork(room_id, joined, "m.room.redaction", {}, redacts=secret.event_id)
    for order in ((secret, redaction), (redaction, secret)):
        peer = a if order[0] is secret else b
        for event in order:
            assert await peer.verdict(room_id, event) is Verdict.ACCEPT
        stored, by = await peer.find(room_id, secret), await peer.find(room_id, redaction)
        assert stored is not None
        assert by is not None
        assert stored.event.content == {}
        assert stored.redacted_by == by.nid


async def test_an_event_that_arrives_redacted_keeps_its_thread(pair: list[Peer]) -> None:
    a, b = pair
    room_id, root = await shared_room(pair, DEFAULT_ROOM_VERSION)
    reply = {"m.relates_to": {"rel_type": "m.thread", "event_id": root.event_id}}
    secret = await b.fork(room_id, root, "m.room.message", {"body": "secret", **reply})
    redaction = await b.fork(room_id, root, "m.room.redaction", {}, redacts=secret.event_id)
    for order in ((secret, redaction), (redaction, secret)):
        peer = a if order[0] is secret else b
        for event in order:
            await peer.verdict(room_id, event)
        stored = await peer.find(room_id, secret)
        assert stored is not None
        assert (stored.event.content, stored.thread_root) == ({}, root.event_id)


@EachVersion
async def test_a_redaction_without_permission_is_not_shown(
    pair: list[Peer], version: RoomVersion
) -> None:
    a, b = pair
    room_id, joined = await shared_room(pair, version)
    message = await a.send(room_id, a.user, {"body": "stays"})
    redaction = await b.fork(
        room_id, joined, "m.room.redaction", {}, redacts=message.event.event_id
    )
    if version.redaction_event_authorised:
        assert await a.verdict(room_id, redaction) is Verdict.REJECT
    else:
        assert await a.verdict(room_id, redaction) is Verdict.ACCEPT
    stored = await a.find(room_id, message.event)
    assert stored is not None
    assert stored.event.content == {"body": "stays"}
    assert redaction.event_id not in await a.shown(room_id)  # clients would take the content away
    for event in (message.event, redaction):
        await b.verdict(room_id, event)
    after = await b.fork(room_id, redaction, "m.room.message", {"body": "goes on"})
    assert await a.verdict(room_id, after) is Verdict.ACCEPT
    assert (await a.shown(room_id))[-1] == after.event_id

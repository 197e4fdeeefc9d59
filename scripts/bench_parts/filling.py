"""Fills rooms with messages without the client-server API. Events are stored as usual, but not
authorized, hashed or signed.

Scenarios use it for numbers of messages that would take too long to send. The server must be
stopped meanwhile.
"""

import time
from collections.abc import Sequence
from secrets import token_urlsafe

import msgspec

from storage.engine.database import Database, PostgresConfig, SQLiteConfig
from storage.events.auth_chains import AuthChainStore
from storage.events.events import EventFlag
from storage.persist.room_writer import NewEvent, RoomWriter
from storage.rooms.rooms import RoomHead, RoomRow, RoomStore
from storage.state.state_tree import StateTreeStore
from tests.helpers.databases import open_inline

BATCH = 1000

_encoder = msgspec.json.Encoder(order="sorted")


async def fill(
    config: SQLiteConfig | PostgresConfig,
    room_ids: Sequence[str],
    senders: Sequence[str],
    texts: Sequence[str],
) -> None:
    """Store the texts in the rooms in turn, each from one of the senders."""
    database = open_inline(config)
    try:
        filler = _Filler(database)
        for start in range(0, len(texts), BATCH):
            batch = start // BATCH
            await filler.store(
                room_ids[batch % len(room_ids)], senders, texts[start : start + BATCH]
            )
    finally:
        await database.close()


class _Filler:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._rooms = RoomStore(database=database)
        self._writer = RoomWriter(
            trees=StateTreeStore(database=database), chains=AuthChainStore(database=database)
        )
        self._heads: dict[str, tuple[RoomRow, RoomHead]] = {}

    async def store(self, room_id: str, senders: Sequence[str], texts: Sequence[str]) -> None:
        if room_id not in self._heads:
            room = await self._rooms.get_room(room_id)
            assert room is not None
            self._heads[room_id] = room, await self._rooms.get_head(room.room_nid)
        room, head = self._heads[room_id]
        events: list[NewEvent] = []
        prev = [event_id for _, event_id in head.extremities]
        now_ms = int(time.time() * 1000)
        for at, text in enumerate(texts):
            event = _make(
                room_id, senders[at % len(senders)], text, prev, head.depth + 1 + at, now_ms
            )
            events.append(event)
            prev = [event.event_id]
        appended = await self._database.write(
            "fill", lambda txn: self._writer.append(txn, room, head, events, prev, now_ms=now_ms)
        )
        self._heads[room_id] = room, appended.head


def _make(
    room_id: str, sender: str, text: str, prev: Sequence[str], depth: int, now_ms: int
) -> NewEvent:
    pdu = {
        "type": "m.room.message",
        "room_id": room_id,
        "sender": sender,
        "content": {"msgtype": "m.text", "body": text},
        "prev_events": prev,
        "auth_events": [],
        "depth": depth,
        "origin_server_ts": now_ms,
        "hashes": {"sha256": ""},
        "signatures": {},
    }
    return NewEvent(
        event_id="$" + token_urlsafe(32),
        pdu=_encoder.encode(pdu),
        depth=depth,
        type="m.room.message",
        state_key=None,
        sender=sender,
        origin_server_ts=now_ms,
        flags=EventFlag.TIMELINE | EventFlag.NOTIFIES,
        prev_events=prev,
        auth_nids=(),
    )

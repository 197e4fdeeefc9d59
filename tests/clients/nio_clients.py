"""Users of matrix-nio, the library of many bots, with and without encryption."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import nio
from nio import AsyncClient, AsyncClientConfig

from tests.helpers.real_server import RealServer

PASSWORD = "correct horse"
R = TypeVar("R")


def expect(answer: Any, kind: type[R]) -> R:
    """Return the response, which must be a success in nio's terms."""
    assert isinstance(answer, kind), answer
    return answer


@asynccontextmanager
async def new_client(server: RealServer, name: str) -> AsyncIterator[AsyncClient]:
    """Register a user and sign in."""
    client = AsyncClient(
        server.url, name, config=AsyncClientConfig(max_limit_exceeded=0, max_timeouts=0)
    )
    try:
        expect(
            await client.register(name, "correct horse", device_name="nio"), nio.RegisterResponse
        )
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def new_device(server: RealServer, store: Path, name: str) -> AsyncIterator[AsyncClient]:
    """Sign in on a new device with its own store, and publish its keys."""
    config = AsyncClientConfig(
        max_limit_exceeded=0, max_timeouts=0, encryption_enabled=True, store_sync_tokens=True
    )
    client = AsyncClient(server.url, f"@{name}:localhost", store_path=str(store), config=config)
    try:
        expect(await client.login(PASSWORD, device_name="nio"), nio.LoginResponse)
        await sync(client)
        yield client
    finally:
        await client.close()


async def sync(client: AsyncClient) -> list[nio.Event]:
    """Sync and return new events of all rooms. Does the maintenance of encryption keys that bots do
    after each sync."""
    answer = expect(await client.sync(timeout=0), nio.SyncResponse)
    for event in answer.to_device_events:
        assert not isinstance(event, nio.MegolmEvent)
    await client.send_to_device_messages()
    if client.should_upload_keys:
        expect(await client.keys_upload(), nio.KeysUploadResponse)
    if client.should_query_keys:
        expect(await client.keys_query(), nio.KeysQueryResponse)
    return [event for room in answer.rooms.join.values() for event in room.timeline.events]


async def receive_texts(client: AsyncClient) -> list[str]:
    """Sync and return the texts of new messages, all of which must decrypt."""
    events = await sync(client)
    assert not any(isinstance(event, nio.MegolmEvent) for event in events), events
    return [
        event.body for event in events if isinstance(event, nio.RoomMessageText) and event.decrypted
    ]


async def say(client: AsyncClient, room_id: str, text: str, txn_id: str | None = None) -> str:
    """Send a text message; return its event ID."""
    content = {"msgtype": "m.text", "body": text}
    answer = await client.room_send(
        room_id, "m.room.message", content, tx_id=txn_id, ignore_unverified_devices=True
    )
    return str(expect(answer, nio.RoomSendResponse).event_id)


async def register(server: RealServer, name: str) -> None:
    client = AsyncClient(server.url, name)
    try:
        expect(await client.register(name, PASSWORD), nio.RegisterResponse)
    finally:
        await client.close()

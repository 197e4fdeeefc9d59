"""matrix-nio with encryption (vodozemac): users and devices decrypt everything in a room."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import nio
from nio import AsyncClient, AsyncClientConfig

from tests.clients.test_nio import expect
from tests.helpers.real_server import RealServer

ENCRYPTION = {
    "type": "m.room.encryption",
    "state_key": "",
    "content": {"algorithm": "m.megolm.v1.aes-sha2"},
}
PASSWORD = "correct horse"


@asynccontextmanager
async def device(server: RealServer, store: Path, name: str) -> AsyncIterator[AsyncClient]:
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


async def texts(client: AsyncClient) -> list[str]:
    """Sync and return the texts of new messages, all of which must decrypt."""
    events = await sync(client)
    assert not any(isinstance(event, nio.MegolmEvent) for event in events), events
    return [
        event.body for event in events if isinstance(event, nio.RoomMessageText) and event.decrypted
    ]


async def say(client: AsyncClient, room_id: str, text: str) -> None:
    content = {"msgtype": "m.text", "body": text}
    answer = await client.room_send(
        room_id, "m.room.message", content, ignore_unverified_devices=True
    )
    expect(answer, nio.RoomSendResponse)


async def register(server: RealServer, name: str) -> None:
    client = AsyncClient(server.url, name)
    try:
        expect(await client.register(name, PASSWORD), nio.RegisterResponse)
    finally:
        await client.close()


def test_all_devices_decrypt_messages_of_an_encrypted_room(
    real_server: RealServer, tmp_path: Path
) -> None:
    for name in ("alice", "bob", "bob2"):
        (tmp_path / name).mkdir()
    asyncio.run(_scenario(real_server, tmp_path))


async def _scenario(server: RealServer, folder: Path) -> None:
    for name in ("nio-e2e-alice", "nio-e2e-bob"):
        await register(server, name)
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(device(server, folder / "alice", "nio-e2e-alice"))
        bob = await stack.enter_async_context(device(server, folder / "bob", "nio-e2e-bob"))
        created = await alice.room_create(invite=[bob.user_id], initial_state=[ENCRYPTION])
        room_id = expect(created, nio.RoomCreateResponse).room_id
        expect(await bob.join(room_id), nio.JoinResponse)
        for client in (alice, bob, alice, bob):
            await sync(client)
        assert alice.rooms[room_id].encrypted
        await say(alice, room_id, "salom")
        assert await texts(bob) == ["salom"]
        await say(bob, room_id, "va alaykum")
        assert (await texts(alice))[-1:] == ["va alaykum"]

        second = await stack.enter_async_context(device(server, folder / "bob2", "nio-e2e-bob"))
        await sync(alice)
        assert set(alice.device_store[bob.user_id]) == {bob.device_id, second.device_id}
        alice.invalidate_outbound_session(room_id)
        await say(alice, room_id, "to both of you")
        assert await texts(bob) == ["va alaykum", "to both of you"]
        assert await texts(second) == ["to both of you"]

        server.kill()
        await asyncio.to_thread(server.wait_until_ready)
        await say(bob, room_id, "after a power failure")
        assert (await texts(alice))[-1:] == ["after a power failure"]

        expect(await second.logout(), nio.LogoutResponse)
        await sync(alice)
        assert {
            device.device_id for device in alice.device_store.active_user_devices(bob.user_id)
        } == {bob.device_id}
        await say(alice, room_id, "to one again")
        assert (await texts(bob))[-1:] == ["to one again"]

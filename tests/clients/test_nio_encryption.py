"""matrix-nio with encryption (vodozemac): users and devices decrypt everything in a room."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import nio

from tests.clients.nio_clients import expect, new_device, receive_texts, register, say, sync
from tests.helpers.encrypted_rooms import ENCRYPTION_EVENT
from tests.helpers.real_server import RealServer


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
        alice = await stack.enter_async_context(
            new_device(server, folder / "alice", "nio-e2e-alice")
        )
        bob = await stack.enter_async_context(new_device(server, folder / "bob", "nio-e2e-bob"))
        created = await alice.room_create(invite=[bob.user_id], initial_state=[ENCRYPTION_EVENT])
        room_id = expect(created, nio.RoomCreateResponse).room_id
        expect(await bob.join(room_id), nio.JoinResponse)
        for client in (alice, bob, alice, bob):
            await sync(client)
        assert alice.rooms[room_id].encrypted
        await say(alice, room_id, "salom")
        assert await receive_texts(bob) == ["salom"]
        await say(bob, room_id, "va alaykum")
        assert (await receive_texts(alice))[-1:] == ["va alaykum"]

        second = await stack.enter_async_context(new_device(server, folder / "bob2", "nio-e2e-bob"))
        await sync(alice)
        assert set(alice.device_store[bob.user_id]) == {bob.device_id, second.device_id}
        alice.invalidate_outbound_session(room_id)
        await say(alice, room_id, "to both of you")
        assert await receive_texts(bob) == ["va alaykum", "to both of you"]
        assert await receive_texts(second) == ["to both of you"]

        server.kill()
        await asyncio.to_thread(server.wait_until_ready)
        await say(bob, room_id, "after a power failure")
        assert (await receive_texts(alice))[-1:] == ["after a power failure"]

        expect(await second.logout(), nio.LogoutResponse)
        await sync(alice)
        assert {
            device.device_id for device in alice.device_store.active_user_devices(bob.user_id)
        } == {bob.device_id}
        await say(alice, room_id, "to one again")
        assert (await receive_texts(bob))[-1:] == ["to one again"]

"""matrix-nio with encryption after its server was restored from a backup that is older than the
client's state: it continues, and everything is decrypted."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import nio
import pytest

from tests.clients.nio_clients import expect, new_device, receive_texts, register, say, sync
from tests.helpers.encrypted_rooms import ENCRYPTION_EVENT
from tests.helpers.restored_server import Restorable


@pytest.mark.parametrize("times", [1, 3])
def test_a_client_continues_after_a_restore(
    restorable: Restorable, tmp_path: Path, times: int
) -> None:
    for name in ("alice", "bob", "second", "carol"):
        (tmp_path / name).mkdir()
    asyncio.run(_scenario(restorable, tmp_path, times))


async def _scenario(restorable: Restorable, folder: Path, times: int) -> None:
    server = restorable.server
    for name in ("alice", "bob", "carol"):
        await register(server, name)
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(new_device(server, folder / "alice", "alice"))
        bob = await stack.enter_async_context(new_device(server, folder / "bob", "bob"))
        created = await alice.room_create(invite=[bob.user_id], initial_state=[ENCRYPTION_EVENT])
        room_id = expect(created, nio.RoomCreateResponse).room_id
        expect(await bob.join(room_id), nio.JoinResponse)
        for client in (alice, bob, alice, bob):
            await sync(client)
        await say(alice, room_id, "salom")
        assert await receive_texts(bob) == ["salom"]
        await asyncio.to_thread(restorable.back_up)

        # the restore undoes all of this: claimed keys, ratchet steps, and positions that clients
        # have seen
        second = await stack.enter_async_context(new_device(server, folder / "second", "bob"))
        for client in (alice, bob, second):
            await sync(client)
        for number in range(5):
            alice.invalidate_outbound_session(room_id)
            await say(alice, room_id, f"lost {number}")
            await sync(second)
            assert (await receive_texts(bob))[-1] == f"lost {number}"
            await sync(alice)
        await asyncio.to_thread(restorable.restore, times)

        for client in (alice, bob, alice, bob):
            assert await receive_texts(client) == []
        await say(alice, room_id, "with the session of before")
        assert await receive_texts(bob) == ["with the session of before"]
        alice.invalidate_outbound_session(room_id)
        await say(alice, room_id, "with a new one")
        assert await receive_texts(bob) == ["with a new one"]
        await say(bob, room_id, "and back")
        assert (await receive_texts(alice))[-1:] == ["and back"]

        carol = await stack.enter_async_context(new_device(server, folder / "carol", "carol"))
        expect(await alice.room_invite(room_id, carol.user_id), nio.RoomInviteResponse)
        expect(await carol.join(room_id), nio.JoinResponse)
        for client in (alice, bob, carol):
            await sync(client)
        await say(carol, room_id, "with keys that are claimed now")
        assert (await receive_texts(alice))[-1:] == ["with keys that are claimed now"]
        assert (await receive_texts(bob))[-1:] == ["with keys that are claimed now"]
        alice.invalidate_outbound_session(room_id)
        await say(alice, room_id, "to all")
        assert (await receive_texts(carol))[-1:] == ["to all"]
        assert "Traceback" not in server.log()

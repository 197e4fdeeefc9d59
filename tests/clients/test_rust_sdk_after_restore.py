"""matrix-rust-sdk, the engine of Element X, after its server was restored from a backup that is
older than the engine's state: it continues, and all later messages decrypt, also on a later
device."""

import asyncio
from pathlib import Path

import pytest

pytest.importorskip(
    "matrix_sdk_python",
    reason="NOTHING WAS TRIED WITH THE ENGINE OF ELEMENT X: scripts/rust_client installs it",
)

from tests.clients.rust_sdk import person
from tests.clients.test_rust_sdk_encryption import (
    converse,
    enable_recovery,
    encrypted_room,
    recover,
    unreadable,
)
from tests.helpers.restored_server import Restorable


def test_the_engine_continues_after_a_restore(restorable: Restorable, tmp_path: Path) -> None:
    asyncio.run(_scenario(restorable, tmp_path))


async def _scenario(restorable: Restorable, folder: Path) -> None:
    server = restorable.server
    async with (
        person(server, "alice", folder, encrypts=True) as alice,
        person(server, "bob", folder, encrypts=True) as bob,
    ):
        key, _ = [await enable_recovery(each) for each in (alice, bob)]
        room_id = await encrypted_room(alice, bob)
        timelines = [await alice.timeline(room_id), await bob.timeline(room_id)]
        await converse(timelines, "kept")
        restorable.back_up()
        await converse(timelines, "lost")
        async with person(server, "bob", folder / "lost", new=False, encrypts=True) as bob2:
            await converse([*timelines, await bob2.timeline(room_id)], "lost, on three devices")
        restorable.restore(1)
        await converse(timelines, "after the restore")
        async with person(server, "alice", folder / "second", new=False, encrypts=True) as alice2:
            await recover(alice2, key)
            timelines.append(await alice2.timeline(room_id))
            await converse(timelines, "on a device that came then")
            for timeline in timelines:
                assert unreadable(timeline) == []

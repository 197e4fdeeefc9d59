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
from tests.clients.rust_sdk_encryption import (
    enable_recovery,
    encrypted_room,
    exchange_messages,
    recover,
    undecryptable_events,
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
        await exchange_messages(timelines, "kept")
        restorable.back_up()
        await exchange_messages(timelines, "lost")
        async with person(server, "bob", folder / "lost", new=False, encrypts=True) as bob2:
            await exchange_messages(
                [*timelines, await bob2.timeline(room_id)], "lost, on three devices"
            )
        restorable.restore(1)
        await exchange_messages(timelines, "after the restore")
        async with person(server, "alice", folder / "second", new=False, encrypts=True) as alice2:
            await recover(alice2, key)
            timelines.append(await alice2.timeline(room_id))
            await exchange_messages(timelines, "on a device that came then")
            for timeline in timelines:
                assert undecryptable_events(timeline) == []

"""matrix-rust-sdk, the engine of Element X, whose server is restored from a backup while the engine
is ahead of it: it goes on, and all that is said from then on is readable, also on a device that
comes after that."""

import asyncio
from pathlib import Path

import pytest

pytest.importorskip(
    "matrix_sdk_python",
    reason="NOTHING WAS TRIED WITH THE ENGINE OF ELEMENT X: scripts/rust_client installs it",
)

from tests.clients.rust_sdk import person
from tests.clients.test_rust_sdk_encryption import (
    enable_recovery,
    encrypted_room,
    recover,
    talk,
    unreadable,
)
from tests.helpers.restorable import Restorable


def test_the_engine_goes_on_after_a_restore(restorable: Restorable, tmp_path: Path) -> None:
    asyncio.run(_story(restorable, tmp_path))


async def _story(restorable: Restorable, folder: Path) -> None:
    server = restorable.server
    async with (
        person(server, "alice", folder, encrypts=True) as alice,
        person(server, "bob", folder, encrypts=True) as bob,
    ):
        key, _ = [await enable_recovery(each) for each in (alice, bob)]
        room_id = await encrypted_room(alice, bob)
        timelines = [await alice.timeline(room_id), await bob.timeline(room_id)]
        await talk(timelines, "kept")
        restorable.back_up()
        await talk(timelines, "lost")
        async with person(server, "bob", folder / "lost", new=False, encrypts=True) as bob2:
            await talk([*timelines, await bob2.timeline(room_id)], "lost, on three devices")
        restorable.restore(1)
        await talk(timelines, "after the restore")
        async with person(server, "alice", folder / "second", new=False, encrypts=True) as alice2:
            await recover(alice2, key)
            timelines.append(await alice2.timeline(room_id))
            await talk(timelines, "on a device that came then")
            for timeline in timelines:
                assert unreadable(timeline) == []

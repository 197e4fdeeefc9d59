"""matrix-rust-sdk, the engine of Element X, whose server is restored from a backup: it goes on to
put room keys into their backup, without its owner's doing, and what is in there is read on a device
that comes then."""

import asyncio
from pathlib import Path

import pytest

pytest.importorskip(
    "matrix_sdk_python",
    reason="NOTHING WAS TRIED WITH THE ENGINE OF ELEMENT X: scripts/rust_client installs it",
)

import matrix_sdk_python as sdk

from tests.clients.rust_sdk import Person, person, until
from tests.clients.test_rust_sdk_encryption import (
    enable_recovery,
    encrypted_room,
    reads,
    recover,
    talk,
)
from tests.helpers.restorable import Restorable


def test_backups_of_room_keys_go_on(restorable: Restorable, tmp_path: Path) -> None:
    asyncio.run(_story(restorable, tmp_path))


async def _story(restorable: Restorable, folder: Path) -> None:
    server = restorable.server
    async with (
        person(server, "alice", folder, encrypts=True) as alice,
        person(server, "bob", folder, encrypts=True) as bob,
    ):
        both = (alice, bob)
        key, _ = [await enable_recovery(each) for each in both]
        room_id = await encrypted_room(alice, bob)
        timelines = [await each.timeline(room_id) for each in both]
        said = await talk(timelines, "kept")
        await _backed_up(*both)
        restorable.back_up()
        await _with_new_sessions(room_id, *both)
        await talk(timelines, "lost")
        await _backed_up(*both)
        restorable.restore(1)
        await _with_new_sessions(room_id, *both)
        said += await talk(timelines, "after the restore")
        await _backed_up(*both)
        assert [each.client.encryption().recovery_state() for each in both] == [
            sdk.RecoveryState.ENABLED
        ] * 2
    async with person(server, "alice", folder, new=False, encrypts=True) as begun_anew:
        encryption = begun_anew.client.encryption()
        await until("recovery", lambda: encryption.recovery_state() == sdk.RecoveryState.ENABLED)
        await _backed_up(begun_anew)
    # all others are off: the keys are in the backup, or nowhere
    async with person(server, "alice", folder / "second", new=False, encrypts=True) as alice2:
        await recover(alice2, key)
        await reads(await alice2.timeline(room_id), said)


async def _with_new_sessions(room_id: str, *people: Person) -> None:
    for each in people:
        await (await each.room(room_id)).discard_room_key()


async def _backed_up(*people: Person) -> None:
    """Wait until all of their room keys are in their backups; raises where those are off."""
    for each in people:
        await each.client.encryption().wait_for_backup_upload_steady_state(None)

"""matrix-rust-sdk, the engine of Element X, after its server was restored from a backup: it
continues to upload room keys to its key backup without action of the user, and a later device reads
them."""

import asyncio
from pathlib import Path

import pytest

pytest.importorskip(
    "matrix_sdk_python",
    reason="NOTHING WAS TRIED WITH THE ENGINE OF ELEMENT X: scripts/rust_client installs it",
)

import matrix_sdk_python as sdk

from tests.clients.rust_sdk import Person, person, until
from tests.clients.rust_sdk_encryption import (
    enable_recovery,
    encrypted_room,
    exchange_messages,
    recover,
    wait_for_texts,
)
from tests.helpers.restored_server import Restorable


def test_key_backups_continue(restorable: Restorable, tmp_path: Path) -> None:
    asyncio.run(_scenario(restorable, tmp_path))


async def _scenario(restorable: Restorable, folder: Path) -> None:
    server = restorable.server
    async with (
        person(server, "alice", folder, encrypts=True) as alice,
        person(server, "bob", folder, encrypts=True) as bob,
    ):
        both = (alice, bob)
        key, _ = [await enable_recovery(each) for each in both]
        room_id = await encrypted_room(alice, bob)
        timelines = [await each.timeline(room_id) for each in both]
        said = await exchange_messages(timelines, "kept")
        await _backed_up(*both)
        restorable.back_up()
        await _with_new_sessions(room_id, *both)
        await exchange_messages(timelines, "lost")
        await _backed_up(*both)
        restorable.restore(1)
        await _with_new_sessions(room_id, *both)
        said += await exchange_messages(timelines, "after the restore")
        await _backed_up(*both)
        assert [each.client.encryption().recovery_state() for each in both] == [
            sdk.RecoveryState.ENABLED
        ] * 2
    async with person(server, "alice", folder, new=False, encrypts=True) as restarted:
        encryption = restarted.client.encryption()
        await until("recovery", lambda: encryption.recovery_state() == sdk.RecoveryState.ENABLED)
        await _backed_up(restarted)
    # all other devices are off: the keys can only come from the backup
    async with person(server, "alice", folder / "second", new=False, encrypts=True) as alice2:
        await recover(alice2, key)
        await wait_for_texts(await alice2.timeline(room_id), said)


async def _with_new_sessions(room_id: str, *people: Person) -> None:
    for each in people:
        await (await each.room(room_id)).discard_room_key()


async def _backed_up(*people: Person) -> None:
    """Wait until all room keys of these users are in their backups. Raises if a backup is off."""
    for each in people:
        await each.client.encryption().wait_for_backup_upload_steady_state(None)

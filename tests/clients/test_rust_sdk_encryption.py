"""matrix-rust-sdk, the engine of Element X, with encryption: recovery, verification by emoji, key
backup and identity reset. Users can decrypt everything that they may read, though the server is
killed.

The server can be killed while the engine uploads keys to the backup. The engine uploads them later,
at the latest when it is asked to wait for the backup. `tests/nodes/test_key_backup_kill.py` proves
that no acknowledged key is lost.
"""

import asyncio
from pathlib import Path

import pytest

pytest.importorskip(
    "matrix_sdk_python",
    reason="NOTHING WAS TRIED WITH THE ENGINE OF ELEMENT X: scripts/rust_client installs it",
)

import matrix_sdk_python as sdk

from tests.clients.rust_sdk import PASSWORD, Person, person, until
from tests.clients.rust_sdk_encryption import (
    enable_recovery,
    encrypted_room,
    exchange_messages,
    recover,
    undecryptable_events,
    wait_for_texts,
    wait_for_verification_state,
)
from tests.helpers.real_server import RealServer


def test_users_exchange_encrypted_messages(real_server: RealServer, tmp_path: Path) -> None:
    asyncio.run(_encryption(real_server, tmp_path))


async def _encryption(server: RealServer, folder: Path) -> None:
    async with (
        person(server, "secret-alice", folder, encrypts=True) as alice,
        person(server, "secret-bob", folder, encrypts=True) as bob,
    ):
        recovery_keys = [await enable_recovery(each) for each in (alice, bob)]
        room_id = await encrypted_room(alice, bob)
        ours, theirs = await alice.timeline(room_id), await bob.timeline(room_id)
        said = await exchange_messages([ours, theirs], "first")
        server.kill()
        server.wait_until_ready()
        said += await exchange_messages([ours, theirs], "after the power failure")
        for each in (alice, bob):
            await each.client.encryption().wait_for_backup_upload_steady_state(None)
        async with (
            person(server, "secret-alice", folder / "second", new=False, encrypts=True) as alice2,
            person(server, "secret-bob", folder / "second", new=False, encrypts=True) as bob2,
        ):
            await recover(alice2, recovery_keys[0])
            await _verify(bob2, bob)
            seen = [await alice2.timeline(room_id), await bob2.timeline(room_id)]
            for timeline in seen:
                await wait_for_texts(timeline, said)
            await exchange_messages([ours, theirs, *seen], "on four devices")
            await _reset_identity(alice)
            await exchange_messages([ours, theirs, *seen], "with a new identity")
            for timeline in (ours, theirs, *seen):
                assert undecryptable_events(timeline) == []


class Verification:
    """One side of a verification. The engine calls the `did_…` methods."""

    def __init__(self, controller: sdk.SessionVerificationController) -> None:
        self.controller = controller
        self.request: sdk.SessionVerificationRequestDetails | None = None
        self.emoji: list[str] = []
        self.steps: list[str] = []
        controller.set_delegate(self)

    def did_receive_verification_request(
        self, details: sdk.SessionVerificationRequestDetails
    ) -> None:
        self.request = details

    def did_accept_verification_request(self) -> None:
        self.steps.append("accepted")

    def did_start_sas_verification(self) -> None:
        self.steps.append("started")

    def did_receive_verification_data(self, data: sdk.SessionVerificationData) -> None:
        self.emoji = [each.symbol() for each in data.emojis]

    def did_fail(self) -> None:
        self.steps.append("failed")

    def did_cancel(self) -> None:
        self.steps.append("cancelled")

    def did_finish(self) -> None:
        self.steps.append("finished")


async def _verify(new: Person, old: Person) -> None:
    """Verify a device by comparing emoji with another one."""
    encryption = new.client.encryption()
    await encryption.wait_for_e2ee_initialization_tasks()
    asking = Verification(await new.client.get_session_verification_controller())
    asked = Verification(await old.client.get_session_verification_controller())
    await asking.controller.request_device_verification()
    request = await until("the request", lambda: asked.request)
    assert request is not None
    await asked.controller.acknowledge_verification_request(
        request.sender_profile.user_id, request.flow_id
    )
    await asked.controller.accept_verification_request()
    await until("it to be accepted", lambda: "accepted" in asking.steps)
    await asking.controller.start_sas_verification()
    await until("the emoji", lambda: asking.emoji and asked.emoji)
    assert asking.emoji == asked.emoji
    await asking.controller.approve_verification()
    await asked.controller.approve_verification()
    await until("the end of it", lambda: "finished" in asking.steps and "finished" in asked.steps)
    assert not {"failed", "cancelled"} & {*asking.steps, *asked.steps}
    await wait_for_verification_state(encryption, sdk.VerificationState.VERIFIED)
    await until("the secrets", lambda: encryption.recovery_state() == sdk.RecoveryState.ENABLED)


async def _reset_identity(one: Person) -> None:
    """Reset the cross-signing keys, which must be confirmed."""
    handle = await one.client.encryption().reset_identity()
    assert handle is not None
    assert handle.auth_type().is_uiaa()
    details = sdk.AuthDataPasswordDetails(identifier=one.user_id, password=PASSWORD)
    await handle.reset(sdk.AuthData.PASSWORD(details))

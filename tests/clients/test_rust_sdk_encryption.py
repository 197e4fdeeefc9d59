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

from tests.clients.rust_sdk import (
    PASSWORD,
    FollowedTimeline,
    Person,
    Recorder,
    person,
    published_keys,
    request_until,
    until,
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
        said = await converse([ours, theirs], "first")
        server.kill()
        server.wait_until_ready()
        said += await converse([ours, theirs], "after the power failure")
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
                await reads(timeline, said)
            await converse([ours, theirs, *seen], "on four devices")
            await _reset_identity(alice)
            await converse([ours, theirs, *seen], "with a new identity")
            for timeline in (ours, theirs, *seen):
                assert unreadable(timeline) == []


async def enable_recovery(one: Person) -> str:
    encryption = one.client.encryption()
    await encryption.wait_for_e2ee_initialization_tasks()
    await _is(encryption, sdk.VerificationState.VERIFIED)  # the first device verifies itself
    key = await encryption.enable_recovery(True, None, Recorder())
    await until("recovery", lambda: encryption.recovery_state() == sdk.RecoveryState.ENABLED)
    assert await encryption.backup_exists_on_server()
    return str(key)


async def encrypted_room(alice: Person, bob: Person) -> str:
    requested = sdk.CreateRoomParameters(
        name="Sir",
        is_encrypted=True,
        visibility=sdk.RoomVisibility.PRIVATE(),
        preset=sdk.RoomPreset.PRIVATE_CHAT,
        invite=[bob.user_id],
    )
    room_id = str(await alice.client.create_room(requested))
    await (await bob.room(room_id, sdk.Membership.INVITED)).join()
    await bob.room(room_id)
    room = await alice.room(room_id)
    await until("Bob in the room", lambda: room.joined_members_count() == 2)
    return room_id


async def converse(timelines: list[FollowedTimeline], text: str) -> list[str]:
    """Send a message from each user, which all must read. Return the texts."""
    said = [f"{text} {number}" for number in range(len(timelines))]
    for speaker, words in zip(timelines, said, strict=True):
        await speaker.say(words)
        for timeline in timelines:
            await timeline.receives(words)
    return said


async def recover(device: Person, key: str) -> None:
    """Enter the recovery key on a new device, after its keys are published: a user types slower
    than that.

    The engine (0.18.0 of its bindings) does not wait for that and signs the device at any time. If
    the signature comes first, the server has no device key to sign and answers with `failures`,
    which the engine ignores. The device then stays unverified.
    """
    encryption = device.client.encryption()
    await encryption.wait_for_e2ee_initialization_tasks()
    await _is(encryption, sdk.VerificationState.UNVERIFIED)
    await until("the keys of the device at the server", lambda: published_keys(device))
    await encryption.recover(key)
    made = published_keys(device)["signatures"][device.user_id]
    assert len(made) == 2, (
        f"the server took no signature of the account on the device: there are {sorted(made)}"
    )
    await _is(encryption, sdk.VerificationState.VERIFIED)
    await until("recovery", lambda: encryption.recovery_state() == sdk.RecoveryState.ENABLED)


async def _is(encryption: sdk.Encryption, state: sdk.VerificationState) -> None:
    """Wait until the engine has this verification state."""
    await until(f"the device to be {state.name}", lambda: encryption.verification_state() == state)


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
    await _is(encryption, sdk.VerificationState.VERIFIED)
    await until("the secrets", lambda: encryption.recovery_state() == sdk.RecoveryState.ENABLED)


async def reads(timeline: FollowedTimeline, said: list[str]) -> None:
    """Wait until the timeline has the texts from before the device existed, whose keys are in the
    backup. The engine restarts a timeline if its first sync comes after the timeline was opened."""

    async def read() -> list[str]:
        await timeline.to_the_beginning()
        await timeline.straighten()
        return [text for text in timeline.messages if text in said]

    await request_until("all that was said", read, lambda texts: texts == said)


async def _reset_identity(one: Person) -> None:
    """Reset the cross-signing keys, which must be confirmed."""
    handle = await one.client.encryption().reset_identity()
    assert handle is not None
    assert handle.auth_type().is_uiaa()
    details = sdk.AuthDataPasswordDetails(identifier=one.user_id, password=PASSWORD)
    await handle.reset(sdk.AuthData.PASSWORD(details))


def unreadable(timeline: FollowedTimeline) -> list[str]:
    """Return the events that could not be decrypted."""
    contents = [(event, event.content) for event in timeline.events]
    return [
        str(event.event_or_transaction_id)
        for event, content in contents
        if content.is_msg_like() and content.content.kind.is_unable_to_decrypt()
    ]

"""matrix-rust-sdk, the engine of Element X, with encryption: recovery, verification by emoji,
backup, a new identity; and nothing that anybody may read is unreadable, though the server is
killed.

The server is killed while the engine may be about to put keys into the backup: it puts them there
afterwards, at the latest when it is asked to wait until it has. That no key is lost whose upload
was answered shows `tests/nodes/test_key_backup_kill.py`.
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
    Heard,
    Person,
    asked,
    person,
    published_keys,
    until,
)
from tests.helpers.real_server import RealServer


def test_encryption(real_server: RealServer, tmp_path: Path) -> None:
    asyncio.run(_encryption(real_server, tmp_path))


async def _encryption(server: RealServer, folder: Path) -> None:
    async with (
        person(server, "secret-alice", folder, encrypts=True) as alice,
        person(server, "secret-bob", folder, encrypts=True) as bob,
    ):
        recovery_keys = [await enable_recovery(each) for each in (alice, bob)]
        room_id = await encrypted_room(alice, bob)
        ours, theirs = await alice.timeline(room_id), await bob.timeline(room_id)
        said = await talk([ours, theirs], "first")
        server.kill()
        server.wait_until_ready()
        said += await talk([ours, theirs], "after the power failure")
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
            await talk([ours, theirs, *seen], "on four devices")
            await _reset_identity(alice)
            await talk([ours, theirs, *seen], "with a new identity")
            for timeline in (ours, theirs, *seen):
                assert unreadable(timeline) == []


async def enable_recovery(one: Person) -> str:
    encryption = one.client.encryption()
    await encryption.wait_for_e2ee_initialization_tasks()
    await _is(encryption, sdk.VerificationState.VERIFIED)  # the first device is its own witness
    key = await encryption.enable_recovery(True, None, Heard())
    await until("recovery", lambda: encryption.recovery_state() == sdk.RecoveryState.ENABLED)
    assert await encryption.backup_exists_on_server()
    return str(key)


async def encrypted_room(alice: Person, bob: Person) -> str:
    wish = sdk.CreateRoomParameters(
        name="Sir",
        is_encrypted=True,
        visibility=sdk.RoomVisibility.PRIVATE(),
        preset=sdk.RoomPreset.PRIVATE_CHAT,
        invite=[bob.user_id],
    )
    room_id = str(await alice.client.create_room(wish))
    await (await bob.room(room_id, sdk.Membership.INVITED)).join()
    await bob.room(room_id)
    room = await alice.room(room_id)
    await until("Bob in the room", lambda: room.joined_members_count() == 2)
    return room_id


async def talk(timelines: list[FollowedTimeline], text: str) -> list[str]:
    """Each says something, which all read; what was said."""
    said = [f"{text} {number}" for number in range(len(timelines))]
    for speaker, words in zip(timelines, said, strict=True):
        await speaker.say(words)
        for timeline in timelines:
            await timeline.hears(words)
    return said


async def recover(device: Person, key: str) -> None:
    """As somebody does who types the recovery key on a new device, which takes longer than to
    publish its keys.

    The engine (0.18.0 of its bindings) does not wait for that: it signs the device in any case.
    Where the signature comes first, the server has nothing that could be signed and says so
    (`failures` of the answer), which the engine does not read: the device stays unverified.
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
    """The engine finds out in its own time whether its device is verified."""
    await until(f"the device to be {state.name}", lambda: encryption.verification_state() == state)


class Verification:
    """One side of a verification. The engine calls what is `did_…`."""

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
    """A device is verified by comparing emoji with another one."""
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
    """Wait until messages from before the device are decrypted: their keys are in the backup.

    The engine starts a timeline again when its first /sync arrives after it was opened."""

    async def read() -> list[str]:
        await timeline.to_the_beginning()
        await timeline.straighten()
        return [text for text in timeline.messages if text in said]

    await asked("all that was said", read, lambda texts: texts == said)


async def _reset_identity(one: Person) -> None:
    """New keys of cross-signing, which have to be confirmed."""
    handle = await one.client.encryption().reset_identity()
    assert handle is not None
    assert handle.auth_type().is_uiaa()
    details = sdk.AuthDataPasswordDetails(identifier=one.user_id, password=PASSWORD)
    await handle.reset(sdk.AuthData.PASSWORD(details))


def unreadable(timeline: FollowedTimeline) -> list[str]:
    """Events that could not be decrypted."""
    contents = [(event, event.content) for event in timeline.events]
    return [
        str(event.event_or_transaction_id)
        for event, content in contents
        if content.is_msg_like() and content.content.kind.is_unable_to_decrypt()
    ]

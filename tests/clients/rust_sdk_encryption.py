"""Encrypted rooms, key backup and recovery with matrix-rust-sdk."""

import matrix_sdk_python as sdk

from tests.clients.rust_sdk import (
    FollowedTimeline,
    Person,
    Recorder,
    published_keys,
    request_until,
    until,
)


async def enable_recovery(one: Person) -> str:
    encryption = one.client.encryption()
    await encryption.wait_for_e2ee_initialization_tasks()
    await wait_for_verification_state(
        encryption, sdk.VerificationState.VERIFIED
    )  # the first device verifies itself
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


async def exchange_messages(timelines: list[FollowedTimeline], text: str) -> list[str]:
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
    await wait_for_verification_state(encryption, sdk.VerificationState.UNVERIFIED)
    await until("the keys of the device at the server", lambda: published_keys(device))
    await encryption.recover(key)
    made = published_keys(device)["signatures"][device.user_id]
    assert len(made) == 2, (
        f"the server took no signature of the account on the device: there are {sorted(made)}"
    )
    await wait_for_verification_state(encryption, sdk.VerificationState.VERIFIED)
    await until("recovery", lambda: encryption.recovery_state() == sdk.RecoveryState.ENABLED)


async def wait_for_verification_state(
    encryption: sdk.Encryption, state: sdk.VerificationState
) -> None:
    """Wait until the engine has this verification state."""
    await until(f"the device to be {state.name}", lambda: encryption.verification_state() == state)


async def wait_for_texts(timeline: FollowedTimeline, said: list[str]) -> None:
    """Wait until the timeline has the texts from before the device existed, whose keys are in the
    backup. The engine restarts a timeline if its first sync comes after the timeline was opened."""

    async def read() -> list[str]:
        await timeline.to_the_beginning()
        await timeline.straighten()
        return [text for text in timeline.messages if text in said]

    await request_until("all that was said", read, lambda texts: texts == said)


def undecryptable_events(timeline: FollowedTimeline) -> list[str]:
    """Return the events that could not be decrypted."""
    contents = [(event, event.content) for event in timeline.events]
    return [
        str(event.event_or_transaction_id)
        for event, content in contents
        if content.is_msg_like() and content.content.kind.is_unable_to_decrypt()
    ]

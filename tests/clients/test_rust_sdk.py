"""matrix-rust-sdk, the engine of Element X: two users, their rooms and spaces, and a client that is
closed and reopened."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "matrix_sdk_python",
    reason="NOTHING WAS TRIED WITH THE ENGINE OF ELEMENT X: scripts/rust_client installs it",
)

import matrix_sdk_python as sdk

from tests.clients.rust_sdk import (
    FollowedTimeline,
    Following,
    Person,
    Recorder,
    id_of,
    message_of,
    person,
    reactions_of,
    request_until,
    synced_receipts,
    text_of,
    until,
)
from tests.helpers.real_server import RealServer


def room_of(name: str, **more: Any) -> sdk.CreateRoomParameters:
    """Return the parameters of a private room."""
    private = {"visibility": sdk.RoomVisibility.PRIVATE(), "preset": sdk.RoomPreset.PRIVATE_CHAT}
    return sdk.CreateRoomParameters(name=name, is_encrypted=False, **{**private, **more})


def public(name: str, **more: Any) -> sdk.CreateRoomParameters:
    """Return the parameters of a room in the directory."""
    return room_of(
        name, visibility=sdk.RoomVisibility.PUBLIC(), preset=sdk.RoomPreset.PUBLIC_CHAT, **more
    )


def by_id(event: sdk.EventTimelineItem) -> sdk.EventOrTransactionId:
    """Return the identifier of an event of a timeline."""
    return sdk.EventOrTransactionId.EVENT_ID(id_of(event))


def test_two_users_have_a_conversation(real_server: RealServer, tmp_path: Path) -> None:
    asyncio.run(_a_conversation(real_server, tmp_path))


def test_a_client_discovers_rooms(real_server: RealServer, tmp_path: Path) -> None:
    asyncio.run(_finding_rooms(real_server, tmp_path))


def test_a_reopened_client_gets_what_it_missed(real_server: RealServer, tmp_path: Path) -> None:
    asyncio.run(_closed_and_opened_again(real_server, tmp_path))


async def _a_conversation(server: RealServer, folder: Path) -> None:
    async with (
        person(server, "talk-alice", folder) as alice,
        person(server, "talk-bob", folder) as bob,
    ):
        room_id = await alice.client.create_room(
            room_of("Choyxona", topic="Tea", invite=[bob.user_id])
        )
        invited = await bob.room(room_id, sdk.Membership.INVITED)
        await until("the name of the room", lambda: invited.display_name() == "Choyxona")
        inviter = await invited.inviter()
        assert inviter is not None
        assert inviter.user_id == alice.user_id
        await invited.join()
        theirs, ours = await bob.timeline(room_id), await alice.timeline(room_id)
        await _messages(ours, theirs)
        await _thread(alice, bob, ours, theirs, room_id)
        await _receipts_and_typing(server, alice, bob, ours, theirs, room_id)
        await _room_list(alice, bob, room_id)
        await (await bob.room(room_id)).leave()
        await until("the room to leave the list", lambda: room_id not in bob.listed())
        room = await alice.room(room_id)
        await until("Bob to be gone", lambda: room.joined_members_count() == 1)


async def _messages(ours: FollowedTimeline, theirs: FollowedTimeline) -> None:
    first = await ours.say("salom")
    received = await theirs.receives("salom")
    assert id_of(received) == id_of(first)
    await ours.timeline.edit(
        by_id(first), sdk.EditedContent.ROOM_MESSAGE(content("assalomu alaykum"))
    )
    edited = await theirs.receives("assalomu alaykum")
    assert message_of(edited).is_edited
    assert id_of(edited) == id_of(first)
    assert "salom" not in theirs.messages

    assert await theirs.timeline.toggle_reaction(by_id(edited), "👍")
    await ours.shows("the reaction", lambda: list(reactions(ours, "assalomu alaykum")) == ["👍"])
    assert not await theirs.timeline.toggle_reaction(by_id(edited), "👍")
    await ours.shows("the reaction to be gone", lambda: reactions(ours, "assalomu alaykum") == {})

    await theirs.timeline.send_reply(content("va alaykum"), id_of(edited))
    reply = await ours.receives("va alaykum")
    assert reply.content.content.in_reply_to.event_id() == id_of(first)

    wrong = await ours.say("wrong")
    await theirs.receives("wrong")
    await ours.timeline.redact_event(by_id(wrong), "typo")
    await theirs.shows(
        "the redaction", lambda: theirs.messages == ["assalomu alaykum", "va alaykum"]
    )
    await ours.shows(
        "our own redaction", lambda: ours.messages == ["assalomu alaykum", "va alaykum"]
    )


async def _thread(
    alice: Person, bob: Person, ours: FollowedTimeline, theirs: FollowedTimeline, room_id: str
) -> None:
    root = await ours.say("a root")
    await theirs.receives("a root")
    thread = await bob.timeline(room_id, sdk.TimelineFocus.THREAD(id_of(root)))
    for text in ("a first reply", "a second reply"):
        await thread.say(text)
    await ours.shows("the thread", lambda: summary_of(ours, "a root") == 2)
    assert "a first reply" not in ours.messages
    seen = await alice.timeline(room_id, sdk.TimelineFocus.THREAD(id_of(root)))
    await seen.to_the_beginning()
    await seen.shows(
        "the replies", lambda: seen.messages == ["a root", "a first reply", "a second reply"]
    )
    threads = (await alice.room(room_id)).thread_list_service()
    await threads.paginate()
    (listed,) = threads.items()
    assert listed.root_event.event_id == id_of(root)
    assert listed.num_replies == 2


async def _receipts_and_typing(
    server: RealServer,
    alice: Person,
    bob: Person,
    ours: FollowedTimeline,
    theirs: FollowedTimeline,
    room_id: str,
) -> None:
    last = await ours.say("read me")
    await theirs.receives("read me")
    bobs = await bob.room(room_id)

    async def unread() -> int:
        return int((await bobs.room_info()).num_unread_messages)

    assert await unread() >= 1
    await theirs.timeline.mark_as_read(sdk.ReceiptType.READ)
    receipts = await asyncio.to_thread(synced_receipts, server, alice, room_id)
    assert bob.user_id in receipts.get(id_of(last), ()), receipts
    await ours.shows("the receipt", lambda: bob.user_id in readers(ours, "read me"))
    await request_until("nothing to be unread", unread, lambda count: count == 0)
    await bobs.mark_as_fully_read_unchecked(id_of(last))
    typing = Recorder()
    handle = (await alice.room(room_id)).subscribe_to_typing_notifications(typing)
    await bobs.typing_notice(True)
    await until("Bob typing", lambda: typing.last == [bob.user_id])
    await bobs.typing_notice(False)
    await until("Bob done typing", lambda: typing.last == [])
    handle.cancel()


async def _room_list(alice: Person, bob: Person, room_id: str) -> None:
    """The room with the latest message comes first and shows that message. Names, tags and unread
    marks are synced."""
    other = await alice.client.create_room(room_of("Bozor", invite=[bob.user_id]))
    await (await bob.room(other, sdk.Membership.INVITED)).join()
    unspoken = await bob.room(other)

    def is_latest(latest: Any) -> bool:
        return bool(latest.is_remote() and text_of(latest) == "news")

    # Use a room without messages of Bob: on a busy machine the engine (0.18.0) can keep its own
    # message as the latest one, still pending, if the response and the sync cross.
    await (await alice.timeline(other)).say("news")
    await request_until("what was said last", unspoken.latest_event, is_latest)
    await (await alice.timeline(room_id)).say("up")
    await until(
        "the room to be first", lambda: bob.rooms.items and bob.rooms.items[0].id() == room_id
    )
    room = await bob.room(room_id)
    await (await alice.room(room_id)).set_name("Katta choyxona")
    await until("the new name", lambda: room.display_name() == "Katta choyxona")
    await room.set_is_favourite(True, None)
    await room.set_unread_flag(True)
    now = await request_until(
        "the marks", room.room_info, lambda info: info.is_favourite and info.is_marked_unread
    )
    assert now.topic == "Tea"
    assert (now.joined_members_count, now.invited_members_count) == (2, 0)


async def _finding_rooms(server: RealServer, folder: Path) -> None:
    async with (
        person(server, "find-alice", folder) as alice,
        person(server, "find-bob", folder) as bob,
    ):
        await alice.client.set_display_name("Alisa")
        open_id = await alice.client.create_room(
            public("Maydon", topic="For all", canonical_alias="maydon")
        )
        results = Following()
        search = bob.client.room_directory_search()
        handle = await search.results(results)
        await search.search("maydo", 10, None)
        (found_room,) = await until("the room in the directory", lambda: list(results.items))
        assert (found_room.room_id, found_room.name, found_room.joined_members) == (
            open_id,
            "Maydon",
            1,
        )
        assert await search.is_at_last_page()
        handle.cancel()
        resolved = await bob.client.resolve_room_alias(found_room.alias)
        assert resolved is not None
        assert resolved.room_id == open_id
        preview = await bob.client.get_room_preview_from_room_id(open_id, ["localhost"])
        assert preview.info().topic == "For all"
        await bob.client.join_room_by_id_or_alias(found_room.alias, [])
        await bob.room(open_id)
        await request_until(
            "Alice",
            lambda: bob.client.search_users("alisa", 5),
            lambda people: (
                ("Alisa", alice.user_id)
                in [(each.display_name, each.user_id) for each in people.results]
            ),
        )
        await _knocking(alice, bob)
        await _spaces(alice, bob, open_id)


async def _knocking(alice: Person, bob: Person) -> None:
    room_id = await alice.client.create_room(
        room_of("Hovli", join_rule_override=sdk.JoinRule.KNOCK())
    )
    room = await alice.room(room_id)
    requests = Recorder()
    handle = await room.subscribe_to_knock_requests(requests)
    await bob.client.knock(room_id, "let me in", ["localhost"])
    await bob.room(room_id, sdk.Membership.KNOCKED)
    (request,) = await until("the knock", lambda: requests.last)
    assert (request.user_id, request.reason) == (bob.user_id, "let me in")
    await request.actions.accept()
    handle.cancel()
    await (await bob.room(room_id, sdk.Membership.INVITED)).join()
    await bob.room(room_id)


async def _spaces(alice: Person, bob: Person, child_id: str) -> None:
    space_id = await alice.client.create_room(public("Mahalla", is_space=True))
    await alice.room(space_id)
    service = await alice.client.space_service()
    await service.add_child_to_space(child_id, space_id)
    await bob.client.join_room_by_id(space_id)
    await bob.room(space_id)
    theirs = await bob.client.space_service()
    top = await request_until("the space", theirs.top_level_joined_spaces, bool)
    assert [(space.room_id, space.display_name) for space in top] == [(space_id, "Mahalla")]
    children = await theirs.space_room_list(space_id)
    await children.paginate()
    (child,) = await children.rooms()
    assert (child.room_id, child.display_name, child.num_joined_members) == (child_id, "Maydon", 2)


async def _closed_and_opened_again(server: RealServer, folder: Path) -> None:
    """Messages sent while the client was closed are there once, without a gap, also after the
    server was killed."""
    async with person(server, "again-alice", folder) as alice:
        room_ids = []
        async with person(server, "again-bob", folder) as bob:
            for number in range(3):
                room_id = await alice.client.create_room(
                    room_of(f"Room {number}", invite=[bob.user_id])
                )
                await (await bob.room(room_id, sdk.Membership.INVITED)).join()
                await bob.room(room_id)
                room_ids.append(room_id)
            await (await alice.timeline(room_ids[0])).say("before")
            await (await bob.timeline(room_ids[0])).receives("before")
        timeline = await alice.timeline(room_ids[0])
        spoken = [f"while away {number}" for number in range(30)]
        for text in spoken:
            await timeline.say(text)
        await (await alice.room(room_ids[1])).set_topic("new")
        await (await alice.room(room_ids[2])).kick_user(bob_id(alice), "no reason")
        server.kill()
        server.wait_until_ready()
        async with person(server, "again-bob", folder, new=False) as bob:
            await until("the room to leave the list", lambda: room_ids[2] not in bob.listed())
            room = await bob.room(room_ids[1])
            await until("the topic", lambda: room.topic() == "new")
            seen = await bob.timeline(room_ids[0])
            await seen.receives(spoken[-1])
            await seen.to_the_beginning()
            await seen.shows("all that was said", lambda: seen.messages == ["before", *spoken])
            await seen.say("I am back")
        await (await alice.timeline(room_ids[0])).receives("I am back")


def bob_id(alice: Person) -> str:
    return alice.user_id.replace("alice", "bob")


def content(text: str) -> sdk.RoomMessageEventContentWithoutRelation:
    return sdk.message_event_content_from_markdown(text)


def reactions(timeline: FollowedTimeline, text: str) -> dict[str, list[str]]:
    """Return the reactions to a message, or {} if the message is not there."""
    event = timeline.find(text)
    return {"no message": []} if event is None else reactions_of(event)


def readers(timeline: FollowedTimeline, text: str) -> list[str]:
    """Return the users whose read receipt is at a message."""
    event = timeline.find(text)
    return [] if event is None else list(event.read_receipts)


def summary_of(timeline: FollowedTimeline, text: str) -> int:
    """Return the number of replies in the summary of a thread root."""
    event = timeline.find(text)
    summary = None if event is None else event.content.content.thread_summary
    return 0 if summary is None else summary.num_replies()

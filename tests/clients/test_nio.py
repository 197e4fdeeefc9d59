"""matrix-nio, the library of many bots: two users and a room, from registration to forgetting the
room."""

import asyncio
import time

import nio
from nio import AsyncClient

from tests.clients.nio_clients import expect, new_client, say
from tests.helpers.real_server import RealServer

SECONDS_TO_HEAR = 60


async def sync(client: AsyncClient) -> nio.SyncResponse:
    return expect(await client.sync(timeout=0), nio.SyncResponse)


def test_two_users_talk_in_a_room(real_server: RealServer) -> None:
    asyncio.run(_two_users_and_a_room(real_server))


async def _two_users_and_a_room(server: RealServer) -> None:
    async with new_client(server, "nio-alice") as alice, new_client(server, "nio-bob") as bob:
        expect(await alice.set_displayname("Алиса"), nio.ProfileSetDisplayNameResponse)
        created = await alice.room_create(
            name="Choyxona",
            topic="Tea",
            alias="choyxona",
            invite=[bob.user_id],
            visibility=nio.RoomVisibility.public,
        )
        room_id = expect(created, nio.RoomCreateResponse).room_id
        await sync(alice)
        assert room_id in alice.rooms
        assert alice.rooms[room_id].display_name == "Choyxona"

        await sync(bob)
        assert bob.invited_rooms[room_id].inviter == alice.user_id
        assert bob.invited_rooms[room_id].name == "Choyxona"
        expect(await bob.join(room_id), nio.JoinResponse)
        await sync(bob)
        assert set(bob.rooms[room_id].users) == {alice.user_id, bob.user_id}
        assert bob.rooms[room_id].user_name(alice.user_id) == "Алиса"

        await _messages(alice, bob, room_id)
        await _ephemeral(alice, bob, room_id)
        await _names(alice, bob, room_id)
        await _leaving(alice, bob, room_id)


async def _messages(alice: AsyncClient, bob: AsyncClient, room_id: str) -> None:
    first = await say(alice, room_id, "salom", "same")
    assert await say(alice, room_id, "salom", "same") == first, "a retry is not a second message"
    for number in range(30):
        last = await say(alice, room_id, str(number))
    answer = await sync(bob)
    timeline = answer.rooms.join[room_id].timeline
    assert timeline.limited
    assert timeline.events[-1].event_id == last
    assert bob.rooms[room_id].unread_notifications == 31

    seen = [event.event_id for event in reversed(timeline.events)]
    start: str | None = timeline.prev_batch
    while start is not None:
        page = expect(await bob.room_messages(room_id, start, limit=7), nio.RoomMessagesResponse)
        seen += [event.event_id for event in page.chunk]
        start = page.end
    assert len(set(seen)) == len(seen), "no event is sent twice"
    assert first in seen
    context = expect(await bob.room_context(room_id, first, limit=4), nio.RoomContextResponse)
    assert context.event.event_id == first

    expect(await alice.room_redact(room_id, last, reason="typo"), nio.RoomRedactResponse)
    gone = expect(await bob.room_get_event(room_id, last), nio.RoomGetEventResponse)
    assert isinstance(gone.event, nio.RedactedEvent)
    assert gone.event.reason == "typo"


async def _ephemeral(alice: AsyncClient, bob: AsyncClient, room_id: str) -> None:
    await sync(alice)
    await sync(bob)
    expect(await bob.room_typing(room_id, True, timeout=120_000), nio.RoomTypingResponse)
    await sync(alice)
    assert alice.rooms[room_id].typing_users == [bob.user_id]
    expect(await bob.room_typing(room_id, False), nio.RoomTypingResponse)
    await sync(alice)
    assert alice.rooms[room_id].typing_users == []

    event_id = await say(alice, room_id, "read me")
    expect(await bob.update_receipt_marker(room_id, event_id), nio.UpdateReceiptMarkerResponse)
    expect(await bob.room_read_markers(room_id, event_id, event_id), nio.RoomReadMarkersResponse)
    await sync(alice)
    assert alice.rooms[room_id].read_receipts[bob.user_id].event_id == event_id
    await sync(bob)
    assert bob.rooms[room_id].fully_read_marker == event_id
    assert bob.rooms[room_id].unread_notifications == 0


async def _names(alice: AsyncClient, bob: AsyncClient, room_id: str) -> None:
    found = expect(
        await bob.room_resolve_alias("#choyxona:localhost"), nio.RoomResolveAliasResponse
    )
    assert found.room_id == room_id
    expect(await alice.room_put_alias("#tea:localhost", room_id), nio.RoomPutAliasResponse)
    expect(await alice.room_delete_alias("#tea:localhost"), nio.RoomDeleteAliasResponse)
    assert isinstance(await bob.room_resolve_alias("#tea:localhost"), nio.RoomResolveAliasError)

    expect(await alice.set_displayname("Alisa"), nio.ProfileSetDisplayNameResponse)
    profile = expect(await bob.get_profile(alice.user_id), nio.ProfileGetResponse)
    assert profile.displayname == "Alisa"
    members = expect(await bob.joined_members(room_id), nio.JoinedMembersResponse)
    assert {member.user_id for member in members.members} == {alice.user_id, bob.user_id}
    # Profile changes propagate to rooms a moment later.
    deadline = time.monotonic() + SECONDS_TO_HEAR
    while bob.rooms[room_id].user_name(alice.user_id) != "Alisa":
        assert time.monotonic() < deadline, "the room did not get the new name"
        expect(await bob.sync(timeout=1000), nio.SyncResponse)
    rooms = expect(await bob.joined_rooms(), nio.JoinedRoomsResponse)
    assert rooms.rooms == [room_id]


async def _leaving(alice: AsyncClient, bob: AsyncClient, room_id: str) -> None:
    expect(await bob.room_leave(room_id), nio.RoomLeaveResponse)
    assert room_id in (await sync(bob)).rooms.leave
    expect(await bob.room_forget(room_id), nio.RoomForgetResponse)
    assert room_id not in bob.rooms
    assert isinstance(await bob.room_messages(room_id, ""), nio.RoomMessagesError)
    await sync(alice)
    assert set(alice.rooms[room_id].users) == {alice.user_id}
    token = bob.access_token
    expect(await bob.logout(), nio.LogoutResponse)
    bob.access_token = token
    assert isinstance(await bob.joined_rooms(), nio.JoinedRoomsError)

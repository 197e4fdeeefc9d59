"""Events and EDUs between servers that share a room, also over outages and restarts."""

from collections.abc import Awaitable
from typing import Any

import pytest

from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID, UserID
from federation.protocol.signing import SigningKey, encode_base64
from storage.rooms import early_receipts
from tests.helpers.federated_rooms import (
    EAST,
    NORTH,
    SOUTH,
    Shared,
    Side,
    adopt,
    create_room,
    shared,
    texts,
)
from tests.helpers.network import Network, count_requests
from tests.helpers.room_actions import say, set_state
from tests.helpers.server import User, move_user


async def shared_room(network: Network, **options: Any) -> Shared:
    """A shared room, and everything flows."""
    room = await shared(network, **options)
    network.start_sending()
    network.settle()
    return room


def heal(network: Network) -> None:
    """Everybody tries again, and what comes of that comes to rest."""
    for _ in range(6):
        network.clock.advance(3600)
        network.settle()


async def same_everywhere(room: Shared, *sides: Side) -> bool:
    """Whether all sides show the same messages and the same state."""
    states = [await side.state(room.room_id) for side in (room.north, room.south, *sides)]
    return all(state == states[0] for state in states) and sorted(
        texts(room.alice, room.room_id)
    ) == sorted(texts(room.bob, room.room_id))


def receipts_of(user: User, room_id: str) -> dict[str, Any]:
    answer = user.get("/_matrix/client/v3/sync").json["rooms"]["join"][room_id]["ephemeral"][
        "events"
    ]
    found: dict[str, Any] = {}
    for event in answer:
        found.setdefault(event["type"], {}).update(event["content"])
    return found


async def test_messages_are_sent_in_both_directions(network: Network) -> None:
    room = await shared_room(network)

    say(room.alice, room.room_id, "from the north")
    network.settle()
    say(room.bob, room.room_id, "from the south")
    network.settle()

    assert (
        texts(room.bob, room.room_id)
        == texts(room.alice, room.room_id)
        == ["from the south", "from the north"]
    )


async def test_a_third_server_receives_the_messages(network: Network) -> None:
    room = await shared_room(network)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    await adopt(room.north, east, carol.user_id, room.room_id)
    network.settle()

    say(room.alice, room.room_id, "to both")
    network.settle()

    assert texts(room.bob, room.room_id) == texts(carol, room.room_id) == ["to both"]


async def test_an_outage_with_traffic_on_both_sides_ends_with_equal_rooms(network: Network) -> None:
    room = await shared_room(network)
    network.cut(NORTH, SOUTH)
    for number in range(30):
        say(room.alice, room.room_id, f"north {number}")
        say(room.bob, room.room_id, f"south {number}")
        network.settle()
    set_state(room.alice, room.room_id, "m.room.topic", {"topic": "split"})
    network.settle()

    network.mend(NORTH, SOUTH)
    heal(network)

    assert await same_everywhere(room)
    assert len(texts(room.bob, room.room_id)) == 60


async def test_two_hundred_messages_of_an_outage_come_in_few_transactions(network: Network) -> None:
    room = await shared_room(network)
    network.cut(NORTH, SOUTH)
    for number in range(200):
        say(room.alice, room.room_id, str(number))
        network.settle()
    for _ in range(8):
        network.clock.advance(3600)
        network.settle()

    network.log.clear()
    network.mend(NORTH, SOUTH)
    heal(network)

    assert count_requests(network, SOUTH, "/send/") <= 3
    assert texts(room.bob, room.room_id) == [str(number) for number in range(199, -1, -1)]


async def test_a_restarted_server_continues_to_send(network: Network) -> None:
    room = await shared_room(network)
    network.cut(NORTH, SOUTH)
    say(room.alice, room.room_id, "one")
    network.settle()
    network.rebuild(NORTH)
    network.settle()
    network.mend(NORTH, SOUTH)
    heal(network)

    assert texts(room.bob, room.room_id) == ["one"]


async def test_a_server_that_becomes_active_is_sent_to_at_once(network: Network) -> None:
    room = await shared_room(network)
    network.cut(NORTH, SOUTH)
    say(room.alice, room.room_id, "one")
    for _ in range(8):
        network.settle()
        network.clock.advance(3600)
    network.settle()
    network.clock.advance(10)
    network.mend(NORTH, SOUTH)

    say(room.bob, room.room_id, "two")
    network.settle()

    assert sorted(texts(room.bob, room.room_id)) == ["one", "two"]
    assert sorted(texts(room.alice, room.room_id)) == ["one", "two"]


async def test_a_kicked_users_server_receives_the_kick(network: Network) -> None:
    room = await shared_room(network)
    answer = room.alice.post(
        f"/_matrix/client/v3/rooms/{room.room_id}/kick", {"user_id": room.bob.user_id}
    )
    assert answer.status == 200, answer.body
    network.settle()

    assert room.bob.get("/_matrix/client/v3/joined_rooms").json["joined_rooms"] == []


async def test_typing_is_sent_and_ends(network: Network) -> None:
    room = await shared_room(network)
    path = f"/_matrix/client/v3/rooms/{room.room_id}/typing/{room.alice.user_id}"
    room.alice.put(path, {"typing": True, "timeout": 20000})
    network.settle()
    assert receipts_of(room.bob, room.room_id)["m.typing"] == {"user_ids": [room.alice.user_id]}

    room.alice.put(path, {"typing": False})
    network.settle()
    assert receipts_of(room.bob, room.room_id).get("m.typing", {"user_ids": []}) == {"user_ids": []}


async def test_public_receipts_are_sent_and_private_ones_are_not(network: Network) -> None:
    room = await shared_room(network)
    event_id: EventID = say(room.alice, room.room_id, "read me")
    network.settle()
    later = say(room.alice, room.room_id, "and me")
    network.settle()
    base = f"/_matrix/client/v3/rooms/{room.room_id}/receipt"
    room.bob.post(f"{base}/m.read/{event_id}", {})
    room.bob.post(f"{base}/m.read/{later}", {"thread_id": "main"})
    room.bob.post(f"{base}/m.read.private/{later}", {})
    network.settle()

    seen = receipts_of(room.alice, room.room_id)["m.receipt"]
    assert seen[event_id]["m.read"].keys() == {room.bob.user_id}
    assert seen[later]["m.read"][room.bob.user_id]["thread_id"] == "main"
    assert "m.read.private" not in seen[later]


@pytest.mark.parametrize("hours", [0.1, 3])
async def test_receipts_from_before_and_during_an_outage_are_sent_after_it(
    network: Network, hours: float
) -> None:
    """Whether the transaction in which they were is tried until the end, or was given up
    meanwhile."""
    room = await shared_room(network)
    first, second, third = (say(room.bob, room.room_id, text) for text in ("one", "two", "three"))
    network.settle()
    network.cut(NORTH, SOUTH)
    base = f"/_matrix/client/v3/rooms/{room.room_id}/receipt/m.read"
    room.alice.post(f"{base}/{first}", {})
    room.alice.post(f"{base}/{first}", {"thread_id": "main"})
    network.settle()
    room.alice.post(f"{base}/{second}", {"thread_id": "main"})
    for _ in range(60):
        network.clock.advance(hours * 60)
        network.settle()
    network.mend(NORTH, SOUTH)
    heal(network)

    seen = receipts_of(room.bob, room.room_id)["m.receipt"]
    assert seen[first]["m.read"][room.alice.user_id].get("thread_id") is None
    assert seen[second]["m.read"][room.alice.user_id]["thread_id"] == "main"
    room.alice.post(f"{base}/{third}", {})
    network.settle()
    assert third in receipts_of(room.bob, room.room_id)["m.receipt"]


async def test_edus_about_users_of_other_servers_or_rooms_are_ignored(network: Network) -> None:
    room = await shared_room(network)
    event_id = say(room.alice, room.room_id, "read me")
    network.settle()
    stranger = "@stranger:south.example"
    edus = [
        {
            "edu_type": "m.typing",
            "content": {"room_id": room.room_id, "user_id": user_id, "typing": True},
        }
        for user_id in (room.alice.user_id, stranger)
    ]
    receipt = {"event_ids": [event_id], "data": {"ts": 1}}
    edus.append(
        {
            "edu_type": "m.receipt",
            "content": {room.room_id: {"m.read": {room.alice.user_id: receipt, stranger: receipt}}},
        }
    )
    await room.south.push(NORTH, [], edus)

    seen = receipts_of(room.alice, room.room_id)
    assert seen.get("m.typing", {"user_ids": []}) == {"user_ids": []}
    assert seen.get("m.receipt", {}) == {}


async def send_receipt(room: Shared, event_id: str, **thread: str) -> Any:
    """Return the receipts that the north shows after the south has sent that Bob read an event."""
    receipt = {"event_ids": [event_id], "data": {"ts": 7, **thread}}
    content = {room.room_id: {"m.read": {room.bob.user_id: receipt}}}
    await room.south.push(NORTH, [], [{"edu_type": "m.receipt", "content": content}])
    return receipts_of(room.alice, room.room_id).get("m.receipt", {})


async def test_receipts_in_invented_threads_are_ignored(network: Network) -> None:
    room = await shared_room(network)
    first, second = (say(room.alice, room.room_id, text) for text in ("first", "second"))
    network.settle()

    async def receipts_after(event_id: str, **thread: str) -> set[str]:
        return set(await send_receipt(room, event_id, **thread))

    assert (
        await receipts_after(first, thread_id="$invented") == set()
    )  # the event is here, and is in no thread
    assert await receipts_after("$to_come", thread_id="$root") == set()
    assert await receipts_after(first, thread_id="main") == {first}
    assert await receipts_after(second) == {first, second}
    assert await receipts_after("$unknown") == {first, second}


async def test_receipts_that_arrive_before_their_events_are_applied_later(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = await shared_room(network)
    bob = UserID(room.bob.user_id)
    known, known_later = (say(room.alice, room.room_id, text) for text in ("known", "known later"))
    network.settle()

    def message(text: str, **content: Any) -> Awaitable[Event]:
        return room.south.build_next(room.room_id, bob, "m.room.message", {"body": text, **content})

    async def bring(event: Event) -> Any:
        await room.south.push(NORTH, [event.pdu])
        return receipts_of(room.alice, room.room_id)["m.receipt"]

    late = await message("late")
    assert set(await send_receipt(room, late.event_id)) == set()
    assert set(await send_receipt(room, known)) == {
        known
    }  # its place is known, and that of the other is not yet
    assert set(await send_receipt(room, known_later)) == {known_later}
    assert await bring(late) == {late.event_id: {"m.read": {bob: {"ts": 7}}}}
    assert set(await send_receipt(room, known_later)) == {late.event_id}

    root = {"rel_type": "m.thread", "event_id": known}
    reply, other_reply, later = (
        await message("1", **{"m.relates_to": root}),
        await message("2"),
        await message("3"),
    )
    await send_receipt(room, reply.event_id, thread_id=known)
    await send_receipt(room, other_reply.event_id, thread_id="$another")
    assert (await bring(reply))[reply.event_id] == {"m.read": {bob: {"ts": 7, "thread_id": known}}}
    assert other_reply.event_id not in await bring(other_reply)

    monkeypatch.setattr(early_receipts, "MAX_PER_SERVER", 1)
    await send_receipt(room, later.event_id)
    await send_receipt(room, "$never", thread_id="main")  # takes the place of what waits
    assert later.event_id not in await bring(later)


async def test_presence_is_sent(network: Network) -> None:
    on = "presence: {enabled: true}\n"
    room = await shared_room(network, config={NORTH: on, SOUTH: on})
    room.alice.put(
        f"/_matrix/client/v3/presence/{room.alice.user_id}/status",
        {"presence": "unavailable", "status_msg": "tea"},
    )
    network.settle()

    seen = room.bob.get(f"/_matrix/client/v3/presence/{room.alice.user_id}/status").json
    assert (seen["presence"], seen.get("status_msg")) == ("unavailable", "tea")


async def test_late_events_from_before_a_join_are_not_in_sync(network: Network) -> None:
    """Also if it arrives after the join, from a server that still sends it."""
    north = Side(network.add(NORTH))
    south, east = Side(network.add(SOUTH)), Side(network.add(EAST))
    alice, bob, carol = (
        north.server.register("alice"),
        south.server.register("bob"),
        east.server.register("carol"),
    )
    network.start_sending()
    room_id = create_room(alice)
    say(alice, room_id, "long ago")
    for user in (bob, carol):
        assert user.post(f"/_matrix/client/v3/join/{room_id}?via={NORTH}").status == 200
    network.settle()
    shown = carol.get("/_matrix/client/v3/sync").json["rooms"]["join"][room_id]["timeline"][
        "events"
    ]
    assert [event["sender"] for event in shown] == [carol.user_id]
    assert not [
        uri for origin, _, _, uri in network.log if origin == EAST and "get_missing_events" in uri
    ]

    join = (await north.state(room_id))[StateKey("m.room.member", bob.user_id)]
    fork = await south.build_next(
        room_id, bob.user_id, "m.room.message", {"body": "beside the join"}, prev=[join]
    )
    await south.federation.receiver.receive(room_id, [fork.pdu])
    await north.push(EAST, [await north.pdu(room_id, join)])
    await south.push(EAST, [fork.pdu])
    network.clock.advance(60)
    network.settle()

    shown = carol.get("/_matrix/client/v3/sync").json["rooms"]["join"][room_id]["timeline"][
        "events"
    ]
    assert [event["content"].get("body") for event in shown] == [None, "beside the join"]
    assert texts(carol, room_id) == ["beside the join", "long ago"]


async def test_events_signed_with_a_new_and_an_old_key_are_accepted(
    network: Network,
) -> None:
    room = await shared(network)
    network.start_sending()
    say(room.alice, room.room_id, "by the old key")
    network.settle()
    network.clock.advance(60)
    old, now_ms = room.north.federation.identity.key, int(network.clock.seconds() * 1000)
    said = f'{{key: "{encode_base64(old.public_key)}", expired_ts: {now_ms}}}'
    network.clock.advance(60)
    north = network.rebuild(
        NORTH,
        f'old_signing_keys: {{"{old.key_id}": {said}}}\n',
        key=SigningKey("b_test", b"another key".ljust(32)),
    )
    alice = move_user(north, room.alice)
    say(alice, room.room_id, "by the new key")
    network.settle()
    assert texts(room.bob, room.room_id)[:2] == ["by the new key", "by the old key"]
    say(room.bob, room.room_id, "from the south")
    network.settle()
    assert texts(alice, room.room_id)[0] == "from the south"

    carol = network.add(EAST).register("carol")
    assert carol.post(f"/_matrix/client/v3/join/{room.room_id}?via={SOUTH}").status == 200
    network.settle()
    assert texts(carol, room.room_id) == ["from the south", "by the new key", "by the old key"]

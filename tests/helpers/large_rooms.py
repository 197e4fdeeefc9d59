"""Rooms with so many members that other servers join them with partial state."""

from typing import Any
from urllib.parse import quote

from federation.protocol.events import Event
from federation.protocol.ids import RoomID, UserID
from federation.rooms.event_drafts import Draft
from federation.rooms.joins.send_join_response import MAX_SMALL_MEMBERS
from federation.rooms.receipt_checks import Verdict
from tests.helpers.federated_rooms import Side, two_users
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH, WEST, join_via
from tests.helpers.room_actions import V3, create, membership, ok, room_path
from tests.helpers.server import TestServer, User

MEMBERS = MAX_SMALL_MEMBERS + 20
LAZY = quote('{"room":{"state":{"lazy_load_members":true}}}')


POWERS = {f"@alice:{NORTH}": 100, f"@bob:{SOUTH}": 60}


def member(number: int) -> UserID:
    return UserID(f"@user{number}:{NORTH}")


async def fill(server: TestServer, room_id: str, count: int = MEMBERS) -> None:
    """Add members who have no accounts; other servers cannot tell the difference."""
    drafts = [
        Draft("m.room.member", member(n), {"membership": "join"}, member(n)) for n in range(count)
    ]
    for start in range(0, count, 50):
        await server.app.room_engine.engine.send(RoomID(room_id), drafts[start : start + 50])


async def send_as_member(server: TestServer, room_id: str, number: int, text: str) -> None:
    """Send a message from one of these members."""
    draft = Draft("m.room.message", member(number), {"msgtype": "m.text", "body": text})
    await server.app.room_engine.engine.send(RoomID(room_id), [draft])


async def large_room(network: Network, **options: Any) -> tuple[User, User, str]:
    """Create a large room of Alice in the north. Return Alice, Bob in the south, and the room
    ID."""
    alice, bob = two_users(network)
    network.start_sending()
    room_id = create(alice, preset="public_chat", **options)
    await fill(alice.server, room_id)
    return alice, bob, room_id


def lazily(user: User, since: str = "") -> Any:
    return ok(user.get(f"{V3}/sync?filter={LAZY}{since and '&since=' + since}"))


def is_whole(user: User, room_id: str) -> bool:
    snapshot = user.server.run(user.server.app.room_engine.engine.get_snapshot(RoomID(room_id)))
    return snapshot.head.partial_join is None


async def same_state(one: User, other: User, room_id: str) -> None:
    mine, theirs = (
        await Side(one.server).state(RoomID(room_id)),
        await Side(other.server).state(RoomID(room_id)),
    )
    assert mine == theirs
    heads = [await Side(user.server).room(RoomID(room_id)) for user in (one, other)]
    assert heads[0].head.joined_count == heads[1].head.joined_count


def complete(network: Network) -> None:
    network.start_completing()
    network.settle()


def messages(user: User, room_id: str) -> list[Any]:
    chunk = ok(user.get(room_path(room_id, "messages", dir="b", limit=50)))["chunk"]
    return [event for event in chunk if event["type"] == "m.room.message"]


def join_after_missed_ban(
    network: Network, alice: User, bob: User, room_id: str, wanda: User, *others: User
) -> None:
    """Let Wanda and the others join the large room, and ban Wanda without the west receiving it.
    Then Bob joins with partial state that lacks the ban. Nobody resyncs the state."""
    for user in (wanda, *others):
        ok(join_via(user, room_id, NORTH))
    complete(network)
    bob.server.app.federation_receiver.completions.stop()
    network.cut(NORTH, WEST)
    ok(membership(alice, room_id, "ban", wanda))
    ok(join_via(bob, room_id, NORTH))


async def soft_fail_in_partial_state(
    network: Network, *, by_powers: bool = False, **options: Any
) -> tuple[User, User, User, str, Event]:
    """Create a message of Erin that Bob's server soft-fails because of its partial state: Wanda,
    who had been banned, banned Erin. With `by_powers`, Wanda's power levels silence Erin instead.
    Return Alice, Bob, Erin, the room ID and the message."""
    powers = {f"@alice:{NORTH}": 100, f"@wanda:{WEST}": 60}
    alice, bob, room_id = await large_room(
        network,
        room_version="11",
        power_level_content_override={"users": powers, "events": {}},
        **options,
    )
    wanda, erin = network.add(WEST).register("wanda"), network.add("east.example").register("erin")
    join_after_missed_ban(network, alice, bob, room_id, wanda, erin)
    west, east = Side(wanda.server), Side(erin.server)
    (our_join,) = await Side(bob.server).last(RoomID(room_id))
    change: tuple[str, dict[str, Any], str] = ("m.room.member", {"membership": "ban"}, erin.user_id)
    if by_powers:
        change = ("m.room.power_levels", {"users": powers, "events": {}, "events_default": 50}, "")
    put_out = await west.build_next(RoomID(room_id), wanda.user_id, *change, prev=[our_join])
    content = {
        "body": f"ping {bob.user_id}",
        "msgtype": "m.text",
        "m.mentions": {"user_ids": [bob.user_id]},
    }
    said = await east.build_next(
        RoomID(room_id), erin.user_id, "m.room.message", content, prev=[our_join]
    )
    assert await take(bob, room_id, west, put_out) is Verdict.ACCEPT
    assert await take(bob, room_id, east, said) is Verdict.SOFT_FAIL
    return alice, bob, erin, room_id, said


async def take(user: User, room_id: str, side: Side, event: Event) -> Verdict | None:
    """Let a user's server receive an event of another server and its auth events. Return the
    verdict."""
    receiver = Side(user.server).federation.receiver
    cited = await side.rooms.events.get_in_any_room(event.auth_events)
    await receiver.receive_outliers(RoomID(room_id), [each.event.pdu for each in cited.values()])
    (outcome,) = await receiver.receive(RoomID(room_id), [event.pdu])
    return outcome.verdict

"""Local users are notified of remote events: push rules and pushers work as for local events."""

from pathlib import Path

from federation.protocol.ids import RoomID
from tests.helpers.databases import QueryCounter, copy_sqlite, open_inline
from tests.helpers.federated_rooms import NORTH, SOUTH, shared
from tests.helpers.network import Network
from tests.helpers.push_gateway import PushGateway, set_pusher
from tests.helpers.room_actions import V3, create, invite, join, leave, ok, say
from tests.helpers.room_actions import say as write
from tests.helpers.server import User
from tests.helpers.sync_requests import Json


def counts(user: User, room_id: RoomID) -> tuple[int, int]:
    unread = user.get(f"{V3}/sync").json["rooms"]["join"][room_id]["unread_notifications"]
    return unread["notification_count"], unread["highlight_count"]


def call(user: User, room_id: RoomID, txn: str, mentions: object) -> None:
    content = {"msgtype": "m.text", "body": "hey", "m.mentions": mentions}
    assert user.put(f"{V3}/rooms/{room_id}/send/m.room.message/call{txn}", content).status == 200


async def test_messages_from_another_server_are_judged_by_push_rules(network: Network) -> None:
    room = await shared(network)
    network.start_sending()
    network.settle()
    alice, bob, room_id = room.alice, room.bob, room.room_id
    say(alice, room_id, "hello")
    network.settle()
    assert counts(bob, room_id) == (1, 0)
    call(alice, room_id, "1", {"user_ids": [bob.user_id]})
    call(alice, room_id, "2", {"room": True})
    network.settle()
    assert counts(bob, room_id) == (3, 2)
    call(bob, room_id, "3", {"room": True})
    network.settle()
    assert counts(alice, room_id) == (1, 0), "Bob has not the power to call the room"
    bob.put(f"{V3}/pushrules/global/room/{room_id}", {"actions": []})
    say(alice, room_id, "no news to Bob")
    call(alice, room_id, "4", {"user_ids": [bob.user_id]})
    network.settle()
    assert counts(bob, room_id) == (1, 1)
    listed = bob.get(f"{V3}/notifications?only=highlight").json["notifications"]
    assert len(listed) == 3


def listed(user: User, query: str = "") -> list[Json]:
    """All pages of the user's notifications."""
    path = f"{V3}/notifications?{query}"
    answer = ok(user.get(path))
    found = list(answer["notifications"])
    while "next_token" in answer:
        answer = ok(user.get(f"{path}&from={answer['next_token']}"))
        found += answer["notifications"]
    return found


async def test_invites_into_rooms_of_other_servers_are_listed_among_the_notifications(
    network: Network,
) -> None:
    room = await shared(network)
    network.start_sending()
    alice, bob = room.alice, room.bob
    expected: list[str] = []
    for number in range(4):
        room_id = create(alice, preset="private_chat")
        invite(alice, room_id, bob)
        network.settle()
        expected.insert(0, room_id)
        write(alice, room.room_id, str(number))
        network.settle()
        expected.insert(0, room.room_id)
    for limit in (1, 2, 3, 100):
        assert [each["room_id"] for each in listed(bob, f"limit={limit}")] == expected
    invited = listed(bob)[1]
    assert invited["room_id"] == expected[1]
    assert (invited["event"]["type"], invited["event"]["state_key"]) == (
        "m.room.member",
        bob.user_id,
    )
    assert invited["event"]["content"]["membership"] == "invite"
    assert invited["ts"] == invited["event"]["origin_server_ts"]
    assert invited["actions"] == ["notify", {"set_tweak": "sound", "value": "default"}]
    assert not invited["read"]
    assert listed(bob, "only=highlight") == []

    leave(bob, expected[1])
    join(bob, expected[3])
    network.settle()
    del expected[3], expected[1]
    assert [each["room_id"] for each in listed(bob)] == expected, "which are not open are not in it"
    loud = {"actions": ["notify", {"set_tweak": "highlight"}]}
    ok(bob.put(f"{V3}/pushrules/global/override/.m.rule.invite_for_me/actions", loud))
    assert [each["room_id"] for each in listed(bob, "only=highlight&limit=1")] == [
        expected[3],
        expected[5],
    ]
    ok(bob.put(f"{V3}/pushrules/global/override/.m.rule.invite_for_me/actions", {"actions": []}))
    assert [each["room_id"] for each in listed(bob)] == [room.room_id] * 4
    ok(bob.put(f"{V3}/pushrules/global/override/.m.rule.invite_for_me/actions", loud))
    ignored: Json = {"ignored_users": {alice.user_id: {}}}
    ok(bob.put(f"{V3}/user/{bob.user_id}/account_data/m.ignored_user_list", ignored))
    assert listed(bob) == []


async def test_an_invite_stays_listed_when_a_colleague_accepts_another(network: Network) -> None:
    """So that this server is in the room, of whose past it has no notes."""
    room = await shared(network)
    network.start_sending()
    alice, bob = room.alice, room.bob
    carol = bob.server.register("carol")
    room_id = create(alice, preset="private_chat")
    for user in (bob, carol):
        invite(alice, room_id, user)
    network.settle()
    before = listed(bob)
    assert [each["room_id"] for each in before] == [room_id]
    join(carol, room_id)
    write(alice, room_id, "salom")
    write(alice, room.room_id, "salom")
    network.settle()
    for limit in (1, 2, 100):
        assert [each["room_id"] for each in listed(bob, f"limit={limit}")] == [
            room.room_id,
            room_id,
        ]
    (after,) = (each for each in listed(bob) if each["room_id"] == room_id)
    assert after["event"]["event_id"] == before[0]["event"]["event_id"]
    assert after["actions"] == before[0]["actions"]
    assert [each["event"]["type"] for each in listed(carol)] == ["m.room.message"]
    join(bob, room_id)
    network.settle()
    assert [each["room_id"] for each in listed(bob)] == [room.room_id]


async def test_many_invites_cost_no_more_queries_than_few(
    tmp_path: Path, sqlite_template: Path
) -> None:
    counter = QueryCounter()
    network = Network(
        tmp_path, lambda: open_inline(copy_sqlite(sqlite_template, tmp_path), counter)
    )
    room = await shared(network)
    network.start_sending()
    counted: list[int] = []
    for number in (2, 8):
        for _ in range(number):
            invite(room.alice, create(room.alice, preset="private_chat"), room.bob)
            network.settle()
        network.clock.advance(3600)
        room.bob.server = network.rebuild(SOUTH)
        counter.clear()
        assert len(ok(room.bob.get(f"{V3}/notifications"))["notifications"]) == number + 2 * len(
            counted
        )
        counted.append(sum(counter.queries.values()))
    assert counted[0] == counted[1]
    for side in (room.north, room.south):
        await side.server.app.database.close()


def test_a_remote_invite_and_remote_messages_are_pushed(network: Network) -> None:
    """The server is not in the room to which the user is invited."""
    gateway = PushGateway()
    alice = network.add(NORTH).register("alice")
    south = network.add(SOUTH, web=gateway)
    bob = south.register("bob")
    south.app.pushers.start()
    network.start_sending()
    ok(set_pusher(bob))
    ok(alice.put(f"{V3}/profile/{alice.user_id}/displayname", {"displayname": "Alice"}))
    room_id = create(alice, name="tea")
    network.settle()

    invite(alice, room_id, bob)
    network.settle()
    [push] = gateway.taken
    assert push.notification["type"] == "m.room.member"
    assert push.notification["user_is_target"] is True
    assert push.notification["room_name"] == "tea"
    assert push.notification["sender_display_name"] == "Alice"
    assert push.notification["counts"] == {"unread": 1}

    join(bob, room_id)
    network.settle()
    gateway.taken.clear()
    sent = ok(
        alice.put(
            f"{V3}/rooms/{room_id}/send/m.room.message/1", {"msgtype": "m.text", "body": "hello"}
        )
    )
    network.settle()
    [push] = gateway.taken
    assert push.notification["event_id"] == sent["event_id"]
    assert push.notification["content"]["body"] == "hello"
    assert push.notification["room_name"] == "tea"

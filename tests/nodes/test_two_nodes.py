"""Two nodes on one PostgreSQL database: a change through one is visible through the other within a
second."""

from typing import Any

import pytest

from federation.protocol.ids import UserID
from homeserver.services.push.user_rules import UserRuleCache, UserRules
from tests.helpers.node_pair import PollingNodes
from tests.helpers.room_actions import create, say, set_state
from tests.helpers.server import move_user
from tests.helpers.sliding_client import SlidingClient, a_list, act, state_of
from tests.helpers.sync_requests import sync

V3 = "/_matrix/client/v3"


def bodies(answer: Any, room_id: str) -> list[str]:
    events = answer["rooms"]["join"][room_id]["timeline"]["events"]
    return [
        event["content"].get("body", "") for event in events if event["type"] == "m.room.message"
    ]


def test_a_message_through_one_node_wakes_a_long_poll_on_the_other(
    polling_nodes: PollingNodes,
) -> None:
    here, there = polling_nodes.here_and_there("alice")
    room_id = create(here, preset="public_chat")
    since = sync(there)["next_batch"]
    pending = there.start("GET", f"{V3}/sync?since={since}&timeout=30000")
    say(here, room_id, "salom")
    was_done = pending.done
    polling_nodes.wait()
    assert (was_done, pending.done) == (False, True)
    assert bodies(pending.answer.json, room_id) == ["salom"]


def test_both_nodes_send_to_a_room_in_turn(polling_nodes: PollingNodes) -> None:
    here, there = polling_nodes.here_and_there("alice")
    room_id = create(here, preset="public_chat")
    since = sync(here)["next_batch"]
    for number in range(6):
        say((here, there)[number % 2], room_id, f"m{number}")
    polling_nodes.wait()
    for user in (here, there):
        assert bodies(sync(user, since), room_id) == [f"m{number}" for number in range(6)]


def test_state_set_through_one_node_is_read_through_the_other(polling_nodes: PollingNodes) -> None:
    here, there = polling_nodes.here_and_there("alice")
    room_id = create(here, preset="public_chat")
    path = f"{V3}/rooms/{room_id}/state/m.room.topic/"
    for number in range(3):
        assert here.put(path, {"topic": f"{number}"}).status == 200
        polling_nodes.wait()
        assert there.get(path).json["topic"] == f"{number}"


def test_a_redaction_through_one_node_removes_the_content_on_the_other(
    polling_nodes: PollingNodes,
) -> None:
    here, there = polling_nodes.here_and_there("alice")
    room_id = create(here, preset="public_chat")
    event_id = say(here, room_id, "secret")
    polling_nodes.wait()
    path = f"{V3}/rooms/{room_id}/event/{event_id}"
    assert there.get(path).json["content"]["body"] == "secret"
    assert here.put(f"{V3}/rooms/{room_id}/redact/{event_id}/r1", {}).status == 200
    polling_nodes.wait()
    assert there.get(path).json["content"] == {}


def test_a_token_revoked_on_one_node_is_refused_on_the_other(polling_nodes: PollingNodes) -> None:
    here, there = polling_nodes.here_and_there("alice")
    assert there.get(f"{V3}/account/whoami").status == 200
    assert here.post(f"{V3}/logout", {}).status == 200
    polling_nodes.wait()
    assert there.get(f"{V3}/account/whoami").errcode == "M_UNKNOWN_TOKEN"


def test_a_user_who_left_through_one_node_cannot_send_through_the_other(
    polling_nodes: PollingNodes,
) -> None:
    here, there = polling_nodes.here_and_there("alice")
    bob_here, bob_there = polling_nodes.here_and_there("bob")
    room_id = create(here, preset="public_chat")
    assert bob_there.post(f"{V3}/join/{room_id}", {}).status == 200
    polling_nodes.wait()
    say(bob_here, room_id, "in")
    assert there.post(f"{V3}/rooms/{room_id}/kick", {"user_id": bob_here.user_id}).status == 200
    answer = bob_here.put(
        f"{V3}/rooms/{room_id}/send/m.room.message/x", {"msgtype": "m.text", "body": "out"}
    )
    assert answer.errcode == "M_FORBIDDEN"


def test_key_changes_and_to_device_messages_cross_nodes(polling_nodes: PollingNodes) -> None:
    here, there = polling_nodes.here_and_there("alice")
    _, bob = polling_nodes.here_and_there("bob")
    room_id = create(here, preset="public_chat")
    assert bob.post(f"{V3}/join/{room_id}", {}).status == 200
    assert (
        here.put(
            f"{V3}/rooms/{room_id}/state/m.room.encryption/", {"algorithm": "m.megolm.v1.aes-sha2"}
        ).status
        == 200
    )
    polling_nodes.wait()
    since = sync(there)["next_batch"]
    key = {"signed_curve25519:a": {"key": "a", "signatures": {}}}
    assert bob.post(f"{V3}/keys/upload", {"one_time_keys": key}).status == 200
    body = {"messages": {there.user_id: {"*": {"n": 1}}}}
    assert bob.put(f"{V3}/sendToDevice/m.test/1", body).status == 200
    polling_nodes.wait()
    answer = sync(here, since)
    assert [event["content"] for event in answer["to_device"]["events"]] == [{"n": 1}]
    requested = {bob.user_id: {bob.device_id: "signed_curve25519"}}
    assert here.post(f"{V3}/keys/claim", {"one_time_keys": requested}).json["one_time_keys"]
    polling_nodes.wait()
    assert sync(bob)["device_one_time_keys_count"] == {"signed_curve25519": 0}


def test_push_rules_changed_through_one_node_apply_on_the_other(
    polling_nodes: PollingNodes,
) -> None:
    alice, _ = polling_nodes.here_and_there("alice")
    bob, bob_there = polling_nodes.here_and_there("bob")
    room_id = create(alice, preset="public_chat")
    assert bob.post(f"{V3}/join/{room_id}").status == 200
    alice_there = move_user(polling_nodes.second, alice)
    polling_nodes.wait()

    def counts() -> list[int]:
        polling_nodes.wait()
        joined = [
            sync(user)["rooms"]["join"][room_id]["unread_notifications"]
            for user in (bob, bob_there)
        ]
        assert joined[0] == joined[1]
        return [joined[0]["notification_count"], joined[0]["highlight_count"]]

    say(alice_there, room_id, "one")
    assert counts() == [1, 0]
    tea = {"pattern": "tea", "actions": ["notify", {"set_tweak": "highlight"}]}
    assert bob.put(f"{V3}/pushrules/global/content/tea", tea).status == 200
    assert bob.put(f"{V3}/pushrules/global/room/{room_id}", {"actions": []}).status == 200
    polling_nodes.wait()
    say(alice_there, room_id, "nothing")
    say(alice_there, room_id, "tea")
    assert counts() == [2, 1]
    assert bob_there.delete(f"{V3}/pushrules/global/room/{room_id}").status == 200
    polling_nodes.wait()
    say(alice, room_id, "two")
    assert counts() == [3, 1]


def test_a_file_uploaded_through_one_node_reaches_a_download_waiting_on_the_other(
    polling_nodes: PollingNodes,
) -> None:
    here, there = polling_nodes.here_and_there("alice")
    polling_nodes.wait()
    reserved = here.server.client.request(
        "POST", "/_matrix/media/v1/create", token=here.token
    ).json["content_uri"]
    address = reserved.removeprefix("mxc://")
    path = f"/_matrix/client/v1/media/download/{address}?timeout_ms=20000"
    waiting = there.server.client.start("GET", path, token=there.token)
    upload = f"/_matrix/media/v3/upload/{address}"
    assert here.server.client.request("PUT", upload, token=here.token, body=b"x").status == 200
    polling_nodes.wait()
    polling_nodes.wait()
    assert waiting.done
    assert waiting.answer.body == b"x"


def test_sliding_sync_sends_a_member_that_another_node_left_out(
    polling_nodes: PollingNodes,
) -> None:
    """A limited timeline leaves out the renamed member; when the member sends a message, any node
    sends the membership event."""
    alice, there = polling_nodes.here_and_there("alice")
    bob, carol = (polling_nodes.here_and_there(name)[0] for name in ("bob", "carol"))
    room_id = create(alice, preset="public_chat")
    for user in (bob, carol):
        act(user, room_id, "join")
    say(bob, room_id, "one")
    client = SlidingClient(alice, lists={"all": a_list([0, 1], state=[["m.room.member", "$LAZY"]])})
    client.sync()
    client.sync()
    set_state(
        bob, room_id, "m.room.member", {"membership": "join", "displayname": "Bobur"}, bob.user_id
    )
    say(carol, room_id, "two")
    polling_nodes.wait()
    client.user = there
    bobs = ("m.room.member", bob.user_id)
    entry = client.sync()["rooms"][room_id]
    assert entry["limited"]
    assert bobs not in state_of(entry)
    client.user = alice
    say(bob, room_id, "three")
    assert bobs in state_of(client.sync()["rooms"][room_id])


def test_events_written_by_the_other_node_during_a_recount_are_counted(
    polling_nodes: PollingNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = polling_nodes.here_and_there("alice")
    bob, bob_there = polling_nodes.here_and_there("bob")
    room_id = create(here, preset="public_chat")
    assert bob_there.post(f"{V3}/join/{room_id}", {}).status == 200
    polling_nodes.wait()
    of_user, said = UserRuleCache.of_user, list[str]()

    async def say_meanwhile(self: UserRuleCache, user_id: UserID) -> UserRules:
        found = await of_user(self, user_id)
        if not said and user_id == bob.user_id:
            said.append("one")
            say(here, room_id, "one")
            polling_nodes.wait()
        return found

    monkeypatch.setattr(UserRuleCache, "of_user", say_meanwhile)
    sync(bob_there)
    counts = sync(bob_there)["rooms"]["join"][room_id]["unread_notifications"]
    assert (said, counts["notification_count"]) == (["one"], 1)

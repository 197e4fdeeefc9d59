"""Malicious servers and removed members while the state of a room is partial."""

import json
from typing import Any
from urllib.parse import quote

import pytest

from federation.peers.federation_policy import make_rules
from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID, RoomID, ServerName
from federation.rooms.receipt_checks import Verdict
from tests.helpers.event_search import found, index
from tests.helpers.federated_rooms import Side
from tests.helpers.large_rooms import (
    MEMBERS,
    complete,
    is_whole,
    join_after_missed_ban,
    large_room,
    lazily,
    messages,
    same_state,
    soft_fail_in_partial_state,
    take,
)
from tests.helpers.network import Network
from tests.helpers.push_gateway import set_pusher
from tests.helpers.remote_membership import NORTH, SOUTH, WEST, join_via
from tests.helpers.room_actions import V3, get_state, membership, ok, room_path, say
from tests.helpers.server import User


async def follow(banned: User, room_id: str, last: Event, text: str) -> tuple[Event, list[Any]]:
    """Return a message of a server whose user was banned, which it does not know, and the events
    that the message cites."""
    west = Side(banned.server)
    content = {"body": text, "msgtype": "m.text"}
    event = await west.build_next(
        RoomID(room_id), banned.user_id, "m.room.message", content, prev=[last]
    )
    cited = await west.rooms.events.get_in_any_room(event.auth_events)
    return event, [stored.event.pdu for stored in cited.values()]


async def test_an_event_that_only_partial_state_allows_is_rejected_later(network: Network) -> None:
    """Somebody was banned before we came: only the members that are fetched say so."""
    alice, bob, room_id = await large_room(network)
    wanda = network.add(WEST).register("wanda")
    ok(join_via(wanda, room_id, NORTH))
    complete(network)
    south = Side(bob.server)
    bob.server.app.federation_receiver.completions.stop()
    network.cut(NORTH, WEST)
    ok(membership(alice, room_id, "ban", wanda))
    ok(join_via(bob, room_id, NORTH))
    since = lazily(bob)["next_batch"]
    (our_join,) = await south.last(RoomID(room_id))
    event, cited = await follow(wanda, room_id, our_join, "I am still here")
    await south.federation.receiver.receive_outliers(RoomID(room_id), cited)
    (outcome,) = await south.federation.receiver.receive(RoomID(room_id), [event.pdu])
    assert outcome.verdict is Verdict.ACCEPT
    assert [event["content"]["body"] for event in messages(bob, room_id)] == ["I am still here"]
    reply = say(bob, room_id, "who is that?")
    network.settle()

    bob.server.app.federation_receiver.completions.start()
    network.settle()

    assert is_whole(bob, room_id)
    assert [event["content"]["body"] for event in messages(bob, room_id)] == ["who is that?"]
    stored = await south.find(RoomID(room_id), event.event_id)
    assert stored is not None
    assert stored.rejected
    assert get_state(bob, room_id, "m.room.member", wanda.user_id)["membership"] == "ban"
    assert (
        lazily(bob, since)["rooms"]["join"][room_id]["summary"]["m.joined_member_count"]
        == MEMBERS + 2
    )
    assert await south.extremities(RoomID(room_id)) == {reply}
    await same_state(alice, bob, room_id)


async def test_an_event_allowed_during_completion_is_rejected_later(
    network: Network,
) -> None:
    alice, bob, room_id = await large_room(
        network,
        name="tea",
        room_version="11",
        power_level_content_override={"users": {f"@alice:{NORTH}": 100, f"@wanda:{WEST}": 60}},
    )
    wanda = network.add(WEST).register("wanda")
    join_after_missed_ban(network, alice, bob, room_id, wanda)
    south, west = Side(bob.server), Side(wanda.server)
    network.settle()
    assert await south.edge.keyring.renew(ServerName(WEST))
    network.hold()
    bob.server.app.federation_receiver.completions.start()
    network.settle()
    last = (await south.last(RoomID(room_id)))[0]
    changes = [
        ("m.room.name", {"name": "poison"}, ""),
        ("m.room.member", {"membership": "leave"}, bob.user_id),
    ]
    for type, content, key in changes:
        event = await west.build_next(
            RoomID(room_id), wanda.user_id, type, content, key, prev=[last]
        )
        cited = await west.rooms.events.get_in_any_room(event.auth_events)
        await south.federation.receiver.receive_outliers(
            RoomID(room_id), [each.event.pdu for each in cited.values()]
        )
        (outcome,) = await south.federation.receiver.receive(RoomID(room_id), [event.pdu])
        assert outcome.verdict is Verdict.ACCEPT
        last = event

    network.deliver()
    network.settle()

    assert is_whole(bob, room_id)
    assert get_state(bob, room_id, "m.room.name") == {"name": "tea"}
    assert room_id in ok(bob.get(f"{V3}/joined_rooms"))["joined_rooms"]
    assert lazily(bob)["rooms"]["join"][room_id]["timeline"]["events"]
    await same_state(alice, bob, room_id)


async def test_an_event_that_the_policy_refused_stays_refused(network: Network) -> None:
    _alice, bob, room_id = await large_room(network)
    wanda = network.add(WEST).register("wanda")
    ok(join_via(wanda, room_id, NORTH))
    complete(network)
    bob.server.app.federation_receiver.completions.stop()
    ok(join_via(bob, room_id, NORTH))
    south, west = Side(bob.server), Side(wanda.server)
    content = {"body": "buy now", "msgtype": "m.text"}
    event = await west.build_next(
        RoomID(room_id),
        wanda.user_id,
        "m.room.message",
        content,
        prev=await south.last(RoomID(room_id)),
    )
    cited = await west.rooms.events.get_in_any_room(event.auth_events)
    await south.federation.receiver.receive_outliers(
        RoomID(room_id), [each.event.pdu for each in cited.values()]
    )
    bob.server.app.peers.policy.change(make_rules(None, [WEST]))
    (outcome,) = await south.federation.receiver.receive(RoomID(room_id), [event.pdu])
    assert outcome.verdict is Verdict.SOFT_FAIL

    bob.server.app.federation_receiver.completions.start()
    network.settle()

    assert is_whole(bob, room_id)
    assert messages(bob, room_id) == []
    stored = await south.find(RoomID(room_id), event.event_id)
    assert stored is not None
    assert not stored.in_timeline


async def test_other_servers_are_trusted_about_members_only(
    network: Network,
) -> None:
    alice, bob, room_id = await large_room(network, name="tea")
    wanda = network.add(WEST).register("wanda")
    ok(join_via(wanda, room_id, NORTH))
    complete(network)
    bob.server.app.federation_receiver.completions.stop()
    ok(join_via(bob, room_id, NORTH))
    network.settle()
    state = await Side(alice.server).state(RoomID(room_id))
    hidden = {
        event_id
        for key, event_id in state.items()
        if key.type in ("m.room.name", "m.room.power_levels")
    }

    def hide(request: WireRequest, answer: WireResponse) -> WireResponse:
        if "/state_ids/" not in request.uri:
            return answer
        said = json.loads(answer.body)
        said["pdu_ids"] = [event_id for event_id in said["pdu_ids"] if event_id not in hidden]
        return WireResponse(200, answer.headers, json.dumps(said).encode())

    network.forge(WEST, hide)
    network.cut(NORTH, SOUTH)
    bob.server.app.federation_receiver.completions.start()
    network.settle()
    network.clock.pump([5.0] * 3)
    network.settle()

    assert is_whole(bob, room_id)
    await same_state(alice, bob, room_id)


async def test_members_that_one_server_omits_come_from_another(network: Network) -> None:
    """The server that we joined through is gone. One of the others hides a ban and some members."""
    alice, bob, room_id = await large_room(network, name="tea")
    wanda, erin, dora = (
        network.add(name).register("someone") for name in (WEST, "east.example", "deep.example")
    )
    for user in (wanda, erin, dora):
        ok(join_via(user, room_id, NORTH))
    complete(network)
    ok(membership(alice, room_id, "ban", dora))
    network.settle()
    bob.server.app.federation_receiver.completions.stop()
    ok(join_via(bob, room_id, NORTH))
    network.settle()
    state = await Side(alice.server).state(RoomID(room_id))
    hidden = {state[StateKey("m.room.member", user.user_id)] for user in (dora, erin)}

    def hide(request: WireRequest, answer: WireResponse) -> WireResponse:
        if "/state_ids/" not in request.uri:
            return answer
        said = json.loads(answer.body)
        said["pdu_ids"] = [event_id for event_id in said["pdu_ids"] if event_id not in hidden]
        return WireResponse(200, answer.headers, json.dumps(said).encode())

    network.cut(NORTH, SOUTH)
    network.forge("east.example", hide)
    bob.server.app.federation_receiver.completions.start()
    network.settle()
    network.clock.pump([5.0] * 3)
    network.settle()

    assert is_whole(bob, room_id)
    await same_state(alice, bob, room_id)


async def test_an_event_that_only_complete_state_allows_takes_effect_later(
    network: Network,
) -> None:
    """Somebody had been banned, and had come back; the part has the ban only."""
    alice, bob, room_id = await large_room(network)
    wanda = network.add(WEST).register("wanda")
    ok(join_via(wanda, room_id, NORTH))
    complete(network)
    bob.server.app.federation_receiver.completions.stop()
    ok(membership(alice, room_id, "ban", wanda))
    north, south = Side(alice.server), Side(bob.server)
    key = StateKey("m.room.member", wanda.user_id)
    ban = await north.pdu(RoomID(room_id), (await north.state(RoomID(room_id)))[key])
    cited = [await north.pdu(RoomID(room_id), event_id) for event_id in ban["auth_events"]]
    ok(membership(alice, room_id, "unban", wanda))
    network.settle()
    ok(join_via(wanda, room_id, NORTH))

    def forge_answer(request: WireRequest, answer: WireResponse) -> WireResponse:
        if "/send_join/" not in request.uri:
            return answer
        said = json.loads(answer.body)
        said["state"] = [
            event for event in said["state"] if event.get("state_key") != wanda.user_id
        ] + [ban]
        said["auth_chain"] += cited
        return WireResponse(200, answer.headers, json.dumps(said).encode())

    network.forge(NORTH, forge_answer)
    ok(join_via(bob, room_id, NORTH))
    salom = say(bob, room_id, "salom")
    network.settle()
    reaction = {"m.relates_to": {"rel_type": "m.annotation", "event_id": salom, "key": "+"}}
    ok(wanda.put(room_path(room_id, "send", "m.reaction", "r"), reaction))
    oops = say(wanda, room_id, "oops")
    ok(wanda.put(room_path(room_id, "redact", oops, "x"), {}))
    network.settle()
    second = await Side(wanda.server).build_next(
        RoomID(room_id), wanda.user_id, "m.room.redaction", {"redacts": salom}
    )
    await Side(wanda.server).push(SOUTH, [second.pdu])
    network.clock.pump([60.0] * 3)
    network.settle()
    assert [event["content"]["body"] for event in messages(bob, room_id)] == ["salom"]
    stored = await south.find(RoomID(room_id), EventID(oops))
    assert stored is not None
    assert not stored.rejected
    assert not stored.in_timeline

    complete(network)

    shown = {event["event_id"]: event for event in messages(bob, room_id)}
    assert shown[salom]["content"]["body"] == "salom"  # who may not redact it took nothing away
    assert shown[oops]["content"] == {}
    related = ok(bob.get(f"/_matrix/client/v1/rooms/{room_id}/relations/{salom}"))["chunk"]
    assert [event["type"] for event in related] == ["m.reaction"]
    nothing = await south.find(RoomID(room_id), second.event_id)
    assert nothing is not None
    assert not nothing.rejected
    assert not nothing.in_timeline
    await same_state(alice, bob, room_id)


async def test_rejected_events_are_not_counted_as_unread(network: Network) -> None:
    alice, bob, room_id = await large_room(network)
    wanda = network.add(WEST).register("wanda")
    ok(join_via(wanda, room_id, NORTH))
    complete(network)
    south, pushers = Side(bob.server), bob.server.app.pushers
    bob.server.app.federation_receiver.completions.stop()
    pushers.start()
    ok(set_pusher(bob))
    network.cut(NORTH, WEST)
    ok(membership(alice, room_id, "ban", wanda))
    ok(join_via(bob, room_id, NORTH))
    (our_join,) = await south.last(RoomID(room_id))
    event, cited = await follow(wanda, room_id, our_join, "I am still here")
    await south.federation.receiver.receive_outliers(RoomID(room_id), cited)
    await south.federation.receiver.receive(RoomID(room_id), [event.pdu])
    network.settle()
    # private: the badge is shown by no endpoint, and these pushes go nowhere
    badges = pushers.deliveries._badges
    assert await badges.get(bob.user_id) == 1

    bob.server.app.federation_receiver.completions.start()
    complete(network)

    assert messages(bob, room_id) == []
    assert await badges.get(bob.user_id) == 0
    await pushers.stop()


async def test_a_user_removed_without_permission_is_shown_after_completion(
    network: Network,
) -> None:
    """The partial state refuses their messages. Once the state is complete, they are shown as new,
    with a notification."""
    alice, bob, _, room_id, said = await soft_fail_in_partial_state(network)
    since = lazily(bob)["next_batch"]
    assert messages(bob, room_id) == []

    bob.server.app.federation_receiver.completions.start()
    network.settle()

    assert is_whole(bob, room_id)
    assert [event["event_id"] for event in messages(bob, room_id)] == [said.event_id]
    update = lazily(bob, since)["rooms"]["join"][room_id]
    assert [event["event_id"] for event in update["timeline"]["events"]] == [said.event_id]
    assert update["unread_notifications"] == {"notification_count": 1, "highlight_count": 1}
    later = say(bob, room_id, "here I am")
    repeated = lazily(bob, since)["rooms"]["join"][room_id]["timeline"]["events"]
    assert [event["event_id"] for event in repeated] == [said.event_id, later]
    await same_state(alice, bob, room_id)


async def test_late_messages_do_not_notify_users_who_joined_after(
    network: Network,
) -> None:
    """The room shows people only what was said while they were there."""
    hidden = {
        "type": "m.room.history_visibility",
        "state_key": "",
        "content": {"history_visibility": "joined"},
    }
    _, bob, _, room_id, said = await soft_fail_in_partial_state(network, initial_state=[hidden])
    carol = bob.server.register("carol")
    ok(join_via(carol, room_id, NORTH))
    since = lazily(carol)["next_batch"]

    bob.server.app.federation_receiver.completions.start()
    network.settle()

    assert is_whole(bob, room_id)
    update = lazily(carol, since)["rooms"]["join"][room_id]
    assert said.event_id not in [
        event["event_id"] for event in update.get("timeline", {}).get("events", [])
    ]
    assert said.event_id not in [event["event_id"] for event in messages(carol, room_id)]
    assert (
        lazily(carol)["rooms"]["join"][room_id]["unread_notifications"]["notification_count"] == 0
    )
    assert [event["event_id"] for event in messages(bob, room_id)] == [said.event_id], (
        "Bob was there"
    )


async def test_an_event_rejected_before_it_was_seen_notifies_nobody(
    network: Network,
) -> None:
    """A message and its redaction, both refused by the part, come to be shown together."""
    _, bob, erin, room_id, said = await soft_fail_in_partial_state(network)
    east = Side(erin.server)
    taken_back = await east.build_next(
        RoomID(room_id), erin.user_id, "m.room.redaction", {"redacts": said.event_id}, prev=[said]
    )
    assert await take(bob, room_id, east, taken_back) is Verdict.SOFT_FAIL

    bob.server.app.federation_receiver.completions.start()
    network.settle()

    assert is_whole(bob, room_id)
    assert [event["content"] for event in messages(bob, room_id)] == [{}]
    counts = lazily(bob)["rooms"]["join"][room_id]["unread_notifications"]
    assert counts == {"notification_count": 0, "highlight_count": 0}


async def test_a_user_who_joined_after_a_late_message_is_not_notified(
    network: Network,
) -> None:
    _, bob, _, room_id, said = await soft_fail_in_partial_state(network)
    carol = bob.server.register("carol")
    ok(join_via(carol, room_id, NORTH))
    since = lazily(carol)["next_batch"]

    bob.server.app.federation_receiver.completions.start()
    network.settle()

    update = lazily(carol, since)["rooms"]["join"][room_id]
    assert said.event_id in [event["event_id"] for event in update["timeline"]["events"]]
    assert update["unread_notifications"] == {"notification_count": 0, "highlight_count": 0}
    counts = lazily(bob)["rooms"]["join"][room_id]["unread_notifications"]
    assert counts == {"notification_count": 1, "highlight_count": 1}


@pytest.mark.parametrize("by_powers", [False, True])
async def test_late_messages_are_searchable_and_sticky(network: Network, by_powers: bool) -> None:
    _, bob, erin, room_id, said = await soft_fail_in_partial_state(network, by_powers=by_powers)
    east = Side(erin.server)
    stuck = await east.build_next(
        RoomID(room_id),
        erin.user_id,
        "m.room.message",
        {"body": "a call"},
        prev=[said],
        sticky_ms=600_000,
    )
    assert await take(bob, room_id, east, stuck) is Verdict.SOFT_FAIL
    await index(bob.server)
    assert found(bob, "ping") == []
    since = lazily(bob)["next_batch"]

    bob.server.app.federation_receiver.completions.start()
    network.settle()
    await index(bob.server)

    assert found(bob, "ping") == [said.event_id]
    say(bob, room_id, "here I am")
    limited = quote('{"room":{"timeline":{"limit":1}}}')
    update = ok(bob.get(f"{V3}/sync?since={since}&filter={limited}"))["rooms"]["join"][room_id]
    assert [event["event_id"] for event in update["msc4354_sticky"]["events"]] == [stuck.event_id]

"""With Synapse: common operations in a shared room, from both sides."""

from typing import Any
from urllib.parse import quote

import pytest

from tests.helpers.interop import create_shared_room, state_event_ids, topic_of, until
from tests.interop.conftest import Pair

SIDES = pytest.mark.parametrize("we_are_host", [True, False], ids=["our-room", "their-room"])
VERSIONS = pytest.mark.parametrize("version", ["6", "10", "11", "12"])


@SIDES
@VERSIONS
def test_both_users_send_messages_and_state(pair: Pair, version: str, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = create_shared_room(host, guest, room_version=version)

    host.say(room_id, "salom")
    until(lambda: guest.bodies(room_id) == ["salom"])
    guest.say(room_id, "vaalaykum assalom")
    until(lambda: host.bodies(room_id) == ["vaalaykum assalom", "salom"])

    host.set_state(room_id, "m.room.topic", {"topic": "of the host"})
    until(lambda: topic_of(guest, room_id) == "of the host")
    assert guest.ask("PUT", f"/rooms/{room_id}/state/m.room.topic/", {"topic": "no"}).status == 403
    users = dict(host.state(room_id, "m.room.power_levels")["users"])
    host.set_levels(room_id, users={**users, guest.user_id: 60})
    until(lambda: guest.state(room_id, "m.room.power_levels")["users"].get(guest.user_id) == 60)
    guest.set_state(room_id, "m.room.topic", {"topic": "of the guest"})
    until(lambda: topic_of(host, room_id) == "of the guest")
    until(lambda: state_event_ids(host, room_id) == state_event_ids(guest, room_id))


@SIDES
@VERSIONS
def test_a_redaction_removes_content_on_both_servers(
    pair: Pair, version: str, we_are_host: bool
) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = create_shared_room(host, guest, room_version=version)
    own, others = guest.say(room_id, "a slip"), guest.say(room_id, "an insult")
    until(lambda: host.event(room_id, others))

    assert guest.redact(room_id, own)
    assert host.redact(room_id, others)

    def are_gone() -> bool:
        events = [
            who.event(room_id, event_id) for who in (host, guest) for event_id in (own, others)
        ]
        return all(
            event["content"] == {} and "redacted_because" in event["unsigned"] for event in events
        )

    until(are_gone)


@SIDES
@VERSIONS
def test_kicks_and_bans_federate(pair: Pair, version: str, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = create_shared_room(host, guest, room_version=version)

    assert host.room(room_id, "kick", user_id=guest.user_id, reason="out").status == 200
    until(lambda: room_id not in guest.rooms("join"))
    assert guest.join(room_id, host.server.name).status == 200
    until(lambda: room_id in guest.rooms("join"))
    until(lambda: host.members(room_id).get(guest.user_id) == "join")
    assert host.room(room_id, "ban", user_id=guest.user_id).status == 200
    until(lambda: room_id not in guest.rooms("join"))
    assert guest.join(room_id, host.server.name).status == 403
    assert host.room(room_id, "unban", user_id=guest.user_id).status == 200
    assert guest.join(room_id, host.server.name).status == 200

    host.say(room_id, "welcome back")
    until(lambda: guest.bodies(room_id)[:1] == ["welcome back"])
    until(lambda: state_event_ids(host, room_id) == state_event_ids(guest, room_id))


@SIDES
def test_a_remote_moderator_kicks_a_user_of_the_host(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = create_shared_room(host, guest)
    victim, _ = pair.both_ways(we_are_host)
    assert victim.join(room_id, host.server.name).status == 200
    users = dict(host.state(room_id, "m.room.power_levels")["users"])
    host.set_levels(room_id, users={**users, guest.user_id: 60})
    until(lambda: guest.members(room_id).get(victim.user_id) == "join")
    until(lambda: guest.state(room_id, "m.room.power_levels")["users"].get(guest.user_id) == 60)

    assert guest.room(room_id, "ban", user_id=victim.user_id).status == 200

    until(lambda: host.members(room_id).get(victim.user_id) == "ban")
    until(lambda: room_id not in victim.rooms("join"))


@SIDES
@pytest.mark.parametrize(("old", "new"), [("6", "11"), ("10", "12"), ("11", "12")])
def test_an_upgrade_is_followed(pair: Pair, old: str, new: str, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = create_shared_room(host, guest, room_version=old, name="tea")

    successor = host.ok("POST", f"/rooms/{quote(room_id)}/upgrade", {"new_version": new})[
        "replacement_room"
    ]

    until(
        lambda: (
            (guest.state(room_id, "m.room.tombstone") or {}).get("replacement_room") == successor
        )
    )
    assert guest.join(successor, host.server.name).status == 200
    until(lambda: guest.members(successor).get(guest.user_id) == "join")
    assert guest.state(successor, "m.room.create")["predecessor"]["room_id"] == room_id
    assert guest.state(successor, "m.room.name") == {"name": "tea"}
    assert guest.state(successor, "m.room.create")["room_version"] == new
    guest.say(successor, "here I am")
    until(lambda: host.bodies(successor) == ["here I am"])


@SIDES
def test_typing_federates(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = create_shared_room(host, guest)
    path = f"/rooms/{quote(room_id)}/typing/{host.user_id}"

    host.ok("PUT", path, {"typing": True, "timeout": 120000})
    until(lambda: guest.ephemeral(room_id, "m.typing").get("user_ids") == [host.user_id])
    host.ok("PUT", path, {"typing": False})
    until(lambda: not guest.ephemeral(room_id, "m.typing").get("user_ids"))


@SIDES
def test_only_public_receipts_federate(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = create_shared_room(host, guest)
    root, second = guest.say(room_id, "the root"), guest.say(room_id, "second")
    relation = {"rel_type": "m.thread", "event_id": root}
    path = f"/rooms/{quote(room_id)}/send/m.room.message/threaded"
    content = {"msgtype": "m.text", "body": "third", "m.relates_to": relation}
    third = guest.ok("PUT", path, content)["event_id"]
    until(lambda: host.event(room_id, third))

    def read(kind: str, event_id: str, thread: str | None = None) -> None:
        body = {} if thread is None else {"thread_id": thread}
        host.ok("POST", f"/rooms/{quote(room_id)}/receipt/{kind}/{quote(event_id)}", body)

    def receipt(event_id: str) -> Any:
        return (
            guest.ephemeral(room_id, "m.receipt")
            .get(event_id, {})
            .get("m.read", {})
            .get(host.user_id)
        )

    read("m.read.private", second)
    read("m.read", root)
    until(lambda: receipt(root))
    read("m.read", third, root)
    assert until(lambda: receipt(third))["thread_id"] == root
    read("m.read", second, "main")
    assert until(lambda: receipt(second))["thread_id"] == "main"
    assert "m.read.private" not in str(guest.ephemeral(room_id, "m.receipt"))


@SIDES
def test_presence_federates(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    create_shared_room(host, guest)

    host.ok(
        "PUT",
        f"/presence/{host.user_id}/status",
        {"presence": "online", "status_msg": "having tea"},
    )

    def seen() -> Any:
        return guest.ask("GET", f"/presence/{host.user_id}/status").json

    def is_seen() -> bool:
        answer = seen()
        return (answer.get("status_msg"), answer.get("presence")) == ("having tea", "online")

    until(is_seen, instead=seen)


@SIDES
def test_a_changed_display_name_federates(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = create_shared_room(host, guest)

    host.ok("PUT", f"/profile/{host.user_id}/displayname", {"displayname": "Alisher"})

    until(
        lambda: guest.state(room_id, "m.room.member", host.user_id).get("displayname") == "Alisher"
    )
    until(lambda: guest.ok("GET", f"/profile/{host.user_id}").get("displayname") == "Alisher")

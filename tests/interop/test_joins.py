"""With Synapse: joining and leaving each other's rooms."""

from typing import Any

import pytest

from tests.helpers.interop import until
from tests.interop.conftest import Pair

VERSIONS = ("1", "6", "10", "11", "12")
SIDES = pytest.mark.parametrize("we_are_host", [True, False], ids=["our-room", "their-room"])


def rule(join_rule: str, *allowed: str) -> dict[str, Any]:
    content: dict[str, Any] = {"join_rule": join_rule}
    if allowed:
        content["allow"] = [{"type": "m.room_membership", "room_id": each} for each in allowed]
    return {"type": "m.room.join_rules", "state_key": "", "content": content}


@SIDES
@pytest.mark.parametrize("version", VERSIONS)
def test_a_room_is_joined_by_alias(pair: Pair, version: str, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    name = f"tea{version}"
    room_id = host.create(
        preset="public_chat", room_alias_name=name, room_version=version, name="tea"
    )

    assert guest.join(f"#{name}:{host.server.name}").status == 200

    both = {host.user_id: "join", guest.user_id: "join"}
    until(lambda: guest.members(room_id) == both and host.members(room_id) == both)
    assert guest.state(room_id, "m.room.name") == {"name": "tea"}


@SIDES
@pytest.mark.parametrize("version", VERSIONS)
def test_a_room_is_joined_by_invite(pair: Pair, version: str, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = host.create(room_version=version, name="tea")

    assert host.room(room_id, "invite", user_id=guest.user_id).status == 200

    shown = until(lambda: guest.rooms("invite").get(room_id))["invite_state"]["events"]
    assert {"name": "tea"} in [event["content"] for event in shown]
    assert guest.join(room_id).status == 200
    until(lambda: host.members(room_id).get(guest.user_id) == "join")


@SIDES
@pytest.mark.parametrize("version", ["1", "11", "12"])
def test_an_invite_is_declined(pair: Pair, version: str, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = host.create(room_version=version)
    assert host.room(room_id, "invite", user_id=guest.user_id).status == 200
    until(lambda: guest.rooms("invite").get(room_id))

    assert guest.room(room_id, "leave").status == 200

    until(lambda: host.members(room_id).get(guest.user_id) == "leave")
    until(lambda: room_id not in guest.rooms("invite"))


@SIDES
@pytest.mark.parametrize("version", ["10", "11", "12"])
def test_a_room_is_joined_by_knocking(pair: Pair, version: str, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = host.create(room_version=version, initial_state=[rule("knock")], name="tea")

    assert guest.knock(room_id, host.server.name).status == 200

    until(lambda: host.members(room_id).get(guest.user_id) == "knock")
    shown = until(lambda: guest.rooms("knock").get(room_id))["knock_state"]["events"]
    assert {"name": "tea"} in [event["content"] for event in shown]
    assert host.room(room_id, "invite", user_id=guest.user_id).status == 200
    until(lambda: room_id in guest.rooms("invite"))
    assert guest.join(room_id).status == 200


@SIDES
@pytest.mark.parametrize("version", ["8", "10", "11", "12"])
def test_a_restricted_room_is_joined(pair: Pair, version: str, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    lobby = host.create(preset="public_chat", room_version=version)
    room_id = host.create(room_version=version, initial_state=[rule("restricted", lobby)])
    assert guest.join(room_id, host.server.name).status == 403
    assert guest.join(lobby, host.server.name).status == 200

    assert guest.join(room_id, host.server.name).status == 200

    voucher = guest.state(room_id, "m.room.member", guest.user_id)[
        "join_authorised_via_users_server"
    ]
    assert voucher == host.user_id


@SIDES
def test_a_banned_user_cannot_join(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = host.create(preset="public_chat")
    assert host.room(room_id, "ban", user_id=guest.user_id).status == 200

    assert guest.join(room_id, host.server.name).status == 403


@SIDES
def test_a_user_who_blocks_invites_gets_none(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = host.create()
    kind = "m.invite_permission_config"
    guest.ok("PUT", f"/user/{guest.user_id}/account_data/{kind}", {"default_action": "block"})
    if not we_are_host:
        assert (
            host.room(room_id, "invite", user_id=guest.user_id).json["errcode"]
            == "M_INVITE_BLOCKED"
        )
    elif (said := host.room(room_id, "invite", user_id=guest.user_id)).status != 200:
        assert said.json["errcode"] == "M_INVITE_BLOCKED"


@SIDES
def test_a_user_leaves_and_rejoins(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    room_id = host.create(preset="public_chat")
    assert guest.join(room_id, host.server.name).status == 200
    until(lambda: host.members(room_id).get(guest.user_id) == "join")
    assert guest.room(room_id, "leave").status == 200
    until(
        lambda: host.members(room_id).get(guest.user_id) == "leave"
    )  # otherwise it could arrive after the rejoin
    host.set_state(room_id, "m.room.topic", {"topic": "while you were away"})

    assert guest.join(room_id, host.server.name).status == 200

    until(
        lambda: (guest.state(room_id, "m.room.topic") or {}).get("topic") == "while you were away"
    )


@SIDES
def test_a_room_with_many_members_is_joined(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    notes = [
        {"type": "org.example.note", "state_key": f"{number}", "content": {"text": "x" * 500}}
        for number in range(100)
    ]
    room_id = host.create(preset="public_chat", initial_state=notes)
    for number in range(200):
        host.set_state(room_id, "org.example.more", {"number": number}, f"{number}")

    assert guest.join(room_id, host.server.name).status == 200

    until(lambda: guest.state(room_id, "org.example.more", "199") == {"number": 199})
    assert guest.state(room_id, "org.example.note", "99") == {"text": "x" * 500}


@SIDES
def test_profiles_and_directories_federate(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    host.ok("PUT", f"/profile/{host.user_id}/displayname", {"displayname": "The host"})
    word = f"listed{we_are_host}".lower()
    room_id = host.create(visibility="public", name=f"a {word} room", room_alias_name=word)

    assert guest.ok("GET", f"/profile/{host.user_id}")["displayname"] == "The host"
    assert guest.ok("GET", f"/directory/room/%23{word}:{host.server.name}")["room_id"] == room_id

    def found() -> list[str]:
        answer = guest.ok(
            "POST",
            f"/publicRooms?server={host.server.name}",
            {"filter": {"generic_search_term": word}},
        )
        return [room["room_id"] for room in answer["chunk"]]

    until(
        lambda: found() == [room_id], instead=found
    )  # Synapse updates its search index a moment later

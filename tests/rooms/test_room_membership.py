"""Joining, inviting, knocking, leaving, removing, banning and forgetting. spec:
client-server-api#room-membership"""

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from federation.protocol.ids import RoomID
from storage.engine.database import Database
from tests.helpers.room_actions import (
    V3,
    all_texts,
    create,
    get_state,
    invite,
    join,
    leave,
    membership,
    messages,
    ok,
    put_event,
    put_state,
    redact,
    refused,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import TestServer, User, move_user, register_guest

NOWHERE = "!nowhere:example.org"
PASSWORD = "wonderland"
FORBIDDEN = (403, "M_FORBIDDEN")


@pytest.fixture
def carol(server: TestServer) -> User:
    return server.register("carol")


def member(user: User, room_id: str, target: User) -> Any:
    return get_state(user, room_id, "m.room.member", target.user_id)


def count_events(user: User, room_id: str) -> int:
    return len(messages(user, room_id, limit=1000)["chunk"])


def test_a_room_is_joined_by_id_and_by_alias(alice: User, bob: User, carol: User) -> None:
    room_id = create(alice, preset="public_chat", room_alias_name="hovli")
    assert ok(membership(bob, room_id, "join", reason="choy")) == {"room_id": room_id}
    assert member(alice, room_id, bob) == {
        "membership": "join",
        "displayname": "bob",
        "reason": "choy",
    }
    assert ok(carol.post(f"{V3}/join/%23hovli:example.org?via=example.org&server_name=a.b")) == {
        "room_id": room_id
    }
    assert sorted(ok(alice.get(room_path(room_id, "joined_members")))["joined"]) == [
        alice.user_id,
        bob.user_id,
        carol.user_id,
    ]
    assert ok(carol.get(f"{V3}/joined_rooms")) == {"joined_rooms": [room_id]}


def test_joining_again_changes_nothing(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    before = count_events(bob, room_id)
    join(bob, room_id)
    assert count_events(bob, room_id) == before


def test_a_join_has_the_display_name_and_avatar(alice: User, bob: User) -> None:
    ok(bob.put(f"{V3}/profile/{bob.user_id}/displayname", {"displayname": "Bobur"}))
    ok(bob.put(f"{V3}/profile/{bob.user_id}/avatar_url", {"avatar_url": "mxc://example.org/bob"}))
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    shown = {"displayname": "Bobur", "avatar_url": "mxc://example.org/bob"}
    assert member(alice, room_id, bob) == {"membership": "join", **shown}
    assert ok(alice.get(room_path(room_id, "joined_members")))["joined"][bob.user_id] == {
        "display_name": "Bobur",
        "avatar_url": "mxc://example.org/bob",
    }
    ok(bob.put(f"{V3}/profile/{bob.user_id}/displayname", {"displayname": "Bob"}))
    assert member(alice, room_id, bob)["displayname"] == "Bob"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/join/{NOWHERE}", (404, "M_NOT_FOUND")),
        ("/join/%23nowhere:example.org", (404, "M_NOT_FOUND")),
        ("/join/nonsense", (400, "M_INVALID_PARAM")),
        (f"/knock/{NOWHERE}", (404, "M_NOT_FOUND")),
        (f"/rooms/{NOWHERE}/leave", (404, "M_NOT_FOUND")),
        (f"/rooms/{NOWHERE}/forget", (404, "M_NOT_FOUND")),
        ("/rooms/nonsense/join", (400, "M_INVALID_PARAM")),
    ],
)
def test_unknown_rooms_cannot_be_joined(alice: User, path: str, expected: tuple[int, str]) -> None:
    assert refused(alice.post(V3 + path)) == expected


def test_an_invite_is_accepted_declined_and_withdrawn(alice: User, bob: User) -> None:
    room_id = create(alice)
    assert refused(membership(bob, room_id, "join")) == FORBIDDEN
    ok(membership(alice, room_id, "invite", bob, reason="choyga"))
    assert member(alice, room_id, bob) == {
        "membership": "invite",
        "displayname": "bob",
        "reason": "choyga",
    }
    join(bob, room_id)
    leave(bob, room_id)
    assert refused(membership(bob, room_id, "join")) == FORBIDDEN
    invite(alice, room_id, bob)
    ok(membership(bob, room_id, "leave", reason="band"))
    assert member(alice, room_id, bob) == {"membership": "leave", "reason": "band"}


def test_an_invite_needs_power_and_an_existing_user(alice: User, bob: User, carol: User) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    assert refused(membership(bob, room_id, "invite", carol)) == FORBIDDEN
    assert refused(alice.post(room_path(room_id, "invite"), {"user_id": "carol"})) == (
        400,
        "M_INVALID_PARAM",
    )
    assert refused(alice.post(room_path(room_id, "invite"), {"user_id": "@c:else.where"})) == (
        502,
        "M_UNKNOWN",
    )
    assert refused(membership(alice, room_id, "invite", bob)) == FORBIDDEN  # is in the room
    assert (
        refused(membership(carol, room_id, "invite", bob)) == FORBIDDEN
    )  # is not in the room herself
    by_email = {
        "medium": "email",
        "address": "c@example.org",
        "id_server": "x",
        "id_access_token": "y",
    }
    assert refused(alice.post(room_path(room_id, "invite"), by_email)) == (400, "M_INVALID_PARAM")


def test_an_invite_by_state_event_follows_the_same_rules(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, "block_non_admin_invites: true\n")
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice)
    assert refused(membership(alice, room_id, "invite", bob)) == FORBIDDEN
    assert (
        refused(put_state(alice, room_id, "m.room.member", {"membership": "invite"}, bob.user_id))
        == FORBIDDEN
    )


def test_memberships_can_be_set_by_state_events(alice: User, bob: User) -> None:
    room_id = create(alice)
    assert (
        refused(put_state(bob, room_id, "m.room.member", {"membership": "join"}, bob.user_id))
        == FORBIDDEN
    )
    set_state(alice, room_id, "m.room.member", {"membership": "invite"}, bob.user_id)
    assert (
        refused(put_state(alice, room_id, "m.room.member", {"membership": "join"}, bob.user_id))
        == FORBIDDEN
    )
    set_state(
        bob, room_id, "m.room.member", {"membership": "join", "displayname": "B"}, bob.user_id
    )
    assert member(alice, room_id, bob) == {"membership": "join", "displayname": "B"}
    set_state(alice, room_id, "m.room.member", {"membership": "ban"}, bob.user_id)
    assert refused(membership(bob, room_id, "join")) == FORBIDDEN
    for content in ({"membership": "asleep"}, {}, {"membership": 1}):
        assert put_state(alice, room_id, "m.room.member", content, bob.user_id).status in (400, 403)
    assert put_state(alice, room_id, "m.room.member", {"membership": "invite"}, "bob").status == 400


def test_members_are_kicked(alice: User, bob: User, carol: User) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    assert refused(membership(bob, room_id, "kick", alice)) == FORBIDDEN
    assert refused(membership(alice, room_id, "kick", carol)) == FORBIDDEN
    ok(membership(alice, room_id, "kick", bob, reason="shovqin"))
    assert member(alice, room_id, bob) == {"membership": "leave", "reason": "shovqin"}
    invite(alice, room_id, carol)
    ok(membership(alice, room_id, "kick", carol))
    assert member(alice, room_id, carol) == {"membership": "leave"}
    join(bob, room_id)


def test_users_are_banned_and_unbanned(alice: User, bob: User, carol: User) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    assert refused(membership(bob, room_id, "ban", alice)) == FORBIDDEN
    ok(membership(alice, room_id, "ban", bob, reason="shovqin"))
    ok(membership(alice, room_id, "ban", carol))  # who was never there
    assert member(alice, room_id, bob) == {"membership": "ban", "reason": "shovqin"}
    for action in ("join", "leave"):
        assert refused(membership(bob, room_id, action)) == FORBIDDEN
    assert refused(membership(alice, room_id, "invite", bob)) == FORBIDDEN
    assert refused(membership(alice, room_id, "kick", bob)) == FORBIDDEN
    ok(membership(alice, room_id, "unban", bob))
    assert member(alice, room_id, bob) == {"membership": "leave"}
    assert refused(membership(alice, room_id, "unban", bob)) == (403, "M_BAD_STATE")
    join(bob, room_id)


@pytest.mark.parametrize("action", ["invite", "kick", "ban", "unban"])
def test_non_members_cannot_see_whether_a_room_exists(
    alice: User, bob: User, carol: User, action: str
) -> None:
    room_id = create(alice)
    invite(alice, room_id, carol)
    answers = [
        membership(bob, room, action, target)
        for room in (room_id, NOWHERE)
        for target in (alice, carol, bob)
    ]
    assert {refused(answer) for answer in answers} == {FORBIDDEN}
    assert len({answer.body for answer in answers}) == 1, (
        "whom the room has can be told from the answers"
    )


def test_unknown_users_are_not_invited(alice: User, bob: User) -> None:
    room_id = create(alice)
    ok(
        bob.post(
            f"{V3}/account/deactivate",
            {"auth": {"type": "m.login.password", "user": "bob", "password": PASSWORD}},
        )
    )
    for user_id in ("@nobody:example.org", bob.user_id):
        assert refused(alice.post(room_path(room_id, "invite"), {"user_id": user_id})) == (
            404,
            "M_NOT_FOUND",
        )
        assert refused(
            put_state(alice, room_id, "m.room.member", {"membership": "invite"}, user_id)
        ) == (
            404,
            "M_NOT_FOUND",
        )
        assert refused(alice.post(f"{V3}/createRoom", {"invite": [user_id]})) == (
            404,
            "M_NOT_FOUND",
        )
    assert ok(alice.get(f"{V3}/joined_rooms")) == {"joined_rooms": [room_id]}


def test_former_members_cannot_change_memberships(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    assert refused(membership(bob, room_id, "leave")) == FORBIDDEN
    join(bob, room_id)
    leave(bob, room_id)
    leave(bob, room_id)  # once more is no error
    assert refused(put_event(bob, room_id, "m.room.message", {"body": "?"})) == FORBIDDEN
    assert refused(put_state(bob, room_id, "m.room.topic", {"topic": "?"})) == FORBIDDEN


@pytest.mark.parametrize("version", ["7", "8", "10", "11", "12"])
def test_a_user_knocks_and_is_invited(alice: User, bob: User, carol: User, version: str) -> None:
    rule = [{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}]
    room_id = create(alice, room_version=version, initial_state=rule, room_alias_name="eshik")
    assert refused(membership(bob, room_id, "join")) == FORBIDDEN
    assert ok(bob.post(f"{V3}/knock/%23eshik:example.org", {"reason": "tuq-tuq"})) == {
        "room_id": room_id
    }
    assert member(alice, room_id, bob) == {
        "membership": "knock",
        "displayname": "bob",
        "reason": "tuq-tuq",
    }
    assert refused(membership(bob, room_id, "join")) == FORBIDDEN
    invite(alice, room_id, bob)
    join(bob, room_id)
    assert refused(bob.post(f"{V3}/knock/{room_id}")) == FORBIDDEN
    ok(carol.post(f"{V3}/knock/{room_id}"))
    ok(membership(alice, room_id, "kick", carol))
    ok(carol.post(f"{V3}/knock/{room_id}"))
    leave(carol, room_id)
    assert member(alice, room_id, carol)["membership"] == "leave"


def test_a_knock_is_refused_unless_the_join_rule_allows_it(alice: User, bob: User) -> None:
    assert refused(bob.post(f"{V3}/knock/{create(alice)}")) == FORBIDDEN
    old = create(
        alice,
        room_version="6",
        initial_state=[{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}],
    )
    assert refused(bob.post(f"{V3}/knock/{old}")) == FORBIDDEN


def restricted_to(room_id: str, rule: str = "restricted") -> list[dict[str, Any]]:
    allow = [
        {"type": "m.room_membership", "room_id": room_id},
        {"type": "org.example.other"},
        "nonsense",
    ]
    return [{"type": "m.room.join_rules", "content": {"join_rule": rule, "allow": allow}}]


@pytest.mark.parametrize(
    ("version", "rule"), [("8", "restricted"), ("10", "knock_restricted"), ("12", "restricted")]
)
def test_a_restricted_room_is_joined_by_members_of_an_allowed_room(
    alice: User, bob: User, carol: User, version: str, rule: str
) -> None:
    space = create(alice, preset="public_chat")
    room_id = create(alice, room_version=version, initial_state=restricted_to(space, rule))
    assert refused(membership(bob, room_id, "join")) == FORBIDDEN
    join(bob, space)
    join(bob, room_id)
    assert member(alice, room_id, bob) == {
        "membership": "join",
        "displayname": "bob",
        "join_authorised_via_users_server": alice.user_id,
    }
    # a new name is no new join: nobody has to vouch for it
    set_state(
        bob, room_id, "m.room.member", {"membership": "join", "displayname": "B"}, bob.user_id
    )
    assert member(alice, room_id, bob) == {"membership": "join", "displayname": "B"}
    join(carol, space)
    set_state(carol, room_id, "m.room.member", {"membership": "join"}, carol.user_id)
    leave(bob, room_id)
    leave(bob, space)
    assert refused(membership(bob, room_id, "join")) == FORBIDDEN


def test_a_client_cannot_set_who_authorised_its_join(alice: User, bob: User) -> None:
    room_id = create(alice, initial_state=restricted_to(create(alice)))
    content = {"membership": "join", "join_authorised_via_users_server": alice.user_id}
    assert refused(put_state(bob, room_id, "m.room.member", content, bob.user_id)) == FORBIDDEN


def test_an_invited_user_joins_a_restricted_room(alice: User, bob: User) -> None:
    room_id = create(alice, initial_state=restricted_to(create(alice)), invite=[bob.user_id])
    join(bob, room_id)
    assert member(alice, room_id, bob) == {"membership": "join", "displayname": "bob"}


def at_once(user: User, room_id: str, *actions: tuple[str, User]) -> list[int]:
    """Let the user act on others, with all requests sent before any is handled. Return the statuses
    of the answers."""
    before: Deferred[None] = Deferred()

    async def wait() -> None:
        await before

    Deferred.fromCoroutine(user.server.app.room_engine.engine.in_turn(RoomID(room_id), wait))
    asked = [
        user.start("POST", room_path(room_id, action), {"user_id": target.user_id})
        for action, target in actions
    ]
    before.callback(None)
    return [each.answer.status for each in asked]


def test_a_user_banned_and_kicked_concurrently_stays_banned(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    assert at_once(alice, room_id, ("ban", bob), ("kick", bob)) == [200, 403]
    assert member(alice, room_id, bob)["membership"] == "ban"


def test_a_name_change_during_a_kick_does_not_rejoin(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    before: Deferred[None] = Deferred()

    async def wait() -> None:
        await before

    Deferred.fromCoroutine(alice.server.app.room_engine.engine.in_turn(RoomID(room_id), wait))
    removing = alice.start("POST", room_path(room_id, "kick"), {"user_id": bob.user_id})
    content = {"membership": "join", "displayname": "Robert"}
    naming = bob.start("PUT", room_path(room_id, "state", "m.room.member", bob.user_id), content)
    before.callback(None)

    assert removing.answer.status == 200
    assert refused(naming.answer) == (403, "M_FORBIDDEN")
    assert member(alice, room_id, bob) == {"membership": "leave"}


def test_a_second_unban_kicks_nobody(alice: User, bob: User) -> None:
    room_id = create(alice)
    invite(alice, room_id, bob)
    ok(membership(alice, room_id, "ban", bob))
    assert at_once(alice, room_id, ("unban", bob), ("invite", bob), ("unban", bob)) == [
        200,
        200,
        403,
    ]
    assert member(alice, room_id, bob)["membership"] == "invite"


def test_a_left_room_is_forgotten(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    assert refused(membership(bob, room_id, "forget")) == (404, "M_NOT_FOUND")
    join(bob, room_id)
    assert refused(membership(bob, room_id, "forget")) == (400, "M_UNKNOWN")
    say(alice, room_id, "salom")
    leave(bob, room_id)
    assert all_texts(bob, room_id) == ["salom"]
    ok(membership(bob, room_id, "forget"))
    ok(membership(bob, room_id, "forget"))
    assert refused(bob.get(room_path(room_id, "messages", dir="b"))) == FORBIDDEN
    filter_ = '{"room":{"include_leave":true}}'
    assert room_id not in ok(bob.get(f"{V3}/sync?filter={filter_}")).get("rooms", {}).get(
        "leave", {}
    )
    join(bob, room_id)
    assert all_texts(bob, room_id) == ["salom"]


@pytest.mark.parametrize("way", ["leave", "kick", "ban", "state"])
def test_rooms_are_forgotten_on_leave_if_configured(
    tmp_path: Path, sqlite_database: Database, way: str
) -> None:
    server = TestServer(tmp_path, sqlite_database, "forget_rooms_on_leave: true\n")
    alice, bob = server.register("alice"), server.register("bob")
    capabilities = ok(bob.get(f"{V3}/capabilities"))["capabilities"]
    assert capabilities["m.forget_forced_upon_leave"] == {"enabled": True}
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    since = ok(bob.get(f"{V3}/sync"))["next_batch"]
    match way:
        case "leave":
            leave(bob, room_id)
        case "state":
            set_state(bob, room_id, "m.room.member", {"membership": "leave"}, bob.user_id)
        case _:
            ok(membership(alice, room_id, way, bob))
    server.clock.advance(0)
    assert refused(bob.get(room_path(room_id, "messages", dir="b"))) == FORBIDDEN
    # another device still hears that the room is gone, once
    received = ok(bob.get(f"{V3}/sync?since={since}"))
    assert room_id in received["rooms"]["leave"]
    assert "rooms" not in ok(bob.get(f"{V3}/sync?since={received['next_batch']}"))


async def test_rooms_left_before_a_restart_are_forgotten_after_it(
    tmp_path: Path, database: Database
) -> None:
    server = TestServer(tmp_path, database)
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create(alice, preset="public_chat") for _ in range(3)]
    for room_id in rooms:
        join(bob, room_id)
    leave(bob, rooms[0])
    ok(membership(alice, rooms[1], "ban", bob))
    later = TestServer(tmp_path, database, "forget_rooms_on_leave: true\n", seed=2)
    later.app.jobs.start()
    later.clock.advance(60)
    there = move_user(later, bob)
    answers = [there.get(room_path(room_id, "messages", dir="b")).status for room_id in rooms]
    assert answers == [403, 403, 200]


def test_guests_join_only_rooms_with_guest_access(server: TestServer, alice: User) -> None:
    guest = register_guest(server)
    closed = create(alice, preset="public_chat")
    assert refused(membership(guest, closed, "join")) == (403, "M_GUEST_ACCESS_FORBIDDEN")
    by_state = put_state(guest, closed, "m.room.member", {"membership": "join"}, guest.user_id)
    assert refused(by_state) == (403, "M_GUEST_ACCESS_FORBIDDEN")
    open_room = create(
        alice,
        preset="public_chat",
        initial_state=[{"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}],
    )
    join(guest, open_room)
    say(guest, open_room, "salom")
    ok(put_event(guest, open_room, "org.example.wave", {}))
    for action in ("invite", "kick", "ban", "unban"):
        assert refused(membership(guest, open_room, action, alice)) == (
            403,
            "M_GUEST_ACCESS_FORBIDDEN",
        )
    set_state(alice, open_room, "m.room.guest_access", {"guest_access": "forbidden"})
    assert member(alice, open_room, guest)["membership"] == "leave"
    assert member(alice, open_room, alice)["membership"] == "join"


def test_guests_are_removed_when_the_guest_access_is_redacted(
    tmp_path: Path, database: Database
) -> None:
    server = TestServer(tmp_path, database)
    alice = server.register("alice")
    guest, others = register_guest(server), [register_guest(server) for _ in range(2)]
    rooms = [create(alice, preset="public_chat") for _ in range(3)]
    for room_id in rooms:
        access = ok(put_state(alice, room_id, "m.room.guest_access", {"guest_access": "can_join"}))[
            "event_id"
        ]
        join(guest, room_id)
        if room_id != rooms[1]:
            ok(redact(alice, room_id, access))
    join(others[0], rooms[1])
    server.app.jobs.start()
    server.clock.advance(60)
    assert [member(alice, room_id, guest)["membership"] for room_id in rooms] == [
        "leave",
        "join",
        "leave",
    ]
    assert member(alice, rooms[1], others[0])["membership"] == "join"
    assert ok(guest.get(f"{V3}/joined_rooms"))["joined_rooms"] == [rooms[1]]


def test_a_third_party_invite_needs_a_valid_proof(alice: User, bob: User) -> None:
    room_id = create(alice)
    signed = {"mxid": bob.user_id, "sender": alice.user_id, "token": "t", "signatures": {}}
    assert refused(membership(bob, room_id, "join", third_party_signed=signed)) == FORBIDDEN
    promise = {
        "display_name": "b…",
        "public_key": "A" * 43,
        "key_validity_url": "https://x",
        "public_keys": [],
    }
    set_state(alice, room_id, "m.room.third_party_invite", promise, "t")
    assert refused(membership(bob, room_id, "join", third_party_signed=signed)) == FORBIDDEN
    assert member(alice, room_id, bob) is None


def test_reasons_are_strings_of_bounded_length(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    assert refused(membership(bob, room_id, "join", reason="x" * 5000)) == (400, "M_BAD_JSON")
    assert refused(membership(bob, room_id, "join", reason=1)) == (400, "M_BAD_JSON")
    ok(membership(bob, room_id, "join", reason=None))


def test_memberships_work_on_both_databases(tmp_path: Path, database: Database) -> None:
    server = TestServer(tmp_path, database)
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, invite=[bob.user_id])
    join(bob, room_id)
    ok(membership(alice, room_id, "ban", bob))
    ok(membership(bob, room_id, "forget"))
    assert ok(bob.get(f"{V3}/joined_rooms")) == {"joined_rooms": []}
    assert member(alice, room_id, bob) == {"membership": "ban"}

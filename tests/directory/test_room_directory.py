"""Aliases and the directory of public rooms. spec: client-server-api#room-aliases,
#published-room-directory"""

from pathlib import Path
from typing import Any

import pytest

from storage.engine.database import Database
from tests.helpers.room_actions import V3, create, join, leave, ok, refused, room_path, set_state
from tests.helpers.server import TestServer, User

FORBIDDEN = (403, "M_FORBIDDEN")
ALIAS = f"{V3}/directory/room/%23hovli:example.org"


def test_an_alias_is_added_found_and_removed(server: TestServer, alice: User) -> None:
    room_id = create(alice)
    assert refused(server.get(ALIAS)) == (404, "M_NOT_FOUND")
    assert ok(alice.put(ALIAS, {"room_id": room_id})) == {}
    assert ok(server.get(ALIAS)) == {"room_id": room_id, "servers": ["example.org"]}
    assert ok(alice.get(room_path(room_id, "aliases"))) == {"aliases": ["#hovli:example.org"]}
    assert refused(alice.put(ALIAS, {"room_id": room_id})) == (409, "M_UNKNOWN")
    assert ok(alice.delete(ALIAS)) == {}
    assert refused(server.get(ALIAS)) == (404, "M_NOT_FOUND")
    assert refused(alice.delete(ALIAS)) == (404, "M_NOT_FOUND")


def test_an_expired_token_does_not_block_public_endpoints(alice: User, bob: User) -> None:
    """They need no authentication."""
    room_id = create(alice)
    ok(alice.put(ALIAS, {"room_id": room_id}))
    ok(bob.post(f"{V3}/logout"))
    assert ok(bob.get(ALIAS))["room_id"] == room_id
    assert ok(bob.get(f"{V3}/directory/list/room/{room_id}")) == {"visibility": "private"}


@pytest.mark.parametrize(
    "alias",
    ["hovli:example.org", "%23hovli", "%23", "%23" + "x" * 260 + ":example.org", "%23a%00:b"],
)
def test_invalid_aliases_are_refused(server: TestServer, alice: User, alias: str) -> None:
    path = f"{V3}/directory/room/{alias}"
    assert refused(server.get(path)) == (400, "M_INVALID_PARAM")
    assert refused(alice.put(path, {"room_id": create(alice)})) == (400, "M_INVALID_PARAM")


def test_aliases_of_other_servers_and_of_unknown_rooms_cannot_be_added(alice: User) -> None:
    room_id = create(alice)
    elsewhere = f"{V3}/directory/room/%23hovli:elsewhere.org"
    assert refused(alice.put(elsewhere, {"room_id": room_id})) == (400, "M_INVALID_PARAM")
    assert refused(alice.put(ALIAS, {"room_id": "hovli"})) == (400, "M_INVALID_PARAM")
    assert refused(alice.put(ALIAS, {})) == (400, "M_BAD_JSON")
    assert refused(alice.put(ALIAS, {"room_id": "!nowhere:example.org"})) == FORBIDDEN


def test_only_members_add_aliases_unless_configured(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database)
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    assert refused(bob.put(ALIAS, {"room_id": room_id})) == FORBIDDEN
    free = TestServer(tmp_path, sqlite_database, "require_membership_for_aliases: false\n", seed=2)
    carol = free.register("carol")
    ok(carol.put(ALIAS, {"room_id": room_id}))
    assert (
        refused(carol.put(f"{V3}/directory/room/%23x:example.org", {"room_id": "!no:example.org"}))[
            0
        ]
        == 404
    )


def test_an_alias_is_removed_by_moderators_and_its_creator(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    ok(bob.put(ALIAS, {"room_id": room_id}))
    ok(alice.delete(ALIAS))  # a user who may change the room's aliases
    ok(alice.put(ALIAS, {"room_id": room_id}))
    assert refused(bob.delete(ALIAS)) == FORBIDDEN
    ok(bob.put(f"{V3}/directory/room/%23bob:example.org", {"room_id": room_id}))
    leave(bob, room_id)
    ok(bob.delete(f"{V3}/directory/room/%23bob:example.org"))  # its creator


def test_aliases_are_listed_for_members_and_for_world_readable_rooms(
    alice: User, bob: User
) -> None:
    room_id = create(alice, preset="public_chat", room_alias_name="hovli")
    assert refused(bob.get(room_path(room_id, "aliases"))) == FORBIDDEN
    join(bob, room_id)
    assert ok(bob.get(f"/_matrix/client/unstable/org.matrix.msc2432/rooms/{room_id}/aliases"))[
        "aliases"
    ]
    leave(bob, room_id)
    assert refused(bob.get(room_path(room_id, "aliases"))) == FORBIDDEN
    set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "world_readable"})
    assert ok(bob.get(room_path(room_id, "aliases"))) == {"aliases": ["#hovli:example.org"]}


def test_a_room_is_listed_and_unlisted(server: TestServer, alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    path = f"{V3}/directory/list/room/{room_id}"
    join(bob, room_id)
    assert refused(bob.put(path, {"visibility": "public"})) == FORBIDDEN
    assert ok(server.get(path)) == {"visibility": "private"}
    assert ok(alice.put(path, {})) == {}  # without a value, public is the default
    assert ok(server.get(path)) == {"visibility": "public"}
    ok(alice.put(path, {"visibility": "private"}))
    assert ok(server.get(path)) == {"visibility": "private"}
    assert refused(alice.put(path, {"visibility": "secret"})) == (400, "M_BAD_JSON")
    nowhere = f"{V3}/directory/list/room/!nowhere:example.org"
    assert refused(server.get(nowhere)) == (404, "M_NOT_FOUND")
    assert refused(alice.put(nowhere, {})) == (404, "M_NOT_FOUND")


def test_an_entry_of_the_directory_has_all_fields(alice: User, bob: User) -> None:
    create(alice, visibility="private", name="Hidden")
    room_id = create(
        alice,
        visibility="public",
        name="Hovli",
        topic="Choy",
        room_alias_name="hovli",
        creation_content={"type": "m.space"},
        initial_state=[
            {"type": "m.room.avatar", "content": {"url": "mxc://example.org/a"}},
            {
                "type": "m.room.history_visibility",
                "content": {"history_visibility": "world_readable"},
            },
            {"type": "m.room.guest_access", "content": {"guest_access": "can_join"}},
            {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
        ],
    )
    join(bob, room_id)
    assert ok(bob.get(f"{V3}/publicRooms")) == {
        "chunk": [
            {
                "room_id": room_id,
                "num_joined_members": 2,
                "world_readable": True,
                "guest_can_join": True,
                "join_rule": "public",
                "room_version": "12",
                "name": "Hovli",
                "topic": "Choy",
                "canonical_alias": "#hovli:example.org",
                "avatar_url": "mxc://example.org/a",
                "room_type": "m.space",
                "encryption": "m.megolm.v1.aes-sha2",
            }
        ],
        "total_room_count_estimate": 1,
    }


def test_the_directory_is_paged(tmp_path: Path, database: Database) -> None:
    server = TestServer(tmp_path, database)
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create(alice, visibility="public", name=f"Room {number}") for number in range(7)]
    join(bob, rooms[3])
    found: list[str] = []
    back: list[str | None] = []
    since = ""
    while True:
        page = ok(alice.get(f"{V3}/publicRooms?limit=3{since}"))
        found += [room["room_id"] for room in page["chunk"]]
        back.append(page.get("prev_batch"))
        assert page["total_room_count_estimate"] == 7
        if "next_batch" not in page:
            break
        since = f"&since={page['next_batch']}"
    assert found[0] == rooms[3]
    assert sorted(found) == sorted(rooms)
    assert len(back) == 3
    assert back[0] is None
    before = ok(alice.get(f"{V3}/publicRooms?limit=3&since={back[2]}"))
    assert [room["room_id"] for room in before["chunk"]] == found[3:6]
    first = ok(alice.get(f"{V3}/publicRooms?limit=3&since={before['prev_batch']}"))
    assert [room["room_id"] for room in first["chunk"]] == found[:3]
    assert "prev_batch" not in first
    onward = ok(alice.get(f"{V3}/publicRooms?limit=3&since={first['next_batch']}"))
    assert [room["room_id"] for room in onward["chunk"]] == found[3:6]


def test_the_directory_can_be_searched(tmp_path: Path, database: Database) -> None:
    alice = TestServer(tmp_path, database).register("alice")
    create(alice, visibility="public", name="Тошкент ҳовлиси", topic="Choy va non")
    create(alice, visibility="public", name="100% yes", room_alias_name="percent")
    create(alice, visibility="public", name="A space", creation_content={"type": "m.space"})

    def search(**filter_: Any) -> set[str]:
        page = ok(alice.post(f"{V3}/publicRooms", {"filter": filter_}))
        return {room["name"] for room in page["chunk"]}

    assert search(generic_search_term="тошкент") == {"Тошкент ҳовлиси"}
    assert search(generic_search_term="ҲОВЛИ") == {"Тошкент ҳовлиси"}
    assert search(generic_search_term="CHOY") == {"Тошкент ҳовлиси"}
    assert search(generic_search_term="#percent") == {"100% yes"}
    assert search(generic_search_term="0% y") == {"100% yes"}
    assert search(generic_search_term="%") == {"100% yes"}
    assert search(generic_search_term="_") == set()
    assert search(room_types=["m.space"]) == {"A space"}
    assert search(room_types=[None]) == {"Тошкент ҳовлиси", "100% yes"}
    assert search(room_types=[None, "m.space"], generic_search_term="space") == {"A space"}
    assert search(room_types=[]) == set()
    assert len(search(generic_search_term=None, room_types=None)) == 3


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"since": "nonsense"}, (400, "M_INVALID_PARAM")),
        ({"since": "d" + "9" * 50}, (400, "M_INVALID_PARAM")),
        ({"filter": {"generic_search_term": "x" * 300}}, (400, "M_INVALID_PARAM")),
        ({"filter": {"room_types": "m.space"}}, (400, "M_BAD_JSON")),
        ({"limit": "all"}, (400, "M_BAD_JSON")),
        (
            {"include_all_networks": True, "third_party_instance_id": "irc"},
            (400, "M_INVALID_PARAM"),
        ),
    ],
)
def test_invalid_requests_are_refused(
    alice: User, body: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert refused(alice.post(f"{V3}/publicRooms", body)) == expected


def test_directories_of_unreachable_and_invalid_servers_are_errors(alice: User) -> None:
    create(alice, visibility="public")
    assert (
        len(
            ok(alice.post(f"{V3}/publicRooms?server=example.org", {"include_all_networks": True}))[
                "chunk"
            ]
        )
        == 1
    )
    assert refused(alice.get(f"{V3}/publicRooms?server=elsewhere.org")) == (502, "M_UNKNOWN")
    for name in ("%20", "bad..name", ".a", f"{'x' * 64}.org", "elsewhere.org:99999"):
        assert refused(alice.get(f"{V3}/publicRooms?server={name}")) == (400, "M_INVALID_PARAM")
        assert refused(alice.post(f"{V3}/publicRooms?server={name}", {})) == (
            400,
            "M_INVALID_PARAM",
        )
    assert ok(alice.post(f"{V3}/publicRooms", {"third_party_instance_id": "irc"}))["chunk"] == []


def test_an_empty_room_is_not_listed(alice: User) -> None:
    leave(alice, create(alice, visibility="public"))
    assert ok(alice.get(f"{V3}/publicRooms"))["chunk"] == []


def test_the_directory_needs_an_account_unless_configured(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database)
    create(server.register("alice"), visibility="public")
    assert refused(server.get(f"{V3}/publicRooms")) == (401, "M_MISSING_TOKEN")
    assert refused(server.post(f"{V3}/publicRooms", {})) == (401, "M_MISSING_TOKEN")
    public = TestServer(tmp_path, sqlite_database, "allow_public_rooms_without_auth: true\n")
    assert len(ok(public.get(f"{V3}/publicRooms"))["chunk"]) == 1
    closed = TestServer(tmp_path, sqlite_database, "enable_room_list_search: false\n", seed=2)
    assert ok(closed.register("bob").get(f"{V3}/publicRooms")) == {
        "chunk": [],
        "total_room_count_estimate": 0,
    }

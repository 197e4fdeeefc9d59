"""Account data, tags and filters, and the limits of account data."""

from pathlib import Path

import pytest

from storage.engine.database import Database
from tests.helpers.accounts import AccountsServer, User
from tests.helpers.room_actions import V3, create, ok, refused, room_path, say
from tests.helpers.server import TestServer

ROOM = "user/{me}/rooms/!room:example.org"
DELETE = "/_matrix/client/unstable/org.matrix.msc3391/"
FULL = (403, "M_USER_LIMIT_EXCEEDED")


@pytest.fixture
def server(database: Database) -> AccountsServer:
    return AccountsServer(database)


@pytest.fixture
def alice(server: AccountsServer) -> User:
    return server.register()


@pytest.mark.parametrize(
    "where", ["user/{me}", ROOM, "user/{me}/rooms/!lFhlZ2gBnbvAUSVWTsv2pzDPtgwEUTzJ9mgDNoxqCXI"]
)
def test_data_is_set_read_and_removed(alice: User, where: str) -> None:
    path = where + "/account_data/org.example.x"
    assert alice.get(path).errcode == "M_NOT_FOUND"
    assert alice.put(path, {"a": [1.5, None, "ў"]}).json == {}
    assert alice.get(path).json == {"a": [1.5, None, "ў"]}
    assert alice.put(path, {}).json == {}  # deletes the entry
    assert (alice.get(path).status, alice.get(path).errcode) == (404, "M_NOT_FOUND")
    for prefix in (DELETE, ""):
        assert alice.put(path, {"a": 1}).json == {}
        for _ in range(2):
            assert alice.delete(prefix + path).json == {}
        assert (alice.get(path).status, alice.get(path).errcode) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize("where", ["user/{me}", ROOM])
@pytest.mark.parametrize("type_", ["m.fully_read", "m.push_rules"])
def test_data_managed_by_the_server_cannot_be_set(alice: User, where: str, type_: str) -> None:
    path = f"{where}/account_data/{type_}"
    for answer in (alice.put(path, {}), alice.delete(DELETE + path)):
        assert (answer.status, answer.errcode) == (405, "M_BAD_JSON")


def test_invalid_requests_are_refused(server: AccountsServer, alice: User) -> None:
    bob = server.register("bob")
    for path in (
        "account_data/x",
        "rooms/!r:example.org/account_data/x",
        "rooms/!r:example.org/tags",
    ):
        assert bob.get(f"user/{alice.id}/{path}").errcode == "M_FORBIDDEN"
    for path in (
        "account_data/x",
        "rooms/!r:example.org/account_data/x",
        "rooms/!r:example.org/tags/x",
    ):
        assert bob.put(f"user/{alice.id}/{path}", {}).errcode == "M_FORBIDDEN"
        assert alice.put(f"user/{alice.id}/{path}", []).errcode == "M_BAD_JSON"
    assert bob.post(f"user/{alice.id}/filter", {}).errcode == "M_FORBIDDEN"
    assert (
        alice.put("user/{me}/rooms/@x:example.org/account_data/x", {}).errcode == "M_INVALID_PARAM"
    )
    assert alice.put("user/{me}/account_data/" + "x" * 256, {}).errcode == "M_INVALID_PARAM"
    assert (
        alice.put("user/{me}/account_data/x", {"a": "x" * (1024 * 1024)}).errcode == "M_TOO_LARGE"
    )
    broken = server.http.request(
        "PUT",
        f"/_matrix/client/v3/user/{alice.id}/account_data/x",
        token=alice.token,
        body=b'{"a":}',
    )
    assert broken.errcode == "M_NOT_JSON"


def test_tags_are_set_read_and_removed(alice: User) -> None:
    assert alice.get(ROOM + "/tags").json == {"tags": {}}
    assert alice.put(ROOM + "/tags/m.favourite", {"order": 0.25}).json == {}
    assert alice.put(ROOM + "/tags/u.Work", {"org.example.colour": "red"}).json == {}
    tags = {"m.favourite": {"order": 0.25}, "u.Work": {"org.example.colour": "red"}}
    assert alice.get(ROOM + "/tags").json == {"tags": tags}
    assert alice.get(ROOM + "/account_data/m.tag").json == {"tags": tags}
    for _ in range(2):
        assert alice.delete(ROOM + "/tags/u.Work").json == {}
    assert alice.get(ROOM + "/tags").json == {"tags": {"m.favourite": {"order": 0.25}}}
    assert alice.put(ROOM + "/tags/x", {"order": "first"}).errcode == "M_BAD_JSON"
    assert alice.put(ROOM + "/tags/" + "x" * 256, {}).errcode == "M_INVALID_PARAM"
    # an entry that a client wrote directly, in another form, is no obstacle
    alice.put(ROOM + "/account_data/m.tag", {"tags": [1]})
    assert alice.get(ROOM + "/tags").json == {"tags": {}}
    assert alice.put(ROOM + "/tags/x", {}).status == 200


def test_a_filter_is_stored_and_read_by_its_owner(alice: User) -> None:
    wanted = {
        "room": {"timeline": {"limit": 10}, "state": {"lazy_load_members": True}},
        "event_fields": ["type"],
    }
    first = alice.post("user/{me}/filter", wanted).json["filter_id"]
    assert isinstance(first, str)
    assert not first.startswith("{")
    other = alice.post("user/{me}/filter", {"org.example.unknown": 1.5}).json["filter_id"]
    assert first != other
    assert alice.post("user/{me}/filter", dict(reversed(wanted.items()))).json["filter_id"] == first
    assert alice.get(f"user/{{me}}/filter/{first}").json == wanted
    assert alice.get(f"user/{{me}}/filter/{other}").json == {"org.example.unknown": 1.5}
    for unknown in ("99", "x", "-1", "9" * 30, "%D9%A3"):
        answer = alice.get(f"user/{{me}}/filter/{unknown}")
        assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    "bad",
    [
        {"room": []},
        {"room": {"timeline": {"limit": "10"}}},
        {"room": {"timeline": {"limit": -1}}},
        {"room": {"state": {"types": "m.room.*"}}},
        {"event_format": "xml"},
        {"event_fields": [1]},
        {"presence": {"senders": [None]}},
    ],
)
def test_invalid_filters_are_refused(alice: User, bad: object) -> None:
    answer = alice.post("user/{me}/filter", bad)
    assert (answer.status, answer.errcode) == (400, "M_BAD_JSON")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "user/{me}/account_data/a%00b"),
        ("PUT", "user/{me}/account_data/a%00b"),
        ("GET", ROOM + "%00/account_data/x"),
        ("PUT", ROOM + "/tags/a%00b"),
        ("DELETE", ROOM + "/tags/a%00b"),
        ("DELETE", DELETE + "user/{me}/account_data/a%00b"),
        ("GET", "user/{me}/filter/%00"),
        ("GET", "profile/@a%00b:example.org"),
        ("GET", "profile/{me}/a%00b"),
        ("PUT", "profile/{me}/a%00b"),
        ("GET", "devices/a%00b"),
        ("PUT", "devices/a%00b"),
        ("DELETE", "devices/a%00b"),
        ("GET", "devices/a%ff"),
    ],
)
def test_odd_characters_in_paths_are_refused(alice: User, method: str, path: str) -> None:
    body: dict[str, object] | None = None if method == "GET" else {}
    assert 400 <= alice.request(method, path, body).status < 500


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("register", {"username": "a\0b", "password": "x"}),
        ("register", {"password": "a\0b"}),
        ("register", {"device_id": "a\0b", "auth": {"type": "m.login.dummy"}}),
        (
            "register",
            {
                "auth": {"type": "m.login.dummy", "session": "\0"},
                "initial_device_display_name": "\0",
            },
        ),
        ("login", {"type": "m.login.password", "user": "a\0b", "password": "a\0b"}),
        ("refresh", {"refresh_token": "\0"}),
        ("/_synapse/admin/v1/register", {"nonce": "\0", "mac": "\0"}),
        ("delete_devices", {"devices": ["\0"]}),
    ],
)
def test_odd_characters_in_bodies_are_refused(alice: User, path: str, body: object) -> None:
    assert 400 <= alice.post(path, body).status < 500


def data_path(user_id: str, type_: str, room_id: str | None = None) -> str:
    return (
        f"{V3}/user/{user_id}/" + (f"rooms/{room_id}/" if room_id else "") + f"account_data/{type_}"
    )


def test_the_number_of_entries_is_limited(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "max_account_data_entries: 100\n")
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice)
    for number in range(100):
        ok(alice.put(data_path(alice.user_id, "m.x", f"!r{number}:example.org"), {"a": 1}))
    assert refused(alice.put(data_path(alice.user_id, "m.y"), {"a": 1})) == FULL
    ok(alice.put(data_path(alice.user_id, "m.y"), {}))  # which deletes it
    assert (
        alice.put(data_path(alice.user_id, "m.y"), {"a": 1}).json["info_uri"]
        == "https://example.org/"
    )
    assert refused(alice.put(f"{V3}/user/{alice.user_id}/rooms/{room_id}/tags/u.x", {})) == FULL
    ok(alice.put(data_path(alice.user_id, "m.x", "!r0:example.org"), {"a": 2}))
    ok(alice.delete(data_path(alice.user_id, "m.x", "!r1:example.org")))
    ok(alice.put(data_path(alice.user_id, "m.y"), {"a": 1}))  # there is space again
    assert refused(alice.put(data_path(alice.user_id, "m.x", "!r1:example.org"), {"a": 1})) == FULL
    # entries that the server manages are not refused
    ok(alice.post(room_path(room_id, "read_markers"), {"m.fully_read": say(alice, room_id, "x")}))
    ok(alice.put(f"{V3}/pushrules/global/override/own", {"actions": [], "conditions": []}))
    ok(bob.put(data_path(bob.user_id, "m.y"), {"a": 1}))


def test_the_number_of_bytes_is_limited(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "max_account_data_size: 100K\n")
    alice = server.register("alice")
    ok(alice.put(data_path(alice.user_id, "m.x"), {"a": "x" * 60_000}))
    assert refused(alice.put(data_path(alice.user_id, "m.y"), {"a": "x" * 60_000})) == FULL
    assert alice.get(data_path(alice.user_id, "m.y")).status == 404
    ok(alice.put(data_path(alice.user_id, "m.x"), {"a": "x" * 40_000}))
    ok(alice.put(data_path(alice.user_id, "m.y"), {"a": "x" * 60_000}))
    ok(alice.put(data_path(alice.user_id, "m.x"), {}))
    ok(alice.put(data_path(alice.user_id, "m.z"), {"a": "x" * 40_000}))

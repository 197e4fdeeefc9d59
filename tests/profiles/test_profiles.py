"""Profiles: read and change them."""

import pytest

from storage.engine.database import Database
from tests.helpers.accounts import AccountsServer, User

ALICE = "profile/@alice:example.org"
UNSTABLE = "/_matrix/client/unstable/uk.tcpip.msc4133/profile/@alice:example.org/"


@pytest.fixture
def server(database: Database) -> AccountsServer:
    return AccountsServer(database)


@pytest.fixture
def alice(server: AccountsServer) -> User:
    return server.register()


def test_fields_are_set_read_and_removed(server: AccountsServer, alice: User) -> None:
    assert server.request("GET", ALICE).json == {"displayname": "alice"}, (
        "the localpart, until it is changed"
    )
    assert alice.put(f"{ALICE}/displayname", {"displayname": "Alice"}).json == {}
    assert alice.put(f"{ALICE}/avatar_url", {"avatar_url": "mxc://example.org/a"}).json == {}
    assert alice.put(f"{ALICE}/m.tz", {"m.tz": "Asia/Tashkent"}).json == {}
    assert (
        alice.put(
            UNSTABLE + "org.example.pets", {"org.example.pets": [{"cat": None, "age": 1.5}]}
        ).json
        == {}
    )
    whole = {
        "displayname": "Alice",
        "avatar_url": "mxc://example.org/a",
        "m.tz": "Asia/Tashkent",
        "org.example.pets": [{"cat": None, "age": 1.5}],
    }
    assert server.request("GET", ALICE).json == whole
    assert server.request("GET", UNSTABLE + "m.tz").json == {"m.tz": "Asia/Tashkent"}
    assert server.request("GET", "/_matrix/client/r0/" + ALICE + "/displayname").json == {
        "displayname": "Alice"
    }
    for _ in range(2):
        assert alice.delete(f"{ALICE}/m.tz").json == {}
    gone = server.request("GET", f"{ALICE}/m.tz")
    assert (gone.status, gone.errcode) == (404, "M_NOT_FOUND")


def test_a_custom_null_is_a_value(server: AccountsServer, alice: User) -> None:
    alice.put(f"{ALICE}/org.example.x", {"org.example.x": None})
    assert server.request("GET", f"{ALICE}/org.example.x").json == {"org.example.x": None}


@pytest.mark.parametrize("nothing", ["", None])
def test_an_empty_name_is_no_name(server: AccountsServer, alice: User, nothing: str | None) -> None:
    alice.put(f"{ALICE}/displayname", {"displayname": "Alice"})
    assert alice.put(f"{ALICE}/displayname", {"displayname": nothing}).status == 200
    assert server.request("GET", f"{ALICE}/displayname").status == 404


def test_unknown_users_have_no_profile(server: AccountsServer) -> None:
    for path in (
        "profile/@bob:example.org",
        "profile/@bob:example.org/displayname",
        "profile/@bob:elsewhere.org",
    ):
        answer = server.request("GET", path)
        assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("field", "body", "status", "errcode"),
    [
        ("displayname", {}, 400, "M_MISSING_PARAM"),
        ("displayname", {"displayname": 1}, 400, "M_BAD_JSON"),
        ("displayname", {"displayname": "x" * 257}, 400, "M_INVALID_PARAM"),
        ("avatar_url", {"avatar_url": "https://example.org/a"}, 400, "M_INVALID_PARAM"),
        ("m.tz", {"m.tz": {}}, 400, "M_BAD_JSON"),
        ("Upper", {"Upper": 1}, 400, "M_INVALID_PARAM"),
        ("has%20space", {"has space": 1}, 400, "M_INVALID_PARAM"),
        ("a" * 256, {"a" * 256: 1}, 400, "M_KEY_TOO_LARGE"),
        ("org.example.big", {"org.example.big": "x" * 65536}, 400, "M_PROFILE_TOO_LARGE"),
    ],
)
def test_invalid_values_are_refused(
    alice: User, field: str, body: object, status: int, errcode: str
) -> None:
    answer = alice.put(f"{ALICE}/{field}", body)
    assert (answer.status, answer.errcode) == (status, errcode)


def test_the_size_of_a_profile_is_bounded(server: AccountsServer, alice: User) -> None:
    for number in range(6):
        assert (
            alice.put(
                f"{ALICE}/org.example.f{number}", {f"org.example.f{number}": "x" * 10_000}
            ).status
            == 200
        )
    assert (
        alice.put(f"{ALICE}/org.example.last", {"org.example.last": "x" * 10_000}).errcode
        == "M_PROFILE_TOO_LARGE"
    )
    # a field that replaces a larger one fits
    assert alice.put(f"{ALICE}/org.example.f0", {"org.example.f0": "y" * 10_000}).status == 200
    assert len(server.request("GET", ALICE).body) < 65536


def test_broken_json_is_refused(server: AccountsServer, alice: User) -> None:
    broken = server.http.request(
        "PUT",
        f"/_matrix/client/v3/{ALICE}/org.example.x",
        token=alice.token,
        body=b'{"org.example.x": {"a": nul}}',
    )
    assert (broken.status, broken.errcode) == (400, "M_NOT_JSON")
    deep = b'{"org.example.x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    answer = server.http.request(
        "PUT", f"/_matrix/client/v3/{ALICE}/org.example.x", token=alice.token, body=deep
    )
    assert (answer.status, answer.errcode) == (400, "M_BAD_JSON")


def test_other_users_may_not_change_it(server: AccountsServer, alice: User) -> None:
    bob = server.register("bob")
    assert bob.put(f"{ALICE}/displayname", {"displayname": "Malice"}).errcode == "M_FORBIDDEN"
    assert bob.delete(f"{ALICE}/displayname").errcode == "M_FORBIDDEN"
    assert (
        server.request("PUT", f"{ALICE}/displayname", {"displayname": "x"}).errcode
        == "M_MISSING_TOKEN"
    )
    assert alice.is_signed_in()


def test_fixed_fields_cannot_be_changed(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, fixed_profile_fields=frozenset({"displayname"}))
    alice = server.register()
    assert alice.put(f"{ALICE}/displayname", {"displayname": "x"}).errcode == "M_FORBIDDEN"
    received = alice.get("capabilities").json["capabilities"]
    assert received["m.profile_fields"] == {"enabled": True, "disallowed": ["displayname"]}
    assert received["m.set_displayname"] == {"enabled": False}
    assert received["m.set_avatar_url"] == {"enabled": True}


async def test_rooms_get_changed_names_and_avatars(server: AccountsServer, alice: User) -> None:
    alice.put(f"{ALICE}/m.tz", {"m.tz": "UTC"})
    assert server.propagation.woken == []
    alice.put(f"{ALICE}/displayname", {"displayname": "Alice"})
    alice.put(f"{ALICE}/displayname", {"displayname": "Alice"})
    assert server.propagation.woken == [alice.id]
    first = await server.profile_store.get_propagations(10)
    alice.delete(f"{ALICE}/displayname")
    assert server.propagation.woken == [alice.id] * 2

    # the first change being done does not complete the second one
    remove = server.profile_store.remove_propagation
    assert not await server.database.write("t", remove, alice.id, first[alice.id])
    second = await server.profile_store.get_propagations(10)
    assert await server.database.write("t", remove, alice.id, second[alice.id])
    assert await server.profile_store.get_propagations(10) == {}

    alice.put(f"{ALICE}/displayname?org.matrix.msc4069.propagate=false", {"displayname": "Quiet"})
    assert await server.profile_store.get_propagations(10) == {}
    assert await server.profiles.get_names([alice.id]) == {alice.id: ("Quiet", None)}


def test_capabilities_name_the_changeable_fields(alice: User) -> None:
    received = alice.get("capabilities").json["capabilities"]
    assert received["m.room_versions"]["default"] == "12"
    assert received["m.room_versions"]["available"] == {
        str(number): "stable" for number in range(1, 13)
    }
    assert received["m.change_password"] == {"enabled": True}
    assert received["m.3pid_changes"] == received["m.get_login_token"] == {"enabled": False}

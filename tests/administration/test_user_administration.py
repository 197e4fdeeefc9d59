"""Administration of accounts by Synapse's paths: list, create and change."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from storage.accounts.policy_consents import PolicyConsentStore
from storage.engine.database import Database
from tests.helpers.logins import log_in
from tests.helpers.openid import CONFIG as PROVIDER
from tests.helpers.server import START, TestServer, User, make_admin, move_user

V2 = "/_synapse/admin/v2/users"
V3 = "/_synapse/admin/v3/users"
WHOAMI = "/_matrix/client/v3/account/whoami"


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database, PROVIDER)


def of(name: str) -> str:
    return f"{V2}/{quote(f'@{name}:example.org')}"


def names(root: User, query: str = "", path: str = V2) -> list[str]:
    answer = root.get(f"{path}?{query}")
    assert answer.status == 200, answer.body
    return [user["name"][1:].partition(":")[0] for user in answer.json["users"]]


def records(root: User, name: str) -> list[tuple[str, str | None]]:
    """Return events and administrators of the audit log, newest first."""
    answer = root.get(f"/_mahalla/admin/v1/users/@{name}:example.org/audit").json
    return [(record["event"], record["by"]) for record in answer["records"]]


def threepids(root: User, name: str) -> list[tuple[str, str]]:
    return sorted(
        (each["medium"], each["address"]) for each in root.get(of(name)).json["threepids"]
    )


def test_telephone_numbers_are_set_like_addresses(server: TestServer, root: User) -> None:
    mail, number = (
        {"medium": "email", "address": "a@x.org"},
        {"medium": "msisdn", "address": "+998 90 123-45-67"},
    )
    made = root.put(of("alice"), {"password": "wonderland", "threepids": [mail, number, number]})
    assert made.status == 201, made.body
    assert threepids(root, "alice") == [("email", "a@x.org"), ("msisdn", "998901234567")]
    assert root.put(of("bob"), {"threepids": [number]}).errcode == "M_THREEPID_IN_USE"
    kept = {"medium": "msisdn", "address": "998901234567"}
    assert (
        root.put(of("alice"), {"threepids": [kept]}).status == 200
    )  # the list is complete: the address is removed
    assert threepids(root, "alice") == [("msisdn", "998901234567")]
    assert records(root, "alice")[0] == ("address_removed", root.user_id)
    identifier = {"type": "m.id.thirdparty", "medium": "msisdn", "address": "998901234567"}
    body = {"type": "m.login.password", "identifier": identifier, "password": "wonderland"}
    assert server.post("/_matrix/client/v3/login", body).json["user_id"] == "@alice:example.org"
    assert root.put(of("alice"), {"threepids": []}).status == 200
    assert threepids(root, "alice") == []
    assert records(root, "alice")[0] == ("number_removed", root.user_id)
    assert root.put(of("bob"), {"threepids": [kept]}).status == 201


def test_consents_are_shown(server: TestServer, database: Database, root: User) -> None:
    alice = server.register("alice")
    details = root.get(of("alice")).json
    assert (details["consent_version"], details["consent_ts"]) == (None, None)
    now = int(server.clock.seconds() * 1000)
    consents = PolicyConsentStore(database)
    for versions, ts in (({"terms": "1.0"}, now - 1), ({"terms": "1.1", "privacy": "2.0"}, now)):
        server.run(database.write("t", consents.add_consents, alice.user_id, versions, ts))
    details = root.get(of("alice")).json
    assert (details["consent_version"], details["consent_ts"]) == ("2.0, 1.1", now)


def test_an_account_is_created_with_all_fields(server: TestServer, root: User) -> None:
    wanted = {
        "password": "wonderland",
        "displayname": "Alice Liddell",
        "avatar_url": "mxc://example.org/abc",
        "threepids": [{"medium": "email", "address": "Alice@Example.com"}],
        "external_ids": [{"auth_provider": "oidc-town", "external_id": "17"}],
        "admin": True,
        "user_type": "support",
    }
    made = root.put(of("alice"), wanted)
    assert made.status == 201, made.body
    now = int(START * 1000)
    expected = {
        "name": "@alice:example.org",
        "displayname": "Alice Liddell",
        "avatar_url": "mxc://example.org/abc",
        "threepids": [
            {
                "medium": "email",
                "address": "alice@example.com",
                "added_at": now,
                "validated_at": now,
            }
        ],
        "external_ids": [{"auth_provider": "oidc-town", "external_id": "17"}],
        "is_guest": False,
        "admin": True,
        "deactivated": False,
        "erased": False,
        "shadow_banned": False,
        "locked": False,
        "suspended": False,
        "creation_ts": int(START),
        "last_seen_ts": None,
        "appservice_id": None,
        "consent_server_notice_sent": None,
        "consent_version": None,
        "consent_ts": None,
        "user_type": "support",
    }
    assert made.json == expected
    assert root.get(of("alice")).json == expected
    repeated = root.put(of("alice"), expected)  # some tools send back the complete account
    assert (repeated.status, repeated.json) == (200, expected)
    assert log_in(server, "alice").status == 200
    assert root.get(of("alice")).json["last_seen_ts"] is None
    found = root.get("/_synapse/admin/v1/auth_providers/oidc-town/users/17").json
    assert found == {"user_id": "@alice:example.org"}


def test_an_account_can_be_created_without_a_password(server: TestServer, root: User) -> None:
    assert root.put(of("alice"), {}).status == 201
    assert log_in(server, "alice", "").status == 403
    assert root.get(of("alice")).json["displayname"] == "alice"
    assert records(root, "alice")[-1] == ("registered", root.user_id)


def test_invalid_and_taken_names_are_refused(server: TestServer, root: User) -> None:
    server.register("upper")
    address = [{"medium": "email", "address": "q@x.org"}]
    for name, errcode in (("Caps", "M_INVALID_USERNAME"), ("Upper", "M_USER_IN_USE")):
        refused = root.put(
            of(name), {"password": "wonderland", "admin": True, "threepids": address}
        )
        assert (refused.status, refused.errcode) == (400, errcode)
    assert root.get(of("caps")).status == 404
    assert (root.get(of("upper")).json["admin"], root.get(of("upper")).json["threepids"]) == (
        False,
        [],
    )
    assert root.put(of("caps"), {"threepids": address}).status == 201


def test_an_account_is_changed(server: TestServer, root: User) -> None:
    alice = server.register("alice")
    assert alice.get(WHOAMI).status == 200
    changed = root.put(
        of("alice"),
        {"displayname": "Queen", "threepids": [{"medium": "email", "address": "q@x.org"}]},
    )
    assert (changed.status, changed.json["displayname"]) == (200, "Queen")
    assert changed.json["last_seen_ts"] == int(START * 1000)
    changed = root.put(
        of("alice"), {"displayname": "", "avatar_url": None, "threepids": [], "external_ids": []}
    )
    assert (changed.json["displayname"], changed.json["threepids"]) == (None, [])
    assert root.put(of("alice"), {"locked": True}).json["locked"] is True
    assert alice.get(WHOAMI).errcode == "M_USER_LOCKED"
    assert root.put(of("alice"), {"locked": False, "admin": True}).json["admin"] is True
    assert root.put(of("alice"), {"user_type": "bot"}).json["user_type"] == "bot"
    assert root.put(of("alice"), {"user_type": None}).json["user_type"] is None
    assert (
        root.put(of("alice"), {"password": "looking-glass", "logout_devices": False}).status == 200
    )
    assert alice.get(WHOAMI).status == 200
    assert root.put(of("alice"), {"password": "through"}).status == 200
    assert alice.get(WHOAMI).status == 401
    assert log_in(server, "alice", "through").status == 200
    done = dict.fromkeys(event for event, by in records(root, "alice") if by == root.user_id)
    assert list(done) == [
        "password_changed",
        "user_type_changed",
        "unlocked",
        "admin_granted",
        "locked",
        "address_removed",
        "address_added",
    ]


def test_a_deactivated_account_stays_deactivated(server: TestServer, root: User) -> None:
    alice = server.register("alice")
    links = [{"auth_provider": "oidc-town", "external_id": "4"}]
    assert root.put(of("alice"), {"external_ids": links}).status == 200
    closed = root.put(of("alice"), {"deactivated": True})
    assert (closed.status, closed.json["deactivated"]) == (200, True)
    assert alice.get(WHOAMI).status == 401
    assert root.put(of("alice"), {"deactivated": True}).status == 200
    assert root.put(of("alice"), closed.json).status == 200
    for wrong in (
        {"deactivated": False},
        {"password": "new"},
        {"admin": True},
        {"locked": True},
        {"displayname": "Queen"},
        {"avatar_url": "mxc://example.org/abc"},
        {"user_type": "bot"},
        {"threepids": [{"medium": "email", "address": "q@x.org"}]},
        {"external_ids": [{"auth_provider": "oidc-town", "external_id": "17"}]},
    ):
        assert (root.put(of("alice"), wrong).status, root.put(of("alice"), wrong).errcode) == (
            400,
            "M_INVALID_PARAM",
        )
    assert (
        root.put("/_synapse/admin/v1/users/@alice:example.org/admin", {"admin": True}).status == 400
    )
    assert root.get(of("alice")).json == closed.json
    assert records(root, "alice").count(("deactivated", root.user_id)) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"deactivated": True, "locked": True}, 400),
        ({"user_type": "robot"}, 400),
        ({"admin": "yes"}, 400),
        ({"password": "x" * 513}, 400),
        ({"displayname": "x" * 1000}, 400),
        ({"avatar_url": "https://example.org/"}, 400),
        ({"threepids": [{"medium": "email"}]}, 400),
        ({"threepids": [{"medium": "email", "address": "no address"}]}, 400),
        ({"threepids": [{"medium": "email", "address": "taken@example.com"}]}, 400),
        ({"threepids": [{"medium": "msisdn", "address": "12345"}]}, 400),
        ({"threepids": [{"medium": "msisdn", "address": "+998 90 123 45 67 89 01 23 45 67"}]}, 400),
        ({"threepids": [{"medium": "fax", "address": "998901234567"}]}, 400),
        ({"external_ids": [{"auth_provider": "oidc-town"}]}, 400),
        ({"external_ids": [{"auth_provider": "nobody", "external_id": "1"}]}, 400),
        ({"external_ids": [{"auth_provider": "oidc-town", "external_id": "taken"}]}, 409),
        (
            {
                "external_ids": [
                    {"auth_provider": "oidc-town", "external_id": each} for each in "ab"
                ]
            },
            400,
        ),
    ],
)
def test_an_invalid_change_changes_nothing(
    server: TestServer, root: User, body: dict[str, Any], status: int
) -> None:
    other = {
        "threepids": [{"medium": "email", "address": "taken@example.com"}],
        "external_ids": [{"auth_provider": "oidc-town", "external_id": "taken"}],
    }
    assert root.put(of("other"), other).status == 201
    server.register("bob")
    before = root.get(of("bob")).json
    for name in ("alice", "bob"):
        answer = root.put(of(name), {"displayname": "Changed", **body})
        assert answer.status == status, answer.body
    assert root.get(of("alice")).errcode == "M_NOT_FOUND"
    assert root.get(of("bob")).json == before


def test_administrators_cannot_remove_their_own_rights(root: User) -> None:
    for body in ({"admin": False}, {"locked": True}, {"deactivated": True}):
        assert root.put(of("root"), body).status == 400
    assert (
        root.put(of("root"), {"admin": True, "locked": False, "displayname": "Root"}).status == 200
    )


def test_only_administrators_manage_accounts(server: TestServer, root: User) -> None:
    bob = server.register("bob")
    for answer in (
        bob.get(V2),
        bob.get(V3),
        bob.get(of("bob")),
        bob.put(of("bob"), {"admin": True}),
    ):
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
    assert server.get(V2).errcode == "M_MISSING_TOKEN"
    elsewhere = f"{V2}/{quote('@a:elsewhere.org')}"
    assert (root.get(elsewhere).status, root.put(elsewhere, {}).status) == (400, 400)
    assert root.get(f"{V2}/nobody").status == 400
    assert root.put(of("no name"), {}).status == 400


def test_lists_can_be_filtered(server: TestServer, root: User) -> None:
    for name in ("anna", "bruno", "clara"):
        server.register(name)
    server.post("/_matrix/client/v3/register?kind=guest")
    root.put(of("anna"), {"displayname": "Шахноза"})
    root.put(of("bruno"), {"locked": True})
    root.put(of("clara"), {"deactivated": True})
    root.put(of("robot"), {"user_type": "bot"})
    guest = next(name for name in names(root) if name not in {"anna", "robot", "root"})
    assert names(root) == sorted([guest, "anna", "robot", "root"])
    assert names(root, "guests=false&locked=true") == ["anna", "bruno", "robot", "root"]
    assert names(root, "guests=false&deactivated=true") == ["anna", "clara", "robot", "root"]
    assert names(root, "guests=false", V3) == ["anna", "clara", "robot", "root"]
    assert names(root, "deactivated=true", V3) == ["clara"]
    assert names(root, "guests=false&deactivated=false", V3) == ["anna", "robot", "root"]
    assert names(root, "admins=true") == ["root"]
    assert names(root, "guests=false&admins=false") == ["anna", "robot"]
    assert names(root, "not_user_type=bot&guests=false") == ["anna", "root"]
    assert names(root, "not_user_type=bot&not_user_type=") == []
    assert names(root, f"name={quote('шахн')}") == ["anna"]
    assert names(root, "name=RO&guests=false") == ["robot", "root"]
    assert names(root, "name=zzz") == []
    assert names(root, "user_id=%40ro") == ["robot", "root"]
    assert names(root, "user_id=%25") == []


def test_lists_are_ordered_and_paginated(server: TestServer, root: User) -> None:
    for name in ("anna", "bruno", "clara"):
        server.clock.advance(1)
        server.register(name)
    first = root.get(f"{V2}?limit=3").json
    assert (
        [user["name"][1:5] for user in first["users"]],
        first["next_token"],
        first["total"],
    ) == (
        ["anna", "brun", "clar"],
        "3",
        4,
    )
    assert first["users"][0] == {
        "name": "@anna:example.org",
        "user_type": None,
        "is_guest": False,
        "admin": False,
        "deactivated": False,
        "shadow_banned": False,
        "displayname": "anna",
        "avatar_url": None,
        "creation_ts": int(START * 1000) + 1000,
        "erased": False,
        "last_seen_ts": None,
        "locked": False,
    }
    last = root.get(f"{V2}?limit=3&from=3").json
    assert ("next_token" in last, len(last["users"])) == (False, 1)
    assert "next_token" not in root.get(f"{V2}?limit=100000000000").json
    assert root.get(f"{V2}?name=n&limit=1").json["next_token"] == "1"  # anna, bruno
    assert names(root, "order_by=creation_ts&dir=b") == ["clara", "bruno", "anna", "root"]
    assert names(root, "order_by=admin&dir=b") == [
        "root",
        "anna",
        "bruno",
        "clara",
    ]  # equal keys are ordered by id
    for order in (
        "displayname",
        "is_guest",
        "deactivated",
        "user_type",
        "avatar_url",
        "shadow_banned",
        "locked",
    ):
        assert len(names(root, f"order_by={order}&dir=b")) == 4
    assert names(root, "order_by=last_seen_ts&dir=b")[0] == "root"
    for wrong in ("order_by=age", "dir=up", "limit=-1", "from=-1", "limit=x", "guests=maybe"):
        assert (root.get(f"{V2}?{wrong}").status, root.get(f"{V2}?{wrong}").errcode) == (
            400,
            "M_INVALID_PARAM",
        )


def test_accounts_awaiting_approval_are_listed_and_approved(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database)
    root = make_admin(server)
    server = TestServer(tmp_path, sqlite_database, "registration_requires_approval: true\n", seed=2)
    root = move_user(server, root)
    body = {"username": "alice", "password": "wonderland", "auth": {"type": "m.login.dummy"}}
    assert server.post("/_matrix/client/v3/register", body).status == 403
    assert root.get(of("alice")).json["approved"] is False
    assert (names(root), names(root, "approved=false")) == (["root"], ["alice"])
    assert root.put(of("alice"), {"approved": True}).json["approved"] is True
    assert records(root, "alice")[0] == ("approved", root.user_id)
    assert log_in(server, "alice").status == 200
    assert root.put(of("alice"), {"approved": False}).json["approved"] is False
    assert root.get(f"{V2}?approved=false").json["users"][0]["approved"] is False


V1 = "/_synapse/admin/v1"


def test_single_actions_have_their_own_paths(server: TestServer, root: User) -> None:
    alice = server.register("alice")
    flag = f"{V1}/users/{alice.user_id}/admin"
    assert (root.get(flag).json, root.put(flag, {"admin": True}).json, root.get(flag).json) == (
        {"admin": False},
        {},
        {"admin": True},
    )
    assert root.put(flag, {"admin": False}).status == 200
    assert root.put(f"{V1}/users/{root.user_id}/admin", {"admin": False}).status == 400
    reset = f"{V1}/reset_password/{alice.user_id}"
    assert root.post(reset, {"new_password": "new", "logout_devices": False}).status == 200
    assert alice.get(WHOAMI).status == 200
    assert root.post(reset, {"new_password": "newer"}).status == 200
    assert alice.get(WHOAMI).status == 401
    assert log_in(server, "alice", "newer").status == 200
    assert root.post(reset, {}).status == 400
    seen = root.get(f"{V1}/whois/{alice.user_id}").json
    assert seen["user_id"] == alice.user_id
    assert root.get(f"{V1}/username_available?username=bob").json == {"available": True}
    assert root.get(f"{V1}/username_available?username=alice").errcode == "M_USER_IN_USE"
    assert root.get(f"{V1}/username_available?username=a%20b").errcode == "M_INVALID_USERNAME"
    closed = root.post(f"{V1}/deactivate/{alice.user_id}", {"erase": True})
    assert closed.json == {"id_server_unbind_result": "success"}
    details = root.get(of("alice")).json
    assert (details["deactivated"], details["erased"], details["displayname"]) == (True, True, None)
    assert ("deactivated", root.user_id) in records(root, "alice")


def test_single_actions_refuse_oneself_and_unknown_users(server: TestServer, root: User) -> None:
    bob = server.register("bob")
    assert (
        server.client.request("POST", f"{V1}/deactivate/{bob.user_id}", token=root.token).status
        == 200
    )
    assert root.post(f"{V1}/deactivate/{root.user_id}", {}).status == 400
    for user_id, status in (("@nobody:example.org", 404), ("@a:elsewhere.org", 400)):
        assert root.post(f"{V1}/deactivate/{user_id}", {}).status == status
        assert root.post(f"{V1}/reset_password/{user_id}", {"new_password": "x"}).status == status
        assert root.get(f"{V1}/users/{user_id}/admin").status == status
        assert root.put(f"{V1}/users/{user_id}/admin", {"admin": True}).status == status
    assert root.get(f"{V2}/{quote('@nobody:example.org')}").status == 404
    carol = server.register("carol")
    assert carol.get(f"{V1}/users/{carol.user_id}/admin").errcode == "M_FORBIDDEN"

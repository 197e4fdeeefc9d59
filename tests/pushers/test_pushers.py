"""Pushers, as clients set, see and lose them."""

from pathlib import Path
from typing import Any

import pytest

from storage.engine.database import Database
from tests.helpers.logins import another_device, password_auth
from tests.helpers.push_gateway import URL, pusher, set_pusher
from tests.helpers.server import TestServer, User

V3 = "/_matrix/client/v3"


def keys(user: User) -> list[str]:
    return [each["pushkey"] for each in user.get(f"{V3}/pushers").json["pushers"]]


def test_a_pusher_is_set_and_listed(alice: User) -> None:
    assert alice.get(f"{V3}/pushers").json == {"pushers": []}
    answer = set_pusher(
        alice, profile_tag="work", data={"url": URL, "format": "event_id_only", "further": [1]}
    )
    assert (answer.status, answer.json) == (200, {})
    assert alice.get(f"{V3}/pushers").json["pushers"] == [
        {
            "kind": "http",
            "app_id": "org.example.app",
            "pushkey": "key",
            "app_display_name": "App",
            "device_display_name": "Telephone",
            "profile_tag": "work",
            "lang": "en",
            "data": {"url": URL, "format": "event_id_only", "further": [1]},
            "org.matrix.msc3881.enabled": True,
            "org.matrix.msc3881.device_id": alice.device_id,
        }
    ]


def test_setting_a_pusher_again_changes_it(alice: User) -> None:
    set_pusher(alice)
    set_pusher(alice, lang="uz")
    [shown] = alice.get(f"{V3}/pushers").json["pushers"]
    assert shown["lang"] == "uz"
    assert "profile_tag" not in shown
    set_pusher(alice, app_id="org.example.other")
    assert len(keys(alice)) == 2


def test_a_pusher_is_removed(alice: User) -> None:
    set_pusher(alice, "one")
    set_pusher(alice, "two")
    removal = {"kind": None, "app_id": "org.example.app", "pushkey": "one"}
    assert alice.post(f"{V3}/pushers/set", removal).status == 200
    assert keys(alice) == ["two"]
    assert alice.post(f"{V3}/pushers/set", removal).status == 200, "what is gone is no error"


def test_a_pushkey_belongs_to_the_last_user_unless_appended(
    server: TestServer, alice: User
) -> None:
    bob, carol = server.register("bob"), server.register("carol")
    set_pusher(alice)
    set_pusher(bob, append=True)
    assert (keys(alice), keys(bob)) == (["key"], ["key"])
    set_pusher(carol)
    assert (keys(alice), keys(bob), keys(carol)) == ([], [], ["key"])


@pytest.mark.parametrize(
    ("further", "errcode"),
    [
        ({"data": None}, "M_MISSING_PARAM"),
        ({"lang": None}, "M_MISSING_PARAM"),
        ({"data": {}}, "M_MISSING_PARAM"),
        ({"data": {"url": 1}}, "M_INVALID_PARAM"),
        ({"data": {"url": "https://push.example.com/other"}}, "M_INVALID_PARAM"),
        ({"data": {"url": "http://push.example.com/_matrix/push/v1/notify"}}, "M_INVALID_PARAM"),
        ({"data": {"url": "ftp://push.example.com/_matrix/push/v1/notify"}}, "M_INVALID_PARAM"),
        (
            {"data": {"url": "https://a:b@push.example.com/_matrix/push/v1/notify"}},
            "M_INVALID_PARAM",
        ),
        ({"data": {"url": "https:///_matrix/push/v1/notify"}}, "M_INVALID_PARAM"),
        ({"data": {"url": "https://[::1/_matrix/push/v1/notify"}}, "M_INVALID_PARAM"),
        ({"data": {"url": URL + "#x"}}, "M_INVALID_PARAM"),
        ({"data": {"url": URL, "format": "everything"}}, "M_INVALID_PARAM"),
        ({"data": {"url": URL, "more": "x" * 20_000}}, "M_INVALID_PARAM"),
        ({"app_id": "x" * 65}, "M_INVALID_PARAM"),
        ({"app_id": ""}, "M_INVALID_PARAM"),
        ({"pushkey": "ў" * 257}, "M_INVALID_PARAM"),
        ({"pushkey": ""}, "M_INVALID_PARAM"),
        ({"pushkey": 1}, "M_BAD_JSON"),
        ({"lang": "x" * 600}, "M_INVALID_PARAM"),
        ({"kind": "pigeon"}, "M_INVALID_PARAM"),
        ({"kind": "email", "app_id": "m.email", "pushkey": "a@example.org"}, "M_INVALID_PARAM"),
    ],
)
def test_invalid_pushers_are_refused(alice: User, further: dict[str, Any], errcode: str) -> None:
    answer = set_pusher(alice, **further)
    assert (answer.status, answer.errcode) == (400, errcode)
    assert keys(alice) == []


def test_the_kind_of_a_pusher_is_required(alice: User) -> None:
    body = pusher()
    del body["kind"]
    assert alice.post(f"{V3}/pushers/set", body).errcode == "M_MISSING_PARAM"


def test_plain_http_is_allowed_if_configured(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "push: {allow_plain_http: true}")
    alice = server.register("alice")
    url = "http://127.0.0.1:5000/_matrix/push/v1/notify"
    assert set_pusher(alice, data={"url": url}).status == 200


def test_the_number_of_pushers_of_an_account_is_limited(alice: User) -> None:
    for number in range(100):
        assert set_pusher(alice, f"key{number}").status == 200
    assert set_pusher(alice, "one more").errcode == "M_FORBIDDEN"
    assert set_pusher(alice, "key0").status == 200


def test_a_pusher_ends_with_the_session_that_set_it(alice: User) -> None:
    other = another_device(alice)
    set_pusher(alice, "first")
    set_pusher(other, "second")
    assert alice.post(f"{V3}/logout").status == 200
    assert keys(other) == ["second"]


def test_a_pusher_ends_when_its_device_is_removed(alice: User) -> None:
    other = another_device(alice)
    set_pusher(other)
    auth = password_auth("alice")
    assert alice.delete(f"{V3}/devices/{other.device_id}", {"auth": auth}).status == 200
    assert keys(alice) == []


@pytest.mark.parametrize("logs_out", [True, False])
def test_a_password_change_deletes_pushers_of_ended_sessions(alice: User, logs_out: bool) -> None:
    other = another_device(alice)
    set_pusher(alice, "mine")
    set_pusher(other, "other")
    auth = password_auth("alice")
    body = {"new_password": "looking-glass", "logout_devices": logs_out, "auth": auth}
    assert alice.post(f"{V3}/account/password", body).status == 200
    assert keys(alice) == (["mine"] if logs_out else ["mine", "other"])


def test_all_pushers_end_with_the_account(server: TestServer, alice: User) -> None:
    set_pusher(alice)
    auth = password_auth("alice")
    assert alice.post(f"{V3}/account/deactivate", {"auth": auth}).status == 200
    store = server.app.accounts.stores.pushers
    assert server.run(store.get_pushers([alice.user_id])) == {}


def test_another_session_can_disable_a_pusher_without_owning_it(
    server: TestServer, alice: User
) -> None:
    assert (
        server.get("/_matrix/client/versions").json["unstable_features"]["org.matrix.msc3881"]
        is True
    )
    set_pusher(alice)
    other = another_device(alice)
    set_pusher(other, **{"org.matrix.msc3881.enabled": False})
    [shown] = other.get(f"{V3}/pushers").json["pushers"]
    assert shown["org.matrix.msc3881.enabled"] is False
    assert shown["org.matrix.msc3881.device_id"] == alice.device_id
    set_pusher(other)
    [shown] = other.get(f"{V3}/pushers").json["pushers"]
    assert shown["org.matrix.msc3881.enabled"] is True
    assert shown["org.matrix.msc3881.device_id"] == other.device_id, (
        "an app that was signed in anew sets it anew"
    )


def test_guests_and_unauthenticated_callers_cannot_set_pushers(server: TestServer) -> None:
    guest = User(server, server.post(f"{V3}/register?kind=guest", {}).json)
    assert guest.get(f"{V3}/pushers").errcode == "M_GUEST_ACCESS_FORBIDDEN"
    assert server.get(f"{V3}/pushers").errcode == "M_MISSING_TOKEN"

"""The access of suspended users to each endpoint that does more than read.

spec: client-server-api#account-suspension
"""

import re
from itertools import count
from pathlib import Path

import pytest

from homeserver.api.endpoint import Auth, find_declaration
from homeserver.wiring.endpoints import SOURCES
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from tests.helpers.room_actions import create, say
from tests.helpers.server import TestServer, User

ALLOWED = """
POST /_matrix/client/unstable/account_validity/send_mail
POST /_matrix/client/unstable/io.element.msc4388/rendezvous
POST /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{device_id}/events
POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync
PUT /_matrix/client/v1/dehydrated_device
DELETE /_matrix/client/v1/dehydrated_device
POST /_matrix/client/v1/login/get_token
PUT /_matrix/client/v1/rooms/{room_id}/thread/{root}/subscription
DELETE /_matrix/client/v1/rooms/{room_id}/thread/{root}/subscription
POST /_matrix/client/v3/account/3pid/add
POST /_matrix/client/v3/account/deactivate
POST /_matrix/client/v3/account/password
POST /_matrix/client/v3/delete_devices
PUT /_matrix/client/v3/devices/{device_id}
DELETE /_matrix/client/v3/devices/{device_id}
POST /_matrix/client/v3/keys/claim
POST /_matrix/client/v3/keys/device_signing/upload
POST /_matrix/client/v3/keys/query
POST /_matrix/client/v3/keys/signatures/upload
POST /_matrix/client/v3/keys/upload
POST /_matrix/client/v3/logout
POST /_matrix/client/v3/logout/all
POST /_matrix/client/v3/publicRooms
POST /_matrix/client/v3/pushers/set
PUT /_matrix/client/v3/pushrules/global/{kind}/{rule_id}
DELETE /_matrix/client/v3/pushrules/global/{kind}/{rule_id}
PUT /_matrix/client/v3/pushrules/global/{kind}/{rule_id}/actions
PUT /_matrix/client/v3/pushrules/global/{kind}/{rule_id}/enabled
PUT /_matrix/client/v3/room_keys/keys
DELETE /_matrix/client/v3/room_keys/keys
PUT /_matrix/client/v3/room_keys/keys/{room_id}
DELETE /_matrix/client/v3/room_keys/keys/{room_id}
PUT /_matrix/client/v3/room_keys/keys/{room_id}/{session_id}
DELETE /_matrix/client/v3/room_keys/keys/{room_id}/{session_id}
POST /_matrix/client/v3/room_keys/version
PUT /_matrix/client/v3/room_keys/version/{version}
DELETE /_matrix/client/v3/room_keys/version/{version}
POST /_matrix/client/v3/rooms/{room_id}/forget
POST /_matrix/client/v3/rooms/{room_id}/leave
POST /_matrix/client/v3/rooms/{room_id}/read_markers
POST /_matrix/client/v3/rooms/{room_id}/receipt/{receipt_type}/{event_id}
POST /_matrix/client/v3/rooms/{room_id}/report
POST /_matrix/client/v3/rooms/{room_id}/report/{event_id}
POST /_matrix/client/v3/search
PUT /_matrix/client/v3/user/{user_id}/account_data/{type_}
DELETE /_matrix/client/v3/user/{user_id}/account_data/{type_}
POST /_matrix/client/v3/user/{user_id}/filter
POST /_matrix/client/v3/user/{user_id}/openid/request_token
PUT /_matrix/client/v3/user/{user_id}/rooms/{room_id}/account_data/{type_}
DELETE /_matrix/client/v3/user/{user_id}/rooms/{room_id}/account_data/{type_}
PUT /_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags/{tag}
DELETE /_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags/{tag}
POST /_matrix/client/v3/user_directory/search
POST /_matrix/client/v3/users/{user_id}/report
POST /_matrix/client/v4/sync
POST /_matrix/media_proxy/unstable/download_encrypted
POST /_matrix/media_proxy/unstable/scan_encrypted
"""
PARTLY_ALLOWED = """
PUT /_matrix/client/v3/rooms/{room_id}/redact/{event_id}/{txn_id}
PUT /_matrix/client/v3/rooms/{room_id}/send/{event_type}/{txn_id}
PUT /_matrix/client/v3/rooms/{room_id}/state/{event_type}/{state_key}
PUT /_matrix/client/v3/sendToDevice/{event_type}/{txn_id}
"""
"""Allowed for their own content: see `tests/administration/test_suspended_and_locked_users.py` and
`tests/administration/test_suspended_encryption.py`."""
REFUSED = """
DELETE /_mahalla/client/v1/media/{media_id}
POST /_matrix/client/v3/account/3pid
POST /_matrix/client/v3/account/3pid/bind
POST /_matrix/client/v3/account/3pid/delete
POST /_matrix/client/v3/account/3pid/unbind
POST /_matrix/client/v3/createRoom
PUT /_matrix/client/v3/directory/list/room/{room_id}
PUT /_matrix/client/v3/directory/room/{room_alias}
DELETE /_matrix/client/v3/directory/room/{room_alias}
POST /_matrix/client/v3/join/{room_id_or_alias}
POST /_matrix/client/v3/knock/{room_id_or_alias}
PUT /_matrix/client/v3/presence/{user_id}/status
PUT /_matrix/client/v3/profile/{user_id}/{field}
DELETE /_matrix/client/v3/profile/{user_id}/{field}
POST /_matrix/client/v3/rooms/{room_id}/ban
PUT /_matrix/client/v3/rooms/{room_id}/delayed_event/{event_type}/{txn_id}
POST /_matrix/client/v3/rooms/{room_id}/invite
POST /_matrix/client/v3/rooms/{room_id}/join
POST /_matrix/client/v3/rooms/{room_id}/kick
PUT /_matrix/client/v3/rooms/{room_id}/typing/{user_id}
POST /_matrix/client/v3/rooms/{room_id}/unban
POST /_matrix/client/v3/rooms/{room_id}/upgrade
POST /_matrix/media/v1/create
POST /_matrix/media/v3/upload
PUT /_matrix/media/v3/upload/{server_name}/{media_id}
"""
OTHERS = frozenset({Auth.NONE, Auth.SERVER, Auth.ADMIN, Auth.APPSERVICE})
_numbers = count()


def rows(table: str) -> list[str]:
    return table.split("\n")[1:-1]


def declared() -> set[str]:
    """Return the endpoints of users that do more than read."""
    found = [
        declaration
        for source in SOURCES
        for each in vars(source).values()
        if (declaration := find_declaration(each)) is not None
        and each.__module__ == source.__name__
    ]
    return {
        f"{each.method} {each.paths[0]}"
        for each in found
        if each.method not in ("GET", "HEAD") and each.auth not in OTHERS
    }


def test_the_tables_list_every_endpoint() -> None:
    listed = [*rows(ALLOWED), *rows(PARTLY_ALLOWED), *rows(REFUSED)]
    assert sorted(declared()) == sorted(listed)


async def suspend(database: Database, user: User) -> None:
    accounts = AccountStore(database)
    await database.write("set_flags", accounts.set_flags, user.user_id, suspended=True)


def ask(user: User, room_id: str, event_id: str, row: str) -> str | None:
    """Send a request to an endpoint; return the errcode of the response."""
    values = {
        "user_id": user.user_id,
        "room_id": room_id,
        "event_id": event_id,
        "root": event_id,
        "room_id_or_alias": room_id,
    }
    values |= {
        "device_id": str(user.device_id),
        "receipt_type": "m.read",
        "kind": "room",
        "rule_id": room_id,
    }
    method, path = row.split(" ")
    path = re.sub(r"\{(\w+)\}", lambda name: values.get(name[1], f"x{next(_numbers)}"), path)
    answer = user.server.client.request(method, path, token=user.token, json={})
    errcode = answer.json.get("errcode") if answer.body else None
    return None if errcode is None else str(errcode)


@pytest.mark.parametrize("row", rows(ALLOWED))
async def test_suspended_users_can_use_these_endpoints(
    server: TestServer, sqlite_database: Database, row: str
) -> None:
    alice = server.register("alice")
    room_id = create(alice)
    event_id = say(alice, room_id, "here I am")
    await suspend(sqlite_database, alice)
    is_served = "media_proxy" not in row  # it needs a scanner
    assert ask(alice, room_id, event_id, row) not in (
        "M_USER_SUSPENDED",
        "M_UNRECOGNIZED" if is_served else None,
    )


@pytest.mark.parametrize("row", rows(REFUSED))
async def test_suspended_users_cannot_use_these_endpoints(
    server: TestServer, sqlite_database: Database, row: str
) -> None:
    alice = server.register("alice")
    room_id = create(alice)
    event_id = say(alice, room_id, "here I am")
    assert ask(alice, room_id, event_id, row) != "M_USER_SUSPENDED"
    await suspend(sqlite_database, alice)
    assert ask(alice, room_id, event_id, row) == "M_USER_SUSPENDED"


def test_suspended_users_can_sign_in_further_devices(
    tmp_path: Path, sqlite_database: Database
) -> None:
    """With a login token of an existing device."""
    server = TestServer(
        tmp_path,
        sqlite_database,
        "login_via_existing_session: {enabled: true, require_ui_auth: false}\n",
    )
    alice = server.register("alice")
    server.run(suspend(server.app.database, alice))
    given = alice.post("/_matrix/client/v1/login/get_token", {})
    assert given.status == 200, given.body
    answer = server.post(
        "/_matrix/client/v3/login", {"type": "m.login.token", "token": given.json["login_token"]}
    )
    assert answer.status == 200, answer.body
    assert answer.json["user_id"] == alice.user_id

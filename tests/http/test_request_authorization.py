"""Authentication and authorisation of requests."""

from pathlib import Path
from typing import Any

import pytest

from federation.api.request import Peer, RequestContext
from federation.peers.token_buckets import Rate
from federation.protocol.errors import Forbidden, Unauthorized
from federation.protocol.ids import DeviceID, ServerName, UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from storage.engine.database import Database
from tests.helpers.http import Client, client_for
from tests.helpers.server import TestServer
from tests.http import endpoints
from tests.http.conftest import TOKENS
from tests.http.endpoints import Bell

OBJECT = "/_matrix/client/v3/message"
WHO = "/_matrix/client/v3/who"
LOGOUT = "/_matrix/client/v3/logout"
ADMIN = "/_synapse/admin/v1/thing"


def test_missing_and_unknown_tokens_are_refused(client: Client) -> None:
    missing, unknown = (
        client.request("POST", OBJECT),
        client.request("POST", OBJECT, token="stolen"),
    )
    assert (missing.status, missing.errcode) == (401, "M_MISSING_TOKEN")
    assert (unknown.status, unknown.errcode) == (401, "M_UNKNOWN_TOKEN")


def test_an_expired_token_is_a_soft_logout(client: Client) -> None:
    assert client.request("POST", OBJECT, token="old").json["soft_logout"] is True


def test_a_token_in_the_query_is_accepted_unless_switched_off(client: Client) -> None:
    assert client.request("POST", OBJECT + "?access_token=alice").status == 200
    strict = client_for([endpoints], {Bell: Bell()}, tokens=TOKENS, token_in_query=False)
    assert strict.request("POST", OBJECT + "?access_token=alice").errcode == "M_MISSING_TOKEN"


def test_accept_token_in_query_switches_tokens_in_queries_off(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, "accept_token_in_query: false\n")
    alice = server.register("alice")
    assert (
        server.get(f"/_matrix/client/v3/account/whoami?access_token={alice.token}").errcode
        == "M_MISSING_TOKEN"
    )
    assert alice.get("/_matrix/client/v3/account/whoami").json["user_id"] == alice.user_id


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Basic YTpi", "alice", ""])
def test_a_header_without_a_token_is_a_missing_token(client: Client, header: str) -> None:
    response = client.request("POST", OBJECT, headers={"Authorization": header})
    assert (response.status, response.errcode) == (401, "M_MISSING_TOKEN")


def test_the_scheme_is_case_insensitive(client: Client) -> None:
    assert client.request("POST", OBJECT, headers={"Authorization": "bearer alice"}).status == 200


def test_optional_authentication_accepts_no_token_but_no_invalid_one(client: Client) -> None:
    assert client.request("GET", WHO).json["user_id"] is None
    assert client.request("GET", WHO, token="alice").json["user_id"] == "@alice:example.org"
    assert client.request("GET", WHO, token="stolen").errcode == "M_UNKNOWN_TOKEN"


@pytest.mark.parametrize("token", ["stolen", "old", "locked"])
def test_an_invalid_token_counts_as_none_with_auth_if_usable(client: Client, token: str) -> None:
    path = "/_matrix/client/v3/anybody"
    assert client.request("GET", path, token="alice").json["user_id"] == "@alice:example.org"
    assert client.request("GET", WHO, token=token).status == 401
    response = client.request("GET", path, token=token)
    assert (response.status, response.json) == (200, {"user_id": None})
    assert client.request("GET", path, headers={"Authorization": "Basic YTpi"}).json == {
        "user_id": None
    }


def test_guests_are_admitted_only_where_declared(client: Client) -> None:
    refused = client.request("POST", OBJECT, token="guest")
    assert (refused.status, refused.errcode) == (403, "M_GUEST_ACCESS_FORBIDDEN")
    assert not client.start("GET", "/_matrix/client/v3/sync", token="guest").done


def test_a_locked_user_can_only_log_out(client: Client) -> None:
    refused = client.request("POST", OBJECT, token="locked")
    assert (refused.status, refused.errcode, refused.json["soft_logout"]) == (
        401,
        "M_USER_LOCKED",
        True,
    )
    assert client.request("POST", LOGOUT, token="locked").status == 200


def test_a_suspended_user_may_read_and_log_out(client: Client) -> None:
    refused = client.request("POST", OBJECT, token="suspended")
    assert (refused.status, refused.errcode) == (403, "M_USER_SUSPENDED")
    assert client.request("GET", WHO, token="suspended").status == 200
    assert client.request("POST", LOGOUT, token="suspended").status == 200


def test_admin_endpoints_require_an_administrator(client: Client) -> None:
    assert client.request("GET", ADMIN, token="alice").errcode == "M_FORBIDDEN"
    assert client.request("GET", ADMIN, token="admin").json == {"colour": "blue"}


class _Bridge:
    """One application service, `irc`, for users `@irc_…`."""

    async def get_requester(
        self, token: str, user_id: str | None, device_id: str | None, _context: RequestContext
    ) -> Requester | None:
        if token != "bridge":
            return None
        user_id = user_id or "@irc:example.org"
        if not user_id.startswith("@irc"):
            raise Forbidden("This user is not the application service's")
        device = None if device_id is None else DeviceID(device_id)
        return Requester(UserID(user_id), device, 0, appservice_id="irc")


class _Signatures:
    """Accepts the header `X-Matrix good`."""

    def check_head(self, authorization: list[str], uri: str) -> None:
        if authorization != ["X-Matrix good"]:
            raise Unauthorized

    async def get_peer(
        self, authorization: list[str], method: str, uri: str, body: bytes, address: str = ""
    ) -> Peer:
        self.check_head(authorization, uri)
        return Peer(ServerName(f"{method} {uri} {body.decode()}"))


@endpoint("POST", "/ping", auth=Auth.APPSERVICE)
async def post_ping(caller: Requester) -> Any:
    return [caller.user_id, caller.device_id, caller.appservice_id]


@endpoint("PUT", "/send/{txn}", auth=Auth.SERVER)
async def put_send(peer: Peer, *, txn: str, body: dict[str, Any]) -> Any:
    return [peer.server_name, txn, body]


def test_an_application_service_acts_for_its_users() -> None:
    client = client_for([post_ping], {}, tokens=TOKENS, appservices=_Bridge())
    assert client.request("POST", "/ping", token="bridge").json == ["@irc:example.org", None, "irc"]
    path = "/ping?user_id=@irc_bob:example.org&device_id=B"
    assert client.request("POST", path, token="bridge").json == ["@irc_bob:example.org", "B", "irc"]
    assert (
        client.request("POST", "/ping?user_id=@alice:example.org", token="bridge").errcode
        == "M_FORBIDDEN"
    )
    assert client.request("POST", "/ping", token="alice").errcode == "M_FORBIDDEN"


def test_a_server_is_authenticated_by_its_signature() -> None:
    client = client_for([put_send], {}, signatures=_Signatures())
    response = client.request(
        "PUT", "/send/a%2Fb?x=1", json={}, headers={"Authorization": "X-Matrix good"}
    )
    assert response.json == ["PUT /send/a%2Fb?x=1 {}", "a/b", {}]
    assert client.request("PUT", "/send/1", json={}, token="alice").errcode == "M_UNAUTHORIZED"


def test_malformed_requests_count_and_are_reported_only_to_authenticated_callers() -> None:
    """A malformed query does not bypass a rate limit or a signature check."""
    rates = {Limit.LOGIN: Rate(1, 2), Limit.MESSAGE: Rate(1, 2)}
    client = client_for(
        [put_send, endpoints.post_login, endpoints.post_message],
        {},
        tokens=TOKENS,
        signatures=_Signatures(),
        rates=rates,
    )
    assert client.request("PUT", "/send/1?x=%FF", json={}).errcode == "M_UNAUTHORIZED"
    good = {"Authorization": "X-Matrix good"}
    assert (
        client.request("PUT", "/send/1?x=%FF", json={}, headers=good).errcode == "M_INVALID_PARAM"
    )
    for path, token in (("login", None), ("message", "alice")):
        errcodes = [
            client.request("POST", f"/_matrix/client/v3/{path}?x=%FF", token=token).errcode
            for _ in range(3)
        ]
        assert errcodes == ["M_INVALID_PARAM", "M_INVALID_PARAM", "M_LIMIT_EXCEEDED"]

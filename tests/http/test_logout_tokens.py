"""Logout tokens of OpenID providers count once, on whichever node. spec:
openid-connect-backchannel-1_0#Validation"""

from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from homeserver.services.upstream.oidc.tokens import LEEWAY, LOGOUT_EVENT, OLDEST_LOGOUT
from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.openid import CONFIG, LOGOUT, TEMPLATES, OpenIDProvider
from tests.helpers.server import TestServer, User
from tests.helpers.upstream import sign_in


@pytest.fixture
def provider() -> OpenIDProvider:
    return OpenIDProvider()


@pytest.fixture
def linked(tmp_path: Path, database: Database, provider: OpenIDProvider) -> TestServer:
    return TestServer(
        tmp_path,
        database,
        CONFIG + "  backchannel_logout_enabled: true\n" + TEMPLATES,
        web=provider,
    )


def tell(server: TestServer, token: str) -> int:
    return server.post(LOGOUT, body=urlencode({"logout_token": token}).encode()).status


def is_in(user: User) -> bool:
    return user.get("/_matrix/client/v3/account/whoami").status == 200


@pytest.mark.parametrize("names", ["by jti", "not at all"])
def test_a_logout_token_counts_once(
    linked: TestServer, provider: OpenIDProvider, names: str
) -> None:
    """Who has got hold of one (in a log, say) does not end what somebody began after that."""
    sign_in(linked, provider, Browser(linked), sid="p")

    def token(**claims: Any) -> str:
        said = provider.claims(sub="1", events={LOGOUT_EVENT: {}}, **claims)
        return provider.sign(
            {name: value for name, value in said.items() if name != "jti" or names == "by jti"}
        )

    told = token()
    assert [tell(linked, told), tell(linked, told)] == [200, 400]
    linked.clock.advance(200)
    provider.now += 200
    again = sign_in(linked, provider, Browser(linked), sid="q")
    assert tell(linked, told) == 400
    if names == "by jti":  # whatever else is signed with it
        jti = msgspec.json.decode(urlsafe_b64decode(told.split(".")[1] + "=="))["jti"]
        assert tell(linked, token(jti=jti, sid="q")) == 400
    assert is_in(again)
    assert tell(linked, token(sid="q")) == 200
    assert not is_in(again)


def test_logout_tokens_are_remembered_while_they_would_be_good(
    linked: TestServer, provider: OpenIDProvider
) -> None:
    def count() -> int:
        sql = "SELECT COUNT(*) FROM taken_logout_tokens"
        found = linked.run(linked.app.database.read("count", lambda txn: txn.query(sql)))
        return int(found[0][0])

    for number in range(3):
        assert (
            tell(
                linked, provider.sign(provider.claims(sid=f"s{number}", events={LOGOUT_EVENT: {}}))
            )
            == 200
        )
    assert count() == 3
    for seconds, left in (
        (OLDEST_LOGOUT + 1, 4),
        (LEEWAY, 2),
    ):  # the clock of another node may be behind
        linked.clock.advance(seconds)
        provider.now += seconds
        assert (
            tell(linked, provider.sign(provider.claims(sid="p", events={LOGOUT_EVENT: {}}))) == 200
        )
        assert count() == left

"""Logout tokens of OpenID providers are accepted once, on any node.

spec: openid-connect-backchannel-1_0#Validation
"""

from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import msgspec
import pytest

from homeserver.services.upstream.oidc.tokens import LEEWAY, LOGOUT_EVENT, MAX_LOGOUT_TOKEN_AGE
from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.openid import CONFIG, TEMPLATES, OpenIDProvider
from tests.helpers.server import TestServer
from tests.helpers.upstream import is_signed_in, post_logout_token, send_logout_token, sign_in


@pytest.fixture
def linked(tmp_path: Path, database: Database, provider: OpenIDProvider) -> TestServer:
    return TestServer(
        tmp_path,
        database,
        CONFIG + "  backchannel_logout_enabled: true\n" + TEMPLATES,
        web=provider,
    )


@pytest.mark.parametrize("names", ["by jti", "not at all"])
def test_a_logout_token_is_accepted_once(
    linked: TestServer, provider: OpenIDProvider, names: str
) -> None:
    """A replayed token (from a log, for example) does not end sessions begun after its use."""
    sign_in(linked, provider, Browser(linked), sid="p")

    def token(**claims: Any) -> str:
        claims_of_token = provider.claims(sub="1", events={LOGOUT_EVENT: {}}, **claims)
        return provider.sign(
            {
                name: value
                for name, value in claims_of_token.items()
                if name != "jti" or names == "by jti"
            }
        )

    logout_token = token()
    assert [post_logout_token(linked, logout_token), post_logout_token(linked, logout_token)] == [
        200,
        400,
    ]
    linked.clock.advance(200)
    provider.now += 200
    second_session = sign_in(linked, provider, Browser(linked), sid="q")
    assert post_logout_token(linked, logout_token) == 400
    if names == "by jti":  # another token with the same jti is refused too
        jti = msgspec.json.decode(urlsafe_b64decode(logout_token.split(".")[1] + "=="))["jti"]
        assert post_logout_token(linked, token(jti=jti, sid="q")) == 400
    assert is_signed_in(second_session)
    assert post_logout_token(linked, token(sid="q")) == 200
    assert not is_signed_in(second_session)


def test_used_logout_tokens_are_stored_until_they_expire(
    linked: TestServer, provider: OpenIDProvider
) -> None:
    def count() -> int:
        sql = "SELECT COUNT(*) FROM used_logout_tokens"
        found = linked.run(linked.app.database.read("count", lambda txn: txn.query(sql)))
        return int(found[0][0])

    for number in range(3):
        assert send_logout_token(linked, provider, sid=f"s{number}") == 200
    assert count() == 3
    for seconds, left in (
        (MAX_LOGOUT_TOKEN_AGE + 1, 4),
        (LEEWAY, 2),
    ):  # the clock of another node may be behind
        linked.clock.advance(seconds)
        provider.now += seconds
        assert send_logout_token(linked, provider, sid="p") == 200
        assert count() == left

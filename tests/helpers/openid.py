"""An in-memory OpenID provider. It answers correctly unless a test changes it; the test chooses the
user who signs in.

provider = OpenIDProvider()
server = TestServer(tmp_path, database, provider.config(), web=provider)
browser.open(…)                      # leaves for the provider
browser.open(provider.sign_in(browser.location, sub="1", preferred_username="alice"))
"""

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import msgspec
from joserfc import jwt
from joserfc.jwk import OKPKey, RSAKey

from federation.http_client.client import WebResponse
from federation.http_client.errors import OutboundError
from tests.helpers.server import START

ISSUER = "https://login.example.com"
CALLBACK = "/_synapse/client/oidc/callback"
LOGOUT = "/_synapse/client/oidc/backchannel_logout"
CONFIG = """
public_baseurl: https://matrix.example.org/
oidc_providers:
- idp_id: town
  idp_name: Town hall
  issuer: https://login.example.com
  client_id: matrix
  client_secret: open sesame
  scopes: [openid, profile]
"""
TEMPLATES = """
  user_mapping_provider:
    config:
      localpart_template: "{{ user.preferred_username }}"
      display_name_template: "{{ user.name }}"
      email_template: "{{ user.email }}"
      picture_template: "{{ user.picture }}"
"""


@cache
def first_key() -> RSAKey:
    """Return the first key of every provider. Cached, since generating a key is slow."""
    return RSAKey.generate_key(2048, parameters={"kid": "one"})


class OpenIDProvider:
    """An OpenID provider. `change` can alter the claims of an ID token, `now` is its clock."""

    def __init__(self) -> None:
        self.key: RSAKey | OKPKey = first_key()
        self.algorithm = "RS256"
        self.document: dict[str, Any] = {
            "issuer": ISSUER,
            "authorization_endpoint": f"{ISSUER}/authorize",
            "token_endpoint": f"{ISSUER}/token",
            "userinfo_endpoint": f"{ISSUER}/userinfo",
            "jwks_uri": f"{ISSUER}/keys",
            "code_challenge_methods_supported": ["S256"],
        }
        self.now = START
        self.asked: list[str] = []
        """The requested paths, in order."""
        self.headers: dict[str, str] = {}
        """The headers of the last token request."""
        self.change: Callable[[dict[str, Any]], None] = lambda _: None
        self.make_token: Callable[[dict[str, Any]], str] = self.sign
        self.userinfo: dict[str, Any] = {}
        self.pictures: dict[str, WebResponse] = {}
        self.is_down = False
        self._tokens = 0
        self._codes: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}

    def sign(self, claims: dict[str, Any]) -> str:
        """Sign a token with these claims."""
        header = {"alg": self.algorithm, "kid": self.key.kid}
        return jwt.encode(header, claims, self.key, algorithms=[self.algorithm])

    def claims(self, **claims: Any) -> dict[str, Any]:
        """Return the claims of a new token for our server."""
        self._tokens += 1
        own = {
            "iss": ISSUER,
            "aud": "matrix",
            "iat": self.now,
            "exp": self.now + 300,
            "jti": f"t{self._tokens}",
        }
        return {**own, **claims}

    def sign_in(self, address: str, **claims: Any) -> str:
        """Sign a user in at the authorization URL. Return the callback path with its query. Adds
        `auth_time` if the request asks for it."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        assert query["response_type"] == "code"
        assert query["redirect_uri"].startswith("https://matrix.example.org" + CALLBACK)
        if "max_age" in query:
            claims = {"auth_time": self.now, **claims}
        code = f"code{len(self._codes)}"
        self._codes[code] = ({**claims, "nonce": query["nonce"]}, query)
        return (
            f"{urlsplit(query['redirect_uri']).path}"
            f"?{urlencode({'code': code, 'state': query['state']})}"
        )

    async def request(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        seconds: float = 30,
        max_bytes: int = 1 << 20,
        redirects: int = 0,
        only_https: bool = False,
    ) -> WebResponse:
        if self.is_down:
            raise OutboundError("the provider is down")
        path = urlsplit(url).path
        self.asked.append(path)
        if url in self.pictures:
            return self.pictures[url]
        assert url.startswith(ISSUER), url
        if path == "/.well-known/openid-configuration":
            return _answer(url, self.document)
        if path == "/keys":
            return _answer(url, {"keys": [self.key.as_dict(private=False)]})
        if path == "/userinfo":
            return _answer(url, self.userinfo)
        assert (method, path) == ("POST", "/token")
        self.headers = dict(headers)
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        claims, asked = self._codes.pop(form["code"], (None, {}))
        if claims is None or not _fits(form.get("code_verifier"), asked.get("code_challenge")):
            return _answer(url, {"error": "invalid_grant"}, 400)
        token = self.claims(**claims)
        self.change(token)
        return _answer(
            url, {"access_token": "abc", "id_token": self.make_token(token), "token_type": "Bearer"}
        )


def _fits(verifier: str | None, challenge: str | None) -> bool:
    if challenge is None:
        return verifier is None
    digest = hashlib.sha256((verifier or "").encode()).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode() == challenge


def _answer(url: str, document: object, status: int = 200) -> WebResponse:
    return WebResponse(
        url, status, {"content-type": "application/json"}, msgspec.json.encode(document)
    )

"""Verifies ID tokens and logout tokens: signatures and claims.

Laws:
- Only the configured algorithms are accepted, whatever the token says, and never `none`.
- A token is accepted only if it is for this client, from this issuer and not expired. An ID token
  must also have the nonce of the pending sign-in.

spec: openid-connect-core-1_0#IDTokenValidation, openid-connect-backchannel-1_0#Validation
"""

from base64 import urlsafe_b64decode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import isfinite
from typing import Any, Final

import msgspec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OctKey
from twisted.internet.interfaces import IReactorTime

from homeserver.services.upstream.identity import RefusalReason, SignInRefused
from homeserver.services.upstream.oidc.metadata import ProviderMetadata

LEEWAY: Final = 60
"""Allowed difference of clocks, in seconds."""
MAX_LOGOUT_TOKEN_AGE: Final = 300
"""Maximum age of a logout token, in seconds."""
MAX_TOKEN_LENGTH: Final = 64 * 1024
LOGOUT_EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"

Claims = Mapping[str, Any]


class TokenVerifier:
    """Checks the tokens of one provider."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        metadata: ProviderMetadata,
        client_id: str,
        client_secret: str | None,
        algorithms: Sequence[str],
    ) -> None:
        self._clock = clock
        self._metadata = metadata
        self._client_id = client_id
        self._client_secret = client_secret
        self._algorithms = [name for name in algorithms if name != "none"]

    async def check_id_token(self, token: str, nonce: str) -> Claims:
        """Return the claims of a valid ID token. Raises `SignInRefused`."""
        claims = await self._verify(token)
        self._check_common(claims)
        if _number(claims, "exp") + LEEWAY <= self._clock.seconds():
            raise _refusal("it has expired")
        if claims.get("nonce") != nonce:
            raise _refusal("its nonce is of another sign-in")
        if not isinstance(claims.get("sub"), str):
            raise _refusal("it has no sub")
        return claims

    async def check_logout_token(self, token: str) -> Claims:
        """Return the claims of a valid logout token, with `sub` or `sid`. Raises
        `SignInRefused`."""
        claims = await self._verify(token)
        self._check_common(claims)
        now = self._clock.seconds()
        if "exp" in claims and _number(claims, "exp") + LEEWAY <= now:
            raise _refusal("it has expired")
        if _number(claims, "iat") + MAX_LOGOUT_TOKEN_AGE <= now:
            raise _refusal("it is too old")
        events = claims.get("events")
        if not isinstance(events, dict) or not isinstance(events.get(LOGOUT_EVENT), dict):
            raise _refusal("it is not a logout token")
        if "nonce" in claims:
            raise _refusal("a logout token must not have a nonce")
        names = [claims[name] for name in ("sub", "sid") if claims.get(name) is not None]
        if not names:
            raise _refusal("it has neither sub nor sid")
        if not all(isinstance(each, str) and "\0" not in each for each in names):
            raise _refusal("its sub or sid is not a valid string")
        return claims

    def logout_token_id(self, token: str, claims: Claims) -> tuple[bytes, int]:
        """Return the ID of a checked logout token, and until when to store it.

        The ID is a hash of the `jti`, which providers must set; without one, of the signed text.
        After that time, in milliseconds since 1970, the token is too old on every node, whatever
        the difference of their clocks.

        spec: openid-connect-backchannel-1_0#Validation
        """
        jti = claims.get("jti")
        name = f"jti {jti}" if isinstance(jti, str) and jti else token.rpartition(".")[0]
        text = "\n".join((str(claims.get("iss")), self._client_id, name))
        until = int((_number(claims, "iat") + MAX_LOGOUT_TOKEN_AGE + LEEWAY) * 1000)
        return sha256(text.encode("utf-8", "surrogatepass")).digest(), until

    async def _verify(self, token: str) -> Claims:
        if len(token) > MAX_TOKEN_LENGTH:
            raise _refusal("it is too long")
        symmetric = [name for name in self._algorithms if name.startswith("HS")]
        if symmetric and self._client_secret is not None:
            try:
                return jwt.decode(
                    token, OctKey.import_key(self._client_secret), algorithms=symmetric
                ).claims
            except (JoseError, ValueError):
                if len(symmetric) == len(self._algorithms):
                    raise _refusal("its signature is not valid") from None
        asymmetric = [name for name in self._algorithms if name not in symmetric]
        keys = await self._metadata.get_keys()
        try:
            return _decode(token, keys, asymmetric)
        except (JoseError, ValueError):
            newer = await self._metadata.get_keys(older_than=self._metadata.keys_fetched_at)
            if newer is keys:
                raise _refusal("its signature is not valid") from None
        try:
            return _decode(token, newer, asymmetric)
        except (JoseError, ValueError):
            raise _refusal("its signature is not valid") from None

    def _check_common(self, claims: Claims) -> None:
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if self._client_id not in audiences:
            raise _refusal("its audience is another client")
        if (len(audiences) > 1 or "azp" in claims) and claims.get(
            "azp", self._client_id
        ) != self._client_id:
            raise _refusal("it was issued to another client")
        if _number(claims, "iat") - LEEWAY > self._clock.seconds():
            raise _refusal("its iat is in the future")

    async def check_issuer(self, claims: Claims) -> None:
        """Raises `SignInRefused` if the token is from another issuer."""
        if claims.get("iss") != (await self._metadata.get()).issuer:
            raise _refusal("it is from another issuer")


def parse_unverified(token: str) -> Claims:
    """Return the claims of an unverified token, to find the provider that verifies it. Raises
    `SignInRefused`."""
    payload = (
        token.split(".")[1] if token.count(".") == 2 and len(token) <= MAX_TOKEN_LENGTH else ""
    )
    try:
        return msgspec.json.decode(
            urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=dict[str, Any]
        )
    except (ValueError, RecursionError):
        raise _refusal("it is not a JWT") from None


def _decode(token: str, keys: KeySet, algorithms: list[str]) -> Claims:
    """Raises JoseError, ValueError."""
    return jwt.decode(token, keys, algorithms=algorithms).claims


def _number(claims: Claims, name: str) -> float:
    value = claims.get(name)
    # the library accepts NaN, which compares false with every time
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise _refusal(f"it has no {name}")
    return value


def _refusal(text: str) -> SignInRefused:
    return SignInRefused(RefusalReason.PROVIDER_FAILED, f"the token is refused: {text}")

"""Signs in users with an OpenID Connect provider: redirects there and redeems the code that the
browser brings back.

It uses the authorization code flow, with PKCE if the provider supports it. Each sign-in has its own
state and nonce.

Law: a code is sent only to the provider that issued it. Otherwise a malicious provider could obtain
the codes of another one (mix-up attack). So a callback is accepted only at the redirect URI of the
provider with which the sign-in began. The callback must also have the parameter `iss` if the
provider supports it, or if providers with different issuers share the redirect URI.

spec: openid-connect-core-1_0#CodeFlowAuth, #AuthRequest, RFC 7636, RFC 9207, RFC 9700 section 4.4.2
"""

import hashlib
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

import msgspec
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey
from twisted.internet.interfaces import IReactorTime

from homeserver.config.upstream import JwtKeyOptions, OIDCProviderOptions
from homeserver.services.upstream.identity import (
    ProviderInfo,
    ProviderRedirect,
    RefusalReason,
    SignInRefused,
    UpstreamIdentity,
    check_reauthentication,
    check_requirements,
    clean_session_id,
    reauthentication_state,
)
from homeserver.services.upstream.login_flows import SignInFlow
from homeserver.services.upstream.oidc.callbacks import has_own_callback, redirect_uri_of
from homeserver.services.upstream.oidc.claims import ClaimReader
from homeserver.services.upstream.oidc.metadata import DiscoveryDocument, ProviderMetadata
from homeserver.services.upstream.oidc.tokens import TokenVerifier
from homeserver.services.upstream.provider_http import ProviderHTTP

SECRET_SECONDS: Final = 600
"""Lifetime of a client secret that is a signed JWT."""
MAX_TIME: Final = 2**40
"""Upper bound of plausible times, in seconds since 1970."""
_CANCELLED: Final = frozenset(
    {"access_denied", "login_required", "consent_required", "interaction_required"}
)


class _Tokens(msgspec.Struct, frozen=True):
    access_token: str | None = None
    id_token: str | None = None


class OIDCSignIn:
    """One OpenID Connect provider."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        documents: ProviderHTTP,
        new_secret: Callable[[], str],
        config: OIDCProviderOptions,
        base_url: str,
        other_providers: Sequence[OIDCProviderOptions] = (),
    ) -> None:
        """`new_secret` returns an unpredictable text; `base_url` ends with a slash;
        `other_providers`: the other configured providers."""
        self._clock = clock
        self._documents = documents
        self._new_secret = new_secret
        self._config = config
        self._redirect_uri = redirect_uri_of(config, base_url, alone=not other_providers)
        self._has_own_callback = has_own_callback(config, alone=not other_providers)
        self._needs_issuer = not self._has_own_callback and any(
            not has_own_callback(other, alone=False) and other.issuer != config.issuer
            for other in other_providers
        )
        self._metadata = ProviderMetadata(clock=clock, documents=documents, config=config)
        self.tokens = TokenVerifier(
            clock=clock,
            metadata=self._metadata,
            client_id=config.client_id,
            client_secret=config.client_secret,
            algorithms=config.id_token_signing_alg_values_supported,
        )
        self._reader = ClaimReader(config.user_mapping_provider.config)
        self.info = ProviderInfo(
            config.provider_id,
            config.idp_name,
            config.idp_icon,
            config.idp_brand,
            config.allow_existing_users,
            config.enable_registration,
        )
        self.ends_sessions = config.backchannel_logout_enabled
        self.ignores_subject = config.backchannel_logout_ignore_sub

    @property
    def client_id(self) -> str:
        """This server's client ID at the provider."""
        return self._config.client_id

    @property
    def issuer(self) -> str:
        """The provider's configured issuer."""
        return self._config.issuer

    async def begin_sign_in(self, flow_id: str, *, reauthenticate: bool) -> ProviderRedirect:
        """Implement `UpstreamProvider.begin_sign_in`."""
        config = self._config
        metadata = await self._metadata.get()
        stored = {
            "nonce": self._new_secret(),
            **reauthentication_state(again=reauthenticate, now=self._clock.seconds()),
        }
        query = {
            **config.additional_authorization_parameters,
            "response_type": "code",
            "client_id": config.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": " ".join(config.scopes),
            "state": flow_id,
            "nonce": stored["nonce"],
            # `max_age` makes `auth_time` REQUIRED in the ID token, which shows whether the provider
            # honoured `prompt`
            **({"prompt": "login", "max_age": "0"} if reauthenticate else {}),
        }
        if self._uses_pkce(metadata):
            stored["verifier"] = self._new_secret() + self._new_secret()
            query |= {
                "code_challenge": code_challenge(stored["verifier"]),
                "code_challenge_method": "S256",
            }
        separator = "&" if "?" in metadata.authorization_endpoint else "?"
        return ProviderRedirect(
            metadata.authorization_endpoint + separator + urlencode(query), stored
        )

    async def identify(
        self, flow: SignInFlow, callback_provider: str | None, code: str, error: str, issuer: str
    ) -> UpstreamIdentity:
        """Redeem a code and return the identity. `callback_provider`: the provider whose own
        callback path was requested, None for `CALLBACK_PATH`. Raises `SignInRefused`."""
        if callback_provider != (self.info.provider_id if self._has_own_callback else None):
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED, "the callback used another provider's redirect URI"
            )
        metadata = await self._metadata.get()
        if issuer and issuer != metadata.issuer:
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED, "the callback is from another issuer"
            )
        if (
            metadata.authorization_response_iss_parameter_supported or self._needs_issuer
        ) and not issuer:
            raise SignInRefused(RefusalReason.PROVIDER_FAILED, "the callback has no iss")
        if error:
            reason = (
                RefusalReason.CANCELLED if error in _CANCELLED else RefusalReason.PROVIDER_FAILED
            )
            raise SignInRefused(reason, f"{self._config.issuer} returned the error {error[:100]}")
        if not code:
            raise SignInRefused(RefusalReason.PROVIDER_FAILED, "the callback has no code")
        tokens = await self._redeem(metadata, code, flow.provider_state.get("verifier"))
        claims = await self._claims(metadata, tokens, flow.provider_state["nonce"])
        identity = self._reader.read(claims, clean_session_id(claims.get("sid")))
        attributes = self._reader.with_groups(claims)
        check_requirements(
            self._config.attribute_requirements, attributes, self.info.provider_id, identity.subject
        )
        auth_time = claims.get("auth_time")
        # ignore implausible times: some parsers accept `-Infinity`
        is_plausible = isinstance(auth_time, int | float) and 0 < auth_time < MAX_TIME
        authenticated = auth_time if is_plausible else None
        requires_time = self._config.auth_time_required
        authenticated_ts = check_reauthentication(
            flow.provider_state, authenticated, self._clock.seconds(), requires_time=requires_time
        )
        return msgspec.structs.replace(identity, authenticated_ts=authenticated_ts)

    async def _redeem(
        self, metadata: DiscoveryDocument, code: str, verifier: str | None
    ) -> _Tokens:
        config = self._config
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
        }
        if verifier is not None:
            form["code_verifier"] = verifier
        secret: str | None = config.client_secret
        if config.client_secret_jwt_key is not None:
            secret = self._make_secret(config.client_secret_jwt_key)
        headers = []
        if secret is None or config.client_auth_method != "client_secret_basic":
            form["client_id"] = config.client_id
            if secret is not None and config.client_auth_method == "client_secret_post":
                form["client_secret"] = secret
        else:
            pair = f"{quote_plus(config.client_id)}:{quote_plus(secret)}"
            headers.append(("Authorization", "Basic " + b64encode(pair.encode()).decode()))
        return await self._documents.post_form(
            _Tokens, metadata.token_endpoint, urlencode(form).encode(), headers
        )

    async def _claims(
        self, metadata: DiscoveryDocument, tokens: _Tokens, nonce: str
    ) -> Mapping[str, Any]:
        from_token: Mapping[str, Any] = {}
        if "openid" in self._config.scopes:
            if tokens.id_token is None:
                raise SignInRefused(
                    RefusalReason.PROVIDER_FAILED, f"{self._config.issuer} returned no ID token"
                )
            from_token = await self.tokens.check_id_token(tokens.id_token, nonce)
            await self.tokens.check_issuer(from_token)
            if self._config.user_profile_method == "auto":
                return from_token
        if metadata.userinfo_endpoint is None or tokens.access_token is None:
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED, f"{self._config.issuer} has no userinfo endpoint"
            )
        if not tokens.access_token.isascii() or not tokens.access_token.isprintable():
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED,
                f"{self._config.issuer} returned an invalid access token",
            )
        headers = [("Authorization", f"Bearer {tokens.access_token}")]
        claims = await self._documents.get(dict[str, Any], metadata.userinfo_endpoint, headers)
        if from_token and claims.get("sub") != from_token.get("sub"):
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED, "the userinfo endpoint returned another subject"
            )
        # subject, session and time come from the signed token
        return {
            **claims,
            **{
                name: from_token[name] for name in ("sub", "sid", "auth_time") if name in from_token
            },
        }

    def _make_secret(self, key: JwtKeyOptions) -> str:
        now = int(self._clock.seconds())
        algorithm = str(key.jwt_header.get("alg", "ES256"))
        kind = (
            ECKey
            if algorithm.startswith("ES")
            else OKPKey
            if algorithm.startswith("Ed")
            else RSAKey
        )
        claims = {**key.jwt_payload, "iat": now, "exp": now + SECRET_SECONDS}
        return jwt.encode(
            {"alg": algorithm, **key.jwt_header},
            claims,
            kind.import_key(str(key.key)),
            algorithms=[algorithm],
        )

    def _uses_pkce(self, metadata: DiscoveryDocument) -> bool:
        if self._config.pkce_method != "auto":
            return self._config.pkce_method == "always"
        return "S256" in (metadata.code_challenge_methods_supported or ())


def code_challenge(verifier: str) -> str:
    """Return the PKCE code challenge of a verifier. spec: RFC 7636 section 4.2"""
    return urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()

"""Authorization code flow: checks a client's request, which arrives through the user's browser, and
makes the redirect back to the client.

Laws:
- If the client is unknown, the redirect URI is not registered or `state` is too long, a page shows
  the error. There is no redirect and no link to the client.
- For any other error, a user who has a session with the client is redirected to it. Any other user
  gets a page with a link to the client. Anybody can register a client, so a redirect that the user
  did not ask for could lead to any site.
- A code is valid for two minutes and for one attempt to redeem it, even a failed one. It is valid
  only for the client, redirect URI and PKCE challenge of its request.
- The redirect back has the parameter `iss`, so that a client that uses several servers knows which
  of them responded.

spec: client-server-api#authorisation-code-flow, RFC 6749 section 4.1, RFC 7636, RFC 9207, RFC 9700
section 4.11.2
"""

import re
from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import urlencode

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import UserID
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.login.credential_epoch import CredentialEpoch, check_epoch
from homeserver.services.oauth.clients import CODE_GRANT, OAuthClient, OAuthClients
from homeserver.services.oauth.errors import InvalidRedirectURI, OAuthError
from homeserver.services.oauth.redirect_uris import is_registered
from homeserver.services.oauth.scopes import OAuthScope, parse_scope
from homeserver.services.tokens.secret_tokens import SecretGenerator, hash_token
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.oauth.oauth import OAuthCodeRow, OAuthStore

ResponseMode = Literal["query", "fragment"]

PARAMETERS: Final = (
    "response_type",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "response_mode",
    "code_challenge",
    "code_challenge_method",
    "prompt",
    "login_hint",
)
"""The parameters of a request that are read."""
CODE_LIFETIME_MS: Final = 120_000
MAX_STATE_LENGTH: Final = 2000
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_STORED_MS: Final = 24 * 3600 * 1000
"""The time for which a code stays stored after it expired, so that its reuse ends the session."""


class ResponseTarget(msgspec.Struct, frozen=True):
    """The client, redirect URI and response mode of the response."""

    client_id: str
    redirect_uri: str
    response_mode: ResponseMode
    state: str | None


class AuthorizationRequest(msgspec.Struct, frozen=True):
    """A valid request."""

    client: OAuthClient
    target: ResponseTarget
    scope: OAuthScope
    challenge: str
    prompts: frozenset[str]
    login_hint: str


class AuthorizationRefused(OAuthError):
    """An invalid request; the error goes to the client through the browser."""

    def __init__(self, target: ResponseTarget, error: str, text: str) -> None:
        super().__init__(error, text)
        self.target = target


class Authorization:
    """Checks requests and makes the responses."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: OAuthStore,
        secret_text: SecretGenerator,
        clients: OAuthClients,
        issuer: str,
    ) -> None:
        self._clock = clock
        self._database = database
        self._store = store
        self._secret_text = secret_text
        self._clients = clients
        self._issuer = issuer

    async def check(self, parameters: Mapping[str, str]) -> AuthorizationRequest:
        """Parse a request. Raises `OAuthError` if there may be no redirect to the client, and
        `AuthorizationRefused` for all other errors."""
        client = await self._clients.get(parameters.get("client_id", ""))
        redirect_uri = parameters.get("redirect_uri", "")
        if not is_registered(redirect_uri, client.redirect_uris):
            raise InvalidRedirectURI
        mode = parameters.get("response_mode") or "query"
        state = parameters.get("state") or None
        returning = ResponseTarget(
            client.client_id, redirect_uri, "fragment" if mode == "fragment" else "query", state
        )
        if state is not None and len(state) > MAX_STATE_LENGTH:
            raise OAuthError("invalid_request", "state is too long")
        if mode not in ("query", "fragment"):
            raise AuthorizationRefused(
                returning, "invalid_request", "response_mode must be query or fragment"
            )
        if parameters.get("response_type") != "code":
            raise AuthorizationRefused(
                returning, "unsupported_response_type", "response_type must be code"
            )
        if CODE_GRANT not in client.grant_types:
            raise AuthorizationRefused(
                returning,
                "unauthorized_client",
                "This client has not registered the authorization_code grant",
            )
        challenge = parameters.get("code_challenge", "")
        if parameters.get("code_challenge_method") != "S256" or not _CHALLENGE.fullmatch(challenge):
            raise AuthorizationRefused(
                returning, "invalid_request", "A code_challenge with the method S256 is required"
            )
        try:
            scope = parse_scope(parameters.get("scope", ""))
        except OAuthError as error:
            raise AuthorizationRefused(returning, error.error, error.text) from None
        prompts = frozenset(parameters.get("prompt", "").split())
        if "none" in prompts:
            raise AuthorizationRefused(
                returning, "interaction_required", "The user has to allow access"
            )
        return AuthorizationRequest(
            client, returning, scope, challenge, prompts, parameters.get("login_hint", "")
        )

    async def do_allow(
        self,
        request: AuthorizationRequest,
        user_id: UserID,
        ip: str,
        epoch: CredentialEpoch,
        origin: str | None = None,
    ) -> str:
        """Grant the client a code for this user; return the URL of the redirect. `origin`: from the
        `BrowserSession`. Raises what `check_epoch` raises."""
        code = self._secret_text.oauth_code()
        row = OAuthCodeRow(
            code_hash=hash_token(code),
            user_id=user_id,
            client_id=request.client.client_id,
            device_id=request.scope.device_id,
            scope=request.scope.text,
            redirect_uri=request.target.redirect_uri,
            code_challenge=request.challenge,
            expires_ts=self._now() + CODE_LIFETIME_MS,
            upstream_login=origin,
        )

        def write(txn: WriteTransaction) -> None:
            check_epoch(txn, user_id, epoch)
            self._store.add_code(txn, row)
            self._clients.record_allowed(txn, request.client, ip)
            self._record(txn, AuditEvent.APP_ALLOWED, request, user_id, ip)

        await self._database.write("add_oauth_code", write)
        return self._redirect_url(request.target, {"code": code})

    async def do_deny(self, request: AuthorizationRequest, user_id: UserID, ip: str) -> str:
        """Record that the user denied access; return the URL of the redirect."""
        await self._database.write(
            "deny_oauth_client", self._record, AuditEvent.APP_DENIED, request, user_id, ip
        )
        return self.redirect_error(
            AuthorizationRefused(request.target, "access_denied", "The user denied access")
        )

    def _record(
        self,
        txn: WriteTransaction,
        what: AuditEvent,
        request: AuthorizationRequest,
        user_id: UserID,
        ip: str,
    ) -> None:
        device_id = request.scope.device_id
        record_event(
            txn,
            user_id,
            what,
            self._now(),
            ip=ip,
            device_id=device_id,
            detail=request.client.audit_name,
        )

    async def is_used(self, client_id: str, user_id: UserID) -> bool:
        """Return whether the user has a session with this client."""
        sessions = await self._store.get_sessions(user_id)
        return any(session.client_id == client_id for session in sessions.values())

    def redirect_error(self, error: AuthorizationRefused) -> str:
        """Return the URL of the redirect with an error."""
        return self._redirect_url(
            error.target, {"error": error.error, "error_description": error.text}
        )

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` codes that expired `_STORED_MS` ago; return how many."""

        def write(txn: WriteTransaction) -> int:
            return self._store.remove_old_codes(txn, self._now() - _STORED_MS, limit)

        return await self._database.write("sweep_oauth_codes", write)

    def _redirect_url(self, returning: ResponseTarget, parameters: dict[str, str]) -> str:
        if returning.state is not None:
            parameters["state"] = returning.state
        parameters["iss"] = self._issuer
        encoded = urlencode(parameters)
        if returning.response_mode == "fragment":
            return f"{returning.redirect_uri}#{encoded}"
        separator = "&" if "?" in returning.redirect_uri else "?"
        return f"{returning.redirect_uri}{separator}{encoded}"

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

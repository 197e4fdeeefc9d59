"""The request of a program to let somebody in, which comes through their browser, and the answer,
which goes back so.

Laws:
- Until the program and its redirect address are known to be right, nobody is led anywhere: a page
  says what is wrong. Anybody may register a program, so with an error nobody is led anywhere
  unasked either who does not use it already.
- A code is good for two minutes, once, for the program, the address and the PKCE challenge that it
  was asked with.
- The answer says whose it is (`iss`), so that a program that talks to several servers mixes none
  up.

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
from homeserver.services.audit.audit import Happened, note
from homeserver.services.login.credential_epoch import Era, check_era
from homeserver.services.oauth.addresses import is_registered
from homeserver.services.oauth.clients import CODE_GRANT, Client, Clients
from homeserver.services.oauth.errors import OAuthError, WrongRedirect
from homeserver.services.oauth.scopes import Scope, parse_scope
from homeserver.services.tokens.secret_tokens import SecretText, hash_token
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
"""What of a request is looked at."""
CODE_LIFETIME_MS: Final = 120_000
LONGEST_STATE: Final = 2000
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_USED_REMEMBERED_MS: Final = 24 * 3600 * 1000


class Returning(msgspec.Struct, frozen=True):
    """Which program is answered, and how."""

    client_id: str
    redirect_uri: str
    response_mode: ResponseMode
    state: str | None


class AuthorizationRequest(msgspec.Struct, frozen=True):
    """A request that is in order."""

    client: Client
    returning: Returning
    scope: Scope
    challenge: str
    prompts: frozenset[str]
    login_hint: str


class Refused(OAuthError):
    """The request is wrong, and the program is told so through the browser."""

    def __init__(self, returning: Returning, error: str, text: str) -> None:
        super().__init__(error, text)
        self.returning = returning


class Authorization:
    """Reads requests, and answers them."""

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        store: OAuthStore,
        secret_text: SecretText,
        clients: Clients,
        *,
        issuer: str,
    ) -> None:
        self._clock = clock
        self._database = database
        self._store = store
        self._secret_text = secret_text
        self._clients = clients
        self._issuer = issuer

    async def check(self, given: Mapping[str, str]) -> AuthorizationRequest:
        """The request with these parameters. Raises `OAuthError` where nobody may be led back,
        `Refused` else."""
        client = await self._clients.get(given.get("client_id", ""))
        redirect_uri = given.get("redirect_uri", "")
        if not is_registered(redirect_uri, client.redirect_uris):
            raise WrongRedirect
        mode = given.get("response_mode") or "query"
        state = given.get("state") or None
        returning = Returning(
            client.client_id, redirect_uri, "fragment" if mode == "fragment" else "query", state
        )
        if mode not in ("query", "fragment"):
            raise Refused(returning, "invalid_request", "response_mode must be query or fragment")
        if state is not None and len(state) > LONGEST_STATE:
            raise OAuthError("invalid_request", "state is too long")
        if given.get("response_type") != "code":
            raise Refused(returning, "unsupported_response_type", "response_type must be code")
        if CODE_GRANT not in client.grant_types:
            raise Refused(
                returning,
                "unauthorized_client",
                "This client has not registered the authorization_code grant",
            )
        challenge = given.get("code_challenge", "")
        if given.get("code_challenge_method") != "S256" or not _CHALLENGE.fullmatch(challenge):
            raise Refused(
                returning, "invalid_request", "A code_challenge of the method S256 is needed"
            )
        try:
            scope = parse_scope(given.get("scope", ""))
        except OAuthError as error:
            raise Refused(returning, error.error, error.text) from None
        prompts = frozenset(given.get("prompt", "").split())
        if "none" in prompts:
            raise Refused(returning, "interaction_required", "Somebody has to allow this")
        return AuthorizationRequest(
            client, returning, scope, challenge, prompts, given.get("login_hint", "")
        )

    async def do_allow(
        self,
        request: AuthorizationRequest,
        user_id: UserID,
        ip: str,
        era: Era,
        origin: str | None = None,
    ) -> str:
        """Let the program in as this user. `origin`: as `BrowserSession` has it. Where the browser
        goes. Raises as `check_era`."""
        code = self._secret_text.oauth_code()
        row = OAuthCodeRow(
            code_hash=hash_token(code),
            user_id=user_id,
            client_id=request.client.client_id,
            device_id=request.scope.device_id,
            scope=request.scope.text,
            redirect_uri=request.returning.redirect_uri,
            challenge=request.challenge,
            expires_ts=self._now() + CODE_LIFETIME_MS,
            origin=origin,
        )

        def write(txn: WriteTransaction) -> None:
            check_era(txn, user_id, era)
            self._store.add_code(txn, row)
            self._clients.note_allowed(txn, request.client, ip)
            self._note(txn, Happened.APP_ALLOWED, request, user_id, ip)

        await self._database.write("add_oauth_code", write)
        return self._answer(request.returning, {"code": code})

    async def do_deny(self, request: AuthorizationRequest, user_id: UserID, ip: str) -> str:
        """This user does not let the program in. Where the browser goes."""
        await self._database.write(
            "deny_oauth_client", self._note, Happened.APP_DENIED, request, user_id, ip
        )
        return self.refuse(
            Refused(request.returning, "access_denied", "The user did not allow this")
        )

    def _note(
        self,
        txn: WriteTransaction,
        what: Happened,
        request: AuthorizationRequest,
        user_id: UserID,
        ip: str,
    ) -> None:
        device_id = request.scope.device_id
        note(
            txn,
            user_id,
            what,
            self._now(),
            ip=ip,
            device_id=device_id,
            detail=request.client.called,
        )

    async def is_used(self, client_id: str, user_id: UserID) -> bool:
        """Whether somebody is signed in with a program."""
        sessions = await self._store.get_sessions(user_id)
        return any(session.client_id == client_id for session in sessions.values())

    def refuse(self, error: Refused) -> str:
        """Where the browser goes with an error."""
        return self._answer(
            error.returning, {"error": error.error, "error_description": error.text}
        )

    async def do_sweep(self, limit: int) -> int:
        """Forget up to `limit` codes that have grown old; how many. What was used is remembered for
        a day, so that its reuse ends the session."""

        def write(txn: WriteTransaction) -> int:
            return self._store.remove_old_codes(txn, self._now() - _USED_REMEMBERED_MS, limit)

        return await self._database.write("sweep_oauth_codes", write)

    def _answer(self, returning: Returning, parameters: dict[str, str]) -> str:
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

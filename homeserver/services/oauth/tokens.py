"""Issues, refreshes, revokes and introspects tokens of the OAuth 2.0 API.

Sessions are the ordinary ones (`homeserver/services/login/sessions.py`).

Laws:
- Only the client that a code or refresh token was issued to can redeem it. Anybody who has a token
  can revoke it.
- A request with a code that was already redeemed ends the session of that code, because one of the
  two senders may have stolen the code.
- A refresh replaces a pair of access and refresh token. The old pair stays valid until a token of
  the new pair is used, since the response can get lost. In the ten seconds after that use, the old
  refresh token is only refused, since another process of the client may have sent it. If it is
  presented later, its session ends.
- All refresh tokens of a session share a prefix (the *family*), so an old token is recognized
  without being stored.

spec: client-server-api#token-refresh-flow, client-server-api#token-revocation, RFC 6749 section 6,
RFC 7009, RFC 7662, RFC 9700 section 4.14
"""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import MatrixError
from federation.protocol.ids import DeviceID, UserID, localpart_of
from homeserver.api.limits import Limit
from homeserver.http.rate_limits import RateLimiter, address_key
from homeserver.services.audit.audit import AuditEvent, record_event, record_refusal
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.login.login_tokens import ProviderSignIn
from homeserver.services.login.sessions import NewSession, Sessions, used_token_limit_key
from homeserver.services.oauth.clients import REFRESH_GRANT, OAuthClient, OAuthClients
from homeserver.services.oauth.errors import InvalidService, OAuthError, UnauthorizedClient
from homeserver.services.tokens.secret_tokens import (
    SecretGenerator,
    hash_token,
    is_damaged,
    parse_oauth_family,
)
from storage.accounts.accounts import AccountRow, AccountStore
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.login.access_tokens import RACE_MS, AccessTokenRow, RefreshTokenRow, TokenStore
from storage.oauth.oauth import OAuthSessionRow, OAuthStore
from storage.upstream.sessions import UpstreamSessionRow, UpstreamSessionStore

_NO_SESSION: Final = b""
"""Marks a used code that began no session."""


class TokenGrant(msgspec.Struct, frozen=True):
    """A new or refreshed session with its scope."""

    session: NewSession
    scope: str

    def response(self) -> dict[str, object]:
        """Return the token response. spec: RFC 6749 section 5.1"""
        expires_in_ms = self.session.expires_in_ms
        return {
            "access_token": self.session.access_token,
            "token_type": "Bearer",
            **({} if expires_in_ms is None else {"expires_in": expires_in_ms // 1000}),
            "refresh_token": self.session.refresh_token,
            "scope": self.scope,
        }


class UpstreamDevices:
    """Ties devices to the upstream sign-in of the browser that allowed them, so that a logout at
    the identity provider ends them too."""

    def __init__(self, store: UpstreamSessionStore) -> None:
        self._store = store

    def record(
        self, txn: WriteTransaction, user_id: UserID, device_id: DeviceID, origin: str | None
    ) -> None:
        """Record a new device. `origin`: from the `BrowserSession` of the user who allowed it."""
        if origin is None:
            return
        sign_in = msgspec.json.decode(origin, type=ProviderSignIn)
        row = UpstreamSessionRow(
            user_id, device_id, sign_in.provider, sign_in.subject, sign_in.session
        )
        self._store.set_upstream_session(txn, row)


class OAuthTokens:
    """Issues and revokes tokens."""

    # More than ten: it bridges OAuth grants and the sessions of accounts; two are options.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: OAuthStore,
        accounts: AccountStore,
        tokens: TokenStore,
        sessions: Sessions,
        secret_text: SecretGenerator,
        clients: OAuthClients,
        upstream: UpstreamDevices,
        limiter: RateLimiter,
        introspection_clients: Mapping[str, str],
        issuer: str,
        validity: AccountValidity,
    ) -> None:
        """`introspection_clients`: the secrets of services that may introspect tokens, by name."""
        self._clock = clock
        self._validity = validity
        self._database = database
        self._store = store
        self._accounts = accounts
        self._tokens = tokens
        self._sessions = sessions
        self._secret_text = secret_text
        self._clients = clients
        self._upstream = upstream
        self._limiter = limiter
        self._trusted = dict(introspection_clients)
        self._issuer = issuer

    # Issuing.

    async def do_exchange_code(
        self, client_id: str, code: str, redirect_uri: str, verifier: str, address: str
    ) -> TokenGrant:
        """Redeem a code for tokens. `address`: the client's. Raises `OAuthError`."""
        client = await self._clients.get(client_id)
        if (
            await self._database.read_quickly(
                "get_oauth_code", self._store.get_code, hash_token(code)
            )
            is None
        ):
            raise _invalid("The code is unknown; begin again")  # an invented code costs no write
        family = self._secret_text.family()
        texts = self._secret_text.access_token(), self._secret_text.oauth_refresh_token(family)
        granted = await self._database.write(
            "exchange_oauth_code",
            self._exchange,
            client,
            hash_token(code),
            redirect_uri,
            verifier,
            family,
            texts,
            address,
        )
        if isinstance(granted, OAuthError):
            raise granted
        return granted

    def _exchange(
        self,
        txn: WriteTransaction,
        client: OAuthClient,
        code_hash: bytes,
        redirect_uri: str,
        verifier: str,
        family: str,
        texts: tuple[str, str],
        address: str,
    ) -> TokenGrant | OAuthError:
        row = self._store.get_code(txn, code_hash)
        if row is None:
            return _invalid("The code is unknown; begin again")
        if row.used_for_family is not None:
            if row.used_for_family != _NO_SESSION:
                self._end_family(txn, row.used_for_family, address)
            return _invalid("The code has been used; begin again")
        challenge = urlsafe_b64encode(sha256(verifier.encode()).digest()).decode().rstrip("=")
        problem = None
        if row.client_id != client.client_id:
            problem = "The code was issued to another client"
        elif row.expires_ts <= self._now():
            problem = "The code has expired; begin again"
        elif row.redirect_uri != redirect_uri:
            problem = "redirect_uri differs from that of the authorization request"
        elif not 43 <= len(verifier) <= 128 or not hmac.compare_digest(
            row.code_challenge, challenge
        ):
            problem = "code_verifier does not match the code_challenge"
        if problem is not None:
            self._store.set_code_used(txn, code_hash, _NO_SESSION)
            # a valid code, but presented by another client or without its verifier
            if row.expires_ts > self._now():
                device_id = DeviceID(row.device_id)
                user_id = UserID(row.user_id)
                record_event(
                    txn,
                    user_id,
                    AuditEvent.TOKEN_REUSED,
                    self._now(),
                    ip=address,
                    device_id=device_id,
                    detail=problem,
                )
            return _invalid(problem)
        granted = self.begin_session(
            txn,
            client,
            UserID(row.user_id),
            DeviceID(row.device_id),
            row.scope,
            family,
            texts,
            address,
            row.upstream_login,
        )
        self._store.set_code_used(
            txn, code_hash, _NO_SESSION if isinstance(granted, OAuthError) else hash_token(family)
        )
        return granted

    def begin_session(
        self,
        txn: WriteTransaction,
        client: OAuthClient,
        user_id: UserID,
        device_id: DeviceID,
        scope: str,
        family: str,
        texts: tuple[str, str],
        address: str,
        origin: str | None,
    ) -> TokenGrant | OAuthError:
        """Begin a session in a write transaction. `texts`: access token and refresh token, made
        outside of it; `address`: the client's; `origin`: from the `BrowserSession` of the user who
        allowed the client."""
        account = self._accounts.get_accounts_in(txn, [user_id]).get(user_id)
        obstacle = "deactivated" if account is None else self._obstacle(account)
        if obstacle is not None:
            record_refusal(txn, user_id, self._now(), obstacle, ip=address, device_id=device_id)
            return _invalid("The account cannot be used")
        session = self._sessions.prepare(
            user_id,
            address=address,
            epoch=None,
            device_id=device_id,
            device_name=client.name,
            access_token=texts[0],
            refresh_token=texts[1],
        )
        try:
            self._sessions.add(txn, session)
        except MatrixError as error:
            return OAuthError("invalid_scope", error.text)
        row = OAuthSessionRow(user_id, device_id, client.client_id, scope, hash_token(family))
        self._store.set_session(txn, row)
        self._upstream.record(txn, user_id, device_id, origin)
        return TokenGrant(session, scope)

    async def do_refresh(self, client_id: str, refresh_token: str, address: str) -> TokenGrant:
        """Issue new tokens for a refresh token. `address`: the client's. Raises `OAuthError`,
        `LimitExceeded`."""
        client = await self._clients.get(client_id)
        family = parse_oauth_family(refresh_token)
        if REFRESH_GRANT not in client.grant_types:
            raise UnauthorizedClient("This client has not registered the refresh_token grant")
        if family is None:
            raise _invalid("The refresh token is unknown")
        token_hash, family_hash = hash_token(refresh_token), hash_token(family)
        owner = await self._database.read_quickly(
            "get_oauth_session", self._find_owner, token_hash, family_hash
        )
        if owner is None:
            raise _invalid("The refresh token is unknown")  # an invented token costs no write
        self._limiter.check(Limit.REFRESH_ACCOUNT, owner)
        texts = self._secret_text.access_token(), self._secret_text.oauth_refresh_token(family)
        granted = await self._database.write(
            "refresh_oauth_session", self._refresh, client, token_hash, family_hash, texts, address
        )
        if isinstance(granted, OAuthError):
            raise granted
        return granted

    def _find_owner(self, txn: Transaction, token_hash: bytes, family_hash: bytes) -> str | None:
        """Return the rate limit key of the session's user; valid and spent tokens have different
        keys. None if there is no session."""
        session = self._store.get_session_of_family(txn, family_hash)
        if session is None:
            return None
        token = self._tokens.get_refresh_token(txn, token_hash)
        is_valid = token is not None and not token.is_grace_over(self._now())
        return session.user_id if is_valid else used_token_limit_key(session.user_id)

    def _refresh(
        self,
        txn: WriteTransaction,
        client: OAuthClient,
        token_hash: bytes,
        family_hash: bytes,
        texts: tuple[str, str],
        address: str,
    ) -> TokenGrant | OAuthError:
        row = self._store.get_session_of_family(txn, family_hash)
        if row is None or row.client_id != client.client_id:
            return _invalid("The refresh token is unknown, or belongs to another client")
        # a refusal would make the client delete its session, which has to survive until the account
        # is unlocked or renewed
        session = self._sessions.renew(txn, token_hash, *texts, self._now(), while_locked=True)
        if session is None:
            now = self._now()
            is_stored = self._tokens.get_refresh_token(txn, token_hash) is not None
            if not is_stored and not self._tokens.is_just_spent(txn, token_hash, now, RACE_MS):
                self._end_family(txn, family_hash, address)
            return _invalid("The refresh token has been used; sign in again")
        if session.refresh_token is None:
            return _invalid("The session has expired; sign in again")
        return TokenGrant(session, row.scope)

    def _end_family(self, txn: WriteTransaction, family_hash: bytes, address: str) -> None:
        row = self._store.get_session_of_family(txn, family_hash)
        if row is not None:
            self._sessions.end_reused_session(
                txn, UserID(row.user_id), DeviceID(row.device_id), address
            )

    # Revoking.

    async def do_revoke(self, token: str, client_id: str, address: str) -> None:
        """End the session of an access or refresh token; an unknown token is not an error.
        `client_id`: as the presenter claims; if it is not the session's, the audit log records that
        somebody found the token. `address`: the presenter's."""
        if is_damaged(token):
            return
        token_hash = hash_token(token)
        if await self._database.read_quickly("find_token", self._find, token_hash) is not None:
            await self._database.write("revoke_token", self._revoke, token_hash, client_id, address)

    def _find(self, txn: Transaction, token_hash: bytes) -> AccessTokenRow | RefreshTokenRow | None:
        access = self._tokens.get_access_token_in(txn, token_hash)
        return access or self._tokens.get_refresh_token(txn, token_hash)

    def _revoke(
        self, txn: WriteTransaction, token_hash: bytes, client_id: str, address: str
    ) -> None:
        found = self._find(txn, token_hash)
        if isinstance(found, AccessTokenRow) and found.device_id is None:
            self._tokens.remove_access_token(txn, found.token_nid)
            self._accounts.set_account_changed(txn, found.user_id)
        elif found is not None and found.device_id is not None:
            user_id, device_id = UserID(found.user_id), DeviceID(found.device_id)
            session = self._store.get_session(txn, user_id, device_id)
            if session is None or session.client_id != client_id:
                record_event(
                    txn,
                    user_id,
                    AuditEvent.TOKEN_FOUND,
                    self._now(),
                    ip=address,
                    device_id=device_id,
                )
            self._sessions.remove_devices(txn, user_id, [device_id], address)

    # Introspection.

    def check_service(self, name: str, secret: str, address: str) -> None:
        """Raises `InvalidService` unless this service may introspect tokens, and `LimitExceeded`
        after too many failures from this address."""
        key = f"introspection {address_key(address)}"
        self._limiter.check_without_counting(Limit.LOGIN_FAILED, key)
        known = self._trusted.get(name)
        if known is None or not hmac.compare_digest(
            known.encode(), secret.encode("utf-8", "surrogatepass")
        ):
            self._limiter.count(Limit.LOGIN_FAILED, key)
            raise InvalidService("Only services that the operator trusts may introspect tokens")

    async def introspect(self, token: str) -> Mapping[str, object]:
        """Return owner, client and scope of a token. spec: RFC 7662 section 2.2"""
        found = None
        if not is_damaged(token):
            found = await self._database.read_quickly(
                "introspect_token", self._introspect, hash_token(token)
            )
        return found or {"active": False}

    def _introspect(self, txn: Transaction, token_hash: bytes) -> Mapping[str, object] | None:
        now = self._now()
        found = self._find(txn, token_hash)
        if found is None or (found.expires_ts is not None and found.expires_ts <= now):
            return None
        may_be_late = isinstance(found, RefreshTokenRow) or not found.first_used
        if (
            may_be_late
            and found.refresh_nid is not None
            and self._tokens.is_retired(txn, found.refresh_nid, now)
        ):
            return None
        account = self._accounts.get_accounts_in(txn, [found.user_id])[found.user_id]
        if self._obstacle(account) is not None:
            return None
        device_id = found.device_id or ""
        session = self._store.get_session(txn, found.user_id, device_id)
        scope = "urn:matrix:client:api:*" + (
            f" urn:matrix:client:device:{device_id}" if device_id else ""
        )
        return {
            "active": True,
            "iss": self._issuer,
            "sub": found.user_id,
            "username": localpart_of(found.user_id),
            "scope": scope if session is None else session.scope,
            "device_id": device_id,
            # spec: RFC 6749 section 7.1; a refresh token authorizes no requests, so it has no type
            **({"token_type": "Bearer"} if isinstance(found, AccessTokenRow) else {}),
            **({} if session is None else {"client_id": session.client_id}),
            **({} if found.expires_ts is None else {"exp": found.expires_ts // 1000}),
        }

    def _obstacle(self, account: AccountRow) -> str | None:
        """Return why an account cannot be used, as the audit log names it; None if it can."""
        reasons = {
            "deactivated": account.deactivated_ts is not None,
            "locked": account.locked,
            "awaiting_approval": account.approval_pending_ts is not None,
            "expired": self._validity.is_expired(account.expires_ts),
        }
        return next((name for name, holds in reasons.items() if holds), None)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)


def _invalid(text: str) -> OAuthError:
    return OAuthError("invalid_grant", text)

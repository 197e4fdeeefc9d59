"""Login tokens: sign in on a client with a token that another client of the user requested, or that
a sign-in in the browser issued.

Laws:
- A token is valid for one sign-in by its holder, until it expires; only its hash is stored.
- A session of an application password gets no token: the new session would outlive the password.
- A token is valid in the credential epoch in which it was issued
  (`homeserver/services/login/credential_epoch.py`). A password change (whether or not it ends
  sessions), a sign-out everywhere, a lock and a deactivation revoke it, also while it is being
  issued or used.

spec: client-server-api#post_matrixclientv1loginget_token,
client-server-api#post_matrixclientv3login
"""

from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden
from federation.protocol.ids import DeviceID, UserID
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter, address_key
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.login.application_passwords import ApplicationPasswords
from homeserver.services.login.confirmation import AccountConfirmation
from homeserver.services.login.credential_epoch import (
    CredentialEpoch,
    check_epoch,
    check_provider_session,
    check_session,
)
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.sessions import NewSession, Sessions
from homeserver.services.login.uia import AuthData
from homeserver.services.tokens.secret_tokens import SecretGenerator, hash_token
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.login_tokens import LoginTokenStore
from storage.upstream.sessions import UpstreamSessionRow, UpstreamSessionStore

BROWSER_TOKEN_LIFETIME_MS: Final = 60_000
"""Lifetime of a token that a browser passes to the client."""


class ProviderSignIn(msgspec.Struct, frozen=True):
    """A sign-in at an identity provider."""

    provider: str
    subject: str
    session: str | None = None
    began_ts: int = 0
    """When the browser was redirected to the provider, in milliseconds since 1970; 0: unknown."""


class LoginTokens:
    """Issues login tokens and signs in with them."""

    # More than ten: the last four are options.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        secret_text: SecretGenerator,
        database: Database,
        store: LoginTokenStore,
        upstream_sessions: UpstreamSessionStore,
        account_store: AccountStore,
        confirmation: AccountConfirmation,
        sign_in: SignIn,
        sessions: Sessions,
        limiter: RateLimiter,
        application_passwords: ApplicationPasswords,
        issued_to_sessions: bool,
        requires_confirmation: bool,
        lifetime_ms: int,
        issued_to_browsers: bool = False,
    ) -> None:
        """`issued_to_sessions`: signed-in clients may request tokens. `requires_confirmation`: that
        needs user-interactive authentication. `issued_to_browsers`: a sign-in in a browser issues
        one."""
        self._clock = clock
        self._secret_text = secret_text
        self._database = database
        self._store = store
        self._upstream_sessions = upstream_sessions
        self._account_store = account_store
        self._confirmation = confirmation
        self._sign_in = sign_in
        self._sessions = sessions
        self._limiter = limiter
        self._application_passwords = application_passwords
        self.issued_to_sessions = issued_to_sessions
        self.is_enabled = issued_to_sessions or issued_to_browsers
        """Whether a sign-in with a token is enabled."""
        self._confirmed = requires_confirmation
        self._lifetime_ms = lifetime_ms

    async def do_issue(
        self, caller: Requester, auth: AuthData | None, address: str
    ) -> tuple[str, int]:
        """Issue a token for another client of the caller; return it and its lifetime in ms.

        Raises `Forbidden` where the server issues none, `LimitExceeded`, `AuthenticationRequired`,
        and what `check_session` raises.
        """
        if not self.issued_to_sessions:
            raise Forbidden("This server issues no login tokens")
        if await self._application_passwords.is_application_session(caller):
            raise Forbidden("A session of an application password cannot sign in other clients")
        self._limiter.check_without_counting(Limit.LOGIN_ACCOUNT, caller.user_id)
        epoch = None
        if self._confirmed:
            epoch = await self._confirmation.check_confirmed(
                caller, "POST login/get_token", auth, address
            )
        self._limiter.check(Limit.LOGIN_ACCOUNT, caller.user_id)
        token = self._secret_text.login_token()
        now = self._now()

        def write(txn: WriteTransaction) -> None:
            if epoch is not None:
                check_epoch(txn, caller.user_id, epoch)
            check_session(txn, caller)
            self._store.add_login_token(
                txn, hash_token(token), caller.user_id, now + self._lifetime_ms
            )
            record_event(
                txn,
                caller.user_id,
                AuditEvent.LOGIN_TOKEN_GIVEN,
                now,
                ip=address,
                device_id=caller.device_id,
            )

        await self._database.write("add_login_token", write)
        return token, self._lifetime_ms

    async def do_issue_for_browser(
        self, user_id: UserID, origin: ProviderSignIn | None, epoch: CredentialEpoch
    ) -> str:
        """Issue a token for the client of a user who has signed in in a browser.

        `origin`: the sign-in at an identity provider, if any. Raises what `check_epoch` raises.
        """
        token = self._secret_text.login_token()
        expires_ts = self._now() + BROWSER_TOKEN_LIFETIME_MS
        encoded_origin = None if origin is None else msgspec.json.encode(origin).decode()

        def write(txn: WriteTransaction) -> None:
            check_epoch(txn, user_id, epoch)
            check_provider_session(txn, encoded_origin)
            self._store.add_login_token(txn, hash_token(token), user_id, expires_ts, encoded_origin)

        await self._database.write("add_login_token", write)
        return token

    async def do_sign_in(
        self,
        token: str,
        address: str,
        *,
        device_id: DeviceID | None = None,
        device_name: str | None = None,
        refreshable: bool = False,
    ) -> NewSession:
        """Begin a session with a token.

        Raises `Forbidden`, `LimitExceeded`, `UserLocked`, `ExpiredAccount`,
        `UserAwaitingApproval`.
        """
        # Count only failures: tokens cannot be guessed, and a whole class may come back from its
        # provider at the same time, from one address.
        self._limiter.check_without_counting(Limit.LOGIN_FAILED, address_key(address))
        row = await self._store.take_login_token(hash_token(token), self._now())
        found = {} if row is None else await self._account_store.get_accounts([row.user_id])
        account = None if row is None else found[row.user_id]
        if row is None or account is None or account.deactivated_ts is not None:
            self._limiter.count(Limit.LOGIN_FAILED, address_key(address))
            raise Forbidden("The login token is not valid or has expired; request a new one")
        await self._sign_in.check_usable(account, "token", address)
        session = self._sessions.prepare(
            UserID(account.user_id),
            address=address,
            epoch=row.epoch,
            device_id=device_id,
            device_name=device_name,
            refreshable=refreshable,
        )
        origin = (
            None
            if row.upstream_login is None
            else msgspec.json.decode(row.upstream_login, type=ProviderSignIn)
        )

        def write(txn: WriteTransaction) -> None:
            check_provider_session(txn, row.upstream_login)
            self._sessions.add(txn, session)
            if origin is not None:
                self._upstream_sessions.set_upstream_session(
                    txn,
                    UpstreamSessionRow(
                        session.user_id,
                        session.device_id,
                        origin.provider,
                        origin.subject,
                        origin.session,
                    ),
                )

        await self._database.write("begin_session", write)
        return session

    async def do_sweep(self, limit: int) -> int:
        """Delete up to `limit` expired tokens; return the number."""
        return await self._store.remove_old(self._now(), limit)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

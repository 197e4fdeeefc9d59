"""Signing in on a second client with a token that the first one asked for.

Laws:
- A token is good for one sign-in, within minutes, by whoever holds it; it is kept as a hash.
- Whoever signed in with a password for a program gets none: what they let in would outlive it.
- A token is good in the era of the account in which it was given
  (`homeserver/services/login/credential_epoch.py`): a password change, whether it ends sessions or
  not, a sign-out everywhere and a closed or locked account end it, also while it is being given or
  taken.

spec: client-server-api#post_matrixclientv1loginget_token, client-server-api#post_matrixclientv3login
"""

from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden
from federation.protocol.ids import DeviceID, UserID
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter, address_key
from homeserver.services.audit.audit import Happened, note
from homeserver.services.login.application_passwords import ApplicationPasswords
from homeserver.services.login.confirmation import AccountConfirmation
from homeserver.services.login.credential_epoch import Era, check_era, check_session, check_sign_in
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.sessions import NewSession, Sessions
from homeserver.services.login.uia import AuthData
from homeserver.services.tokens.secret_tokens import SecretText, hash_token
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.login_tokens import LoginTokenStore
from storage.upstream.sessions import UpstreamSessionRow, UpstreamSessionStore

UPSTREAM_LIFETIME_MS: Final = 60_000
"""How long a token is good for that a browser carries to the client."""


class Origin(msgspec.Struct, frozen=True):
    """A sign-in at an identity provider."""

    provider: str
    subject: str
    session: str | None = None
    began_ts: int = 0
    """When they left for it, in milliseconds since 1970; nothing where that is not known."""


class LoginTokens:
    """Gives tokens out, and takes them."""

    def __init__(
        self,
        clock: IReactorTime,
        secret_text: SecretText,
        database: Database,
        store: LoginTokenStore,
        upstream_sessions: UpstreamSessionStore,
        account_store: AccountStore,
        confirmation: AccountConfirmation,
        sign_in: SignIn,
        sessions: Sessions,
        limiter: RateLimiter,
        application_passwords: ApplicationPasswords,
        *,
        from_sessions: bool,
        confirmed: bool,
        lifetime_ms: int,
        from_browsers: bool = False,
    ) -> None:
        """`from_sessions`: people may ask for tokens; `confirmed`: they have to confirm that with
        their password. `from_browsers`: who signs in in a browser gets one."""
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
        self.from_sessions = from_sessions
        self.accepted = from_sessions or from_browsers
        """Whether people sign in with tokens."""
        self._confirmed = confirmed
        self._lifetime_ms = lifetime_ms

    async def do_give(
        self, caller: Requester, auth: AuthData | None, address: str
    ) -> tuple[str, int]:
        """A token for another client of the caller, and for how many milliseconds it is good.

        Raises `Forbidden` where the server gives none, `LimitExceeded`, `AuthenticationRequired`,
        and as `check_session`.
        """
        if not self.from_sessions:
            raise Forbidden("This server gives out no tokens to sign in with")
        if await self._application_passwords.is_program(caller):
            raise Forbidden(
                "Who has signed in with a password for a program lets no other client in"
            )
        self._limiter.check_only(Limit.LOGIN_ACCOUNT, caller.user_id)
        era = None
        if self._confirmed:
            era = await self._confirmation.check_confirmed(
                caller, "POST login/get_token", auth, address
            )
        self._limiter.check(Limit.LOGIN_ACCOUNT, caller.user_id)
        token = self._secret_text.login_token()
        now = self._now()

        def write(txn: WriteTransaction) -> None:
            if era is not None:
                check_era(txn, caller.user_id, era)
            check_session(txn, caller)
            self._store.add_login_token(
                txn, hash_token(token), caller.user_id, now + self._lifetime_ms
            )
            note(
                txn,
                caller.user_id,
                Happened.LOGIN_TOKEN_GIVEN,
                now,
                ip=address,
                device_id=caller.device_id,
            )

        await self._database.write("add_login_token", write)
        return token, self._lifetime_ms

    async def do_give_to(self, user_id: UserID, origin: Origin | None, era: Era) -> str:
        """A token for the client of somebody who has signed in in a browser. `origin`: with an
        identity provider. Raises as `check_era`."""
        token = self._secret_text.login_token()
        expires_ts = self._now() + UPSTREAM_LIFETIME_MS
        kept = None if origin is None else msgspec.json.encode(origin).decode()

        def write(txn: WriteTransaction) -> None:
            check_era(txn, user_id, era)
            check_sign_in(txn, kept)
            self._store.add_login_token(txn, hash_token(token), user_id, expires_ts, kept)

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
        """Begin a session with a token. Raises `Forbidden`, `LimitExceeded`, `UserLocked`,
        `ExpiredAccount`."""
        # A failure is counted afterwards: nobody guesses a token, and a class comes back from its
        # provider at once, from one address.
        self._limiter.check_only(Limit.LOGIN_FAILED, address_key(address))
        taken = await self._store.take_login_token(hash_token(token), self._now())
        found = {} if taken is None else await self._account_store.get_accounts([taken.user_id])
        account = None if taken is None else found[taken.user_id]
        if taken is None or account is None or account.deactivated_ts is not None:
            self._limiter.count(Limit.LOGIN_FAILED, address_key(address))
            raise Forbidden("This token is not valid (any more); ask for a new one")
        await self._sign_in.check_usable(account, "token", address)
        session = self._sessions.prepare(
            UserID(account.user_id),
            address=address,
            era=taken.era,
            device_id=device_id,
            device_name=device_name,
            refreshable=refreshable,
        )
        origin = None if taken.origin is None else msgspec.json.decode(taken.origin, type=Origin)

        def write(txn: WriteTransaction) -> None:
            check_sign_in(txn, taken.origin)
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
        """Remove up to `limit` tokens that nobody used in time; how many."""
        return await self._store.remove_old(self._now(), limit)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

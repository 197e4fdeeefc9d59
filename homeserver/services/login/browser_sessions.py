"""Browser sessions: sign-ins to the server's own pages.

Laws:
- The cookie is random and signed, stored as a hash, and new with each sign-in, which prevents
  session fixation.
- A session begins only while the authentication behind it is valid
  (`homeserver/services/login/credential_epoch.py`).
- A session expires after a day. A password change that ends other sessions, a sign-out everywhere,
  a lock and a deactivation end it too. The browser that changes the password keeps its session. A
  session of an expired account is ignored.
- The cookie is out of reach of scripts and is not sent with forms of other sites. Over https no
  other host can set it.

A browser session is not a device: it opens pages, but no endpoint of the client-server API.
"""

from collections.abc import Callable
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.api.request import RequestContext
from federation.protocol.ids import UserID
from homeserver.services.audit.audit import SESSION_EXPIRED, AuditEvent, record_event
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.login.cookies import Cookies
from homeserver.services.login.credential_epoch import (
    BrowserEpoch,
    CredentialEpoch,
    check_epoch,
    check_provider_session,
)
from homeserver.services.tokens.secret_tokens import SecretGenerator, hash_token
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.browser_sessions import BrowserSessionStore

COOKIE_NAME: Final = "mahalla_session"
LIFETIME_MS: Final = 24 * 3600 * 1000


class BrowserSession(msgspec.Struct, frozen=True):
    """The signed-in user of a page."""

    user_id: UserID
    authenticated_ts: int
    """The last authentication, in milliseconds since 1970."""
    is_admin: bool = False
    is_suspended: bool = False
    origin: str | None = None
    """The sign-in at an identity provider that began the session, as JSON; None: another way."""
    epoch: CredentialEpoch = 0
    """The epoch to compare in writes (`homeserver/services/login/credential_epoch.py`)."""


class BrowserSessions:
    """Begins, finds and ends browser sessions."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: BrowserSessionStore,
        secret_text: SecretGenerator,
        cookies: Cookies,
        lifetime_ms: int = LIFETIME_MS,
        validity: AccountValidity | None = None,
    ) -> None:
        self._validity = validity or AccountValidity(clock=clock)
        self._clock = clock
        self._database = database
        self._store = store
        self._secret_text = secret_text
        self._cookies = cookies
        self._lifetime_ms = lifetime_ms

    async def do_begin(
        self,
        user_id: UserID,
        context: RequestContext,
        epoch: int,
        origin: str | None = None,
        authenticated_ts: int | None = None,
    ) -> str:
        """Begin a session for an authenticated user of a usable account.

        Ends the previous session of this browser. `epoch`: the credential epoch at authentication.
        `origin`: the sign-in at an identity provider, as JSON. `authenticated_ts`: when the
        provider authenticated the user; None: now, by this server. Return the cookie for the
        response (`Response.cookies`). Raises what `check_epoch` raises.
        """
        token = self._secret_text.browser_token()
        old = self._cookies.find(context, COOKIE_NAME)
        now = self._now()

        def write(txn: WriteTransaction) -> None:
            check_epoch(txn, user_id, epoch)
            check_provider_session(txn, origin)
            if old is not None:
                self._end(txn, hash_token(old), context.client_ip, unless_of=user_id)
            authenticated = now if authenticated_ts is None else authenticated_ts
            self._store.add_browser_session(
                txn, hash_token(token), user_id, authenticated, now + self._lifetime_ms, origin
            )
            record_event(txn, user_id, AuditEvent.BROWSER_SIGNED_IN, now, ip=context.client_ip)

        await self._database.write("begin_browser_session", write)
        return self._cookies.make(context, COOKIE_NAME, token, seconds=self._lifetime_ms // 1000)

    async def get(self, context: RequestContext) -> BrowserSession | None:
        """Return the session of the requesting browser."""
        token = self._cookies.find(context, COOKIE_NAME)
        if token is None:
            return None
        token_hash = hash_token(token)
        row = await self._store.get_browser_session(token_hash, self._now())
        if row is None or self._validity.is_expired(row.account_expires_ts):
            return None
        epoch = BrowserEpoch(row.epoch, token_hash)
        return BrowserSession(
            UserID(row.user_id),
            row.authenticated_ts,
            row.is_admin,
            row.suspended,
            row.upstream_login,
            epoch,
        )

    async def do_end_other_sessions(
        self,
        context: RequestContext,
        user_id: UserID,
        remove_sessions: Callable[[WriteTransaction, UserID, str], None],
    ) -> None:
        """Run `end_other_sessions_write` in its own write."""
        await self._database.write(
            "end_other_sessions", self.end_other_sessions_write(context, user_id, remove_sessions)
        )

    def end_other_sessions_write(
        self,
        context: RequestContext,
        user_id: UserID,
        remove_sessions: Callable[[WriteTransaction, UserID, str], None],
    ) -> Callable[[WriteTransaction], None]:
        """Return a closure for a write that ends all other sessions of the user.

        It ends the sessions of apps and browsers, and keeps the session of the requesting browser
        unchanged. `remove_sessions`: ends all sessions.
        """
        token = self._cookies.find(context, COOKIE_NAME) or ""
        now = self._now()

        def write(txn: WriteTransaction) -> None:
            row = self._store.get_browser_session_in(txn, hash_token(token), now)
            self._store.remove_browser_session(txn, hash_token(token))
            remove_sessions(txn, user_id, context.client_ip)
            if row is not None:  # it may have ended in the meantime
                self._store.add_browser_session(
                    txn,
                    hash_token(token),
                    row.user_id,
                    row.authenticated_ts,
                    row.expires_ts,
                    row.upstream_login,
                )

        return write

    async def do_end(self, context: RequestContext) -> str:
        """End the session of the requesting browser; return the header that deletes the cookie."""
        token = self._cookies.find(context, COOKIE_NAME)

        def write(txn: WriteTransaction, token_hash: bytes) -> None:
            self._end(txn, token_hash, context.client_ip)

        if token is not None:
            await self._database.write("end_browser_session", write, hash_token(token))
        return self._cookies.remove(context, COOKIE_NAME)

    def _end(
        self, txn: WriteTransaction, token_hash: bytes, ip: str, *, unless_of: UserID | None = None
    ) -> None:
        """End the session of a cookie and record it in the audit log.

        `unless_of`: the user who begins a new session in this browser; for them the end of the old
        one is not recorded.
        """
        ended = self._store.remove_browser_session(txn, token_hash)
        if ended is None:
            return
        user_id, expires_ts = ended
        if expires_ts <= self._now():
            self._record_expiry(txn, UserID(user_id), expires_ts)
        elif user_id != unless_of:
            record_event(txn, UserID(user_id), AuditEvent.BROWSER_SIGNED_OUT, self._now(), ip=ip)

    @staticmethod
    def _record_expiry(txn: WriteTransaction, user_id: UserID, expires_ts: int) -> None:
        record_event(
            txn, user_id, AuditEvent.BROWSER_SIGNED_OUT, expires_ts, detail=SESSION_EXPIRED
        )

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` expired sessions; return the number."""

        def write(txn: WriteTransaction) -> int:
            expired = self._store.remove_old(txn, self._now(), limit)
            for user_id, expires_ts in expired:
                self._record_expiry(txn, UserID(user_id), expires_ts)
            return len(expired)

        return await self._database.write("end_old_browser_sessions", write)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

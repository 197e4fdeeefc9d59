"""Ends sign-ins of users whose session at the identity provider has ended. The callers also sign
out the devices of the sign-in (`oidc/backchannel_logout.py`, `saml/logout.py`).

Laws:
- Unused login tokens and codes, pending flows and browser sessions of the sign-in end in one write.
- A request in progress, on any node, may have read the sign-in before that write. So the
  request checks in its own write that the sign-in has not ended (`check_provider_session` of
  `homeserver/services/login/credential_epoch.py`). For this check, ended sign-ins stay stored for
  as long as a request can take.
- The end of one session at the provider does not change the account's credential epoch, because the
  user's other sign-ins continue. If the provider ends all sessions of a user, the caller increments
  the epoch.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import UserID
from homeserver.services.audit.audit import AuditEvent, record_event
from storage.engine.transaction import WriteTransaction
from storage.login.browser_sessions import BrowserSessionStore
from storage.upstream.ended_sessions import EndedProviderSessionStore
from storage.upstream.sessions import ProviderSessions

STORED_MS: Final = 10 * 60 * 1000


class EndsWithProviderSession(Protocol):
    """Stores tokens, codes or pending steps that end with a sign-in at a provider."""

    def remove_provider_sessions(self, txn: WriteTransaction, sign_ins: ProviderSessions) -> None:
        """Remove the rows that came from these sign-ins."""
        ...


class EndedProviderSessions:
    """Ends sign-ins. `pending`: the stores of unused tokens, codes and pending steps."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        store: EndedProviderSessionStore,
        browsers: BrowserSessionStore,
        pending: Sequence[EndsWithProviderSession],
    ) -> None:
        self._clock = clock
        self._store = store
        self._browsers = browsers
        self._pending = tuple(pending)

    def end(self, txn: WriteTransaction, sign_ins: ProviderSessions, subject: str | None) -> None:
        """End everything that began with these sign-ins. `subject`: the person, if the provider
        names one too."""
        self._store.add_ended(txn, sign_ins, subject, self._now())
        for store in self._pending:
            store.remove_provider_sessions(txn, sign_ins)

    def end_user(self, txn: WriteTransaction, provider: str, subject: str) -> None:
        """End all sign-ins of a person at the provider that are in progress. For an account, the
        caller also starts a new credential epoch."""
        self._store.add_ended(
            txn, ProviderSessions(provider, "", is_prefix=True), subject, self._now()
        )

    def end_browser(self, txn: WriteTransaction, token_hash: bytes, user_id: str) -> None:
        """End a browser session that came from the sign-in, and record it in the audit log."""
        self._browsers.remove_browser_session(txn, token_hash)
        record_event(txn, UserID(user_id), AuditEvent.BROWSER_SIGNED_OUT, self._now())

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` rows older than `STORED_MS`; return how many."""
        return await self._store.remove_old(self._now() - STORED_MS, limit)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

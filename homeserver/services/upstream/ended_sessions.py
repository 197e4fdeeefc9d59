"""What becomes of a sign-in at an identity provider when the provider says that it has ended.

Laws:
- What was given by it to begin a session with, and what of it waits, ends in the same write; so
  does the browser session that came of it.
- Whatever is under way meanwhile on any node, and read something before that write, compares in its
  own (`check_sign_in` of `homeserver/services/login/credential_epoch.py`): so it is remembered as
  long as a request may take.
- It begins no era of the account: other sign-ins of the same person go on.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import UserID
from homeserver.services.audit.audit import Happened, note
from storage.engine.transaction import WriteTransaction
from storage.login.browser_sessions import BrowserSessionStore
from storage.upstream.ended_sessions import EndedSignInStore
from storage.upstream.sessions import SignIns

REMEMBERED_MS: Final = 10 * 60 * 1000


class EndsWithSignIn(Protocol):
    """Keeps what is given to somebody to begin a session with, or what waits."""

    def remove_sign_ins(self, txn: WriteTransaction, sign_ins: SignIns) -> None:
        """Remove what was given by a sign-in at a provider."""
        ...


class EndedSignIns:
    """Ends them. `waiting`: what was given and is not begun yet."""

    def __init__(
        self,
        clock: IReactorTime,
        store: EndedSignInStore,
        browsers: BrowserSessionStore,
        waiting: Sequence[EndsWithSignIn],
    ) -> None:
        self._clock = clock
        self._store = store
        self._browsers = browsers
        self._waiting = tuple(waiting)

    def end(self, txn: WriteTransaction, sign_ins: SignIns, subject: str | None) -> None:
        """End what was given by a sign-in, or by all whose names begin so. `subject`: the person,
        where the provider names one too."""
        self._store.add_ended(txn, sign_ins, subject, self._now())
        for store in self._waiting:
            store.remove_sign_ins(txn, sign_ins)

    def end_person(self, txn: WriteTransaction, provider: str, subject: str) -> None:
        """Let nothing go on that a person has under way at the provider. (Whoever has an account
        has what ends with its era besides.)"""
        self._store.add_ended(txn, SignIns(provider, "", is_beginning=True), subject, self._now())

    def end_browser(self, txn: WriteTransaction, token_hash: bytes, user_id: str) -> None:
        """End a browser session that came of it, and keep a record."""
        self._browsers.remove_browser_session(txn, token_hash)
        note(txn, UserID(user_id), Happened.BROWSER_SIGNED_OUT, self._now())

    async def do_sweep(self, limit: int) -> int:
        """Forget up to `limit` that ended long enough ago; how many."""
        return await self._store.remove_old(self._now() - REMEMBERED_MS, limit)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

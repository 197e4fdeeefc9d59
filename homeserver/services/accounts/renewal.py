"""Expiry and renewal of accounts: set expiry times, e-mail a renewal link to the owners before the
expiry, and renew accounts at the request of an owner or an administrator.

Laws:
- A job e-mails the owner of an account once about each expiry. The write that queues the e-mail
  also records it, so neither a restart nor a second node sends another one. Owners may request
  further e-mails.
- Opening the link does not renew the account, since mail programs open links too. The link leads to
  a page with a button. The button renews the account, once per link.
- An expired account keeps all its data. Until it is renewed, its requests are refused, except
  those for renewal and sign-out, and a job stops its pushes.
"""

import zlib
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden, InvalidParam, ThreepidNotFound
from federation.protocol.ids import UserID
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.email.outbox import Outbox
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.pages.languages import Language, Languages
from homeserver.services.threepids.validation import EMAIL
from homeserver.services.tokens.secret_tokens import SecretGenerator, hash_token
from storage.accounts.validity import (
    EMAIL_SENT,
    NO_ADDRESS,
    AccountValidityStore,
    ExpiringAccountRow,
    RenewalLinkRow,
)
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.threepids.threepids import ThreepidStore

RENEW_PATH: Final = "/_matrix/client/unstable/account_validity/renew"
MAX_TS: Final = 2**53 - 1
_DAY_MS: Final = 24 * 3600 * 1000
_JITTER: Final = 0.1
"""Fraction of the period by which accounts that existed before expiry was enabled may expire
earlier, so that not all users get an e-mail on the same day."""


class Renewals:
    """Sets expiry times, sends e-mails about them, and renews accounts."""

    # More than ten: it stores, writes e-mails and has four options.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: AccountValidityStore,
        threepids: ThreepidStore,
        secret_text: SecretGenerator,
        validity: AccountValidity,
        languages: Languages,
        outbox: Outbox | None,
        period_ms: int | None,
        renew_at_ms: int | None,
        subject: str | None,
        base_url: str,
    ) -> None:
        """`period_ms`: the validity period of an account. `renew_at_ms`: how long before the expiry
        its owner gets an e-mail; None: no e-mails. `subject`: the operator's subject of the
        e-mail; None: the default."""
        self._clock = clock
        self._database = database
        self._store = store
        self._threepids = threepids
        self._secret_text = secret_text
        self._validity = validity
        self._languages = languages
        self._outbox = outbox
        self._period_ms = period_ms or 0
        self._renew_at_ms = renew_at_ms
        self._subject = subject
        self._base_url = base_url.rstrip("/")

    @property
    def by_email(self) -> bool:
        """Whether users renew their accounts by a link in an e-mail."""
        return self._validity.enabled and self._renew_at_ms is not None and self._outbox is not None

    async def do_set_missing_expiries(self, limit: int) -> int:
        """Set the expiry time of up to `limit` accounts that have none; return the number."""
        if not self._validity.enabled:
            return 0

        def write(txn: WriteTransaction) -> int:
            now = self._now()
            without_expiry = self._store.get_without_expiry(txn, limit)
            for user_id, created_ts in without_expiry:
                jitter_ms = 0 if created_ts > now - _DAY_MS else self._jitter_ms(user_id)
                self._store.set_expiry(txn, user_id, now + self._period_ms - jitter_ms)
            return len(without_expiry)

        return await self._database.write("set_missing_expiries", write)

    async def do_mark_expired(self, limit: int) -> int:
        """Mark up to `limit` expired accounts, so that nothing is pushed to them.

        Return the number. Where accounts do not expire, remove the marks instead.
        """
        if not self._validity.enabled:
            return await self._database.write(
                "unmark_expired_accounts", self._store.unmark_expired, limit
            )
        return await self._database.write(
            "mark_expired_accounts", self._store.mark_expired, self._now(), limit
        )

    def _jitter_ms(self, user_id: str) -> int:
        return int(self._period_ms * _JITTER * (zlib.crc32(user_id.encode()) / 2**32))

    async def do_send_emails(self, limit: int) -> int:
        """E-mail the owners of up to `limit` accounts that expire soon.

        Return the number of accounts handled, including those without an e-mail address.
        """
        if not self.by_email or self._renew_at_ms is None:
            return 0
        rows = await self._store.get_accounts_to_email(self._now() + self._renew_at_ms, limit)
        user_ids = [row.user_id for row in rows]
        addresses = await self._threepids.get_threepids(user_ids) if rows else {}
        languages = await self._store.get_languages(user_ids) if rows else {}
        tokens = [self._secret_text.session_id() for _ in rows]

        def write(txn: WriteTransaction) -> None:
            for row, token in zip(rows, tokens, strict=True):
                known = [
                    each.address for each in addresses.get(row.user_id, ()) if each.medium == EMAIL
                ]
                if (
                    self._store.set_email_state(txn, row, EMAIL_SENT if known else NO_ADDRESS)
                    and known
                ):
                    language = self._languages.choose(languages.get(row.user_id, ""))
                    self._queue(txn, row, token, known, language)

        if rows:
            await self._database.write("send_renewal_emails", write)
        return len(rows)

    async def do_send_email(self, user_id: UserID, language: Language) -> None:
        """E-mail the owner of an account at their request.

        Raises `Forbidden`, `ThreepidNotFound`.
        """
        if not self.by_email:
            raise Forbidden("This server sends no e-mails to renew accounts")
        rows = (await self._threepids.get_threepids([user_id])).get(user_id, [])
        known = [row.address for row in rows if row.medium == EMAIL]
        if not known:
            raise ThreepidNotFound(
                "The account has no e-mail address; ask the administrators of this server"
            )
        token = self._secret_text.session_id()

        def write(txn: WriteTransaction) -> None:
            expires_ts = self._store.get_expiry(txn, user_id)
            row = ExpiringAccountRow(
                user_id, self._now() + self._period_ms if expires_ts is None else expires_ts
            )
            self._store.set_email_state(txn, row, EMAIL_SENT)
            self._queue(txn, row, token, known, language)

        await self._database.write("send_renewal_email", write)

    def _queue(
        self,
        txn: WriteTransaction,
        row: ExpiringAccountRow,
        token: str,
        addresses: list[str],
        language: Language,
    ) -> None:
        assert self._outbox is not None  # `by_email`
        self._store.set_link(txn, row.user_id, hash_token(token))
        link = f"{self._base_url}{RENEW_PATH}?{urlencode({'token': token})}"
        email = self._outbox.renderer.renew_account(
            language, link, row.user_id, format_day(row.expires_ts), self._subject
        )
        for address in addresses:
            self._outbox.add_if_valid(txn, language, email, address)

    async def get_link(self, token: str) -> RenewalLinkRow | None:
        """Return the link with this token.

        None where a later e-mail replaced it, and where accounts do not expire.
        """
        if not self._validity.enabled or not token or "\0" in token:
            return None
        return await self._store.get_link(hash_token(token))

    async def do_renew(self, token: str) -> RenewalLinkRow | None:
        """Renew the account of a link, once; return the link, or None as `get_link` does."""
        row = await self.get_link(token)
        if row is None or row.used_ts is not None:
            return row
        token_hash = hash_token(token)

        def write(txn: WriteTransaction) -> RenewalLinkRow | None:
            now = self._now()
            if self._store.set_link_used(txn, token_hash, now):
                self._store.set_expiry(txn, row.user_id, now + self._period_ms)
                record_event(txn, UserID(row.user_id), AuditEvent.RENEWED, now)
            return self._store.get_link_in(txn, token_hash)

        return await self._database.write("renew_account", write)

    async def do_set_expiry(
        self, user_id: UserID, expires_ts: int | None, *, sends_email: bool, by: UserID
    ) -> int:
        """Set the expiry time of an existing account, for the administrator `by`; return it.

        `expires_ts`: None for one period from now. `sends_email`: whether the owner gets an e-mail
        before it. Raises `Forbidden` where accounts do not expire, `InvalidParam`.
        """
        if not self._validity.enabled:
            raise Forbidden("Accounts on this server do not expire (account_validity.enabled)")
        if expires_ts is not None and not 0 <= expires_ts <= MAX_TS:
            raise InvalidParam("expiration_ts must be in milliseconds since 1970")
        now = self._now()
        end = now + self._period_ms if expires_ts is None else expires_ts

        def write(txn: WriteTransaction) -> None:
            self._store.set_expiry(txn, user_id, end, sends_email=sends_email)
            # an earlier link would undo the administrator's decision
            self._store.remove_user(txn, user_id)
            record_event(txn, user_id, AuditEvent.RENEWED, now, by=by)

        await self._database.write("set_account_expiry", write)
        return end

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)


def format_day(ts: int) -> str:
    """Return the day of a time in ISO 8601."""
    return datetime.fromtimestamp(min(ts, 253_402_300_799_000) / 1000, UTC).strftime("%Y-%m-%d")

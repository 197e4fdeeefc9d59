"""The ends of accounts: given to each, told of in a letter in time, and moved by its link or by an
administrator.

Laws:
- A letter about an end is written once, and noted in the write that queues it; a restart, or a
  second node, writes no other.
- Opening the page of a link renews nothing, since programs open links in letters; its button does,
  once.
- An account that is past its day keeps everything; only its use is refused, and nothing is pushed
  to it, until it is renewed.
"""

import zlib
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden, InvalidParam, ThreepidNotFound
from federation.protocol.ids import UserID
from homeserver.services.audit.audit import Happened, note
from homeserver.services.email.outbox import Outbox
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.pages.languages import Language, Languages
from homeserver.services.threepids.validation import EMAIL
from homeserver.services.tokens.secret_tokens import SecretText, hash_token
from storage.accounts.validity import (
    NO_ADDRESS,
    WRITTEN,
    AccountValidityStore,
    EndingRow,
    RenewalLinkRow,
)
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.threepids.threepids import ThreepidStore

RENEW_PATH: Final = "/_matrix/client/unstable/account_validity/renew"
LAST_TS: Final = 2**53 - 1
_DAY_MS: Final = 24 * 3600 * 1000
_SPREAD: Final = 0.1
"""Of the period: by so much sooner some of the accounts end that were there before ends were given,
so that not everybody gets a letter on one day."""


class Renewals:
    """Gives ends, writes letters, renews."""

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        store: AccountValidityStore,
        threepids: ThreepidStore,
        secret_text: SecretText,
        validity: AccountValidity,
        languages: Languages,
        outbox: Outbox | None,
        *,
        period_ms: int | None,
        renew_at_ms: int | None,
        subject: str | None,
        base_url: str,
    ) -> None:
        """`period_ms`: for how long an account is good; `renew_at_ms`: how long before the end its
        owner gets a letter (None: no letters); `subject`: of the letter, where the operator has
        words of their own."""
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
    def by_letter(self) -> bool:
        """Whether people renew their accounts themselves."""
        return self._validity.enabled and self._renew_at_ms is not None and self._outbox is not None

    async def do_give_ends(self, limit: int) -> int:
        """Give up to `limit` accounts an end that have none; how many."""
        if not self._validity.enabled:
            return 0

        def write(txn: WriteTransaction) -> int:
            now = self._now()
            endless = self._store.get_endless(txn, limit)
            for user_id, created_ts in endless:
                early = 0 if created_ts > now - _DAY_MS else self._spread(user_id)
                self._store.set_end(txn, user_id, now + self._period_ms - early)
            return len(endless)

        return await self._database.write("give_accounts_ends", write)

    async def do_note_over(self, limit: int) -> int:
        """Note of up to `limit` accounts that they are past their day, so that nothing is pushed to
        them; how many. Where accounts do not end, that of none."""
        if not self._validity.enabled:
            return await self._database.write(
                "forget_accounts_over", self._store.forget_over, limit
            )
        return await self._database.write(
            "note_accounts_over", self._store.note_over, self._now(), limit
        )

    def _spread(self, user_id: str) -> int:
        return int(self._period_ms * _SPREAD * (zlib.crc32(user_id.encode()) / 2**32))

    async def do_write_letters(self, limit: int) -> int:
        """Write to the owners of up to `limit` accounts that end soon; to how many, or how many
        have no address."""
        if not self.by_letter or self._renew_at_ms is None:
            return 0
        rows = await self._store.get_unwritten(self._now() + self._renew_at_ms, limit)
        user_ids = [row.user_id for row in rows]
        addresses = await self._threepids.get_threepids(user_ids) if rows else {}
        languages = await self._store.get_languages(user_ids) if rows else {}
        tokens = [self._secret_text.session_id() for _ in rows]

        def write(txn: WriteTransaction) -> None:
            for row, token in zip(rows, tokens, strict=True):
                known = [
                    each.address for each in addresses.get(row.user_id, ()) if each.medium == EMAIL
                ]
                if self._store.set_letter(txn, row, WRITTEN if known else NO_ADDRESS) and known:
                    language = self._languages.choose(languages.get(row.user_id, ""))
                    self._queue(txn, row, token, known, language)

        if rows:
            await self._database.write("write_renewal_letters", write)
        return len(rows)

    async def do_send_letter(self, user_id: UserID, language: Language) -> None:
        """Write to the owner of an account, who asks for it. Raises `Forbidden`,
        `ThreepidNotFound`."""
        if not self.by_letter:
            raise Forbidden("This server sends no letters to renew accounts with")
        rows = (await self._threepids.get_threepids([user_id])).get(user_id, [])
        known = [row.address for row in rows if row.medium == EMAIL]
        if not known:
            raise ThreepidNotFound(
                "The account has no e-mail address; ask the people who run this server"
            )
        token = self._secret_text.session_id()

        def write(txn: WriteTransaction) -> None:
            expires_ts = self._store.get_end(txn, user_id)
            row = EndingRow(
                user_id, self._now() + self._period_ms if expires_ts is None else expires_ts
            )
            self._store.set_letter(txn, row, WRITTEN)
            self._queue(txn, row, token, known, language)

        await self._database.write("send_renewal_letter", write)

    def _queue(
        self,
        txn: WriteTransaction,
        row: EndingRow,
        token: str,
        addresses: list[str],
        language: Language,
    ) -> None:
        assert self._outbox is not None  # `by_letter`
        self._store.set_link(txn, row.user_id, hash_token(token))
        link = f"{self._base_url}{RENEW_PATH}?{urlencode({'token': token})}"
        letter = self._outbox.letters.renew_account(
            language, link, row.user_id, day_of(row.expires_ts), self._subject
        )
        for address in addresses:
            self._outbox.offer(txn, language, letter, address)

    async def get_link(self, token: str) -> RenewalLinkRow | None:
        """The link with this secret; None where a later letter took its place, and where accounts
        do not end."""
        if not self._validity.enabled or not token or "\0" in token:
            return None
        return await self._store.get_link(hash_token(token))

    async def do_renew(self, token: str) -> RenewalLinkRow | None:
        """Renew the account of a link, once; the link, or None as for `get_link`."""
        row = await self.get_link(token)
        if row is None or row.used_ts is not None:
            return row
        token_hash = hash_token(token)

        def write(txn: WriteTransaction) -> RenewalLinkRow | None:
            now = self._now()
            if self._store.set_link_used(txn, token_hash, now):
                self._store.set_end(txn, row.user_id, now + self._period_ms)
                note(txn, UserID(row.user_id), Happened.RENEWED, now)
            return self._store.get_link_in(txn, token_hash)

        return await self._database.write("renew_account", write)

    async def do_set_end(
        self, user_id: UserID, expires_ts: int | None, *, letter: bool, by: UserID
    ) -> int:
        """An administrator sets the end of an account that exists; None: as far off as a renewal
        would. The end. Raises `Forbidden` where accounts do not end, `InvalidParam`."""
        if not self._validity.enabled:
            raise Forbidden("Accounts of this server do not end (account_validity.enabled)")
        if expires_ts is not None and not 0 <= expires_ts <= LAST_TS:
            raise InvalidParam("expiration_ts is in milliseconds since 1970")
        now = self._now()
        end = now + self._period_ms if expires_ts is None else expires_ts

        def write(txn: WriteTransaction) -> None:
            self._store.set_end(txn, user_id, end, letter=letter)
            self._store.remove_user(
                txn, user_id
            )  # a link of before would take back what the administrator decided
            note(txn, user_id, Happened.RENEWED, now, by=by)

        await self._database.write("set_end_of_account", write)
        return end

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)


def day_of(ts: int) -> str:
    """A day as people of every language read it."""
    return datetime.fromtimestamp(min(ts, 253_402_300_799_000) / 1000, UTC).strftime("%Y-%m-%d")

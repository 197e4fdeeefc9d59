"""Approval of new accounts by an administrator.

Laws:
- A user whose account awaits approval cannot sign in, by any method: neither in an app nor on the
  server's own pages.
- One write stores the account, the fact that it awaits approval, and any e-mail to the
  administrators. Another one stores the approval and any e-mail to the owner.
- While an account has been waiting for less than an hour, administrators get no e-mail about
  further accounts, so that nobody can flood their mailbox. The approvals page lists these too.

spec: MSC3866
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import NotFound, UserAwaitingApproval
from federation.protocol.ids import UserID
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.email.outbox import Outbox
from homeserver.services.pages.languages import ENGLISH, Languages
from homeserver.services.threepids.validation import EMAIL
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.threepids.threepids import ThreepidStore

APPROVALS_PATH: Final = "/_mahalla/approvals"
EMAIL_INTERVAL_MS: Final = 3600 * 1000
NOTICE_BY_EMAIL: Final = "m.email"
NO_NOTICE: Final = "m.none"


class NewAccountTasks(Protocol):
    """Tasks for accounts that have just become usable."""

    def schedule(self, txn: WriteTransaction, user_id: UserID) -> None:
        """Schedule the tasks, in the write that makes the account usable."""
        ...

    async def run(self, user_id: UserID) -> None:
        """Run the tasks after that write. Raises nothing that would fail the registration."""
        ...


class NoNewAccountTasks:
    """The tasks of a server that has none for new accounts."""

    def schedule(self, txn: WriteTransaction, user_id: UserID) -> None:
        """Schedule nothing."""

    async def run(self, user_id: UserID) -> None:
        """Run nothing."""


class AwaitingAccount(msgspec.Struct, frozen=True):
    """An account that awaits approval since `since_ts` (milliseconds since 1970), with its e-mail
    addresses."""

    user_id: UserID
    since_ts: int
    addresses: Sequence[str]


class Approvals:
    """Lists and approves accounts that await approval, and refuses their sign-ins."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        accounts: AccountStore,
        threepids: ThreepidStore,
        outbox: Outbox | None,
        languages: Languages,
        administrator_emails: Mapping[str, str],
        base_url: str,
        new_account_tasks: NewAccountTasks,
    ) -> None:
        """`administrator_emails`: e-mail addresses of administrators to notify of waiting accounts,
        with their languages. `new_account_tasks`: the tasks for accounts that are approved."""
        self._clock = clock
        self._database = database
        self._accounts = accounts
        self._threepids = threepids
        self._outbox = outbox
        self._languages = languages
        self._administrator_emails = dict(administrator_emails)
        self._base_url = base_url.rstrip("/")
        self._new_account_tasks = new_account_tasks

    async def check(self, user_id: UserID) -> None:
        """Raise `UserAwaitingApproval` if the account awaits approval."""
        account = (await self._accounts.get_accounts([user_id])).get(user_id)
        if account is not None and account.approval_pending_ts is not None:
            raise await self.get_refusal(user_id)

    async def get_refusal(self, user_id: UserID) -> UserAwaitingApproval:
        """Return the error for an account that awaits approval."""
        known = self._outbox is not None and bool(await self._addresses([user_id]))
        return UserAwaitingApproval(approval_notice_medium=NOTICE_BY_EMAIL if known else NO_NOTICE)

    def notify_administrators(self, txn: WriteTransaction, user_id: UserID, since_ts: int) -> None:
        """Queue the e-mail to the administrators, in the write that stores the account."""
        if self._outbox is None or self._accounts.has_awaiting(
            txn, since_ts - EMAIL_INTERVAL_MS, user_id
        ):
            return
        for address, code in self._administrator_emails.items():
            language = self._languages.choose(code)
            email = self._outbox.renderer.account_pending(
                language, user_id, f"{self._base_url}{APPROVALS_PATH}"
            )
            self._outbox.add(txn, language, email, address)

    async def get_awaiting(self, limit: int) -> Sequence[AwaitingAccount]:
        """Return up to `limit` accounts that await approval, oldest first."""
        rows = await self._accounts.get_awaiting(limit)
        addresses = await self._addresses([user_id for user_id, _ in rows])
        return [
            AwaitingAccount(UserID(user_id), since, addresses.get(user_id, ()))
            for user_id, since in rows
        ]

    async def do_approve(self, user_id: UserID, *, by: UserID) -> bool:
        """Approve an account, and e-mail its owner if an address is known.

        Return False if it did not await approval. Raises `NotFound`.
        """
        account = (await self._accounts.get_accounts([user_id])).get(user_id)
        if account is None or account.deactivated_ts is not None:
            raise NotFound("There is no such user here")
        language = self._languages.choose(account.approval_languages or ENGLISH)
        addresses = (await self._addresses([user_id])).get(user_id, ())

        def write(txn: WriteTransaction) -> bool:
            if not self._accounts.set_awaiting(txn, user_id, None):
                return False
            record_event(txn, user_id, AuditEvent.APPROVED, self._now(), by=by)
            self._new_account_tasks.schedule(txn, user_id)
            if self._outbox is not None:
                for address in addresses:
                    email = self._outbox.renderer.account_approved(
                        language, user_id, f"{self._base_url}/"
                    )
                    self._outbox.add_if_valid(txn, language, email, address)
            return True

        approved = await self._database.write("approve_account", write)
        if approved:
            await self._new_account_tasks.run(user_id)
        return approved

    async def do_revoke(self, user_id: UserID, *, by: UserID) -> None:
        """Make an account await approval again. Its sessions stay; no new one can begin.

        Raises `NotFound`.
        """
        if user_id not in await self._accounts.get_accounts([user_id]):
            raise NotFound("There is no such user here")

        def write(txn: WriteTransaction) -> None:
            if self._accounts.set_awaiting(txn, user_id, self._now()):
                record_event(txn, user_id, AuditEvent.APPROVAL_WITHDRAWN, self._now(), by=by)

        await self._database.write("withdraw_approval", write)

    async def _addresses(self, user_ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
        rows = await self._threepids.get_threepids(user_ids)
        return {
            user_id: [row.address for row in found if row.medium == EMAIL]
            for user_id, found in rows.items()
        }

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

"""Which people of identity providers have which accounts, as administrators see and change it.

A link decides who signs in to an account (`homeserver/services/upstream/accounts.py`): to set one
lets somebody in, and to take one away lets nobody in by that provider any more. Sessions that are
there stay.
"""

from collections.abc import Mapping, Sequence

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import InvalidParam, MatrixError, NotFound
from federation.protocol.ids import UserID
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.audit.audit import Happened, note
from homeserver.services.upstream.identity import LONGEST_SUBJECT
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.upstream.external_ids import ExternalIdRow, ExternalIdStore


class LinkTaken(MatrixError):
    errcode, status, default_text = (
        "M_UNKNOWN",
        409,
        "This person of the provider has another account",
    )


class UpstreamLinks:
    """Shows, sets and takes away links. `providers`: the ids of those of the configuration."""

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        store: ExternalIdStore,
        accounts: Accounts,
        providers: Sequence[str],
    ) -> None:
        self._clock = clock
        self._database = database
        self._store = store
        self._accounts = accounts
        self._providers = tuple(providers)

    async def get_user(self, provider: str, subject: str) -> UserID:
        """Whose account it is. Raises `NotFound`."""
        link = await self._store.get_link(provider, subject)
        if link is None:
            raise NotFound("Nobody of that name has an account")
        return UserID(link.user_id)

    async def get_links(self, user_id: UserID) -> Sequence[ExternalIdRow]:
        """Those of an account, by provider; also of providers that are no longer in the
        configuration. Raises `NotFound`."""
        await self._accounts.get_account(user_id)
        return (await self._store.get_links_of_users([user_id])).get(user_id, [])

    async def do_set(self, user_id: UserID, provider: str, subject: str, *, by: UserID) -> None:
        """Link an account to a person of a provider, in place of another. Raises `NotFound`,
        `InvalidParam`, `LinkTaken`."""
        await self._accounts.get_account(user_id)
        self._check(provider, subject)
        now = self._now()

        await self._database.write(
            "set_external_id", self._set, user_id, provider, subject, now, by
        )

    async def check(self, user_id: UserID, links: Mapping[str, str]) -> None:
        """Raises `InvalidParam`, `LinkTaken` unless an account may have these, by provider."""
        for provider, subject in links.items():
            self._check(provider, subject)
            link = await self._store.get_link(provider, subject)
            if link is not None and link.user_id != user_id:
                raise LinkTaken

    async def do_replace(self, user_id: UserID, links: Mapping[str, str], *, by: UserID) -> None:
        """Give an account these links, by provider, instead of those that it has. Raises
        `LinkTaken`."""
        known = await self.get_links(user_id)
        now = self._now()

        def write(txn: WriteTransaction) -> None:
            for row in known:
                if row.provider not in links and self._store.remove_link(
                    txn, user_id, row.provider
                ):
                    note(txn, user_id, Happened.UNLINKED, now, by=by, detail=row.provider)
            for provider, subject in links.items():
                self._set(txn, user_id, provider, subject, now, by)

        await self._database.write("replace_external_ids", write)

    def _set(
        self,
        txn: WriteTransaction,
        user_id: UserID,
        provider: str,
        subject: str,
        now: int,
        by: UserID,
    ) -> None:
        link = self._store.get_link_in(txn, provider, subject)
        if link is not None and link.user_id == user_id:
            return
        if link is not None:
            raise LinkTaken
        self._store.remove_link(txn, user_id, provider)
        if not self._store.add_link(txn, ExternalIdRow(provider, subject, user_id, now)):
            raise LinkTaken
        note(txn, user_id, Happened.LINKED, now, by=by, detail=provider)

    def _check(self, provider: str, subject: str) -> None:
        if provider not in self._providers:
            known = ", ".join(self._providers) or "none"
            raise InvalidParam(f"There is no such identity provider; there are: {known}")
        if not subject or len(subject) > LONGEST_SUBJECT or not subject.isprintable():
            raise InvalidParam(f"external_id has 1 to {LONGEST_SUBJECT} characters")

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

    async def do_remove(self, user_id: UserID, provider: str, *, by: UserID) -> None:
        """Take a link away. Raises `NotFound`."""
        now = self._now()

        def write(txn: WriteTransaction) -> bool:
            removed = self._store.remove_link(txn, user_id, provider)
            if removed:
                note(txn, user_id, Happened.UNLINKED, now, by=by, detail=provider)
            return removed

        if not await self._database.write("remove_external_id", write):
            raise NotFound("The account has no link with this provider")

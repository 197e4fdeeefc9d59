"""Lists and changes the links between accounts and subjects of identity providers, for
administrators.

A link decides who signs in to an account (`homeserver/services/upstream/accounts.py`): setting one
grants access, removing one ends access through that provider. Existing sessions stay.
"""

from collections.abc import Mapping, Sequence

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import InvalidParam, MatrixError, NotFound
from federation.protocol.ids import UserID
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.upstream.identity import MAX_SUBJECT_LENGTH
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.upstream.external_ids import ExternalIdRow, ExternalIdStore


class ExternalIdInUse(MatrixError):
    """409: the subject is linked to another account."""

    errcode, status, default_text = (
        "M_UNKNOWN",
        409,
        "This person of the provider has another account",
    )


class ExternalIds:
    """Returns, sets and removes links. `providers`: the IDs of the configured providers."""

    def __init__(
        self,
        *,
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
        """Return the account of a subject. Raises `NotFound`."""
        link = await self._store.get_link(provider, subject)
        if link is None:
            raise NotFound("No account is linked to this external ID")
        return UserID(link.user_id)

    async def get_links(self, user_id: UserID) -> Sequence[ExternalIdRow]:
        """Return the links of an account, also those of providers that are no longer configured.
        Raises `NotFound`."""
        await self._accounts.get_account(user_id)
        return (await self._store.get_links_of_users([user_id])).get(user_id, [])

    async def do_set(self, user_id: UserID, provider: str, subject: str, *, by: UserID) -> None:
        """Link an account to a subject of a provider, replacing its link with that provider. Raises
        `NotFound`, `InvalidParam`, `ExternalIdInUse`."""
        await self._accounts.get_account(user_id)
        self._check(provider, subject)
        now = self._now()

        await self._database.write(
            "set_external_id", self._set, user_id, provider, subject, now, by
        )

    async def check(self, user_id: UserID, links: Mapping[str, str]) -> None:
        """Raises `InvalidParam`, `ExternalIdInUse` unless the account may have these links
        (subjects by provider)."""
        for provider, subject in links.items():
            self._check(provider, subject)
            link = await self._store.get_link(provider, subject)
            if link is not None and link.user_id != user_id:
                raise ExternalIdInUse

    async def do_replace(self, user_id: UserID, links: Mapping[str, str], *, by: UserID) -> None:
        """Replace all links of an account with these (subjects by provider). Raises `NotFound`,
        `ExternalIdInUse`."""
        known = await self.get_links(user_id)
        now = self._now()

        def write(txn: WriteTransaction) -> None:
            for row in known:
                if row.provider not in links and self._store.remove_link(
                    txn, user_id, row.provider
                ):
                    record_event(txn, user_id, AuditEvent.UNLINKED, now, by=by, detail=row.provider)
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
            raise ExternalIdInUse
        self._store.remove_link(txn, user_id, provider)
        if not self._store.add_link(txn, ExternalIdRow(provider, subject, user_id, now)):
            raise ExternalIdInUse
        record_event(txn, user_id, AuditEvent.LINKED, now, by=by, detail=provider)

    def _check(self, provider: str, subject: str) -> None:
        if provider not in self._providers:
            known = ", ".join(self._providers) or "none"
            raise InvalidParam(f"Unknown identity provider; the configured ones are: {known}")
        if not subject or len(subject) > MAX_SUBJECT_LENGTH or not subject.isprintable():
            raise InvalidParam(
                f"external_id must have 1 to {MAX_SUBJECT_LENGTH} printable characters"
            )

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

    async def do_remove(self, user_id: UserID, provider: str, *, by: UserID) -> None:
        """Remove a link. Raises `NotFound`."""
        now = self._now()

        def write(txn: WriteTransaction) -> bool:
            removed = self._store.remove_link(txn, user_id, provider)
            if removed:
                record_event(txn, user_id, AuditEvent.UNLINKED, now, by=by, detail=provider)
            return removed

        if not await self._database.write("remove_external_id", write):
            raise NotFound("The account has no link with this provider")

"""Third-party identifiers of accounts (e-mail addresses and telephone numbers): add and remove.

In this module, *address* means either of the two.

spec: client-server-api#adding-account-administrative-contact-information
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Final, Protocol

from federation.protocol.errors import Forbidden, ThreepidInUse
from federation.protocol.ids import UserID
from homeserver.api.requester import Requester
from homeserver.services.accounts.provider_emails import EmailChanges, compute_email_changes
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.login.confirmation import AccountConfirmation
from homeserver.services.login.credential_epoch import CredentialEpoch, check_epoch
from homeserver.services.login.uia import AuthData
from homeserver.services.threepids.validation import (
    ADD,
    EMAIL,
    ThreepidValidation,
    ValidatedThreepid,
)
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.threepids.threepids import ThreepidRow, ThreepidStore

MAX_ADDRESSES: Final = 20
"""Maximum number of addresses of an account."""


class PerAddressStore(Protocol):
    """A store with data per address of an account."""

    def remove_address(self, txn: WriteTransaction, user_id: str, address: str) -> None:
        """Delete the data of this address of the user."""
        ...


class BindingRemoval(Protocol):
    """The bindings of addresses at identity servers."""

    def schedule_unbind(
        self, txn: WriteTransaction, user_id: UserID, medium: str, address: str
    ) -> None:
        """Schedule the unbinding of an address, in the write that removes it from the account."""
        ...


class Threepids:
    """Lists, adds and removes addresses."""

    def __init__(
        self,
        *,
        now_ms: Callable[[], int],
        database: Database,
        store: ThreepidStore,
        confirmation: AccountConfirmation,
        validations: ThreepidValidation,
        address_stores: Sequence[PerAddressStore] = (),
        bindings: BindingRemoval | None = None,
        users_may_change: bool,
    ) -> None:
        """`address_stores`: stores with data to delete with an address. `bindings`: at identity
        servers. `users_may_change`: whether users may change their addresses."""
        self._now_ms = now_ms
        self._database = database
        self._store = store
        self._confirmation = confirmation
        self._validations = validations
        self._address_stores = tuple(address_stores)
        self._bindings = bindings
        self._changes = users_may_change

    async def get_threepids(self, user_id: UserID) -> Sequence[ThreepidRow]:
        """Return the addresses of an account."""
        return (await self._store.get_threepids([user_id])).get(user_id, [])

    async def get_owner(self, medium: str, address: str) -> UserID | None:
        """Return the user who has an address."""
        owner = await self._store.get_owner(medium, address.strip().lower())
        return None if owner is None else UserID(owner)

    async def do_add(
        self, caller: Requester, sid: str, client_secret: str, auth: AuthData | None, ip: str
    ) -> None:
        """Add a validated address to the caller's account, once the caller has confirmed it.

        Raises `Forbidden`, `ThreepidAuthFailed`, `ThreepidInUse`, `AuthenticationRequired`.
        """
        proof = await self._check(caller.user_id, sid, client_secret)
        epoch = await self._confirmation.check_confirmed(
            caller, f"POST account/3pid/add {sid}", auth, ip
        )
        await self._database.write("add_threepid", self._add, caller.user_id, proof, ip, epoch)

    async def do_add_confirmed(
        self, user_id: UserID, sid: str, client_secret: str, ip: str, epoch: CredentialEpoch
    ) -> None:
        """Do `do_add` for a user who has confirmed it in another way, in this credential epoch."""
        proof = await self._check(user_id, sid, client_secret)
        await self._database.write("add_threepid", self._add, user_id, proof, ip, epoch)

    async def _check(self, user_id: UserID, sid: str, client_secret: str) -> ValidatedThreepid:
        self.check_changes()
        proof = await self._validations.check_validated(
            ADD, {"sid": sid, "client_secret": client_secret}
        )
        if len(await self.get_threepids(user_id)) >= MAX_ADDRESSES:
            raise Forbidden(f"An account has at most {MAX_ADDRESSES} addresses")
        return proof

    def _add(
        self,
        txn: WriteTransaction,
        user_id: UserID,
        proof: ValidatedThreepid,
        ip: str,
        epoch: CredentialEpoch,
    ) -> None:
        check_epoch(txn, user_id, epoch)
        self._validations.use(txn, proof)
        row = ThreepidRow(proof.medium, proof.address, user_id, proof.validated_ts, self._now_ms())
        if not self._store.add_threepid(txn, row):
            raise ThreepidInUse
        what = AuditEvent.ADDRESS_ADDED if proof.medium == EMAIL else AuditEvent.NUMBER_ADDED
        record_event(txn, user_id, what, self._now_ms(), ip=ip, detail=proof.address)

    async def do_remove(self, user_id: UserID, medium: str, address: str) -> None:
        """Remove an address from an account, if it has it. Raises `Forbidden`."""
        self.check_changes()
        if "\0" in address or "\0" in medium:
            return
        await self._database.write(
            "remove_threepid", self._remove, user_id, medium, address.strip().lower()
        )

    def _remove(
        self,
        txn: WriteTransaction,
        user_id: UserID,
        medium: str,
        address: str,
        by: UserID | None = None,
    ) -> None:
        if self._bindings is not None:
            self._bindings.schedule_unbind(txn, user_id, medium, address)
        if self._store.remove_threepid(txn, user_id, medium, address):
            what = AuditEvent.ADDRESS_REMOVED if medium == EMAIL else AuditEvent.NUMBER_REMOVED
            record_event(txn, user_id, what, self._now_ms(), by=by, detail=address)
            for store in self._address_stores:
                store.remove_address(txn, user_id, address)

    async def do_set_provider_emails(
        self, asserted: Mapping[UserID, Sequence[str]], provider: str
    ) -> Set[UserID]:
        """Set the e-mail addresses of accounts to those that an identity provider asserts now.

        One write adds the new addresses, and removes those that only this provider asserted
        before. Skipped are addresses of other accounts (unless the same call frees them) and those
        above the maximum. An account keeps its addresses if the provider asserts none, or if it
        could get none of the new ones and has no other. Return the users who did not get an
        address because another account has it.
        """

        def write(txn: WriteTransaction) -> Mapping[UserID, EmailChanges]:
            now = self._now_ms()
            plans = self._plan(txn, asserted, provider)
            for user_id, plan in plans.items():
                for address in plan.withdrawn:
                    self._store.remove_assertion(txn, EMAIL, address, provider)
                for address in plan.removed:
                    self._remove(txn, user_id, EMAIL, address)
            for user_id, plan in plans.items():
                for address in plan.confirmed:
                    self._store.add_assertion(txn, EMAIL, address, provider)
                for address in plan.new:
                    row = ThreepidRow(EMAIL, address, user_id, now, now, frozenset((provider,)))
                    self._store.add_threepid(txn, row)
                    record_event(txn, user_id, AuditEvent.ADDRESS_ADDED, now, detail=address)
            return plans

        asserted = {user_id: addresses for user_id, addresses in asserted.items() if addresses}
        if not asserted:
            return frozenset()
        plans = await self._database.read("plan_provider_emails", self._plan, asserted, provider)
        if any(plan.has_changes for plan in plans.values()):
            plans = await self._database.write("set_provider_emails", write)
        return {user_id for user_id, plan in plans.items() if plan.refused}

    def _plan(
        self, txn: Transaction, asserted: Mapping[UserID, Sequence[str]], provider: str
    ) -> Mapping[UserID, EmailChanges]:
        rows = self._store.get_threepids_in(txn, asserted)
        wanted = {address for addresses in asserted.values() for address in addresses}
        return compute_email_changes(
            rows, self._store.get_owners_in(txn, EMAIL, wanted), asserted, provider, MAX_ADDRESSES
        )

    async def do_replace(
        self, user_id: UserID, addresses: Sequence[tuple[str, str]], *, by: UserID
    ) -> None:
        """Replace all addresses of an account, for the administrator `by`.

        `addresses`: pairs of medium and address, which need no validation. Raises
        `ThreepidInUse`.
        """

        def write(txn: WriteTransaction) -> None:
            now = self._now_ms()
            known = {
                (row.medium, row.address)
                for row in self._store.get_threepids_in(txn, [user_id]).get(user_id, [])
            }
            for medium, address in sorted(known - set(addresses)):
                self._remove(txn, user_id, medium, address, by)
            for medium, address in dict.fromkeys(addresses):
                if (medium, address) in known:
                    continue
                if not self._store.add_threepid(
                    txn, ThreepidRow(medium, address, user_id, now, now)
                ):
                    raise ThreepidInUse
                what = AuditEvent.ADDRESS_ADDED if medium == EMAIL else AuditEvent.NUMBER_ADDED
                record_event(txn, user_id, what, now, by=by, detail=address)

        await self._database.write("replace_threepids", write)

    def check_changes(self) -> None:
        """Raise `Forbidden` where users may not change their addresses."""
        if not self._changes:
            raise Forbidden("Only the administrators of this server change addresses")

"""E-mail addresses and telephone numbers of accounts: adding one that was shown to be one's own,
taking one away.

spec: client-server-api#adding-account-administrative-contact-information
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Final, Protocol

from federation.protocol.errors import Forbidden, ThreepidInUse
from federation.protocol.ids import UserID
from homeserver.api.requester import Requester
from homeserver.services.accounts.provider_emails import Plan, compute_plans
from homeserver.services.audit.audit import Happened, note
from homeserver.services.login.confirmation import AccountConfirmation
from homeserver.services.login.credential_epoch import Era, check_era
from homeserver.services.login.uia import AuthData
from homeserver.services.threepids.validation import ADD, EMAIL, Proof, ThreepidValidation
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.threepids.threepids import ThreepidRow, ThreepidStore

MOST_ADDRESSES: Final = 20
"""Of one account."""


class KeepsByAddress(Protocol):
    """A store that keeps something for an address of an account."""

    def remove_address(self, txn: WriteTransaction, user_id: str, address: str) -> None:
        """Remove what is kept for this address of the user."""
        ...


class Bindings(Protocol):
    """By which addresses people are found elsewhere."""

    def note_removed(
        self, txn: WriteTransaction, user_id: UserID, medium: str, address: str
    ) -> None:
        """In the write that takes an address from the account: nobody is to find the user by it any
        more."""
        ...


class Threepids:
    """Keeps addresses. `changes`: people may change theirs."""

    def __init__(
        self,
        now_ms: Callable[[], int],
        database: Database,
        store: ThreepidStore,
        confirmation: AccountConfirmation,
        validations: ThreepidValidation,
        kept_by_address: Sequence[KeepsByAddress] = (),
        bindings: Bindings | None = None,
        *,
        changes: bool,
    ) -> None:
        """`kept_by_address`: what an address that goes takes with it; `bindings`: where others find
        people by it."""
        self._now_ms = now_ms
        self._database = database
        self._store = store
        self._confirmation = confirmation
        self._validations = validations
        self._kept_by_address = tuple(kept_by_address)
        self._bindings = bindings
        self._changes = changes

    async def get_threepids(self, user_id: UserID) -> Sequence[ThreepidRow]:
        """The addresses of an account."""
        return (await self._store.get_threepids([user_id])).get(user_id, [])

    async def get_owner(self, medium: str, address: str) -> UserID | None:
        """Whose address it is."""
        owner = await self._store.get_owner(medium, address.strip().lower())
        return None if owner is None else UserID(owner)

    async def do_add(
        self, caller: Requester, sid: str, client_secret: str, auth: AuthData | None, ip: str
    ) -> None:
        """Give the caller's account an address that they have shown to be theirs, once that is
        confirmed.

        Raises `Forbidden`, `ThreepidAuthFailed`, `ThreepidInUse`, `AuthenticationRequired`.
        """
        proof = await self._check(caller.user_id, sid, client_secret)
        era = await self._confirmation.check_confirmed(
            caller, f"POST account/3pid/add {sid}", auth, ip
        )
        await self._database.write("add_threepid", self._add, caller.user_id, proof, ip, era)

    async def do_take(
        self, user_id: UserID, sid: str, client_secret: str, ip: str, era: Era
    ) -> None:
        """As `do_add`, for who has confirmed it in another way, in this era of the account."""
        proof = await self._check(user_id, sid, client_secret)
        await self._database.write("add_threepid", self._add, user_id, proof, ip, era)

    async def _check(self, user_id: UserID, sid: str, client_secret: str) -> Proof:
        self.check_changes()
        proof = await self._validations.check_confirmed(
            ADD, {"sid": sid, "client_secret": client_secret}
        )
        if len(await self.get_threepids(user_id)) >= MOST_ADDRESSES:
            raise Forbidden(f"An account has at most {MOST_ADDRESSES} addresses")
        return proof

    def _add(self, txn: WriteTransaction, user_id: UserID, proof: Proof, ip: str, era: Era) -> None:
        check_era(txn, user_id, era)
        self._validations.use(txn, proof)
        row = ThreepidRow(proof.medium, proof.address, user_id, proof.validated_ts, self._now_ms())
        if not self._store.add_threepid(txn, row):
            raise ThreepidInUse
        what = Happened.ADDRESS_ADDED if proof.medium == EMAIL else Happened.NUMBER_ADDED
        note(txn, user_id, what, self._now_ms(), ip=ip, detail=proof.address)

    async def do_remove(self, user_id: UserID, medium: str, address: str) -> None:
        """Take an address from an account; one that it has not is no error. Raises `Forbidden`."""
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
            self._bindings.note_removed(txn, user_id, medium, address)
        if self._store.remove_threepid(txn, user_id, medium, address):
            what = Happened.ADDRESS_REMOVED if medium == EMAIL else Happened.NUMBER_REMOVED
            note(txn, user_id, what, self._now_ms(), by=by, detail=address)
            for store in self._kept_by_address:
                store.remove_address(txn, user_id, address)

    async def do_set_vouched(
        self, said: Mapping[UserID, Sequence[str]], provider: str
    ) -> Set[UserID]:
        """Give accounts the e-mail addresses for which an identity provider vouches, and take away
        those for which it did before, and no other does, in one write; those of others are left
        out, unless they too get other ones by it, and what would be too many. Where it says none,
        all stay; so do those from before while the account can have none of the new ones, and has
        no other. Returned is who could not have some since they are another account's."""

        def write(txn: WriteTransaction) -> Mapping[UserID, Plan]:
            now = self._now_ms()
            plans = self._plan(txn, said, provider)
            for user_id, plan in plans.items():
                for address in plan.disowned:
                    self._store.remove_voucher(txn, EMAIL, address, provider)
                for address in plan.gone:
                    self._remove(txn, user_id, EMAIL, address)
            for user_id, plan in plans.items():
                for address in plan.confirmed:
                    self._store.add_voucher(txn, EMAIL, address, provider)
                for address in plan.new:
                    row = ThreepidRow(EMAIL, address, user_id, now, now, frozenset((provider,)))
                    self._store.add_threepid(txn, row)
                    note(txn, user_id, Happened.ADDRESS_ADDED, now, detail=address)
            return plans

        said = {user_id: addresses for user_id, addresses in said.items() if addresses}
        if not said:
            return frozenset()
        plans = await self._database.read("plan_vouched_threepids", self._plan, said, provider)
        if any(plan.has_changes for plan in plans.values()):
            plans = await self._database.write("set_vouched_threepids", write)
        return {user_id for user_id, plan in plans.items() if plan.refused}

    def _plan(
        self, txn: Transaction, said: Mapping[UserID, Sequence[str]], provider: str
    ) -> Mapping[UserID, Plan]:
        rows = self._store.get_threepids_in(txn, said)
        wanted = {address for addresses in said.values() for address in addresses}
        return compute_plans(
            rows, self._store.get_owners_in(txn, EMAIL, wanted), said, provider, MOST_ADDRESSES
        )

    async def do_replace(
        self, user_id: UserID, addresses: Sequence[tuple[str, str]], *, by: UserID
    ) -> None:
        """Give an account these addresses and numbers, each with its medium, instead of those that
        it has; an administrator vouches for them. Raises `ThreepidInUse`."""

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
                what = Happened.ADDRESS_ADDED if medium == EMAIL else Happened.NUMBER_ADDED
                note(txn, user_id, what, now, by=by, detail=address)

        await self._database.write("replace_threepids", write)

    def check_changes(self) -> None:
        """Raises `Forbidden` where people may not change their addresses."""
        if not self._changes:
            raise Forbidden("Addresses are set by the people who run this server")

"""E-mail addresses and telephone numbers of accounts: adding one that was shown to be one's own, taking one away.

spec: client-server-api#adding-account-administrative-contact-information
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

import msgspec

from federation.protocol.endpoint import Requester
from federation.protocol.errors import Forbidden, ThreepidInUse
from federation.protocol.ids import UserID
from homeserver.services.accounts import Accounts
from homeserver.services.audit import Happened, note
from homeserver.services.threepid_validation import ADD, EMAIL, Proof, ThreepidValidation
from homeserver.services.uia import AuthData
from storage.database import Database
from storage.threepids import ThreepidRow, ThreepidStore
from storage.transaction import WriteTransaction

MOST_ADDRESSES: Final = 20
"""Of one account."""


class KeepsByAddress(Protocol):
    """A store that keeps something for an address of an account."""

    def remove_address(self, txn: WriteTransaction, user_id: str, address: str) -> None:
        """Remove what is kept for this address of the user."""
        ...


class Bindings(Protocol):
    """By which addresses people are found elsewhere."""

    def note_removed(self, txn: WriteTransaction, user_id: UserID, medium: str, address: str) -> None:
        """In the write that takes an address from the account: nobody is to find the user by it any more."""
        ...


class Threepids:
    """Keeps addresses. `changes`: people may change theirs."""

    def __init__(
        self,
        now_ms: Callable[[], int],
        database: Database,
        store: ThreepidStore,
        accounts: Accounts,
        validations: ThreepidValidation,
        kept_by_address: Sequence[KeepsByAddress] = (),
        bindings: Bindings | None = None,
        *,
        changes: bool,
    ) -> None:
        """`kept_by_address`: what an address that goes takes with it; `bindings`: where others find people by it."""
        self._now_ms = now_ms
        self._database = database
        self._store = store
        self._accounts = accounts
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

    async def do_add(self, caller: Requester, sid: str, client_secret: str, auth: AuthData | None, ip: str) -> None:
        """Give the caller's account an address that they have shown to be theirs, once that is confirmed.

        Raises `Forbidden`, `ThreepidAuthFailed`, `ThreepidInUse`, `AuthenticationRequired`.
        """
        proof = await self._check(caller.user_id, sid, client_secret)
        await self._accounts.check_confirmed(caller, f"POST account/3pid/add {sid}", auth, ip)
        await self._database.write("add_threepid", self._add, caller.user_id, proof, ip)

    async def do_take(self, user_id: UserID, sid: str, client_secret: str, ip: str) -> None:
        """As `do_add`, for who has confirmed it in another way."""
        proof = await self._check(user_id, sid, client_secret)
        await self._database.write("add_threepid", self._add, user_id, proof, ip)

    async def _check(self, user_id: UserID, sid: str, client_secret: str) -> Proof:
        self.check_changes()
        proof = await self._validations.check_confirmed(ADD, {"sid": sid, "client_secret": client_secret})
        if len(await self.get_threepids(user_id)) >= MOST_ADDRESSES:
            raise Forbidden(f"An account has at most {MOST_ADDRESSES} addresses")
        return proof

    def _add(self, txn: WriteTransaction, user_id: UserID, proof: Proof, ip: str) -> None:
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
        await self._database.write("remove_threepid", self._remove, user_id, medium, address.strip().lower())

    def _remove(
        self, txn: WriteTransaction, user_id: UserID, medium: str, address: str, by: UserID | None = None
    ) -> None:
        if self._bindings is not None:
            self._bindings.note_removed(txn, user_id, medium, address)
        if self._store.remove_threepid(txn, user_id, medium, address):
            what = Happened.ADDRESS_REMOVED if medium == EMAIL else Happened.NUMBER_REMOVED
            note(txn, user_id, what, self._now_ms(), by=by, detail=address)
            for store in self._kept_by_address:
                store.remove_address(txn, user_id, address)

    async def do_set_vouched(self, user_id: UserID, addresses: Sequence[str], provider: str) -> bool:
        """Give an account the e-mail addresses for which an identity provider vouches, and take away those for which it did before,
        and no other does; those of others are left out, and what would be too many. Where it says none, all stay; so do those from
        before while the account can have none of the new ones, and has no other. False where some are another account's."""

        def write(txn: WriteTransaction) -> bool:
            now = self._now_ms()
            rows = self._store.get_threepids_in(txn, [user_id]).get(user_id, [])
            plan = _plan(rows, self._store.get_taken_in(txn, EMAIL, addresses), addresses, provider)
            for address in plan.disowned:
                self._store.remove_voucher(txn, EMAIL, address, provider)
            for address in plan.gone:
                self._remove(txn, user_id, EMAIL, address)
            for address in plan.confirmed:
                self._store.add_voucher(txn, EMAIL, address, provider)
            for address in plan.new:
                self._store.add_threepid(txn, ThreepidRow(EMAIL, address, user_id, now, now, frozenset((provider,))))
                note(txn, user_id, Happened.ADDRESS_ADDED, now, detail=address)
            return not plan.refused

        if not addresses:
            return True
        taken = await self._store.get_taken(EMAIL, addresses)
        plan = _plan(await self.get_threepids(user_id), taken, addresses, provider)
        if plan.has_changes:
            return await self._database.write("set_vouched_threepids", write)
        return not plan.refused

    async def do_replace(self, user_id: UserID, addresses: Sequence[tuple[str, str]], *, by: UserID) -> None:
        """Give an account these addresses and numbers, each with its medium, instead of those that it has; an administrator vouches
        for them. Raises `ThreepidInUse`."""

        def write(txn: WriteTransaction) -> None:
            now = self._now_ms()
            known = {(row.medium, row.address) for row in self._store.get_threepids_in(txn, [user_id]).get(user_id, [])}
            for medium, address in sorted(known - set(addresses)):
                self._remove(txn, user_id, medium, address, by)
            for medium, address in dict.fromkeys(addresses):
                if (medium, address) in known:
                    continue
                if not self._store.add_threepid(txn, ThreepidRow(medium, address, user_id, now, now)):
                    raise ThreepidInUse
                what = Happened.ADDRESS_ADDED if medium == EMAIL else Happened.NUMBER_ADDED
                note(txn, user_id, what, now, by=by, detail=address)

        await self._database.write("replace_threepids", write)

    def check_changes(self) -> None:
        """Raises `Forbidden` where people may not change their addresses."""
        if not self._changes:
            raise Forbidden("Addresses are set by the people who run this server")


class _Plan(msgspec.Struct, frozen=True):
    """What changes of an account's e-mail addresses, by what an identity provider says of them now."""

    new: Sequence[str]
    confirmed: Sequence[str]
    """Another provider vouches for these already."""
    disowned: Sequence[str]
    """Another provider goes on to vouch for these."""
    gone: Sequence[str]
    refused: Sequence[str]
    """These are another account's."""

    @property
    def has_changes(self) -> bool:
        return bool(self.new or self.confirmed or self.disowned or self.gone)


def _plan(rows: Sequence[ThreepidRow], taken: Collection[str], addresses: Sequence[str], provider: str) -> _Plan:
    """`rows`: those of the account; `taken`: those of `addresses` that are anybody's."""
    lost = [row for row in rows if provider in row.vouched_by and row.address not in addresses]
    gone = [row.address for row in lost if len(row.vouched_by) == 1]
    known = {row.address for row in rows if row.medium == EMAIL}
    unknown = [address for address in dict.fromkeys(addresses) if address not in known]
    new = [address for address in unknown if address not in taken]
    if not new and known == set(gone):
        gone = []  # better the address from before than none
    free = max(0, MOST_ADDRESSES - len(rows) + len(gone))
    vouched = [row for row in rows if row.vouched_by and row.address in addresses]
    return _Plan(
        new=new[:free],
        confirmed=[row.address for row in vouched if provider not in row.vouched_by],
        disowned=[row.address for row in lost if len(row.vouched_by) > 1],
        gone=gone,
        refused=[address for address in unknown if address in taken],
    )

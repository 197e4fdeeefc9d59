"""Computes the changes to e-mail addresses of accounts from what an identity provider asserts now.

Pure: values in, values out.

Laws:
- No provider removes an address that the user has validated or another provider asserts.
- No account loses its last address without getting another one. If an account would have no
  address left, because the provider now asserts none or only addresses of other accounts, it keeps
  the addresses that the provider asserted earlier.
- The changes of several accounts can be computed together. An address that one of them loses is
  then free for the others. So two accounts can swap addresses, and any number of accounts can
  rotate them in a ring.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from federation.protocol.ids import UserID
from homeserver.services.threepids.validation import EMAIL
from storage.threepids.threepids import ThreepidRow


class EmailChanges(msgspec.Struct, frozen=True):
    """The changes to the addresses of an account."""

    new: Sequence[str]
    confirmed: Sequence[str]
    """Addresses that another provider asserts already."""
    withdrawn: Sequence[str]
    """Addresses that only other providers still assert."""
    removed: Sequence[str]
    """Addresses to remove."""
    refused: Sequence[str]
    """Addresses of other accounts."""

    @property
    def has_changes(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.new or self.confirmed or self.withdrawn or self.removed)


def compute_email_changes(
    rows: Mapping[str, Sequence[ThreepidRow]],
    owners: Mapping[str, str],
    asserted: Mapping[UserID, Sequence[str]],
    provider: str,
    max_emails: int,
) -> Mapping[UserID, EmailChanges]:
    """Return the changes of each account for which `provider` asserts addresses.

    `rows`: the addresses of these accounts. `owners`: the current owners of the asserted
    addresses. `max_emails`: the maximum per account.

    First, all addresses that are no longer asserted count as free. An account that would
    have no address then keeps its old ones; accounts that had claimed these are planned again. Each
    account keeps its addresses at most once, so the loop ends.
    """
    unasserted = {
        user_id: _find_unasserted(rows.get(user_id, ()), asserted[user_id], provider)
        for user_id in asserted
    }
    available = {address for addresses in unasserted.values() for address in addresses}
    claims: dict[str, UserID] = {}
    plans: dict[UserID, EmailChanges] = {}
    # plan accounts that free an address first, so that no account outside a ring breaks it
    pending = sorted(asserted, key=lambda user_id: not unasserted[user_id], reverse=True)
    while pending:
        user_id = pending.pop()
        unavailable = {
            address
            for address in asserted[user_id]
            if (owners.get(address, user_id) != user_id and address not in available)
            or address in claims
        }
        plan = plans[user_id] = _plan(
            rows.get(user_id, ()), unavailable, asserted[user_id], provider, max_emails
        )
        claims.update(dict.fromkeys(plan.new, user_id))
        retained = [
            address
            for address in unasserted[user_id]
            if address not in plan.removed and address in available
        ]
        available.difference_update(retained)
        for address in retained:
            if (claimant := claims.get(address)) is not None:
                for claimed in plans.pop(claimant).new:
                    del claims[claimed]
                pending.append(claimant)
    return plans


def _find_unasserted(
    rows: Sequence[ThreepidRow], addresses: Collection[str], provider: str
) -> list[str]:
    """Return the addresses that no provider asserts any more."""
    return [
        row.address
        for row in rows
        if row.asserted_by == {provider} and row.address not in addresses
    ]


def _plan(
    rows: Sequence[ThreepidRow],
    unavailable: Collection[str],
    addresses: Sequence[str],
    provider: str,
    max_emails: int,
) -> EmailChanges:
    """Plan one account. `rows`: its addresses; `unavailable`: those of `addresses` it cannot
    have."""
    unasserted = _find_unasserted(rows, addresses, provider)
    known = {row.address for row in rows if row.medium == EMAIL}
    unknown = [address for address in dict.fromkeys(addresses) if address not in known]
    new = [address for address in unknown if address not in unavailable]
    if not new and known == set(unasserted):
        unasserted = []  # keep the old address rather than none
    capacity = max(0, max_emails - len(rows) + len(unasserted))
    return EmailChanges(
        new=new[:capacity],
        confirmed=[
            row.address
            for row in rows
            if row.asserted_by and row.address in addresses and provider not in row.asserted_by
        ],
        withdrawn=[
            row.address
            for row in rows
            if provider in row.asserted_by
            and len(row.asserted_by) > 1
            and row.address not in addresses
        ],
        removed=unasserted,
        refused=[address for address in unknown if address in unavailable],
    )

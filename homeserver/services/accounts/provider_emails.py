"""Computes the changes to e-mail addresses of accounts from what an identity provider asserts now.

Pure: values in, values out.

Laws:
- No provider removes an address that the user has validated or another provider asserts.
- No account loses its last address because another account has the new one. But accounts that the
  provider asserts together free addresses for each other: two can swap, and any number can rotate
  in a ring.
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
    disowned: Sequence[str]
    """Addresses that only other providers still assert."""
    removed: Sequence[str]
    """Addresses to remove."""
    refused: Sequence[str]
    """Addresses of other accounts."""

    @property
    def has_changes(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.new or self.confirmed or self.disowned or self.removed)


def compute_email_changes(
    rows: Mapping[str, Sequence[ThreepidRow]],
    owners: Mapping[str, str],
    asserted: Mapping[UserID, Sequence[str]],
    provider: str,
    most: int,
) -> Mapping[UserID, EmailChanges]:
    """Return the changes of each account for which `provider` asserts addresses.

    `rows`: the addresses of these accounts. `owners`: the current owners of the asserted
    addresses. `most`: the maximum per account.

    First, all addresses that are no longer asserted count as free. An account that would get
    nothing in exchange keeps its own; accounts that had claimed those are planned again. Each
    account keeps its addresses at most once, so the loop ends.
    """
    losses = {
        user_id: _find_losses(rows.get(user_id, ()), asserted[user_id], provider)
        for user_id in asserted
    }
    freed = {address for gone in losses.values() for address in gone}
    claims: dict[str, UserID] = {}
    plans: dict[UserID, EmailChanges] = {}
    # plan accounts that free an address first, so that no account outside a ring breaks it
    unplanned = sorted(asserted, key=lambda user_id: not losses[user_id], reverse=True)
    while unplanned:
        user_id = unplanned.pop()
        taken = {
            address
            for address in asserted[user_id]
            if (owners.get(address, user_id) != user_id and address not in freed)
            or address in claims
        }
        plan = plans[user_id] = _plan(
            rows.get(user_id, ()), taken, asserted[user_id], provider, most
        )
        claims.update(dict.fromkeys(plan.new, user_id))
        kept = [
            address
            for address in losses[user_id]
            if address not in plan.removed and address in freed
        ]
        freed.difference_update(kept)
        for address in kept:
            if (claimant := claims.get(address)) is not None:
                for claimed in plans.pop(claimant).new:
                    del claims[claimed]
                unplanned.append(claimant)
    return plans


def _find_losses(
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
    taken: Collection[str],
    addresses: Sequence[str],
    provider: str,
    most: int,
) -> EmailChanges:
    """Plan one account. `rows`: its addresses; `taken`: those of `addresses` it cannot have."""
    gone = _find_losses(rows, addresses, provider)
    known = {row.address for row in rows if row.medium == EMAIL}
    unknown = [address for address in dict.fromkeys(addresses) if address not in known]
    new = [address for address in unknown if address not in taken]
    if not new and known == set(gone):
        gone = []  # keep the old address rather than none
    free = max(0, most - len(rows) + len(gone))
    return EmailChanges(
        new=new[:free],
        confirmed=[
            row.address
            for row in rows
            if row.asserted_by and row.address in addresses and provider not in row.asserted_by
        ],
        disowned=[
            row.address
            for row in rows
            if provider in row.asserted_by
            and len(row.asserted_by) > 1
            and row.address not in addresses
        ],
        removed=gone,
        refused=[address for address in unknown if address in taken],
    )

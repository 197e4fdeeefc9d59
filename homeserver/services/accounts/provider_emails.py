"""What changes of the e-mail addresses of accounts, by what an identity provider says of their
people now: pure, values in, values out.

Laws:
- What somebody has confirmed, and what another provider vouches for, no provider takes away.
- Nobody is left without an address because another has theirs; but people of whom the provider
  speaks at once make room for one another: two who swap theirs, and any number in a ring.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from federation.protocol.ids import UserID
from homeserver.services.threepids.validation import EMAIL
from storage.threepids.threepids import ThreepidRow


class Plan(msgspec.Struct, frozen=True):
    """What changes of one account."""

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
        """Whether there is anything to write."""
        return bool(self.new or self.confirmed or self.disowned or self.gone)


def compute_plans(
    rows: Mapping[str, Sequence[ThreepidRow]],
    owners: Mapping[str, str],
    said: Mapping[UserID, Sequence[str]],
    provider: str,
    most: int,
) -> Mapping[UserID, Plan]:
    """What changes of each account of which `provider` speaks. `rows`: what the accounts have;
    `owners`: whose the addresses are that are `said`, as far as they are anybody's; `most`:
    addresses of one account.

    It begins as if everybody gave up what is said of them no more. Who would get nothing for it
    keeps what they have, and who had claimed that is planned anew: each keeps once at most, so it
    ends."""
    losses = {
        user_id: _find_losses(rows.get(user_id, ()), said[user_id], provider) for user_id in said
    }
    freed = {address for gone in losses.values() for address in gone}
    claims: dict[str, UserID] = {}
    plans: dict[UserID, Plan] = {}
    # who makes room comes before who only wants some: a ring is not broken by somebody outside of
    # it
    waiting = sorted(said, key=lambda user_id: not losses[user_id], reverse=True)
    while waiting:
        user_id = waiting.pop()
        taken = {
            address
            for address in said[user_id]
            if (owners.get(address, user_id) != user_id and address not in freed)
            or address in claims
        }
        plan = plans[user_id] = _plan(rows.get(user_id, ()), taken, said[user_id], provider, most)
        claims.update(dict.fromkeys(plan.new, user_id))
        kept = [
            address for address in losses[user_id] if address not in plan.gone and address in freed
        ]
        freed.difference_update(kept)
        for address in kept:
            if (claimant := claims.get(address)) is not None:
                for claimed in plans.pop(claimant).new:
                    del claims[claimed]
                waiting.append(claimant)
    return plans


def _find_losses(
    rows: Sequence[ThreepidRow], addresses: Collection[str], provider: str
) -> list[str]:
    """For which addresses nobody vouches any more."""
    return [
        row.address for row in rows if row.vouched_by == {provider} and row.address not in addresses
    ]


def _plan(
    rows: Sequence[ThreepidRow],
    taken: Collection[str],
    addresses: Sequence[str],
    provider: str,
    most: int,
) -> Plan:
    """`rows`: those of the account; `taken`: those of `addresses` that it cannot have."""
    gone = _find_losses(rows, addresses, provider)
    known = {row.address for row in rows if row.medium == EMAIL}
    unknown = [address for address in dict.fromkeys(addresses) if address not in known]
    new = [address for address in unknown if address not in taken]
    if not new and known == set(gone):
        gone = []  # better the address from before than none
    free = max(0, most - len(rows) + len(gone))
    return Plan(
        new=new[:free],
        confirmed=[
            row.address
            for row in rows
            if row.vouched_by and row.address in addresses and provider not in row.vouched_by
        ],
        disowned=[
            row.address
            for row in rows
            if provider in row.vouched_by
            and len(row.vouched_by) > 1
            and row.address not in addresses
        ],
        gone=gone,
        refused=[address for address in unknown if address in taken],
    )

"""Whether what somebody proved a moment ago still holds.

Who they are is found out before a write: a password is hashed for a while, a browser session is read, an identity provider answers.
Meanwhile the password may change, all sessions may be ended, the account may be locked or closed: each of these begins a new era of the
account (`AccountStore.begin_era`). So whatever lets somebody in, or changes how they come in, is told the era in which they proved who
they are, and compares it in its own write.
"""

from federation.protocol.errors import Forbidden, UserDeactivated, UserLocked
from storage.accounts import select_standing
from storage.transaction import Transaction


class ProofEnded(Forbidden):
    """What was proved holds no longer."""

    def __init__(self) -> None:
        super().__init__("The account has changed in the meantime; sign in again")


def check_era(txn: Transaction, user_id: str, era: int) -> None:
    """Raises `UserDeactivated`, `UserLocked` or `ProofEnded` where another era has begun."""
    standing = select_standing(txn, user_id)
    if standing is not None and standing.era == era:
        return
    if standing is None or standing.deactivated:
        raise UserDeactivated
    if standing.locked:
        raise UserLocked(soft_logout=True)
    raise ProofEnded

"""Expiry of accounts, checked for every request and sign-in.

Unless the operator enables expiry (`account_validity`), no account is expired, whatever expiry
times are stored.
"""

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import ExpiredAccount
from storage.accounts.accounts import AccountRow


class AccountValidity:
    """Compares expiry times with the clock."""

    def __init__(self, *, clock: IReactorTime, enabled: bool = False) -> None:
        self._clock = clock
        self.enabled = enabled

    def effective_expiry(self, expires_ts: int | None) -> int | None:
        """Return the expiry time in milliseconds since 1970; None where accounts do not expire."""
        return expires_ts if self.enabled else None

    def is_expired(self, expires_ts: int | None) -> bool:
        """Return whether an account with this expiry time has expired."""
        return (
            self.enabled and expires_ts is not None and expires_ts <= self._clock.seconds() * 1000
        )

    def check(self, account: AccountRow) -> None:
        """Raise `ExpiredAccount` if the account has expired."""
        if self.is_expired(account.expires_ts):
            raise ExpiredAccount

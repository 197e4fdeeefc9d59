"""Whether an account is past its day: asked wherever a request or a sign-in is let in.

Where the operator lets accounts last (`account_validity`), none ever is, whatever is kept of an
earlier time.
"""

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import ExpiredAccount
from storage.accounts.accounts import AccountRow


class AccountValidity:
    """Compares ends with the clock."""

    def __init__(self, clock: IReactorTime, *, enabled: bool = False) -> None:
        self._clock = clock
        self.enabled = enabled

    def end_of(self, expires_ts: int | None) -> int | None:
        """The end that counts, in milliseconds since 1970."""
        return expires_ts if self.enabled else None

    def is_over(self, expires_ts: int | None) -> bool:
        """Whether an account with this end is past it."""
        return (
            self.enabled and expires_ts is not None and expires_ts <= self._clock.seconds() * 1000
        )

    def check(self, account: AccountRow) -> None:
        """Raises `ExpiredAccount`."""
        if self.is_over(account.expires_ts):
            raise ExpiredAccount

"""User-interactive authentication for changes to an account.

Users confirm the change with their password or at their identity provider. spec:
client-server-api#user-interactive-authentication-api
"""

from collections.abc import Sequence
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden
from federation.protocol.ids import UserID
from homeserver.api.requester import Requester
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.uia import UIA, AuthData, UIAOperation
from homeserver.services.login.uia_stages import PASSWORD
from storage.accounts.accounts import AccountStore
from storage.login.uia import ConfirmationStore


class OtherProofs(Protocol):
    """Ways to authenticate besides a password that this server stores."""

    async def get_stages(self, user_id: UserID) -> Sequence[str]:
        """Return the stages with which this user can confirm an operation."""
        ...


class AccountConfirmation:
    """Checks that a caller has confirmed an operation on their account."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        accounts: AccountStore,
        sign_in: SignIn,
        uia: UIA,
        account_page: str = "",
        other_proofs: OtherProofs | None = None,
        confirmations: ConfirmationStore | None = None,
        confirmed_for_ms: int = 0,
    ) -> None:
        """`account_page`: where people manage their accounts in a browser.

        `confirmed_for_ms`: for so long one confirmation covers further operations of the same
        device that accept an earlier one; it needs `confirmations`. 0: never.
        """
        self._clock = clock
        self._accounts = accounts
        self._sign_in = sign_in
        self._uia = uia
        self._account_page = account_page
        self._other_proofs = other_proofs
        self._confirmations = confirmations if confirmed_for_ms else None
        self._confirmed_for_ms = confirmed_for_ms

    async def check_confirmed(
        self,
        caller: Requester,
        operation: str,
        auth: AuthData | None,
        address: str,
        *,
        accepts_earlier: bool = False,
    ) -> int:
        """Return the account's credential epoch once the caller has confirmed the operation.

        Compare the epoch (`check_epoch`) in the write that carries the operation out.
        `accepts_earlier`: a recent confirmation on the same device is enough, where the operator
        allows it; never for an operation that could give somebody else access, or that ends the
        account. Raises `AuthenticationRequired`; `Forbidden` where the caller has nothing to
        confirm it with, or must use the account page instead.
        """
        if caller.oauth_client is not None:
            # An app that was let in without a password must not ask for it afterwards.
            raise Forbidden(f"This is done on the account page of the server: {self._account_page}")
        account = (await self._accounts.get_accounts([caller.user_id]))[caller.user_id]
        if accepts_earlier and await self._has_confirmed(caller):
            return account.epoch
        has_password = account.password_hash is not None
        stages = [PASSWORD] if self._sign_in.password_confirmation and has_password else []
        if self._other_proofs is not None:
            stages += await self._other_proofs.get_stages(caller.user_id)
        if not stages:
            raise Forbidden("This account has no password to confirm this with")
        flows = [[stage] for stage in dict.fromkeys(stages)]
        await self._uia.check(UIAOperation(operation, caller.user_id, address), flows, auth)
        if self._confirmations is not None and caller.device_id is not None:
            await self._confirmations.set_confirmed(
                caller.user_id, caller.device_id, self._now(), account.epoch
            )
        return account.epoch

    async def _has_confirmed(self, caller: Requester) -> bool:
        if self._confirmations is None or caller.device_id is None:
            return False
        confirmed_ts = await self._confirmations.get_confirmed(caller.user_id, caller.device_id)
        return confirmed_ts is not None and confirmed_ts > self._now() - self._confirmed_for_ms

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

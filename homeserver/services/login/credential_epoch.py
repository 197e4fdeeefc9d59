"""Credential epochs: detect that an authentication was invalidated before the write that relies on
it.

Authentication takes place before the write: a password is hashed, a browser session is read, an
identity provider responds. In the meantime the password may change, all sessions may end, or the
account may be locked or deactivated. Each of these increments the credential epoch of the account
(`AccountStore.advance_epoch`). So each write that signs a user in, or changes their credentials,
receives the epoch of the authentication and compares it with the current one.

A single browser session can end, and an identity provider can end a single sign-in. Neither
increments the epoch, because the user's other sessions continue. So an operation in a browser
session names the session too (`BrowserEpoch`). An operation that depends on a sign-in at a provider
checks that the provider has not ended this sign-in (`check_provider_session`).
"""

import msgspec

from federation.protocol.errors import Forbidden, UnknownToken, UserDeactivated, UserLocked
from homeserver.api.requester import Requester
from storage.accounts.accounts import select_account_state
from storage.engine.transaction import Transaction
from storage.login.access_tokens import has_access_token
from storage.login.browser_sessions import has_browser_session
from storage.upstream.ended_sessions import is_ended


class BrowserEpoch(msgspec.Struct, frozen=True):
    """The epoch of an authentication by browser session. `epoch`: the credential epoch of the
    account; `cookie_hash`: the hash of the cookie."""

    epoch: int
    cookie_hash: bytes


CredentialEpoch = int | BrowserEpoch
"""The credential epoch of an authentication, with the browser session if there is one."""


class AuthenticationInvalidated(Forbidden):
    """The authentication was invalidated."""

    def __init__(self) -> None:
        super().__init__("The account has changed in the meantime; sign in again")


def check_epoch(txn: Transaction, user_id: str, epoch: CredentialEpoch) -> None:
    """Check that the account is still in this epoch, and that the browser session has not ended.

    Raises `UserDeactivated`, `UserLocked` or `AuthenticationInvalidated`.
    """
    account = select_account_state(txn, user_id)
    number = epoch.epoch if isinstance(epoch, BrowserEpoch) else epoch
    if account is not None and account.epoch == number:
        if isinstance(epoch, BrowserEpoch) and not has_browser_session(
            txn, epoch.cookie_hash, user_id
        ):
            raise AuthenticationInvalidated
        return
    if account is None or account.deactivated:
        raise UserDeactivated
    if account.locked:
        raise UserLocked(soft_logout=True)
    raise AuthenticationInvalidated


def check_session(txn: Transaction, caller: Requester) -> None:
    """Check that the caller's access token still exists and that the account is usable.

    For operations that only the access token authenticates. Raises `UnknownToken`,
    `UserDeactivated`, `UserLocked`.
    """
    if caller.appservice_id is None and not has_access_token(txn, caller.token_nid):
        raise UnknownToken("The session has ended")
    account = select_account_state(txn, caller.user_id)
    if account is None or account.deactivated:
        raise UserDeactivated
    if account.locked:
        raise UserLocked(soft_logout=True)


def check_provider_session(txn: Transaction, origin: str | None) -> None:
    """Raise `AuthenticationInvalidated` if the identity provider has ended this sign-in.

    `origin`: the sign-in as JSON; None for a sign-in without provider.
    """
    if is_ended(txn, origin):
        raise AuthenticationInvalidated

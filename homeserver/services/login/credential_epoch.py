"""Whether what somebody proved a moment ago still holds.

Who they are is found out before a write: a password is hashed for a while, a browser session is
read, an identity provider answers. Meanwhile the password may change, all sessions may be ended,
the account may be locked or closed: each of these begins a new era of the account
(`AccountStore.begin_era`). So whatever lets somebody in, or changes how they come in, is told the
era in which they proved who they are, and compares it in its own write.

A browser session can end alone, and so can a sign-in at an identity provider, by the provider's
word: neither begins an era, since the person's other sessions go on. So who does something in a
browser session names it too (`InBrowser`), and what rests on a sign-in at a provider asks whether
that still stands (`check_sign_in`).
"""

import msgspec

from federation.protocol.errors import Forbidden, UnknownToken, UserDeactivated, UserLocked
from homeserver.api.requester import Requester
from storage.accounts.accounts import select_standing
from storage.engine.transaction import Transaction
from storage.login.access_tokens import has_access_token
from storage.login.browser_sessions import has_browser_session
from storage.upstream.ended_sessions import is_ended


class InBrowser(msgspec.Struct, frozen=True):
    """Somebody is signed in in a browser. `era`: of their account; `browser`: the hash of its
    cookie."""

    era: int
    browser: bytes


Era = int | InBrowser
"""In which somebody has proved who they are, and in which browser session, where they work in
one."""


class ProofEnded(Forbidden):
    """What was proved holds no longer."""

    def __init__(self) -> None:
        super().__init__("The account has changed in the meantime; sign in again")


def check_era(txn: Transaction, user_id: str, era: Era) -> None:
    """Raises `UserDeactivated`, `UserLocked` or `ProofEnded` where another era has begun, or the
    browser session has ended."""
    standing = select_standing(txn, user_id)
    number = era.era if isinstance(era, InBrowser) else era
    if standing is not None and standing.era == number:
        if isinstance(era, InBrowser) and not has_browser_session(txn, era.browser, user_id):
            raise ProofEnded
        return
    if standing is None or standing.deactivated:
        raise UserDeactivated
    if standing.locked:
        raise UserLocked(soft_logout=True)
    raise ProofEnded


def check_session(txn: Transaction, caller: Requester) -> None:
    """For who has shown nothing but their access token. Raises `UnknownToken` where it has ended
    meanwhile, `UserDeactivated`, `UserLocked`."""
    if caller.appservice_id is None and not has_access_token(txn, caller.token_nid):
        raise UnknownToken("The session has ended")
    standing = select_standing(txn, caller.user_id)
    if standing is None or standing.deactivated:
        raise UserDeactivated
    if standing.locked:
        raise UserLocked(soft_logout=True)


def check_sign_in(txn: Transaction, origin: str | None) -> None:
    """Raises `ProofEnded` where the identity provider has said meanwhile that this sign-in ended.
    `origin`: its JSON, None where somebody came otherwise."""
    if is_ended(txn, origin):
        raise ProofEnded

"""Sets the expiry times of accounts, for administrators. The path is Synapse's."""

import msgspec

from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.accounts.renewal import Renewals


class ValidityBody(msgspec.Struct, frozen=True, kw_only=True):
    """The request. `expiration_ts`: milliseconds since 1970; if absent, the configured period from
    now."""

    user_id: str
    expiration_ts: int | None = None
    enable_renewal_emails: bool = True


@endpoint("POST", "/_synapse/admin/v1/account_validity/validity", auth=Auth.ADMIN)
async def post_account_validity(
    renewals: Renewals, accounts: Accounts, caller: Requester, *, body: ValidityBody
) -> dict[str, object]:
    """Set when an account expires, and whether its owner gets a renewal e-mail before. Raises
    `NotFound`, `InvalidParam`, and `Forbidden` if accounts do not expire."""
    account = await accounts.get_account(UserID(body.user_id.replace("\0", "")))
    end = await renewals.do_set_expiry(
        UserID(account.user_id),
        body.expiration_ts,
        sends_email=body.enable_renewal_emails,
        by=caller.user_id,
    )
    return {"expiration_ts": end}

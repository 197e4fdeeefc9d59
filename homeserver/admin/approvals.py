"""Accounts that wait to be approved, for administrators. spec: MSC3866"""

from typing import Final

import msgspec

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.login.approvals import Approvals

MOST: Final = 1000


class Approval(msgspec.Struct, frozen=True):
    approved: bool


@endpoint("GET", "/_mahalla/admin/v1/approvals", auth=Auth.ADMIN)
async def get_waiting(approvals: Approvals, *, limit: int = 100) -> dict[str, object]:
    """Who waits, the first first; since when, in milliseconds since 1970."""
    if not 1 <= limit <= MOST:
        raise InvalidParam(f"limit is between 1 and {MOST}")
    return {
        "waiting": [
            {"user_id": each.user_id, "since_ts": each.since_ts, "emails": list(each.addresses)}
            for each in await approvals.get_waiting(limit)
        ]
    }


@endpoint("PUT", "/_mahalla/admin/v1/users/{user_id}/approval", auth=Auth.ADMIN)
async def put_approval(
    approvals: Approvals, caller: Requester, *, user_id: UserID, body: Approval
) -> Approval:
    """Approve an account, or let it wait again."""
    if body.approved:
        await approvals.do_approve(user_id, by=caller.user_id)
    else:
        await approvals.do_withdraw(user_id, by=caller.user_id)
    return body

"""Lists the accounts that wait for approval, and approves them. For administrators. spec:
MSC3866"""

from typing import Final

import msgspec

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.login.approvals import Approvals

MAX_PAGE_SIZE: Final = 1000


class ApprovalBody(msgspec.Struct, frozen=True):
    approved: bool


@endpoint("GET", "/_mahalla/admin/v1/approvals", auth=Auth.ADMIN)
async def get_waiting_accounts(approvals: Approvals, *, limit: int = 100) -> dict[str, object]:
    """Return waiting accounts, longest waiting first. Times are milliseconds since 1970."""
    if not 1 <= limit <= MAX_PAGE_SIZE:
        raise InvalidParam(f"limit must be between 1 and {MAX_PAGE_SIZE}")
    return {
        "waiting": [
            {"user_id": each.user_id, "since_ts": each.since_ts, "emails": list(each.addresses)}
            for each in await approvals.get_awaiting(limit)
        ]
    }


@endpoint("PUT", "/_mahalla/admin/v1/users/{user_id}/approval", auth=Auth.ADMIN)
async def put_approval(
    approvals: Approvals, caller: Requester, *, user_id: UserID, body: ApprovalBody
) -> ApprovalBody:
    """Approve an account, or withdraw its approval."""
    if body.approved:
        await approvals.do_approve(user_id, by=caller.user_id)
    else:
        await approvals.do_revoke(user_id, by=caller.user_id)
    return body

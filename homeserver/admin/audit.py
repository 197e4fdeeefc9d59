"""What happened to an account, for administrators."""

from typing import Final

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.services.audit.audit import NOBODY, Audit

MOST: Final = 1000


@endpoint("GET", "/_mahalla/admin/v1/users/{user_id}/audit", auth=Auth.ADMIN)
async def get_audit(audit: Audit, *, user_id: UserID, limit: int = 100) -> dict[str, object]:
    """Its records, newest first: when (`ts`, in milliseconds since 1970), what, whence, on which
    device, and which administrator did it (`by`; null: the owner, or the server by itself), and
    what there is more to say (`detail`)."""
    return await _list(audit, user_id, limit)


@endpoint("GET", "/_mahalla/admin/v1/audit", auth=Auth.ADMIN)
async def get_audit_of_nobody(audit: Audit, *, limit: int = 100) -> dict[str, object]:
    """As `get_audit`, of what concerns no account: programs of the OAuth 2.0 API that made
    themselves known."""
    return await _list(audit, NOBODY, limit)


async def _list(audit: Audit, user_id: UserID, limit: int) -> dict[str, object]:
    if not 1 <= limit <= MOST:
        raise InvalidParam(f"limit is between 1 and {MOST}")
    records = await audit.get_records(user_id, limit)
    return {
        "records": [
            {
                "ts": record.ts,
                "event": record.event,
                "address": record.address,
                "device_id": record.device_id,
                "by": record.by_user,
                "detail": record.detail,
            }
            for record in records
        ]
    }

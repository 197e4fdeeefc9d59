"""What happened to an account, for administrators."""

from typing import Final

from federation.protocol.endpoint import Auth, endpoint
from federation.protocol.errors import InvalidParam
from federation.protocol.ids import UserID
from homeserver.services.audit import Audit

MOST: Final = 1000


@endpoint("GET", "/_mahalla/admin/v1/users/{user_id}/audit", auth=Auth.ADMIN)
async def get_audit(audit: Audit, *, user_id: UserID, limit: int = 100) -> dict[str, object]:
    """Its records, newest first: when (`ts`, in milliseconds since 1970), what, whence, on which device, and which administrator did it
    (`by`; null: the owner, or the server by itself)."""
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
            }
            for record in records
        ]
    }

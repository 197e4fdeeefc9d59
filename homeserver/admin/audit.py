"""The audit log, for administrators: the records of one account, and the records that belong to no
account."""

from typing import Final

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.services.audit.audit import NO_ACCOUNT, Audit

MAX_PAGE_SIZE: Final = 1000


@endpoint("GET", "/_mahalla/admin/v1/users/{user_id}/audit", auth=Auth.ADMIN)
async def get_audit(audit: Audit, *, user_id: UserID, limit: int = 100) -> dict[str, object]:
    """Return the audit records of an account, newest first.

    `ts` is in milliseconds since 1970. `address` and `device_id` say where the action came from.
    `by` is the administrator who acted; null means the owner or the server itself. `detail` holds
    further facts.
    """
    return await _records(audit, user_id, limit)


@endpoint("GET", "/_mahalla/admin/v1/audit", auth=Auth.ADMIN)
async def get_server_audit(audit: Audit, *, limit: int = 100) -> dict[str, object]:
    """Return the audit records that belong to no account, such as OAuth 2.0 client registrations.
    The form is that of `get_audit`."""
    return await _records(audit, NO_ACCOUNT, limit)


async def _records(audit: Audit, user_id: UserID, limit: int) -> dict[str, object]:
    if not 1 <= limit <= MAX_PAGE_SIZE:
        raise InvalidParam(f"limit must be between 1 and {MAX_PAGE_SIZE}")
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

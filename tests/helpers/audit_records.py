"""Reads audit records of accounts."""

from federation.protocol.ids import UserID
from tests.helpers.server import TestServer


def audit_records(
    server: TestServer, user_id: str = "@alice:example.org"
) -> list[tuple[str, str | None]]:
    """Return (event, detail) of an account's audit records, oldest first."""
    records = server.run(server.app.accounts.audit.get_records(UserID(user_id), 1000))
    return [(record.event, record.detail) for record in reversed(records)]

"""Audit records, as administrators see them."""

from federation.protocol.ids import UserID
from tests.helpers.server import TestServer


def told(server: TestServer, user_id: str = "@alice:example.org") -> list[tuple[str, str | None]]:
    """The events of an account and their details, oldest first."""
    records = server.run(server.app.accounts.audit.get_records(UserID(user_id), 1000))
    return [(record.event, record.detail) for record in reversed(records)]

"""Devices that somebody lets in who came to the server's pages by an identity provider: they belong to that sign-in too.

So a provider that says that somebody has signed out ends what was begun by the OAuth 2.0 API as well.
"""

import msgspec

from federation.protocol.ids import DeviceID
from homeserver.services.browser_sessions import BrowserSession
from homeserver.services.login_tokens import Origin
from storage.database import Database
from storage.upstream_sessions import UpstreamSessionRow, UpstreamSessionStore


class UpstreamDevices:
    """Notes them."""

    def __init__(self, database: Database, store: UpstreamSessionStore) -> None:
        self._database = database
        self._store = store

    async def note(self, session: BrowserSession, device_id: str) -> None:
        """The person of this session is about to let a device in."""
        if session.origin is None:
            return
        origin = msgspec.json.decode(session.origin, type=Origin)
        row = UpstreamSessionRow(
            session.user_id, DeviceID(device_id), origin.provider, origin.subject, origin.session, awaited=True
        )
        await self._database.write("await_upstream_session", self._store.set_upstream_session, row)

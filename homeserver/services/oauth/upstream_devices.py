"""Devices that somebody lets in who came to the server's pages by an identity provider: they belong
to that sign-in too.

So a provider that says that somebody has signed out ends what was begun by the OAuth 2.0 API as
well.
"""

import msgspec

from federation.protocol.ids import DeviceID, UserID
from homeserver.services.login.login_tokens import Origin
from storage.engine.transaction import WriteTransaction
from storage.upstream.sessions import UpstreamSessionRow, UpstreamSessionStore


class UpstreamDevices:
    """Notes them."""

    def __init__(self, store: UpstreamSessionStore) -> None:
        self._store = store

    def note(
        self, txn: WriteTransaction, user_id: UserID, device_id: DeviceID, origin: str | None
    ) -> None:
        """A session begins on a device that was let in by somebody with this `origin` (as
        `BrowserSession` has it)."""
        if origin is None:
            return
        came = msgspec.json.decode(origin, type=Origin)
        row = UpstreamSessionRow(user_id, device_id, came.provider, came.subject, came.session)
        self._store.set_upstream_session(txn, row)

"""Ties devices of the OAuth 2.0 API to the upstream sign-in of the browser that allowed them, so
that a logout at the identity provider ends them too."""

import msgspec

from federation.protocol.ids import DeviceID, UserID
from homeserver.services.login.login_tokens import ProviderSignIn
from storage.engine.transaction import WriteTransaction
from storage.upstream.sessions import UpstreamSessionRow, UpstreamSessionStore


class UpstreamDevices:
    """Records which upstream session a device belongs to."""

    def __init__(self, store: UpstreamSessionStore) -> None:
        self._store = store

    def record(
        self, txn: WriteTransaction, user_id: UserID, device_id: DeviceID, origin: str | None
    ) -> None:
        """Record a new device. `upstream_login`: from the `BrowserSession` of the user who allowed it."""
        if origin is None:
            return
        sign_in = msgspec.json.decode(origin, type=ProviderSignIn)
        row = UpstreamSessionRow(
            user_id, device_id, sign_in.provider, sign_in.subject, sign_in.session
        )
        self._store.set_upstream_session(txn, row)

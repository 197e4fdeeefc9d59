"""Publishes the keys with which this server signs.

The key document is valid for a day by default (`key_refresh_interval`). It is renewed after half of
that time. So a document that another server fetches stays valid for at least the other half.

spec: server-server-api#publishing-keys
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from federation.peers.identity import ServerIdentity
from federation.protocol.ids import KeyID
from federation.protocol.signing import encode_base64, sign_json


class PublishedServerKeys:
    """Builds the key document."""

    def __init__(
        self,
        *,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
        old_keys: Mapping[KeyID, tuple[str, int]],
        valid_ms: int,
    ) -> None:
        """`old_keys`: former keys (unpadded base64) and the end of their use, in milliseconds.

        `valid_ms`: validity of a document.
        """
        self._valid_ms = valid_ms
        self._identity = identity
        self._now_ms = now_ms
        self._old_keys = old_keys
        self._document = msgspec.Raw(b"")
        self._renew_at = 0

    def get_document(self) -> msgspec.Raw:
        """Return the signed document."""
        now = self._now_ms()
        if now >= self._renew_at:
            self._document = msgspec.Raw(msgspec.json.encode(self._make(now)))
            self._renew_at = now + self._valid_ms // 2
        return self._document

    def _make(self, now: int) -> dict[str, Any]:
        key = self._identity.key
        document = {
            "server_name": self._identity.server_name,
            "verify_keys": {key.key_id: {"key": encode_base64(key.public_key)}},
            "old_verify_keys": {
                key_id: {"key": public, "expired_ts": expired}
                for key_id, (public, expired) in self._old_keys.items()
            },
            "valid_until_ts": now + self._valid_ms,
        }
        return sign_json(document, self._identity.server_name, key)

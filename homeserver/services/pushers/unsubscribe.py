"""The unsubscribe link in e-mails about missed messages. It works without signing in.

Laws:
- A link is signed, and valid for one pusher as long as that pusher exists: nobody can end another
  user's e-mails.
- Opening the link changes nothing, since programs open links in e-mails. The button on the page
  ends the e-mails, and so does the mail client's own button (RFC 8058).
"""

import hmac
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Final
from urllib.parse import urlencode

from federation.protocol.signing import SigningKey
from storage.engine.database import Database
from storage.push.pushers import PusherRow, PusherStore

UNSUBSCRIBE_PATH: Final = "/_mahalla/unsubscribe"
_PURPOSE: Final = b"mahalla: links that end letters"


class UnsubscribeLinks:
    """Creates and executes the links."""

    def __init__(
        self, *, database: Database, store: PusherStore, key: SigningKey, base_url: str
    ) -> None:
        """`key`: the server's signing key; a key only for these links is derived from it."""
        self._database = database
        self._store = store
        self._secret = hmac.digest(key.seed, _PURPOSE, sha256)
        self._base_url = base_url.rstrip("/")

    def link(self, pusher_nid: int) -> str:
        """Return the link for a pusher's e-mails."""
        query = urlencode({"pusher": pusher_nid, "signature": self._sign(pusher_nid)})
        return f"{self._base_url}{UNSUBSCRIBE_PATH}?{query}"

    def is_signed(self, pusher_nid: int, signature: str) -> bool:
        """Return whether this server signed the link."""
        return hmac.compare_digest(
            self._sign(pusher_nid).encode(), signature.encode("utf-8", "surrogatepass")
        )

    async def find(self, pusher_nid: int) -> PusherRow | None:
        """Return the pusher of a link; None if its e-mails have ended."""
        row = await self._store.get_pusher(pusher_nid)
        return row if row is not None and row.kind == "email" else None

    async def do_end(self, pusher_nid: int) -> None:
        """Remove the pusher, which ends its e-mails."""
        row = await self.find(pusher_nid)
        if row is not None:
            await self._database.write(
                "unsubscribe", self._store.remove_pusher, row.user_id, row.app_id, row.pushkey
            )

    def _sign(self, pusher_nid: int) -> str:
        digest = hmac.digest(self._secret, str(pusher_nid).encode(), sha256)
        return urlsafe_b64encode(digest[:24]).decode()

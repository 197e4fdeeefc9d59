"""Credentials for the operator's TURN servers, which relay a call if its devices cannot connect
directly.

If the operator configures a shared secret, the credentials are for one user and expire; the TURN
server checks them with the same secret. Otherwise all users get the same configured user name
and password.

spec: client-server-api#get_matrixclientv3voipturnserver
"""

import hmac
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha1

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import GuestAccessForbidden
from homeserver.api.requester import Requester


class Turn:
    """Creates TURN credentials."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        uris: Sequence[str],
        shared_secret: str | None,
        username: str | None,
        password: str | None,
        lifetime_ms: int,
        guests: bool,
    ) -> None:
        """Without a secret all users get the same `username` and `password`. `guests`: whether
        guests get credentials."""
        self._clock = clock
        self._uris = list(uris)
        self._shared_secret = shared_secret
        # str() returns the text of a secret
        self._fixed = (
            None if username is None or password is None else (str(username), str(password))
        )
        self._lifetime = lifetime_ms // 1000
        self._guests = guests

    def get_credentials(self, caller: Requester) -> dict[str, object]:
        """Return credentials, or {} if no TURN server is configured. Raises
        GuestAccessForbidden."""
        if caller.is_guest and not self._guests:
            raise GuestAccessForbidden("Guests may not use this server's TURN servers")
        if not self._uris:
            return {}
        if self._shared_secret is not None:
            username = f"{int(self._clock.seconds()) + self._lifetime}:{caller.user_id}"
            digest = hmac.new(self._shared_secret.encode(), username.encode(), sha1).digest()
            password = b64encode(digest).decode()
        elif self._fixed is not None:
            username, password = self._fixed
        else:
            return {}
        return {
            "username": username,
            "password": password,
            "ttl": self._lifetime,
            "uris": self._uris,
        }

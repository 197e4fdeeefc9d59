"""The user that a request comes from."""

import msgspec

from federation.protocol.errors import ConsentNotGiven, UserSuspended
from federation.protocol.ids import DeviceID, UserID


class Requester(msgspec.Struct, frozen=True):
    """The user that sent the request, as the guard authenticated it."""

    user_id: UserID
    device_id: DeviceID | None
    token_nid: int
    is_guest: bool = False
    is_admin: bool = False
    appservice_id: str | None = None
    is_locked: bool = False
    is_suspended: bool = False
    is_shadow_banned: bool = False
    """What they send reaches nobody else; they are answered as if it did."""
    consent: tuple[str, str] | None = None
    """The message, and the URL of the page, for a user who has to agree to terms before they may
    write; None where nothing is due."""
    is_expired: bool = False
    """The account's validity has ended."""
    oauth_client: str | None = None
    """The client id of the app that signed in with the OAuth 2.0 API, if it did."""
    device_made_ts: int = 0
    """When the device was created, in milliseconds since 1970. A device that signs out and in again
    under the same id is another device."""
    rate_limited: bool = True
    """False for application services registered with `rate_limited: false`, and for users whom an
    administrator exempts."""

    @property
    def may_only_read(self) -> bool:
        """Whether `check_may_write` raises."""
        return self.is_suspended or self.consent is not None

    def check_may_write(self) -> None:
        """Raises `UserSuspended`, `ConsentNotGiven` for who may only read."""
        if self.is_suspended:
            raise UserSuspended
        if self.consent is not None:
            raise ConsentNotGiven(self.consent[0], consent_uri=self.consent[1])

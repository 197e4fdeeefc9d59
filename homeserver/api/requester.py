"""The user that sent a request."""

import msgspec

from federation.protocol.errors import ConsentNotGiven, UserSuspended
from federation.protocol.ids import DeviceID, UserID


class Requester(msgspec.Struct, frozen=True):
    """The user that sent the request, as `RequestAuthorizer` authenticated it."""

    user_id: UserID
    device_id: DeviceID | None
    token_nid: int
    is_guest: bool = False
    is_admin: bool = False
    appservice_id: str | None = None
    is_locked: bool = False
    is_suspended: bool = False
    is_shadow_banned: bool = False
    """Their events reach nobody else, but they get normal responses."""
    consent: tuple[str, str] | None = None
    """The message and the page URL for a user who must agree to terms before they may write;
    otherwise None."""
    is_expired: bool = False
    """Whether the account has expired."""
    oauth_client: str | None = None
    """The client ID of the OAuth 2.0 client that the user logged in with, if any."""
    device_created_ts: int = 0
    """When the device was created, in milliseconds since 1970. A device that logs out and in again
    under the same ID counts as another device."""
    rate_limited: bool = True
    """False for application services with `rate_limited: false`, and for users that an
    administrator exempts."""

    @property
    def may_only_read(self) -> bool:
        """Whether the user may read but not write; then `check_may_write` raises."""
        return self.is_suspended or self.consent is not None

    def check_may_write(self) -> None:
        """Raise `UserSuspended` or `ConsentNotGiven` if the user may only read."""
        if self.is_suspended:
            raise UserSuspended
        if self.consent is not None:
            raise ConsentNotGiven(self.consent[0], consent_uri=self.consent[1])

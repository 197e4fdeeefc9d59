"""The freeze of the media endpoints without authentication: they serve old files, but no new ones.

While `enable_authenticated_media` is on, these endpoints do not serve files that arrived while it
was on. They also refuse files that arrived since the date in `legacy_media_freeze_date`, even if
the option was off at that time.

spec: client-server-api#content-repository
"""

import msgspec


class MediaFreeze(msgspec.Struct, frozen=True):
    """The start of the freeze."""

    is_on: bool
    """Whether new files require an access token. This is stored with each new file."""
    since_ms: int | None = None
    """Files since this time (milliseconds since 1970) require one too, although the freeze was
    off."""

    def requires_token(self, *, arrived_in_freeze: bool, created_ts: int) -> bool:
        """Whether a file requires an access token. `arrived_in_freeze`: it arrived while the freeze
        was on."""
        return self.is_on and (
            arrived_in_freeze or (self.since_ms is not None and created_ts >= self.since_ms)
        )

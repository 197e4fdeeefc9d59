"""Which files are only for those who show a token: those from after the freeze of the endpoints
that ask for none.

spec: client-server-api#content-repository
"""

import msgspec


class Freeze(msgspec.Struct, frozen=True):
    """Since when."""

    is_on: bool
    """Whether what comes from now on is only for those who show a token. Of what comes it is
    noted."""
    since_ms: int | None = None
    """So is what came since then (milliseconds since 1970), though it was off."""

    def hides(self, *, is_noted: bool, created_ts: int) -> bool:
        """Whether a file is not for those who show no token. `is_noted`: it came while the freeze
        was on."""
        return self.is_on and (
            is_noted or (self.since_ms is not None and created_ts >= self.since_ms)
        )

"""The configured RTC transports: the servers that relay the media of group calls. Proposal:
MSC4143."""

from collections.abc import Mapping, Sequence

import msgspec


class RTCTransports(msgspec.Struct, frozen=True):
    """The transports, the preferred one first."""

    transports: Sequence[Mapping[str, object]]

    @property
    def in_well_known(self) -> dict[str, object]:
        """Return the keys to add to `/.well-known/matrix/client` for older clients."""
        return {"org.matrix.msc4143.rtc_foci": list(self.transports)} if self.transports else {}

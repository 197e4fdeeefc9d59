"""The systems that calls of several people go through, as the operator names them. Proposal:
MSC4143."""

from collections.abc import Mapping, Sequence

import msgspec


class RTCTransports(msgspec.Struct, frozen=True):
    """As clients are told, best first."""

    transports: Sequence[Mapping[str, object]]

    @property
    def in_well_known(self) -> dict[str, object]:
        """What is added to `/.well-known/matrix/client`, where older clients look."""
        return {"org.matrix.msc4143.rtc_foci": list(self.transports)} if self.transports else {}

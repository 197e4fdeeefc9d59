"""The retention policy that clients may read. Proposal: MSC1763"""

from collections.abc import Mapping
from typing import Any

import msgspec


class RetentionConfiguration(msgspec.Struct, frozen=True):
    """The policy of the server, in milliseconds; None: not set."""

    default_min: int | None
    default_max: int | None
    min_lifetime: int | None
    max_lifetime: int | None

    @property
    def json(self) -> Mapping[str, Any]:
        """Return the policies by room, with `*` for all rooms without their own, and the limits for
        the policies of rooms."""
        policy = _without_none(min_lifetime=self.default_min, max_lifetime=self.default_max)
        limits = _without_none(min=self.min_lifetime, max=self.max_lifetime)
        return {
            "policies": {"*": policy} if policy else {},
            "limits": {"max_lifetime": limits} if limits else {},
        }


def _without_none(**values: int | None) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}

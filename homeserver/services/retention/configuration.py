"""What clients are told of how long messages are kept. proposal: MSC1763"""

from collections.abc import Mapping
from typing import Any

import msgspec


class RetentionConfiguration(msgspec.Struct, frozen=True):
    """The rules of the server, in milliseconds; None: none."""

    default_min: int | None
    default_max: int | None
    shortest: int | None
    longest: int | None

    @property
    def json(self) -> Mapping[str, Any]:
        """The policies by room, with `*` for all that have none of their own, and the bounds of
        what rooms may say."""
        policy = _given(min_lifetime=self.default_min, max_lifetime=self.default_max)
        limits = _given(min=self.shortest, max=self.longest)
        return {
            "policies": {"*": policy} if policy else {},
            "limits": {"max_lifetime": limits} if limits else {},
        }


def _given(**values: int | None) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}

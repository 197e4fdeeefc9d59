"""The unstable features that this server offers, as far as that is not the same for every server."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OfferedFeatures:
    """Names as in `unstable_features` of /versions; only what is offered stands there."""

    features: Mapping[str, bool]

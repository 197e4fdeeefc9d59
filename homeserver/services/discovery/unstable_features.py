"""The unstable features that this server offers, as far as that is not the same for every
server."""

from collections.abc import Set
from typing import Final

ENCRYPTED: Final = {
    "public_chat": "io.element.e2ee_forced.public",
    "private_chat": "io.element.e2ee_forced.private",
    "trusted_private_chat": "io.element.e2ee_forced.trusted_private",
}
"""What tells clients that rooms of a preset are encrypted whatever they ask for."""

RETENTION: Final = "org.matrix.msc1763"
"""That messages go by age, and clients may ask how."""


class OfferedFeatures:
    """Names as in `unstable_features` of /versions; only what is offered stands there."""

    def __init__(
        self,
        *,
        delayed_events: bool,
        encrypted_presets: Set[str] = frozenset(),
        older_qr_codes: bool = False,
        retention: bool = False,
    ) -> None:
        self.features = {
            name: True for preset, name in ENCRYPTED.items() if preset in encrypted_presets
        }
        if older_qr_codes:
            self.features["org.matrix.msc4108"] = True
        if retention:
            self.features[RETENTION] = True
        if delayed_events:
            self.features["org.matrix.msc4140"] = True

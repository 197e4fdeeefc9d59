"""The entries of `unstable_features` in `/versions` that depend on the configuration."""

from collections.abc import Set
from typing import Final

ENCRYPTED: Final = {
    "public_chat": "io.element.e2ee_forced.public",
    "private_chat": "io.element.e2ee_forced.private",
    "trusted_private_chat": "io.element.e2ee_forced.trusted_private",
}
"""By preset, the name of the feature: clients learn by it that the server encrypts all rooms of the
preset."""

RETENTION: Final = "org.matrix.msc1763"
"""Messages expire, and clients may read the retention policy."""


class UnstableFeatures:
    """The enabled features by name, for `unstable_features` of /versions."""

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

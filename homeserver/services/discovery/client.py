"""Where clients find this server: `/.well-known/matrix/client`, and the same in the answer to a
sign-in.

spec: client-server-api#well-known-uris
"""

from collections.abc import Mapping


class ClientDiscovery:
    """What clients are told. `public_baseurl`: None where nothing is configured; `further`: other
    keys to tell them."""

    def __init__(
        self, public_baseurl: str | None, further: Mapping[str, object] | None = None
    ) -> None:
        self.document: dict[str, object] | None = None
        if public_baseurl is not None:
            self.document = {"m.homeserver": {"base_url": public_baseurl}, **(further or {})}

    @property
    def in_login(self) -> dict[str, object]:
        """What is added to the answer to a sign-in."""
        return {} if self.document is None else {"well_known": self.document}

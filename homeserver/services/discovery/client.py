"""Client discovery: `/.well-known/matrix/client`, and the same document in login responses.

spec: client-server-api#well-known-uris
"""

from collections.abc import Mapping


class ClientDiscovery:
    """The discovery document. `public_baseurl`: None if it is not configured; `extra_fields`:
    additional keys."""

    def __init__(
        self, *, public_baseurl: str | None, extra_fields: Mapping[str, object] | None = None
    ) -> None:
        self.document: dict[str, object] | None = None
        if public_baseurl is not None:
            self.document = {"m.homeserver": {"base_url": public_baseurl}, **(extra_fields or {})}

    @property
    def in_login(self) -> dict[str, object]:
        """Return the fields to add to a login response."""
        return {} if self.document is None else {"well_known": self.document}

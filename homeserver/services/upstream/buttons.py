"""The buttons of identity providers on the page where people sign in to the server's own pages."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlencode

from homeserver.services.sign_in_choices import ProviderButton

SIGN_IN_WITH_PATH: Final = "/_mahalla/upstream/sign_in"


class UpstreamButtons:
    """One for each provider."""

    def __init__(self, providers: Sequence[tuple[str, str]]) -> None:
        """`providers`: id and name of each."""
        self._providers = tuple(providers)

    def buttons(self, next_path: str) -> Sequence[ProviderButton]:
        """As `Providers.buttons`."""
        return [
            ProviderButton(name, f"{SIGN_IN_WITH_PATH}?{urlencode({'provider': provider_id, 'next': next_path})}")
            for provider_id, name in self._providers
        ]

"""The buttons of identity providers on the page where people sign in to the server's own pages."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote, urlencode

from homeserver.services.login.provider_buttons import ProviderButton

SIGN_IN_WITH_PATH: Final = "/_mahalla/upstream/sign_in"
ICON_PATH: Final = "/_mahalla/upstream/icon"


def icon_path(provider_id: str) -> str:
    """Where the icon of a provider is, for pages: they show images of this server alone."""
    return f"{ICON_PATH}/{quote(provider_id, safe='')}"


class UpstreamButtons:
    """One for each provider."""

    def __init__(self, providers: Sequence[tuple[str, str, str | None]]) -> None:
        """`providers`: id, name, and the `mxc:` address of the icon, of each."""
        self._providers = tuple(providers)

    def buttons(self, next_path: str, *, again: bool) -> Sequence[ProviderButton]:
        """As `Providers.buttons`."""
        further = {"again": "true"} if again else {}
        return [
            ProviderButton(
                name,
                f"{SIGN_IN_WITH_PATH}?{urlencode({'provider': provider_id, 'next': next_path, **further})}",
                None if icon is None else icon_path(provider_id),
            )
            for provider_id, name, icon in self._providers
        ]

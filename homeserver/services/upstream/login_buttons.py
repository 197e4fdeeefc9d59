"""The identity providers' buttons on this server's own sign-in page."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote, urlencode

from homeserver.services.login.provider_buttons import ProviderButton

PROVIDER_SIGN_IN_PATH: Final = "/_mahalla/upstream/sign_in"
ICON_PATH: Final = "/_mahalla/upstream/icon"


def icon_path(provider_id: str) -> str:
    """Return the path of a provider's icon. Pages load images from this server only."""
    return f"{ICON_PATH}/{quote(provider_id, safe='')}"


class UpstreamButtons:
    """Makes one button per provider."""

    def __init__(self, providers: Sequence[tuple[str, str, str | None]]) -> None:
        """`providers`: ID, name and `mxc:` URI of the icon, of each."""
        self._providers = tuple(providers)

    def buttons(self, next_path: str, *, reauthenticate: bool) -> Sequence[ProviderButton]:
        """Implement `ButtonProvider.buttons`."""
        query = {"next": next_path, **({"again": "true"} if reauthenticate else {})}
        return [
            ProviderButton(
                name,
                f"{PROVIDER_SIGN_IN_PATH}?{urlencode({'provider': provider_id, **query})}",
                None if icon is None else icon_path(provider_id),
            )
            for provider_id, name, icon in self._providers
        ]

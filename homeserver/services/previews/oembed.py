"""Who has oEmbed documents of which pages, where the operator has named them. https://oembed.com"""

from collections.abc import Sequence
from urllib.parse import urlencode

from homeserver.config.oembed_files import OEmbedEndpoint, matcher


class OEmbedProviders:
    """The endpoints of the configuration."""

    def __init__(self, endpoints: Sequence[OEmbedEndpoint]) -> None:
        self._endpoints = [
            (matcher(pattern), endpoint.url)
            for endpoint in endpoints
            for pattern in endpoint.patterns
        ]

    def find(self, url: str) -> str | None:
        """Where the document of a page is, if one is named; the first."""
        address = next((address for fits, address in self._endpoints if fits(url)), None)
        if address is None:
            return None
        query = {"url": url} if "{format}" in address else {"url": url, "format": "json"}
        address = address.replace("{format}", "json")
        return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}"

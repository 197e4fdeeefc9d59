"""Finds the URL of a page's oEmbed document among the configured providers. The document describes
the page in JSON. https://oembed.com"""

from collections.abc import Sequence
from urllib.parse import urlencode

from homeserver.config.oembed_files import OEmbedEndpoint, make_matcher


class OEmbedProviders:
    """Finds the oEmbed endpoint of a page."""

    def __init__(self, endpoints: Sequence[OEmbedEndpoint]) -> None:
        self._endpoints = [
            (make_matcher(pattern), endpoint.url)
            for endpoint in endpoints
            for pattern in endpoint.patterns
        ]

    def find(self, url: str) -> str | None:
        """Return the URL of the oEmbed document of a page, by the first matching provider."""
        address = next((address for matches, address in self._endpoints if matches(url)), None)
        if address is None:
            return None
        query = {"url": url} if "{format}" in address else {"url": url, "format": "json"}
        address = address.replace("{format}", "json")
        return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}"

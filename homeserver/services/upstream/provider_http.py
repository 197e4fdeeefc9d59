"""Requests documents from identity providers over HTTP, with limits on time and size.

Laws:
- Every failure is a `SignInRefused`. Its details are for the log; users read that the provider is
  not available.
- Requests go through the server's HTTP client, with its rules for IP addresses.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final, TypeVar

import msgspec

from federation.http_client.client import WebClient
from federation.http_client.errors import OutboundError
from homeserver.services.upstream.identity import RefusalReason, SignInRefused

T = TypeVar("T")

TIMEOUT_SECONDS: Final = 10.0
MAX_BYTES: Final = 1 << 20
LOGGED_CHARACTERS: Final = 200
"""Characters of a response that are logged."""


class ProviderHTTP:
    """Sends requests to providers."""

    def __init__(self, web: WebClient) -> None:
        self._web = web

    async def get(self, kind: type[T], url: str, headers: Sequence[tuple[str, str]] = ()) -> T:
        """Fetch a JSON document. Raises `SignInRefused`."""
        return self._decode(
            kind, url, await self.get_bytes(url, [("Accept", "application/json"), *headers])
        )

    async def post_form(
        self, kind: type[T], url: str, form: bytes, headers: Sequence[tuple[str, str]] = ()
    ) -> T:
        """Post a form and return the JSON response. Raises `SignInRefused`."""
        sent = [
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Accept", "application/json"),
            *headers,
        ]
        return self._decode(kind, url, await self._ask("POST", url, sent, form))

    async def get_bytes(self, url: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
        """Fetch a body. Raises `SignInRefused`."""
        return await self._ask("GET", url, headers, b"")

    async def _ask(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes
    ) -> bytes:
        try:
            response = await self._web.request(
                method, url, headers, body, seconds=TIMEOUT_SECONDS, max_bytes=MAX_BYTES
            )
        except OutboundError as error:
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED, f"{without_query(url)}: {error}"
            ) from None
        if response.status != HTTPStatus.OK:
            shown = response.body[:LOGGED_CHARACTERS].decode("utf-8", "replace")
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED,
                f"{without_query(url)} returned {response.status}: {shown}",
            )
        return response.body

    def _decode(self, kind: type[T], url: str, body: bytes) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED,
                f"{without_query(url)} returned an invalid document: {error}",
            ) from None


def without_query(url: str) -> str:
    """Return a URL without its query, which may hold secrets."""
    return url.partition("?")[0]

"""Of which addresses previews are made. Asked of each address on the way, redirects included; of
which networks, the outgoing client asks when it knows where a name leads
(`federation.http_client.address_policy`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import translate
from typing import Final
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from federation.protocol.errors import Forbidden, InvalidParam

MAX_URL_CHARS: Final = 2048
LEAST_FREE_PORT: Final = 1024
WEB_PORTS: Final = frozenset({80, 443})
"""Below that, what listens there may be no web server, and take a request for something else."""
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

Patterns = Sequence[Mapping[str, str]]


class PreviewRules:
    """The lists of the configuration."""

    def __init__(self, denied: Patterns, allowed: Patterns | None) -> None:
        """`allowed`: None for all. Raises re.error."""
        self._denied = [_compiled(each) for each in denied]
        self._allowed = None if allowed is None else [_compiled(each) for each in allowed]

    def check(self, url: str) -> None:
        """Raises Forbidden for an address of which no preview is made."""
        parts = urlsplit(url)
        if self._allowed is not None and not any(fits(parts) for fits in self._allowed):
            raise Forbidden("This server makes no previews of this page")
        if any(fits(parts) for fits in self._denied):
            raise Forbidden("This server makes no previews of this page")
        port = parts.port
        if port is not None and port < LEAST_FREE_PORT and port not in WEB_PORTS:
            raise Forbidden("This server makes no previews of what is at this port")


def parse_url(url: str) -> str:
    """An address as it can be asked for: in ASCII, without fragment, and with a host that is spelt
    in one way. Raises InvalidParam."""
    if len(url) > MAX_URL_CHARS:
        raise InvalidParam(f"url may have {MAX_URL_CHARS} characters at most")
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname or ""
        port = parts.port
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        host = host.rstrip(".")
    except ValueError as error:
        raise InvalidParam("url is no address") from error
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidParam("url must be an address that begins with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise InvalidParam("url may not have a user or a password")
    authority = f"[{host}]" if ":" in host else host
    if port is not None and port != DEFAULT_PORTS[parts.scheme]:
        authority = f"{authority}:{port}"
    safe = "%/:;=@!$&'()*+,~?-._[]|"
    return urlunsplit(
        (parts.scheme, authority, quote(parts.path, safe) or "/", quote(parts.query, safe), "")
    )


def _compiled(pattern: Mapping[str, str]) -> Callable[[SplitResult], bool]:
    wanted = {
        part: re.compile(text if text.startswith("^") else translate(text))
        for part, text in pattern.items()
    }

    def fits(parts: SplitResult) -> bool:
        return all(
            any(expression.match(value) for value in _spellings(parts, part))
            for part, expression in wanted.items()
        )

    return fits


def _spellings(parts: SplitResult, part: str) -> Sequence[str]:
    """What a pattern may match of an address from `parse_url`: `netloc` also with the port that
    goes without saying."""
    value = getattr(parts, part)
    if value is None:
        return ()
    if part == "netloc" and parts.port is None:
        return value, f"{value}:{DEFAULT_PORTS[parts.scheme]}"
    return (str(value),)

"""Decides which URLs may be fetched for previews, by the operator's lists and by port. The rules
apply to each URL, redirects included. The HTTP client checks IP addresses when a host name is
resolved (`federation.http_client.address_policy`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import translate
from typing import Final
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from federation.protocol.errors import Forbidden, InvalidParam

MAX_URL_CHARS: Final = 2048
MIN_FREE_PORT: Final = 1024
WEB_PORTS: Final = frozenset({80, 443})
"""The allowed ports below `MIN_FREE_PORT`. A server at another port may not be a web server, and
may misread a request as something else."""
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

Patterns = Sequence[Mapping[str, str]]


class PreviewRules:
    """The configured lists of denied and allowed URLs."""

    def __init__(self, *, denied: Patterns, allowed: Patterns | None) -> None:
        """`allowed`: None allows all. Raises re.error."""
        self._denied = [_compile(each) for each in denied]
        self._allowed = None if allowed is None else [_compile(each) for each in allowed]

    def check(self, url: str) -> None:
        """Raise Forbidden for a URL without previews."""
        parts = urlsplit(url)
        if self._allowed is not None and not any(matches(parts) for matches in self._allowed):
            raise Forbidden("This server does not preview this page")
        if any(matches(parts) for matches in self._denied):
            raise Forbidden("This server does not preview this page")
        port = parts.port
        if port is not None and port < MIN_FREE_PORT and port not in WEB_PORTS:
            raise Forbidden("This server does not preview pages at this port")


def parse_url(url: str) -> str:
    """Normalise a URL for a request: ASCII, without a fragment, with a canonical host. Raises
    InvalidParam."""
    if len(url) > MAX_URL_CHARS:
        raise InvalidParam(f"url may have at most {MAX_URL_CHARS} characters")
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname or ""
        port = parts.port
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        host = host.rstrip(".")
    except ValueError as error:
        raise InvalidParam("url is not a valid URL") from error
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidParam("url must begin with http:// or https:// and have a host")
    if parts.username is not None or parts.password is not None:
        raise InvalidParam("url may not have a user or a password")
    authority = f"[{host}]" if ":" in host else host
    if port is not None and port != DEFAULT_PORTS[parts.scheme]:
        authority = f"{authority}:{port}"
    safe = "%/:;=@!$&'()*+,~?-._[]|"
    return urlunsplit(
        (parts.scheme, authority, quote(parts.path, safe) or "/", quote(parts.query, safe), "")
    )


def _compile(pattern: Mapping[str, str]) -> Callable[[SplitResult], bool]:
    wanted = {
        part: re.compile(text if text.startswith("^") else translate(text))
        for part, text in pattern.items()
    }

    def matches(parts: SplitResult) -> bool:
        return all(
            any(expression.match(value) for value in _forms(parts, part))
            for part, expression in wanted.items()
        )

    return matches


def _forms(parts: SplitResult, part: str) -> Sequence[str]:
    """Return the forms of a part of a `parse_url` result that a pattern may match: `netloc` also
    with the default port."""
    value = getattr(parts, part)
    if value is None:
        return ()
    if part == "netloc" and parts.port is None:
        return value, f"{value}:{DEFAULT_PORTS[parts.scheme]}"
    return (str(value),)

"""Checks the URIs of OAuth clients: which ones may be registered, and whether the redirect URI of a
request is registered.

The redirect URI is the only proof of a client's identity, so it has to belong to the host of
`client_uri` or to a subdomain of it. A native app may also use the loopback interface, or a URI
scheme that begins with the reversed host name of `client_uri` (`com.example.app:` for
`example.com`).

spec: client-server-api#redirect-uri-validation, RFC 8252 section 7
"""

import re
from typing import Final, Literal
from urllib.parse import SplitResult, urlsplit

from homeserver.services.pages.external_links import parse_link

ApplicationType = Literal["web", "native"]

MAX_LENGTH: Final = 2000
_PRINTABLE: Final = re.compile(r"[\x21-\x5b\x5d\x5f\x61-\x7a\x7e]+")
"""The characters of a URI without percent-encoding: no spaces, control characters or
backslashes."""
_HOST: Final = re.compile(
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
)
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def https_host(uri: str) -> str | None:
    """Return the host of a client's page; None if the URI is not https or not well-formed."""
    split = _split(uri)
    if (
        split is None
        or split.scheme != "https"
        or not _is_plain_host(split)
        or split.username is not None
    ):
        return None
    return split.hostname


def is_on_host(uri: str, host: str) -> bool:
    """Return whether this is a page on `host` or a subdomain of it."""
    found = https_host(uri)
    return found is not None and _belongs(found, host)


def is_allowed_redirect_uri(uri: str, host: str, kind: ApplicationType) -> bool:
    """Return whether a client whose page is on `host` may register this redirect URI."""
    if "#" in uri or len(uri) > MAX_LENGTH or not _PRINTABLE.fullmatch(uri):
        return False
    if is_on_host(uri, host):
        return True
    return kind == "native" and (_is_loopback(uri) or _is_private_scheme(uri, host))


def is_registered(uri: str, registered: tuple[str, ...]) -> bool:
    """Return whether a redirect URI is registered: the identical text, or, on the loopback
    interface, one that differs only in its port."""
    if uri in registered:
        return True
    split = _split(uri)
    if (
        split is None
        or split.scheme != "http"
        or split.hostname not in _LOOPBACK
        or split.port is None
    ):
        return False
    without_port = uri.replace(split.netloc, split.netloc.rpartition(":")[0], 1)
    return without_port in registered and _is_loopback(without_port)


def csp_source(uri: str) -> str:
    """Return the source for a `Content-Security-Policy`: scheme, host and port, or the private
    scheme of an app."""
    split = urlsplit(uri)
    return f"{split.scheme}://{split.netloc}" if split.netloc else f"{split.scheme}:"


def _belongs(host: str, base: str) -> bool:
    # a name without a dot is a public suffix, such as `com`
    return host == base or ("." in base and host.endswith("." + base))


def _split(uri: str) -> SplitResult | None:
    return parse_link(uri) if len(uri) <= MAX_LENGTH and _PRINTABLE.fullmatch(uri) else None


def _is_plain_host(split: SplitResult) -> bool:
    return (
        bool(split.hostname)
        and _HOST.fullmatch(split.hostname or "") is not None
        and "@" not in split.netloc
    )


def _is_loopback(uri: str) -> bool:
    split = _split(uri)
    return (
        split is not None
        and split.scheme == "http"
        and split.netloc in ("localhost", "127.0.0.1", "[::1]")
        and split.hostname in _LOOPBACK
    )


def _is_private_scheme(uri: str, host: str) -> bool:
    found = _SCHEME.match(uri)
    if found is None:
        return False
    scheme = found[1].lower()
    reversed_host = ".".join(reversed(host.split(".")))
    if "." not in scheme or uri[found.end() :].startswith("//"):
        return False
    return scheme == reversed_host or scheme.startswith(reversed_host + ".")

"""Reads and checks files that list oEmbed providers, in the format of
https://oembed.com/providers.json (described in https://oembed.com/#section7.1)."""

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import translate
from pathlib import Path
from typing import Final

import msgspec

MAX_BYTES: Final = 16 << 20
_SCHEME: Final = re.compile(r"(https?)://([^/?#]+)(.*)", re.DOTALL)


class _Endpoint(msgspec.Struct, frozen=True):
    url: str
    schemes: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("json",)


class _Provider(msgspec.Struct, frozen=True):
    endpoints: tuple[_Endpoint, ...]


class OEmbedEndpoint(msgspec.Struct, frozen=True):
    """An oEmbed endpoint and the pages that it describes."""

    url: str
    """The URL, which may contain `{format}`."""
    patterns: tuple[str, ...]
    """Patterns of page URLs, with `*`."""


def read_provider_files(paths: Sequence[Path]) -> tuple[OEmbedEndpoint, ...]:
    """Return the endpoints that serve JSON for web pages. Raises `ValueError` with the reason if a
    file is not valid."""
    return tuple(endpoint for path in paths for endpoint in _read(path))


def _read(path: Path) -> Iterator[OEmbedEndpoint]:
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise ValueError(f"is longer than {MAX_BYTES} bytes")
        providers = msgspec.json.decode(data, type=tuple[_Provider, ...])
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    for endpoint in (each for provider in providers for each in provider.endpoints):
        if _SCHEME.fullmatch(endpoint.url) is None:
            raise ValueError(f"{path}: {endpoint.url!r} is not an endpoint URL")
        patterns = tuple(each for each in endpoint.schemes if _SCHEME.fullmatch(each))
        if patterns and "json" in endpoint.formats:
            yield OEmbedEndpoint(endpoint.url, patterns)


def find_errors(paths: Sequence[Path]) -> Iterator[str]:
    """Return the error in the files, if any."""
    try:
        read_provider_files(paths)
    except ValueError as error:
        yield str(error)


def make_matcher(pattern: str) -> Callable[[str], bool]:
    """Return a function that matches URLs. A `*` in the host matches parts of names. `http` also
    matches `https`."""
    found = _SCHEME.fullmatch(pattern)
    assert found is not None
    scheme, host, rest = (
        found[1],
        re.compile(_to_regex(found[2].lower())),
        re.compile(_to_regex(found[3] or "/")),
    )

    def fits(url: str) -> bool:
        parts = _SCHEME.fullmatch(url)
        if parts is None or parts[1] not in (scheme, "https"):
            return False
        return bool(host.match(parts[2]) and rest.match(parts[3] or "/"))

    return fits


def _to_regex(pattern: str) -> str:
    """Convert to a regular expression without backtracking on long URLs, which `translate`
    ensures."""
    return translate(re.sub(r"[?\[]", r"[\g<0>]", pattern))

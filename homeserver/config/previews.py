"""Options about URL previews."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from homeserver.config.option import Network, Size, option, section
from homeserver.config.outgoing import PRIVATE_NETWORKS

URLPart = Literal[
    "scheme", "netloc", "username", "password", "hostname", "port", "path", "query", "fragment"
]
_LANGUAGE: Final = re.compile(r"[A-Za-z0-9*-]{1,40}(;q=[01](\.[0-9]{1,3})?)?")


def _check_patterns(patterns: tuple[Mapping[str, str], ...] | None) -> str | None:
    for each in patterns or ():
        for part, pattern in each.items():
            if part not in get_args(URLPart):
                return (
                    f"must have parts of URLs as keys ({', '.join(get_args(URLPart))}), not {part}"
                )
            if pattern.startswith("^"):
                try:
                    re.compile(pattern)
                except re.error as error:
                    return f"must have regular expressions where a pattern begins with ^: {error}"
    return None


def _check_languages(languages: tuple[str, ...]) -> str | None:
    fits = all(_LANGUAGE.fullmatch(each) for each in languages)
    return None if fits else "must be languages as in the header Accept-Language"


@dataclass(frozen=True, slots=True, kw_only=True)
class OEmbedOptions:
    """Sites that describe pages in oEmbed documents."""

    additional_providers: tuple[Path, ...] = option(
        (),
        "Files that name sites with oEmbed documents, in the format of "
        "https://oembed.com/providers.json. For these sites the server fetches the oEmbed "
        "document instead of the page. Without such files, it only uses oEmbed documents to "
        "which a page links.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class URLPreviewOptions:
    """Link previews."""

    url_preview_enabled: bool = option(
        False,
        "Fetches linked pages to show previews of them. The linked sites then learn that a user "
        "of this server saw the link.",
    )
    url_preview_ip_range_blacklist: tuple[Network, ...] = option(
        tuple(Network(each) for each in PRIVATE_NETWORKS),
        "Addresses that previews never fetch from.",
    )
    url_preview_ip_range_whitelist: tuple[Network, ...] = option(
        (), "Exceptions from `url_preview_ip_range_blacklist`."
    )
    url_preview_url_blacklist: tuple[Mapping[str, str], ...] = option(
        (),
        "Pages without previews. An entry has patterns for parts of the URL (`scheme`, `netloc`, "
        "`hostname`, `port`, `path`, `query`), which must all match. A pattern has the wildcards "
        "`*` and `?`, or is a regular expression that begins with `^`.",
        example='[{hostname: "*.internal.example"}, {scheme: "http", netloc: "^[0-9.]+$"}]',
        check=_check_patterns,
    )
    url_preview_url_allowlist: tuple[Mapping[str, str], ...] | None = option(
        None,
        "The only pages with previews, in the form of `url_preview_url_blacklist`. `null`: all "
        "pages that are not in the blacklist.",
        example='[{hostname: "*.example.org"}]',
        check=_check_patterns,
    )
    url_preview_accept_language: tuple[str, ...] = option(
        ("en",), "The languages in which pages are requested, best first.", check=_check_languages
    )
    max_spider_size: Size = option(
        Size(10 * 1024 * 1024),
        "The largest picture that is fetched for a preview.",
        minimum=1,
        example="10M",
    )
    oembed: OEmbedOptions = section(OEmbedOptions, "Previews from oEmbed documents.")

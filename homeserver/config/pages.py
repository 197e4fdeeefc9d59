"""Options about web pages and e-mails: their branding, and the policies that users agree to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from homeserver.config.colours import (
    DARK,
    LIGHT,
    MIN_CONTRAST,
    Backgrounds,
    find_lowest_contrast,
    is_colour,
)
from homeserver.config.consent import UserConsentOptions
from homeserver.config.option import option, section

MAX_LOGO_BYTES: Final = 256 * 1024
_SIGNATURES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
)


@dataclass(frozen=True, slots=True)
class Logo:
    """An image that pages show."""

    content: bytes
    content_type: str


def read_logo(path: Path) -> Logo:
    """Read an image file. Raises `ValueError` with the reason if it is not valid."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_LOGO_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_LOGO_BYTES:
        raise ValueError(f"is larger than {MAX_LOGO_BYTES // 1024}K")
    for signature, content_type in _SIGNATURES:
        if content.startswith(signature):
            return Logo(content, content_type)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return Logo(content, "image/webp")
    if (
        content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<svg", b"<?xml", b"<!--"))
        and b"<svg" in content
    ):
        return Logo(content, "image/svg+xml")
    raise ValueError("is not a picture that browsers show: PNG, JPEG, GIF, WebP or SVG")


def _check_name(name: str | None) -> str | None:
    if name is None or (len(name.strip()) > 0 and len(name) <= 60 and name.isprintable()):
        return None
    return "must have 1 to 60 characters in one line"


def _check_logo_url(url: str | None) -> str | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return "must be an https:// address"
    # The URL is part of a header, where these characters are separators
    unsafe = not url.isascii() or not url.isprintable() or any(sign in url for sign in " ;,'\"")
    invalid = unsafe or parts.scheme != "https" or not parts.hostname or parts.username is not None
    return "must be an https:// address" if invalid else None


def _check_colour(colour: str | None, backgrounds: Backgrounds, where: str) -> str | None:
    if colour is None:
        return None
    if not is_colour(colour):
        return "must be a colour such as #086f66"
    ratio, on = find_lowest_contrast(colour, backgrounds)
    if ratio >= MIN_CONTRAST:
        return None
    found = int(ratio * 100) / 100  # rounding up could hide that the contrast is too low
    return (
        f"must have a contrast of at least {MIN_CONTRAST}:1 (WCAG AA) with {where}, so that people"
        f" can read it: it has {found:.2f}:1 on {on}"
    )


def _check_light(colour: str | None) -> str | None:
    return _check_colour(colour, LIGHT, "light pages")


def _check_dark(colour: str | None) -> str | None:
    return _check_colour(colour, DARK, "dark pages")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrandingOptions:
    """The branding of pages and e-mails."""

    name: str | None = option(
        None,
        "The name of the service on pages and in e-mails. `null`: the server's name.",
        example="Example University",
        check=_check_name,
    )
    logo: Path | None = option(
        None,
        "A file with a logo (PNG, JPEG, GIF, WebP or SVG, up to 256K). It is attached to "
        "e-mails, except SVG and WebP, which mail programs do not show.",
        example="logo.png",
    )
    logo_dark: Path | None = option(None, "The logo for dark pages, if it differs.")
    logo_url: str | None = option(
        None,
        "The HTTPS URL of a logo, if there is no file. Its server learns the IP addresses of "
        "people who open the pages. E-mails do not contain this logo.",
        example="https://www.example.org/logo.png",
        check=_check_logo_url,
    )
    colour: str | None = option(
        None,
        "The colour of links and buttons, as `#rrggbb`. `null`: the default colour. White text "
        "on this colour, and this colour on white, must be legible (contrast 4.5:1).",
        example='"#1d4f91"',
        check=_check_light,
    )
    colour_dark: str | None = option(
        None,
        "The colour of links and buttons on dark pages. `null`: `colour`, made lighter if "
        "necessary.",
        example='"#8ab4f8"',
        check=_check_dark,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOptions:
    """Pages and e-mails."""

    branding: BrandingOptions = section(
        BrandingOptions, "Name, logo and colours of pages and e-mails."
    )
    user_consent: UserConsentOptions = section(
        UserConsentOptions, "Terms of service and privacy policies."
    )

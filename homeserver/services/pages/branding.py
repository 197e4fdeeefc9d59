"""Branding of pages and e-mails: the operator's name, logo and colours."""

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from homeserver.config.colours import DARK, LIGHT, lighten_for_dark, tinted_background
from homeserver.config.pages import BrandingOptions, Logo, read_logo

LOGO_PATH: Final = "/_mahalla/logo"
LOGO_DARK_PATH: Final = "/_mahalla/logo_dark"
COLOUR: Final = "#086f66"
"""The default accent colour, as in `pages.css`."""


class Branding(msgspec.Struct, frozen=True):
    """The operator's branding, for pages and e-mails."""

    name: str
    is_named: bool = False
    """Whether the name differs from the server name."""
    logo: Logo | None = None
    logo_dark: Logo | None = None
    logo_url: str | None = None
    colour: str = COLOUR
    style: str = ""
    """CSS that overrides the colours of `pages.css`."""

    @property
    def logo_address(self) -> str:
        """The URL of the logo; empty without one."""
        return self.logo_url or (LOGO_PATH if self.logo is not None else "")

    @property
    def logo_dark_address(self) -> str:
        """The URL of the logo for dark pages; empty without one."""
        return LOGO_DARK_PATH if self.logo_dark is not None else ""

    @property
    def logo_source(self) -> str:
        """Source of an external logo for the `Content-Security-Policy`; empty without one."""
        if self.logo_url is None:
            return ""
        return f"https://{urlsplit(self.logo_url).netloc}"


def read_branding(branding: BrandingOptions, server_name: str) -> Branding:
    """Read the branding of the configuration. Raises `ValueError` if a logo cannot be read."""
    colour = branding.colour or COLOUR
    logos = [None if path is None else _read(name, path) for name, path in branding_files(branding)]
    return Branding(
        name=branding.name or server_name,
        is_named=branding.name is not None,
        logo=logos[0],
        logo_dark=logos[1],
        logo_url=branding.logo_url if logos[0] is None else None,
        colour=colour,
        style=""
        if branding.colour is None and branding.colour_dark is None
        else _style(colour, branding.colour_dark),
    )


def branding_files(
    branding: BrandingOptions,
) -> tuple[tuple[str, Path | None], tuple[str, Path | None]]:
    """Return the configured files by option name."""
    return ("branding.logo", branding.logo), ("branding.logo_dark", branding.logo_dark)


def _read(name: str, path: Path) -> Logo:
    try:
        return read_logo(path)
    except ValueError as error:
        raise ValueError(f"{name}: {path} {error}") from error


def _style(colour: str, colour_dark: str | None) -> str:
    dark = colour_dark or lighten_for_dark(colour)
    return (
        f":root {{ --accent: {colour}; --wash: {tinted_background(colour, LIGHT)}; }}\n"
        "@media (prefers-color-scheme: dark) {\n"
        f"  :root {{ --accent: {dark}; --wash: {tinted_background(dark, DARK)}; }}\n"
        "}\n"
    )

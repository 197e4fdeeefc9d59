"""Serves the operator's logo, which the pages show."""

from typing import Final

from federation.protocol.errors import NotFound
from homeserver.api.endpoint import Auth, endpoint
from homeserver.config.pages import Logo
from homeserver.http.responses import Response
from homeserver.services.pages.branding import LOGO_DARK_PATH, LOGO_PATH
from homeserver.web.pages import Pages

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "public, max-age=3600",
    # an SVG opened by itself is a document; it must run no script and load nothing
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
}


@endpoint("GET", LOGO_PATH, auth=Auth.NONE)
async def get_logo(pages: Pages) -> Response:
    """The logo."""
    return _respond(pages.branding.logo)


@endpoint("GET", LOGO_DARK_PATH, auth=Auth.NONE)
async def get_logo_dark(pages: Pages) -> Response:
    """The logo for dark pages."""
    return _respond(pages.branding.logo_dark)


def _respond(logo: Logo | None) -> Response:
    if logo is None:
        raise NotFound("There is no logo")
    return Response(200, {**_HEADERS, "Content-Type": logo.content_type}, logo.content)

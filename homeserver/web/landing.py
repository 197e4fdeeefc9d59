"""The page at `/`: it says that the server works, how to sign in, and where the account page is.
The operator can replace it by a redirect to a web client.
"""

from federation.api.request import RequestContext
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import Response
from homeserver.services.oauth.metadata import ACCOUNT_PATH
from homeserver.services.pages.languages import Languages
from homeserver.web.pages import Pages, see_other


class LandingPage:
    """The page in each language, made on first request."""

    def __init__(
        self,
        *,
        pages: Pages,
        languages: Languages,
        address: str | None,
        registration_open: bool,
        web_client: str | None = None,
    ) -> None:
        """`address`: the homeserver address to enter in a client; None: the server name.
        `web_client`: the URL to redirect to instead."""
        self._redirect = None if web_client is None else see_other(web_client)
        self._fields: dict[str, object] = {
            "address": address,
            "registration_open": registration_open,
            "account_path": ACCOUNT_PATH,
        }
        self._pages = pages
        self._languages = languages
        self._rendered: dict[str, Response] = {}

    def get(self, accept_language: str) -> Response:
        """Return the page in the language for an `Accept-Language` header."""
        if self._redirect is not None:
            return self._redirect
        language = self._languages.choose(accept_language)
        if language.code not in self._rendered:
            self._rendered[language.code] = self._pages.render(
                "landing.html", language, self._fields
            )
        return self._rendered[language.code]


@endpoint("GET", "/", auth=Auth.NONE)
async def get_landing(page: LandingPage, context: RequestContext) -> Response:
    """The landing page."""
    return page.get(context.languages)

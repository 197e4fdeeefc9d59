"""The page at `/`: says that the server works, and how to sign in."""

from federation.protocol.endpoint import Auth, RequestContext, endpoint
from homeserver.http.answers import Response
from homeserver.services.languages import Languages
from homeserver.web.pages import Pages


class LandingPage:
    """The page in each language, made when it is first asked for."""

    def __init__(self, pages: Pages, languages: Languages, address: str | None, *, registration_open: bool) -> None:
        """`address`: what people enter in their client; None: the server's name does, or the administrator knows."""
        self._fields: dict[str, object] = {"address": address, "registration_open": registration_open}
        self._pages = pages
        self._languages = languages
        self._made: dict[str, Response] = {}

    def get(self, accept_language: str) -> Response:
        """The page for a reader who says this in `Accept-Language`."""
        language = self._languages.choose(accept_language)
        if language.code not in self._made:
            self._made[language.code] = self._pages.make("landing.html", language, self._fields)
        return self._made[language.code]


@endpoint("GET", "/", auth=Auth.NONE)
async def get_landing(page: LandingPage, context: RequestContext) -> Response:
    """HTML."""
    return page.get(context.languages)

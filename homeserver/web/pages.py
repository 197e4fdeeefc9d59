"""Pages for people: made from templates, in the reader's language, with headers that let nothing foreign in.

A page loads nothing but images of this server, and runs no script. Its style stands in it, and is the only one that its headers allow.
"""

from base64 import b64encode
from hashlib import sha256
from http import HTTPStatus
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from federation.protocol.endpoint import RequestContext
from homeserver.http.answers import Response
from homeserver.services.languages import Language, Languages

STYLE: Final = "pages.css"


class Pages:
    """Makes pages."""

    def __init__(self, languages: Languages, server_name: str) -> None:
        self._languages = languages
        self._server_name = server_name
        self._environment = Environment(
            loader=PackageLoader("homeserver.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        loader = self._environment.loader
        assert loader is not None
        self._style = loader.get_source(self._environment, STYLE)[0]
        style_hash = b64encode(sha256(self._style.encode()).digest()).decode()
        self._headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": (
                f"default-src 'none'; style-src 'sha256-{style_hash}'; img-src 'self'; base-uri 'none'; "
                "form-action 'self'; frame-ancestors 'none'"
            ),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Vary": "Accept-Language",
        }

    def choose(self, accept_language: str) -> Language:
        """The language for a reader who says this in `Accept-Language`."""
        return self._languages.choose(accept_language)

    def make(
        self,
        template: str,
        language: Language,
        fields: dict[str, object],
        status: int = HTTPStatus.OK,
        *,
        cookies: tuple[str, ...] = (),
    ) -> Response:
        """The page of a template."""
        text = self._environment.get_template(template).render(
            {
                **fields,
                "_": language.gettext,
                "lang": language.tag,
                "server_name": self._server_name,
                "style": self._style,
            }
        )
        return Response(status, self._headers, text.encode(), cookies)

    def stale_form(self, context: RequestContext) -> Response:
        """The page for who has sent a form that is not, or no longer, one of ours."""
        return self.make("stale_form.html", self.choose(context.languages), {}, HTTPStatus.FORBIDDEN)


def see_other(where: str, *, cookies: tuple[str, ...] = ()) -> Response:
    """The answer that leads a browser elsewhere, also after a form."""
    headers = {"Location": where, "Content-Type": "text/plain", "Referrer-Policy": "no-referrer"}
    return Response(HTTPStatus.SEE_OTHER, headers, b"", cookies)

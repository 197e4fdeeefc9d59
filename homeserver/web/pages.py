"""Pages for people: made from templates, in the reader's language, with headers that let nothing foreign in.

A page loads nothing but images of this server, and runs no script. Its style stands in it, and is the only one that its headers allow.
"""

from base64 import b64encode
from collections.abc import Sequence
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
        self._policy = (
            f"default-src 'none'; style-src 'sha256-{style_hash}'; img-src 'self'; base-uri 'none'; "
            "frame-ancestors 'none'; form-action 'self'"
        )
        self._headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": self._policy,
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
        form_target: str | None = None,
    ) -> Response:
        """The page of a template. `form_target`: where else its forms lead in the end, as in a
        `Content-Security-Policy`: browsers hold redirects after a form to it."""
        text = self._environment.get_template(template).render(
            {
                **fields,
                "_": language.gettext,
                "lang": language.tag,
                "server_name": self._server_name,
                "style": self._style,
            }
        )
        headers = self._headers
        if form_target is not None:
            headers = {**headers, "Content-Security-Policy": f"{self._policy} {form_target}"}
        return Response(status, headers, text.encode(), cookies)

    def message(
        self,
        context: RequestContext,
        title: str,
        texts: Sequence[str],
        status: int = HTTPStatus.OK,
        *,
        link: tuple[str, str] | None = None,
    ) -> Response:
        """A page that only says something, in words that are translated already. `link`: its text, and a path."""
        fields: dict[str, object] = {"title": title, "texts": texts, "link": link}
        return self.make("message.html", self.choose(context.languages), fields, status)

    def stale_form(self, context: RequestContext) -> Response:
        """The page for who has sent a form that is not, or no longer, one of ours."""
        return self.make("stale_form.html", self.choose(context.languages), {}, HTTPStatus.FORBIDDEN)


def see_other(where: str, *, cookies: tuple[str, ...] = ()) -> Response:
    """The answer that leads a browser elsewhere, also after a form."""
    headers = {"Location": where, "Content-Type": "text/plain", "Referrer-Policy": "no-referrer"}
    return Response(HTTPStatus.SEE_OTHER, headers, b"", cookies)

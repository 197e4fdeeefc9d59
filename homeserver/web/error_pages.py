"""Errors that no page itself has answered: whoever looks with a browser gets them as a page too,
and in their language.

Which addresses are those of pages, `homeserver/http/page_paths.py` says; a program that asks there
gets JSON.
"""

from federation.protocol.errors import MatrixError
from homeserver.http.responses import Response, error_response
from homeserver.web.error_texts import explain
from homeserver.web.pages import Pages


class ErrorPages:
    """Makes them."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def make(self, error: MatrixError, languages: str) -> Response:
        """The page for an error. `languages`: what the browser says in `Accept-Language`."""
        language = self._pages.choose(languages)
        _ = language.gettext
        fields: dict[str, object] = {
            "title": _("This did not work"),
            "texts": [explain(error, language)],
            "link": None,
        }
        answer = error_response(error)
        page = self._pages.make("message.html", language, fields, answer.status)
        return Response(page.status, {**answer.headers, **page.headers}, page.body)

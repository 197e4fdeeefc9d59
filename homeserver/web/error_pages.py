"""Error pages for requests that no page handles: browsers get a page in the user's language.

`homeserver/http/page_paths.py` defines which paths are pages; other clients get JSON there too.
"""

from federation.protocol.errors import MatrixError
from homeserver.http.responses import Response, error_response
from homeserver.web.error_texts import explain
from homeserver.web.pages import Pages


class ErrorPages:
    """Makes error pages."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def make(self, error: MatrixError, languages: str) -> Response:
        """Return the page for an error. `languages`: the `Accept-Language` header."""
        language = self._pages.choose_language(languages)
        _ = language.gettext
        fields: dict[str, object] = {
            "title": _("Error"),
            "texts": [explain(error, language)],
            "link": None,
        }
        response = error_response(error)
        page = self._pages.render("message.html", language, fields, response.status)
        return Response(page.status, {**response.headers, **page.headers}, page.body)

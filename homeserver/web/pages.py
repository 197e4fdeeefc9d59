"""Pages for people: made from templates, in the reader's language, with headers that let nothing
foreign in.

A page loads nothing but images of this server and the logo that the operator names, and runs no
script but one that the specification wants on one page, and where people solve a riddle that of
whoever makes the riddle (`Widget`). Its style stands in it, and is the only one that its headers
allow.
"""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined

from federation.api.request import RequestContext
from homeserver.http.responses import Response
from homeserver.services.pages.branding import Branding
from homeserver.services.pages.languages import Language, Languages

STYLE: Final = "pages.css"
CAPTCHA_FIELD: Final = "g-recaptcha-response"
"""The field of a form in which a script of riddles leaves the solution."""
AUTH_DONE: Final = (
    "if (window.onAuthDone) { window.onAuthDone(); }"
    ' else if (window.opener && window.opener.postMessage) { window.opener.postMessage("authDone", "*"); }'
)
"""The script that tells the client that a stage is done. spec: client-server-api#fallback"""


class Widget(msgspec.Struct, frozen=True):
    """What somebody else's script shows on a page."""

    script: str
    """Its address."""
    site_key: str
    """What it is told whose page it is on."""
    sources: tuple[str, ...]
    """From where it may load more, as a `Content-Security-Policy` says it."""

    @property
    def host(self) -> str:
        """From where the script comes."""
        return urlsplit(self.script).hostname or ""


class Pages:
    """Makes pages."""

    def __init__(
        self,
        languages: Languages,
        server_name: str,
        branding: Branding | None = None,
        *,
        shortest_password: int = 1,
    ) -> None:
        """`shortest_password`: how many characters a new password must have."""
        self.branding = branding or Branding(server_name)
        """Whose pages they are."""
        self._languages = languages
        self._server_name = server_name
        self._shortest_password = shortest_password
        self._environment = Environment(
            loader=PackageLoader("homeserver.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        loader = self._environment.loader
        assert loader is not None
        self._style = loader.get_source(self._environment, STYLE)[0] + self.branding.style
        self._style_source = _source_of(self._style)
        self._image_sources = " ".join(["'self'", self.branding.logo_source]).strip()
        self._headers = {
            "Content-Type": "text/html; charset=utf-8",
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
        leads_to: Iterable[str] = (),
        script: str = "",
        widget: Widget | None = None,
    ) -> Response:
        """The page of a template. `leads_to`: where else an answer to its forms may send the
        browser on, as a `Content-Security-Policy` says it (`https:`, `https://app.example.org`);
        `script`: the one that it may run; `widget`: what stands in it of others."""
        text = self._environment.get_template(template).render(
            {
                **fields,
                "_": language.gettext,
                "lang": language.tag,
                "server_name": self._server_name,
                "shortest_password": self._shortest_password,
                "brand": self.branding,
                "style": self._style,
                "script": script,
                "widget": widget,
            }
        )
        foreign = "" if widget is None else "".join(f" {source}" for source in widget.sources)
        policy = (
            f"default-src 'none'; style-src {self._style_source}{foreign}; img-src {self._image_sources}{foreign}; "
            f"base-uri 'none'; form-action 'self'{''.join(f' {source}' for source in leads_to)}; frame-ancestors 'none'"
        )
        if widget is not None:
            policy += f"; script-src {widget.script.partition('?')[0]}{foreign}; frame-src{foreign}; connect-src{foreign}"
        if script:
            policy += f"; script-src {_source_of(script)}"
        return Response(
            status, {**self._headers, "Content-Security-Policy": policy}, text.encode(), cookies
        )

    def message(
        self,
        context: RequestContext,
        title: str,
        texts: Sequence[str],
        status: int = HTTPStatus.OK,
        *,
        link: tuple[str, str] | None = None,
    ) -> Response:
        """A page that only says something, in words that are translated already. `link`: its text,
        and a path."""
        fields: dict[str, object] = {"title": title, "texts": texts, "link": link}
        return self.make("message.html", self.choose(context.languages), fields, status)

    def lead_away(
        self,
        context: RequestContext,
        title: str,
        text: str,
        link: tuple[str, str],
        *,
        cookies: tuple[str, ...] = (),
    ) -> Response:
        """A page that leads on at once to where the link leads, which may be elsewhere: for who
        comes by a form whose page lets it lead to this server only (`form-action`), so that
        browsers would not follow a redirect."""
        page = self.message(context, title, [text], link=link)
        headers = {**page.headers, "Refresh": f"0;url={link[1]}", "Cache-Control": "no-store"}
        return msgspec.structs.replace(page, headers=headers, cookies=cookies)

    def stale_form(self, context: RequestContext) -> Response:
        """The page for who has sent a form that is not, or no longer, one of ours."""
        return self.make(
            "stale_form.html", self.choose(context.languages), {}, HTTPStatus.FORBIDDEN
        )


def see_other(where: str, *, cookies: tuple[str, ...] = ()) -> Response:
    """The answer that leads a browser elsewhere, also after a form."""
    headers = {"Location": where, "Content-Type": "text/plain", "Referrer-Policy": "no-referrer"}
    return Response(HTTPStatus.SEE_OTHER, headers, b"", cookies)


def _source_of(text: str) -> str:
    """By what a policy allows a text that stands in the page."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"

"""Renders HTML pages from templates in the user's language, with a strict Content-Security-Policy.

The policy allows only:
- images from this server and from the address of the operator's logo;
- the inline style of the page;
- an inline script, on the fallback pages for which the specification requires one;
- scripts, styles, images, frames and connections of a captcha's hosts, on a page with that captcha
  (`ThirdPartyScript`).
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
from federation.protocol.errors import MatrixError
from homeserver.http.responses import Response, error_response
from homeserver.services.pages.branding import Branding
from homeserver.services.pages.languages import Language, Languages
from homeserver.web.error_texts import explain

STYLE: Final = "pages.css"
CAPTCHA_FIELD: Final = "g-recaptcha-response"
"""The field in which a captcha's script stores the response."""
AUTH_DONE: Final = (
    "if (window.onAuthDone) { window.onAuthDone(); }"
    " else if (window.opener && window.opener.postMessage)"
    ' { window.opener.postMessage("authDone", "*"); }'
)
"""The script that notifies the client that a stage is done. spec: client-server-api#fallback"""


class ThirdPartyScript(msgspec.Struct, frozen=True):
    """A third party's script on a page, such as a captcha."""

    script: str
    """Its URL."""
    site_key: str
    """The key that identifies this site to the third party."""
    sources: tuple[str, ...]
    """Sources that it may load from, for the `Content-Security-Policy`."""

    @property
    def host(self) -> str:
        """The host of the script."""
        return urlsplit(self.script).hostname or ""


class Pages:
    """Renders pages."""

    def __init__(
        self,
        *,
        languages: Languages,
        server_name: str,
        branding: Branding | None = None,
        min_password_length: int = 1,
    ) -> None:
        """`min_password_length`: minimum length of a new password in characters."""
        self.branding = branding or Branding(server_name)
        """Name, logo and colours of the pages."""
        self._languages = languages
        self._server_name = server_name
        self._min_password_length = min_password_length
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

    def choose_language(self, accept_language: str) -> Language:
        """Return the language for an `Accept-Language` header."""
        return self._languages.choose(accept_language)

    def render(
        self,
        template: str,
        language: Language,
        fields: dict[str, object],
        status: int = HTTPStatus.OK,
        *,
        cookies: tuple[str, ...] = (),
        form_targets: Iterable[str] = (),
        script: str = "",
        third_party_script: ThirdPartyScript | None = None,
    ) -> Response:
        """Render a template. `form_targets`: sources that responses to its forms may redirect to,
        for the `Content-Security-Policy` (`https:`, `https://app.example.org`); `script`: an inline
        script that the page may run; `third_party_script`: a third party's script."""
        text = self._environment.get_template(template).render(
            {
                **fields,
                "_": language.gettext,
                "lang": language.tag,
                "server_name": self._server_name,
                "min_password_length": self._min_password_length,
                "brand": self.branding,
                "style": self._style,
                "script": script,
                "widget": third_party_script,
            }
        )
        sources = (
            ""
            if third_party_script is None
            else "".join(f" {source}" for source in third_party_script.sources)
        )
        policy = (
            f"default-src 'none'; style-src {self._style_source}{sources};"
            f" img-src {self._image_sources}{sources}; base-uri 'none';"
            f" form-action 'self'{''.join(f' {source}' for source in form_targets)};"
            " frame-ancestors 'none'"
        )
        if third_party_script is not None:
            policy += (
                f"; script-src {third_party_script.script.partition('?')[0]}{sources};"
                f" frame-src{sources}; connect-src{sources}"
            )
        if script:
            policy += f"; script-src {_source_of(script)}"
        return Response(
            status, {**self._headers, "Content-Security-Policy": policy}, text.encode(), cookies
        )

    def render_message(
        self,
        context: RequestContext,
        title: str,
        texts: Sequence[str],
        status: int = HTTPStatus.OK,
        *,
        link: tuple[str, str] | None = None,
    ) -> Response:
        """Render a page with translated texts only. `link`: its text and its target."""
        fields: dict[str, object] = {"title": title, "texts": texts, "link": link}
        return self.render("message.html", self.choose_language(context.languages), fields, status)

    def render_refresh(
        self,
        context: RequestContext,
        title: str,
        text: str,
        link: tuple[str, str],
        *,
        cookies: tuple[str, ...] = (),
    ) -> Response:
        """Render a page that refreshes to an external link at once. For the response to a form
        whose page allows only this server (`form-action`): browsers block a redirect there."""
        page = self.render_message(context, title, [text], link=link)
        headers = {**page.headers, "Refresh": f"0;url={link[1]}", "Cache-Control": "no-store"}
        return msgspec.structs.replace(page, headers=headers, cookies=cookies)

    def render_error(self, error: MatrixError, languages: str) -> Response:
        """Render the page for an error of a request that no page handles. `languages`: the
        `Accept-Language` header."""
        language = self.choose_language(languages)
        _ = language.gettext
        fields: dict[str, object] = {
            "title": _("Error"),
            "texts": [explain(error, language)],
            "link": None,
        }
        answer = error_response(error)
        page = self.render("message.html", language, fields, answer.status)
        return msgspec.structs.replace(page, headers={**answer.headers, **page.headers})

    def render_stale_form(self, context: RequestContext) -> Response:
        """Render the page for a form with a wrong or outdated token."""
        return self.render(
            "stale_form.html", self.choose_language(context.languages), {}, HTTPStatus.FORBIDDEN
        )


def see_other(url: str, *, cookies: tuple[str, ...] = ()) -> Response:
    """Redirect to a URL or path with 303, so that a browser follows with GET after a form."""
    headers = {"Location": url, "Content-Type": "text/plain", "Referrer-Policy": "no-referrer"}
    return Response(HTTPStatus.SEE_OTHER, headers, b"", cookies)


def _source_of(text: str) -> str:
    """Return the hash source that allows an inline text in a `Content-Security-Policy`."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"

"""The login fallback page, for clients that support none of this server's login types.

The client opens the page in a web view and defines `window.matrixLogin.onLogin`. The page calls
this function with the response of `POST /login`. The client can add `device_id` and
`initial_device_display_name` to the URL of the page. They apply to the new device.

After a sign-in at an identity provider, the browser returns to this page with a login token in the
URL. The user must then press a button, so that opening a malicious link signs nobody in.

spec: client-server-api#login-fallback
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Final
from urllib.parse import quote, urlencode

import msgspec

from federation.api.endpoint import QueryNames
from federation.api.request import RequestContext
from federation.protocol.errors import Forbidden, MatrixError
from federation.protocol.ids import parse_device_id
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.http.responses import Response
from homeserver.services.devices.devices import check_device_name
from homeserver.services.discovery.client import ClientDiscovery
from homeserver.services.login.login_tokens import LoginTokens
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.sessions import NewSession, session_response
from homeserver.services.upstream.identity import OfferedProviders
from homeserver.services.upstream.login_buttons import icon_path
from homeserver.web.error_texts import explain
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import Pages
from homeserver.web.sign_in import parse_login_name
from homeserver.web.upstream import REDIRECT_PATH

PATH: Final = "/_matrix/static/client/login/"
FORWARDED: Final = ("device_id", "initial_device_display_name")
"""The parameters of the URL that are forwarded to the login."""


class LoginFallbackPage:
    """Makes the page and signs users in."""

    def __init__(
        self,
        *,
        pages: Pages,
        forms: Forms,
        sign_in: SignIn,
        login_tokens: LoginTokens,
        providers: OfferedProviders,
        base_url: str,
        takes_numbers: bool,
    ) -> None:
        """`takes_numbers`: whether accounts can have phone numbers."""
        self._pages = pages
        self._forms = forms
        self._sign_in = sign_in
        self._login_tokens = login_tokens
        self._providers = providers
        self._base_url = base_url.rstrip("/")
        self._takes_numbers = takes_numbers

    def make(
        self,
        context: RequestContext,
        parameters: Mapping[str, str],
        *,
        error: MatrixError | None = None,
    ) -> Response:
        """Make the page. `parameters`: the client's parameters, the fields of the form, and the
        login token of a user who returns from a provider."""
        language = self._pages.choose_language(context.languages)
        token = self._forms.token(context)
        forwarded = {name: parameters[name] for name in FORWARDED if parameters.get(name)}
        problem = ""
        if error is not None:
            _ = language.gettext
            wrong = isinstance(error, Forbidden) and not parameters.get("login_token")
            problem = (
                _("The user name or the password is wrong.") if wrong else explain(error, language)
            )
        fields: dict[str, object] = {
            "path": PATH,
            "form_token": token.text,
            "forwarded": forwarded,
            "login_token": parameters.get("login_token", "") if error is None else "",
            "name": parameters.get("name", "")[:255],
            "takes_numbers": self._takes_numbers,
            "has_password": self._sign_in.accepts_passwords,
            "buttons": self._buttons(forwarded),
            "problem": problem,
        }
        status = HTTPStatus.OK if error is None else HTTPStatus(error.status)
        return self._pages.render(
            "login_fallback.html",
            language,
            fields,
            status,
            cookies=token.cookies,
            form_targets=("https:", "http:"),
        )

    async def do_sign_in(
        self, context: RequestContext, fields: Mapping[str, str], in_login: Mapping[str, object]
    ) -> Response:
        """Handle the form. `in_login`: further fields of the `POST /login` response."""
        try:
            session = await self._begin(context, fields)
        except MatrixError as error:
            return self.make(context, fields, error=error)
        response = {**session_response(session.user_id, session), **in_login}
        script = _script(msgspec.json.encode(response).decode())
        language = self._pages.choose_language(context.languages)
        return self._pages.render(
            "login_fallback_done.html", language, {"user_id": session.user_id}, script=script
        )

    async def _begin(self, context: RequestContext, fields: Mapping[str, str]) -> NewSession:
        text = fields.get("device_id") or None
        device_id = None if text is None else parse_device_id(text)
        device_name = check_device_name(fields.get("initial_device_display_name") or None)
        token = fields.get("login_token", "")
        if token:
            if not self._login_tokens.is_enabled:
                raise Forbidden("This server does not support login with a token")
            return await self._login_tokens.do_sign_in(
                token, context.client_ip, device_id=device_id, device_name=device_name
            )
        return await self._sign_in.do_sign_in(
            parse_login_name(fields.get("name", "").strip()),
            fields.get("password", ""),
            context.client_ip,
            device_id=device_id,
            device_name=device_name,
        )

    def _buttons(self, forwarded: Mapping[str, str]) -> list[dict[str, object]]:
        """Return a button per identity provider; its sign-in returns to this page."""
        return_url = f"{self._base_url}{PATH}" + (f"?{urlencode(forwarded)}" if forwarded else "")
        return [
            {
                "name": info.name,
                "icon": None if info.icon is None else icon_path(info.provider_id),
                "link": f"{REDIRECT_PATH}/{quote(info.provider_id, safe='')}"
                f"?{urlencode({'redirectUrl': return_url})}",
            }
            for info in self._providers.infos
        ]


def _script(response: str) -> str:
    """Return the script that calls the client, with the response escaped for a script element."""
    for char in "<>&\u2028\u2029":
        response = response.replace(char, f"\\u{ord(char):04x}")
    return (
        "if (window.matrixLogin && window.matrixLogin.onLogin)"
        f" {{ window.matrixLogin.onLogin({response}); }}"
    )


@endpoint("GET", PATH, auth=Auth.NONE)
async def get_login_fallback(
    page: LoginFallbackPage,
    context: RequestContext,
    *,
    device_id: str = "",
    initial_device_display_name: str = "",
    login_token: Annotated[str, QueryNames("loginToken")] = "",
) -> Response:
    """The login fallback page."""
    return page.make(
        context,
        {
            "device_id": device_id,
            "initial_device_display_name": initial_device_display_name,
            "login_token": login_token,
        },
    )


@endpoint("POST", PATH, auth=Auth.NONE, limit=Limit.LOGIN, max_body=MAX_BODY)
async def post_login_fallback(
    page: LoginFallbackPage,
    discovery: ClientDiscovery,
    pages: Pages,
    forms: Forms,
    context: RequestContext,
    *,
    body: bytes,
) -> Response:
    """The form of the page."""
    fields = forms.parse(context, body)
    if fields is None:
        return pages.render_stale_form(context)
    return await page.do_sign_in(context, fields, discovery.in_login)

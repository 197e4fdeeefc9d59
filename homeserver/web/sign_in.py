"""The sign-in page of this server. Users sign in there before they allow a client to use their
account, or manage the account in the browser.

After the sign-in, `/_mahalla/sign_in?next=PATH` redirects to PATH, if this is a path of this
server. Otherwise it redirects to the account page.
"""

from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode, urlsplit

from federation.api.request import RequestContext
from federation.protocol.errors import Forbidden, MatrixError
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.http.responses import Response
from homeserver.services.accounts.registration import Registration
from homeserver.services.login.browser_sessions import BrowserSessions
from homeserver.services.login.password_login import EmailAddress, SignIn, parse_phone_identifier
from homeserver.services.login.provider_buttons import ProviderButtons
from homeserver.services.oauth.metadata import ACCOUNT_PATH
from homeserver.services.pages.languages import Language
from homeserver.services.pages.local_paths import local_path_or
from homeserver.services.upstream.login import UpstreamSignIn
from homeserver.services.upstream.saml.logout import SAMLLogout
from homeserver.web.error_texts import explain
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import Pages, see_other

SIGN_IN_PATH: Final = "/_mahalla/sign_in"
REGISTER_PATH: Final = "/_mahalla/register"
RESET_PATH: Final = "/_mahalla/reset_password"
SIGN_OUT_PATH: Final = "/_mahalla/sign_out"
DEFAULT_PAGE: Final = ACCOUNT_PATH
"""The default path to continue to after signing in."""


class SignInPage:
    """Makes the sign-in page."""

    def __init__(
        self,
        *,
        pages: Pages,
        forms: Forms,
        sign_in: SignIn,
        registration: Registration,
        choices: ProviderButtons,
        resets_passwords: bool = False,
        takes_numbers: bool = False,
    ) -> None:
        """`resets_passwords`: whether users can reset a forgotten password by e-mail or code.
        `takes_numbers`: whether accounts can have phone numbers."""
        self._pages = pages
        self._forms = forms
        self._sign_in = sign_in
        self._registration = registration
        self._choices = choices
        self._resets_passwords = resets_passwords
        self._takes_numbers = takes_numbers

    def make(
        self,
        context: RequestContext,
        next_path: str,
        *,
        name: str = "",
        reauthenticate: bool = False,
        error: MatrixError | None = None,
        status: int = HTTPStatus.OK,
    ) -> Response:
        """Make the page, with the name typed before and the error. `reauthenticate`: the user has
        to authenticate again."""
        language = self._pages.choose_language(context.languages)
        token = self._forms.token(context)
        fields: dict[str, object] = {
            "path": SIGN_IN_PATH,
            "form_token": token.text,
            "next_path": next_path,
            "again": "true" if reauthenticate else "",
            "name": name,
            "takes_numbers": self._takes_numbers,
            "problem": "" if error is None else _problem(error, language),
            "has_password": self._sign_in.password_login,
            "reset_path": RESET_PATH if self._resets_passwords else "",
            "buttons": self._choices.buttons(next_path, reauthenticate=reauthenticate),
            "register_path": f"{REGISTER_PATH}?{urlencode({'next': next_path})}"
            if self._registration.is_open
            else "",
        }
        return self._pages.render("sign_in.html", language, fields, status, cookies=token.cookies)


def _problem(error: MatrixError, language: Language) -> str:
    _ = language.gettext
    if isinstance(error, Forbidden):
        return _("The user name or the password is wrong.")
    return explain(error, language)


def parse_login_name(name: str) -> str:
    """Interpret what a user typed: a local part, a user ID, an e-mail address, or a phone number
    with country code."""
    if name.startswith("+") and (number := parse_phone_identifier("", name)):
        return number
    return EmailAddress(name.lower()) if "@" in name[1:] and not name.startswith("@") else name


def sign_in_link(next_path: str, name: str = "", *, reauthenticate: bool = False) -> str:
    """Return the path of the page, which then continues to another path of this server. `name`:
    prefills the user name; `reauthenticate`: asks for authentication even with a session."""
    optional = {**({"name": name} if name else {}), **({"again": "true"} if reauthenticate else {})}
    return f"{SIGN_IN_PATH}?{urlencode({'next': next_path, **optional})}"


@endpoint("GET", SIGN_IN_PATH, auth=Auth.NONE)
async def get_sign_in(
    page: SignInPage,
    sessions: BrowserSessions,
    context: RequestContext,
    *,
    next: str = "",
    name: str = "",
    again: bool = False,
) -> Response:
    """The page; a redirect for users who are signed in, unless they have to sign in `again`."""
    next_path = local_path_or(next, DEFAULT_PAGE)
    if not again and await sessions.get(context) is not None:
        return see_other(next_path)
    return page.make(context, next_path, name=name[:255], reauthenticate=again)


@endpoint("POST", SIGN_IN_PATH, auth=Auth.NONE, limit=Limit.LOGIN, max_body=MAX_BODY)
async def post_sign_in(
    page: SignInPage,
    pages: Pages,
    forms: Forms,
    sign_in: SignIn,
    sessions: BrowserSessions,
    context: RequestContext,
    *,
    body: bytes,
) -> Response:
    """Sign in with name and password."""
    fields = forms.parse(context, body)
    if fields is None:
        return pages.render_stale_form(context)
    next_path = local_path_or(fields.get("next", ""), DEFAULT_PAGE)
    name = fields.get("name", "").strip()
    try:
        account = await sign_in.check_sign_in(
            parse_login_name(name), fields.get("password", ""), context.client_ip
        )
        cookie = await sessions.do_begin(UserID(account.user_id), context, account.epoch)
    except MatrixError as error:
        again = fields.get("again") == "true"
        return page.make(
            context, next_path, name=name, reauthenticate=again, error=error, status=error.status
        )
    return see_other(next_path, cookies=(cookie,))


@endpoint("POST", SIGN_OUT_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_sign_out(
    pages: Pages,
    forms: Forms,
    sessions: BrowserSessions,
    saml: SAMLLogout,
    upstream: UpstreamSignIn,
    context: RequestContext,
    *,
    body: bytes,
) -> Response:
    """End the session of this browser, its pending upstream flows, and its session at the identity
    provider if that supports logout. Clients stay signed in."""
    fields = forms.parse(context, body)
    if fields is None:
        return pages.render_stale_form(context)
    next_path = local_path_or(fields.get("next", ""), DEFAULT_PAGE)
    session = await sessions.get(context)
    await upstream.do_end_flows(context)
    cookie = await sessions.do_end(context)
    logout_url = None if session is None else await saml.make_logout_url(session.origin, next_path)
    if logout_url is None:
        return see_other(sign_in_link(next_path), cookies=(cookie,))
    _ = pages.choose_language(context.languages).gettext
    text = _("Continue to %(host)s to sign out there too.") % {
        "host": urlsplit(logout_url).hostname
    }
    return pages.render_refresh(
        context, _("You are signed out"), text, (_("Continue"), logout_url), cookies=(cookie,)
    )

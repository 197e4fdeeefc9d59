"""SSO for clients of the legacy login API, on this server's own pages: users sign in or register
there and return to the client with a login token.

Laws:
- A login token is sent only to an address that the configuration trusts (`sso.client_whitelist`),
  or to one that the user has seen and agreed to.
- A user who is not signed in gets the sign-in page first. If the client's `action` is `register`
  and registration is open, the user gets the registration page instead.

spec: client-server-api#sso-client-loginauthentication, client-server-api#oauth-20-aware-clients
"""

from http import HTTPStatus
from typing import Annotated, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from federation.api.endpoint import QueryNames
from federation.api.request import RequestContext
from federation.protocol.errors import MatrixError
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.http.responses import Response
from homeserver.services.accounts.registration import Registration
from homeserver.services.login.browser_sessions import BrowserSession, BrowserSessions
from homeserver.services.login.login_tokens import ProviderSignIn
from homeserver.services.login.password_login import SignIn
from homeserver.services.pages.external_links import link_text
from homeserver.services.terms.consent import Consents
from homeserver.services.upstream.identity import SignInRefused
from homeserver.services.upstream.login import UpstreamSignIn
from homeserver.web.error_texts import explain
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import Pages, see_other
from homeserver.web.register import register_link
from homeserver.web.sign_in import SIGN_OUT_PATH, sign_in_link
from homeserver.web.terms import redirect_to_terms
from homeserver.web.upstream import UpstreamPages

SSO_PATH: Final = "/_mahalla/sso"
REGISTER: Final = "register"


class SSOPage:
    """Makes the page and the redirects to and from it."""

    def __init__(
        self,
        *,
        pages: Pages,
        forms: Forms,
        sessions: BrowserSessions,
        sign_in: SignIn,
        registration: Registration,
        upstream: UpstreamSignIn,
        upstream_pages: UpstreamPages,
        consents: Consents,
    ) -> None:
        self._pages = pages
        self._forms = forms
        self._sessions = sessions
        self._sign_in = sign_in
        self._registration = registration
        self._upstream = upstream
        self._upstream_pages = upstream_pages
        self._consents = consents

    async def answer(
        self, context: RequestContext, redirect_url: str, action: str, *, agreed: bool
    ) -> Response:
        """Return the page that asks whether to continue to a client, or a redirect: to sign in or
        register first, or to the client. `agreed`: the user pressed its button."""
        try:
            self._upstream.check_client(redirect_url)
        except SignInRefused as refused:
            return await self._upstream_pages.refuse(context, refused)
        session = await self._sessions.get(context)
        here = f"{SSO_PATH}?{urlencode({'redirectUrl': redirect_url})}"
        if session is None:
            registers = action == REGISTER and self._registration.is_open
            return see_other(register_link(here) if registers else sign_in_link(here))
        terms = await redirect_to_terms(self._consents, session.user_id, here)
        if terms is not None:
            return terms
        if agreed or self._upstream.is_trusted_client(redirect_url):
            return await self._leave(context, session, redirect_url, agreed=agreed)
        token = self._forms.token(context)
        fields: dict[str, object] = {
            "path": SSO_PATH,
            "sign_out_path": SIGN_OUT_PATH,
            "here": here,
            "form_token": token.text,
            "user_id": session.user_id,
            "client": link_text(redirect_url),
            "redirect_url": redirect_url,
        }
        leads_to = (f"{urlsplit(redirect_url).scheme}:",)
        language = self._pages.choose_language(context.languages)
        return self._pages.render(
            "sso.html", language, fields, cookies=token.cookies, form_targets=leads_to
        )

    async def _leave(
        self, context: RequestContext, session: BrowserSession, redirect_url: str, *, agreed: bool
    ) -> Response:
        language = self._pages.choose_language(context.languages)
        try:
            await self._sign_in.check_allowed(session.user_id, "browser", context.client_ip)
            origin = (
                None
                if session.origin is None
                else msgspec.json.decode(session.origin, type=ProviderSignIn)
            )
            url = await self._upstream.do_issue_token(
                session.user_id, origin, redirect_url, session.epoch
            )
        except MatrixError as error:
            _ = language.gettext
            return self._pages.render_message(
                context,
                _("Sign-in failed"),
                [explain(error, language)],
                HTTPStatus.FORBIDDEN,
            )
        if agreed:
            return see_other(url)
        _ = language.gettext
        text = _("Continue to %(host)s.") % {"host": link_text(redirect_url)}
        return self._pages.render_refresh(
            context, _("You are signed in"), text, (_("Continue"), url)
        )


@endpoint("GET", SSO_PATH, auth=Auth.NONE, limit=Limit.LOGIN, cost=0.2)
async def get_sso(
    page: SSOPage,
    context: RequestContext,
    *,
    redirect_url: Annotated[str, QueryNames("redirectUrl")] = "",
    action: str = "",
) -> Response:
    """A user comes from a client."""
    return await page.answer(context, redirect_url, action, agreed=False)


@endpoint("POST", SSO_PATH, auth=Auth.NONE, limit=Limit.LOGIN, cost=0.2, max_body=MAX_BODY)
async def post_sso(
    page: SSOPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """The user continues to the client."""
    fields = forms.parse(context, body)
    if fields is None:
        return pages.render_stale_form(context)
    return await page.answer(context, fields.get("redirectUrl", ""), "", agreed=True)

"""The authorization page, where a user allows a client to use their account.

spec: client-server-api#authorisation-code-flow
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from federation.api.request import RequestContext
from federation.protocol.errors import UserDeactivated, UserLocked
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import Response
from homeserver.services.accounts.registration import Registration
from homeserver.services.login.browser_sessions import BrowserSession, BrowserSessions
from homeserver.services.login.credential_epoch import AuthenticationInvalidated
from homeserver.services.oauth.authorization import (
    PARAMETERS,
    Authorization,
    AuthorizationRefused,
    AuthorizationRequest,
)
from homeserver.services.oauth.errors import OAuthError
from homeserver.services.oauth.metadata import AUTHORIZE_PATH, OAuthMetadata
from homeserver.services.oauth.redirect_uris import csp_source
from homeserver.services.pages.external_links import link_text
from homeserver.services.pages.languages import Language
from homeserver.services.terms.consent import Consents
from homeserver.web.error_texts import explain
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import Pages, see_other
from homeserver.web.register import register_link
from homeserver.web.sign_in import SIGN_OUT_PATH, sign_in_link
from homeserver.web.terms import redirect_to_terms

_HINT: Final = "mxid:"


class AuthorizationPage:
    """Makes the page and handles its form."""

    def __init__(
        self,
        *,
        pages: Pages,
        forms: Forms,
        sessions: BrowserSessions,
        authorization: Authorization,
        metadata: OAuthMetadata,
        consents: Consents,
        registration: Registration,
    ) -> None:
        self._registration = registration
        self._pages = pages
        self._forms = forms
        self._sessions = sessions
        self._authorization = authorization
        self._metadata = metadata
        self._consents = consents

    async def answer(
        self, context: RequestContext, parameters: Mapping[str, str], decision: str | None
    ) -> Response:
        """Return the page for a request, or a redirect: to sign in first, or back to the client
        with the decision (`allow`, `deny`; None: not decided yet)."""
        self._metadata.check_enabled()
        language = self._pages.choose_language(context.languages)
        try:
            _check_once(context)
            request = await self._authorization.check(parameters)
        except AuthorizationRefused as error:
            return await self._refuse(context, language, error)
        except OAuthError as error:
            return self._error_page(context, language, error)
        session = await self._sessions.get(context)
        here = f"{AUTHORIZE_PATH}?{urlencode(_without_prompt(parameters))}"
        if decision is None and "create" in request.prompts and self._registration.is_open:
            return see_other(register_link(here))
        again = decision is None and "login" in request.prompts
        if session is None or again:
            return see_other(
                sign_in_link(here, request.login_hint.removeprefix(_HINT), reauthenticate=again)
            )
        terms = await redirect_to_terms(self._consents, session.user_id, here)
        if terms is not None and decision != "deny":
            return terms
        if decision == "allow":
            try:
                url = await self._authorization.do_allow(
                    request, session.user_id, context.client_ip, session.epoch, session.origin
                )
            except (AuthenticationInvalidated, UserLocked, UserDeactivated):
                url = sign_in_link(here)
            return see_other(url)
        if decision == "deny":
            return see_other(
                await self._authorization.do_deny(request, session.user_id, context.client_ip)
            )
        return self._page(context, language, parameters, request, session)

    def _page(
        self,
        context: RequestContext,
        language: Language,
        parameters: Mapping[str, str],
        request: AuthorizationRequest,
        session: BrowserSession,
    ) -> Response:
        token = self._forms.token(context)
        target = request.target.redirect_uri
        fields: dict[str, object] = {
            "path": AUTHORIZE_PATH,
            "sign_out_path": SIGN_OUT_PATH,
            "here": f"{AUTHORIZE_PATH}?{urlencode(_without_prompt(parameters))}",
            "form_token": token.text,
            "parameters": parameters,
            "user_id": session.user_id,
            "client": request.client,
            "device_id": request.scope.device_id,
            "target": link_text(target),
        }
        return self._pages.render(
            "consent.html",
            language,
            fields,
            cookies=token.cookies,
            form_targets=(csp_source(target),),
        )

    async def _refuse(
        self, context: RequestContext, language: Language, error: AuthorizationRefused
    ) -> Response:
        """Return to the client with an error. Users who are signed in with it are redirected;
        others get a link that shows its target, because anybody can register a client and would
        have an open redirect."""
        url = self._authorization.redirect_error(error)
        session = await self._sessions.get(context)
        if session is not None and await self._authorization.is_used(
            error.target.client_id, session.user_id
        ):
            return see_other(url)
        _ = language.gettext
        return self._error_page(
            context,
            language,
            error,
            (_("Continue to %(host)s") % {"host": link_text(error.target.redirect_uri)}, url),
        )

    def _error_page(
        self,
        context: RequestContext,
        language: Language,
        error: OAuthError,
        link: tuple[str, str] | None = None,
    ) -> Response:
        """Return the page for an invalid request. `link`: as for `Pages.render_message`."""
        _ = language.gettext
        texts = [
            explain(error, language),
            _("For the developers of the app: %(text)s") % {"text": f"{error.error}: {error.text}"},
        ]
        return self._pages.render_message(
            context, _("This app cannot sign you in"), texts, HTTPStatus.BAD_REQUEST, link=link
        )


def _check_once(context: RequestContext) -> None:
    """Raises `OAuthError` if a parameter occurs twice in the URL. spec: RFC 6749 section 3.1"""
    names = [
        name
        for name, _ in parse_qsl(
            urlsplit(context.uri).query.decode("latin-1"), keep_blank_values=True
        )
    ]
    repeated = next((name for name in PARAMETERS if names.count(name) > 1), None)
    if repeated is not None:
        raise OAuthError("invalid_request", f"{repeated} occurs twice")


def _without_prompt(parameters: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if name != "prompt"}


@endpoint("GET", AUTHORIZE_PATH, auth=Auth.NONE)
async def get_authorize(
    page: AuthorizationPage,
    context: RequestContext,
    *,
    response_type: str = "",
    client_id: str = "",
    redirect_uri: str = "",
    scope: str = "",
    state: str = "",
    response_mode: str = "",
    code_challenge: str = "",
    code_challenge_method: str = "",
    prompt: str = "",
    login_hint: str = "",
) -> Response:
    """A client's authorization request."""
    values = (
        response_type,
        client_id,
        redirect_uri,
        scope,
        state,
        response_mode,
        code_challenge,
        code_challenge_method,
        prompt,
        login_hint,
    )
    parameters = {name: value for name, value in zip(PARAMETERS, values, strict=True) if value}
    return await page.answer(context, parameters, None)


@endpoint("POST", AUTHORIZE_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_authorize(
    page: AuthorizationPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """The user's decision."""
    fields = forms.parse(context, body)
    if fields is None:
        return pages.render_stale_form(context)
    parameters = {name: fields[name] for name in PARAMETERS if fields.get(name)}
    return await page.answer(context, parameters, fields.get("decision"))

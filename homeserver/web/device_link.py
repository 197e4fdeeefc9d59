"""The page where a user types the code that a device without a browser shows. spec: RFC 8628
section 3.3"""

from http import HTTPStatus
from urllib.parse import urlencode

from federation.api.request import RequestContext
from federation.protocol.errors import LimitExceeded, UserDeactivated, UserLocked
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import Response
from homeserver.services.login.browser_sessions import BrowserSession, BrowserSessions
from homeserver.services.login.credential_epoch import AuthenticationInvalidated
from homeserver.services.oauth.device_grants import DeviceGrants
from homeserver.services.oauth.metadata import LINK_PATH, OAuthMetadata
from homeserver.services.terms.consent import Consents
from homeserver.web.error_texts import explain
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import Pages, see_other
from homeserver.web.sign_in import SIGN_OUT_PATH, sign_in_link
from homeserver.web.terms import redirect_to_terms


class DeviceLinkPage:
    """Makes the page and handles its forms."""

    def __init__(
        self,
        *,
        pages: Pages,
        forms: Forms,
        sessions: BrowserSessions,
        grants: DeviceGrants,
        metadata: OAuthMetadata,
        consents: Consents,
    ) -> None:
        self._pages = pages
        self._forms = forms
        self._sessions = sessions
        self._grants = grants
        self._metadata = metadata
        self._consents = consents

    async def answer(
        self, context: RequestContext, user_code: str, decision: str | None
    ) -> Response:
        """Return the page: for the code, for the client to allow, or for the result of the
        `decision` (`allow`, `deny`)."""
        self._metadata.check_enabled()
        session = await self._sessions.get(context)
        here = f"{LINK_PATH}?{urlencode({'user_code': user_code[:40]})}" if user_code else LINK_PATH
        if session is None:
            return see_other(sign_in_link(here))
        terms = await redirect_to_terms(self._consents, session.user_id, here)
        if terms is not None:
            return terms
        language = self._pages.choose_language(context.languages)
        _ = language.gettext
        fields: dict[str, object] = {
            "state": "ask",
            "user_code": user_code[:40],
            "problem": "",
            "here": here,
        }
        if not user_code:
            return self._page(context, session, fields)
        try:
            found = await self._grants.find(user_code, session.user_id, context.client_ip)
        except LimitExceeded as error:
            return self._page(
                context, session, {**fields, "problem": explain(error, language)}, error.status
            )
        if found is None:
            problem = _(
                "This code is wrong or has expired. Check it on the device; a code is valid for "
                "twenty minutes."
            )
            return self._page(
                context, session, {**fields, "problem": problem}, HTTPStatus.NOT_FOUND
            )
        grant, client = found
        if decision not in ("allow", "deny"):
            details = {"state": "confirm", "client": client, "device_id": grant.device_id}
            return self._page(context, session, {**fields, **details, "user_code": grant.user_code})
        allowed = decision == "allow"
        try:
            await self._grants.do_decide(
                grant,
                client,
                session.user_id,
                context.client_ip,
                session.epoch,
                session.origin,
                allowed=allowed,
            )
        except (AuthenticationInvalidated, UserLocked, UserDeactivated):
            return see_other(sign_in_link(here))
        return self._page(context, session, {**fields, "state": "allowed" if allowed else "denied"})

    def _page(
        self,
        context: RequestContext,
        session: BrowserSession,
        fields: dict[str, object],
        status: int = HTTPStatus.OK,
    ) -> Response:
        token = self._forms.token(context)
        common: dict[str, object] = {
            "path": LINK_PATH,
            "sign_out_path": SIGN_OUT_PATH,
            "form_token": token.text,
            "user_id": session.user_id,
        }
        language = self._pages.choose_language(context.languages)
        return self._pages.render(
            "link.html", language, {**common, **fields}, status, cookies=token.cookies
        )


@endpoint("GET", LINK_PATH, auth=Auth.NONE)
async def get_link(
    page: DeviceLinkPage, context: RequestContext, *, user_code: str = ""
) -> Response:
    """The page for the code; or for the client, if the link has the code."""
    return await page.answer(context, user_code, None)


@endpoint("POST", LINK_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_link(
    page: DeviceLinkPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """Take the code or the decision."""
    fields = forms.parse(context, body)
    if fields is None:
        return pages.render_stale_form(context)
    return await page.answer(context, fields.get("user_code", ""), fields.get("decision"))

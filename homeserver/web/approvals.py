"""The page where administrators approve or decline new accounts. spec: MSC3866"""

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from twisted.logger import Logger

from federation.api.request import RequestContext
from federation.protocol.errors import NotFound
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import Response
from homeserver.services.accounts.deactivation import Deactivation
from homeserver.services.login.approvals import APPROVALS_PATH, Approvals
from homeserver.services.login.browser_sessions import BrowserSession, BrowserSessions
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import Pages, see_other
from homeserver.web.sign_in import SIGN_OUT_PATH, sign_in_link

MAX_SHOWN: Final = 100


class ApprovalsPage:
    """Makes the page and handles its forms."""

    log = Logger()

    def __init__(
        self,
        *,
        pages: Pages,
        forms: Forms,
        sessions: BrowserSessions,
        approvals: Approvals,
        deactivation: Deactivation,
    ) -> None:
        self._pages = pages
        self._forms = forms
        self._sessions = sessions
        self._approvals = approvals
        self._deactivation = deactivation

    async def answer(
        self, context: RequestContext, fields: Mapping[str, str] | None, done: str
    ) -> Response:
        """Return the page for an administrator, or handle its form with `fields`."""
        session = await self._sessions.get(context)
        if session is None:
            return see_other(sign_in_link(APPROVALS_PATH))
        if not session.is_admin:
            _ = self._pages.choose_language(context.languages).gettext
            texts = [_("Sign in as an administrator of this server.")]
            link = (_("Sign in"), sign_in_link(APPROVALS_PATH))
            return self._pages.render_message(
                context,
                _("This page is for administrators"),
                texts,
                HTTPStatus.FORBIDDEN,
                link=link,
            )
        if fields is None:
            return await self._page(context, session, done)
        return await self._decide(
            session, UserID(fields.get("user_id", "")), fields.get("decision", "")
        )

    async def _decide(self, session: BrowserSession, user_id: UserID, decision: str) -> Response:
        waits = user_id in {each.user_id for each in await self._approvals.get_awaiting(MAX_SHOWN)}
        done = "gone"
        try:
            if (
                waits
                and decision == "approve"
                and await self._approvals.do_approve(user_id, by=session.user_id)
            ):
                done = "approved"
            elif waits and decision == "decline":
                await self._deactivation.do_deactivate(user_id, erase=True, by=session.user_id)
                done = "declined"
        except NotFound:
            done = "gone"
        self.log.info(
            "{admin}: {user_id} is {done}", admin=session.user_id, user_id=user_id, done=done
        )
        return see_other(f"{APPROVALS_PATH}?done={done}")

    async def _page(self, context: RequestContext, session: BrowserSession, done: str) -> Response:
        language = self._pages.choose_language(context.languages)
        _ = language.gettext
        results = {
            "approved": _("The account was approved."),
            "declined": _("The account was closed."),
            "gone": _("This account is no longer awaiting approval."),
        }
        token = self._forms.token(context)
        values: dict[str, object] = {
            "path": APPROVALS_PATH,
            "sign_out_path": SIGN_OUT_PATH,
            "here": APPROVALS_PATH,
            "form_token": token.text,
            "user_id": session.user_id,
            "waiting": [
                (
                    each,
                    datetime.fromtimestamp(each.since_ts / 1000, UTC).strftime(
                        "%Y-%m-%d %H:%M UTC"
                    ),
                )
                for each in await self._approvals.get_awaiting(MAX_SHOWN)
            ],
            "done": results.get(done, ""),
        }
        return self._pages.render("approvals.html", language, values, cookies=token.cookies)


@endpoint("GET", APPROVALS_PATH, auth=Auth.NONE)
async def get_approvals(
    page: ApprovalsPage, context: RequestContext, *, done: str = ""
) -> Response:
    """The page."""
    return await page.answer(context, None, done)


@endpoint("POST", APPROVALS_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_approvals(
    page: ApprovalsPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """A decision of an administrator."""
    fields = forms.parse(context, body)
    return (
        pages.render_stale_form(context)
        if fields is None
        else await page.answer(context, fields, "")
    )

"""The page where users create application passwords, see their last use, and revoke them.

A new password is shown once, in the response to its form; only its hash is stored.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from federation.api.request import RequestContext
from federation.protocol.errors import MatrixError, NotFound, Unrecognized, UserSuspended
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import Response
from homeserver.services.accounts.self_service import AccountSelfService, ReauthenticationRequired
from homeserver.services.login.application_passwords import ApplicationPasswords
from homeserver.services.login.browser_sessions import BrowserSession, BrowserSessions
from homeserver.services.login.credential_epoch import AuthenticationInvalidated
from homeserver.services.oauth.metadata import ACCOUNT_PATH
from homeserver.services.pages.languages import Language
from homeserver.web.account import APPLICATION_PASSWORDS_PATH
from homeserver.web.audit_texts import format_time
from homeserver.web.error_texts import NotAnOption, explain
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import Pages, see_other
from homeserver.web.sign_in import SIGN_OUT_PATH, sign_in_link

DAY_MS: Final = 24 * 3600 * 1000
DAYS: Final = (30, 90, 365)
"""The lifetimes that a new password may have."""


class ApplicationPasswordsPage:
    """Makes the page and handles its forms."""

    def __init__(
        self,
        *,
        pages: Pages,
        forms: Forms,
        sessions: BrowserSessions,
        account: AccountSelfService,
        passwords: ApplicationPasswords,
    ) -> None:
        self._pages = pages
        self._forms = forms
        self._sessions = sessions
        self._account = account
        self._passwords = passwords

    async def show(self, context: RequestContext, done: str) -> Response:
        """Return the page, or a redirect to sign in first. Raises `Unrecognized` if application
        passwords are disabled."""
        self._check_enabled()
        session = await self._sessions.get(context)
        if session is None:
            return see_other(sign_in_link(APPLICATION_PASSWORDS_PATH))
        return await self._page(context, session, done=done)

    async def submit(self, context: RequestContext, fields: Mapping[str, str]) -> Response:
        """Handle a form of the page."""
        self._check_enabled()
        session = await self._sessions.get(context)
        if session is None:
            return see_other(sign_in_link(APPLICATION_PASSWORDS_PATH))
        try:
            if fields.get("do") == "end":
                await self._passwords.do_revoke(session.user_id, fields.get("password_id", ""))
                return see_other(f"{APPLICATION_PASSWORDS_PATH}?{urlencode({'done': 'ended'})}")
            return await self._make(context, session, fields)
        except NotFound:  # it was revoked in another window
            return see_other(f"{APPLICATION_PASSWORDS_PATH}?{urlencode({'done': 'ended'})}")
        except AuthenticationInvalidated:
            return see_other(sign_in_link(APPLICATION_PASSWORDS_PATH))
        except ReauthenticationRequired:
            cookie = await self._sessions.do_end(context)
            return see_other(
                sign_in_link(APPLICATION_PASSWORDS_PATH, reauthenticate=True), cookies=(cookie,)
            )
        except MatrixError as error:
            return await self._page(context, session, error=error, name=fields.get("name", ""))

    def _check_enabled(self) -> None:
        if not self._passwords.enabled:
            raise Unrecognized

    async def _make(
        self, context: RequestContext, session: BrowserSession, fields: Mapping[str, str]
    ) -> Response:
        if session.is_suspended:
            raise UserSuspended
        days = fields.get("days", "")
        if days not in ("", *map(str, DAYS)):
            raise NotAnOption("days is not one of the offered values")
        await self._account.check_authentication(
            session, fields.get("old_password", ""), context.client_ip
        )
        name = fields.get("name", "").strip()
        lifetime_ms = int(days) * DAY_MS if days else None
        password = await self._passwords.do_create(
            session.user_id, name, lifetime_ms, epoch=session.epoch, address=context.client_ip
        )
        return await self._page(context, session, password=password, created=name)

    async def _page(
        self,
        context: RequestContext,
        session: BrowserSession,
        *,
        done: str = "",
        error: MatrixError | None = None,
        name: str = "",
        password: str = "",
        created: str = "",
    ) -> Response:
        language = self._pages.choose_language(context.languages)
        overview = await self._account.get_overview(session.user_id)
        token = self._forms.token(context)
        longest = self._passwords.max_lifetime_ms
        fields: dict[str, object] = {
            "path": APPLICATION_PASSWORDS_PATH,
            "account_path": ACCOUNT_PATH,
            "sign_out_path": SIGN_OUT_PATH,
            "here": APPLICATION_PASSWORDS_PATH,
            "form_token": token.text,
            "user_id": session.user_id,
            "has_password": overview.has_password,
            "passwords": await self._passwords.get_passwords(session.user_id),
            "format_time": format_time,
            "days": [days for days in DAYS if longest is None or days * DAY_MS < longest],
            "longest_days": None if longest is None else longest // DAY_MS,
            "name": name,
            "password": password,
            "created": created,
            "problem": "" if error is None else explain(error, language),
            "done": _done_text(done, language),
        }
        status = HTTPStatus.OK if error is None else HTTPStatus(error.status)
        return self._pages.render(
            "application_passwords.html", language, fields, status, cookies=token.cookies
        )


def _done_text(done: str, language: Language) -> str:
    _ = language.gettext
    return _("The password was revoked, and its sessions have ended.") if done == "ended" else ""


@endpoint("GET", APPLICATION_PASSWORDS_PATH, auth=Auth.NONE)
async def get_application_passwords_page(
    page: ApplicationPasswordsPage, context: RequestContext, *, done: str = ""
) -> Response:
    """The page."""
    return await page.show(context, done)


@endpoint("POST", APPLICATION_PASSWORDS_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_application_passwords_page(
    page: ApplicationPasswordsPage,
    pages: Pages,
    forms: Forms,
    context: RequestContext,
    *,
    body: bytes,
) -> Response:
    """A form of the page."""
    fields = forms.parse(context, body)
    return (
        pages.render_stale_form(context) if fields is None else await page.submit(context, fields)
    )

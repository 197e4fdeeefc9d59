"""Pages for users of identity providers: choose a provider, choose the name of a new account,
continue to the client, confirm a request that needs UIA.

spec: client-server-api#sso-client-loginauthentication,
client-server-api#sso-during-user-interactive-authentication
"""

from http import HTTPStatus
from typing import Annotated, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec
from twisted.logger import Logger

from federation.api.endpoint import QueryNames
from federation.api.request import RequestContext
from federation.protocol.errors import (
    Exclusive,
    Forbidden,
    MatrixError,
    NotFound,
    UserAwaitingApproval,
    UserInUse,
)
from federation.protocol.ids import ServerName
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.http.responses import Response
from homeserver.services.login.browser_sessions import BrowserSessions
from homeserver.services.login.password_login import SignIn
from homeserver.services.media.delivery import MediaDelivery, MediaRequest
from homeserver.services.pages.external_links import link_text
from homeserver.services.pages.local_paths import local_path_or
from homeserver.services.upstream.identity import (
    ForClient,
    ForPage,
    RefusalReason,
    SignInRefused,
    WrongAccount,
)
from homeserver.services.upstream.login import (
    BrowserRedirect,
    BrowserSignedIn,
    ChooseName,
    ConfirmClient,
    DescribeOperation,
    OperationConfirmed,
    Step,
    UpstreamSignIn,
    error_to_refusal,
)
from homeserver.services.upstream.login_buttons import ICON_PATH, PROVIDER_SIGN_IN_PATH, icon_path
from homeserver.services.upstream.saml.logout import SAMLLogout, SAMLLogoutMessage
from homeserver.web.pages import AUTH_DONE, Pages, see_other

REDIRECT_PATH: Final = "/_matrix/client/v3/login/sso/redirect"
FALLBACK_PATH: Final = "/_matrix/client/v3/auth/m.login.sso/fallback/web"
NAME_PATH: Final = "/_mahalla/upstream/name"
CLIENT_PATH: Final = "/_mahalla/upstream/client"
CONFIRM_PATH: Final = "/_mahalla/upstream/confirm"
RESUME_PATH: Final = "/_mahalla/upstream/go_on"
MAX_FORM: Final = 8192
ICON_SIZE: Final = 96
ICON_WAIT_MS: Final = 5000
_STATUS: Final = {
    RefusalReason.OLD: 400,
    RefusalReason.CANCELLED: 400,
    RefusalReason.BAD_ADDRESS: 400,
    RefusalReason.UNKNOWN_PROVIDER: 404,
}
OPERATIONS: Final = (
    ("register", "POST register"),
    ("keys", "POST keys/device_signing/upload"),
    ("password", "POST account/password"),
    ("close", "POST account/deactivate"),
    ("address", "POST account/3pid/add"),
    ("sign_in", "POST login/get_token"),
    ("devices", "DELETE device"),
    ("devices", "POST delete_devices"),
)
"""Names of UIA operations in the template, by prefix of the operation."""


class UpstreamPages:
    """Makes the page or the redirect of each step."""

    log = Logger()

    def __init__(
        self,
        *,
        pages: Pages,
        sign_in: UpstreamSignIn,
        own_sign_in: SignIn,
        sessions: BrowserSessions,
        own_pages: str = "",
    ) -> None:
        """`own_pages`: the path of this server's own SSO page for clients of the legacy login
        API; empty if it is not offered."""
        self._own_pages = own_pages
        self._own_sign_in = own_sign_in
        self._pages = pages
        self._sign_in = sign_in
        self._sessions = sessions

    @property
    def has_choice(self) -> bool:
        """Whether there is more than one way to sign in."""
        has_own = bool(self._own_pages) and self._own_sign_in.password_login
        return has_own or len(self._sign_in.providers) > 1

    async def show(self, context: RequestContext, step: Step | DescribeOperation) -> Response:
        """Return the response for a step."""
        match step:
            case BrowserRedirect(url, browser):
                cookies = () if browser is None else (self._sign_in.cookie_of(context, browser),)
                status = HTTPStatus.FOUND if context.method == "GET" else HTTPStatus.SEE_OTHER
                headers = {
                    "Location": url,
                    "Content-Type": "text/plain",
                    "Referrer-Policy": "no-referrer",
                }
                return Response(status, {**headers, "Cache-Control": "no-store"}, b"", cookies)
            case BrowserSignedIn(user_id, next_path, origin, authenticated_ts, epoch):
                try:
                    await self._own_sign_in.check_allowed(user_id, "browser", context.client_ip)
                except UserAwaitingApproval as error:
                    raise SignInRefused(RefusalReason.AWAITING_APPROVAL, error.text) from None
                except Forbidden as error:
                    raise SignInRefused(RefusalReason.NOT_ALLOWED, error.text) from None
                encoded = msgspec.json.encode(origin).decode()
                try:
                    cookie = await self._sessions.do_begin(
                        user_id, context, epoch, encoded, authenticated_ts
                    )
                except MatrixError as error:
                    raise error_to_refusal(user_id, error) from None
                return see_other(local_path_or(next_path, "/"), cookies=(cookie,))
            case ChooseName():
                return self._ask_name(context, step)
            case ConfirmClient(flow_id, user_id, redirect_url):
                return self._make(
                    context,
                    "upstream_client.html",
                    {
                        "path": CLIENT_PATH,
                        "flow_id": flow_id,
                        "user_id": user_id,
                        "client": link_text(redirect_url),
                    },
                    leads_to=(f"{urlsplit(redirect_url).scheme}:",),
                )
            case DescribeOperation(flow_id, browser, operation, user_id, providers):
                fields: dict[str, object] = {
                    "path": CONFIRM_PATH,
                    "flow_id": flow_id,
                    "user_id": user_id,
                    "what": operation_name(operation),
                    "providers": providers,
                }
                cookies = (self._sign_in.cookie_of(context, browser),)
                return self._make(
                    context,
                    "upstream_confirm.html",
                    fields,
                    leads_to=("https:", "http:"),
                    cookies=cookies,
                )
            case OperationConfirmed():
                return self._make(context, "upstream_done.html", {}, script=AUTH_DONE)

    async def refuse(self, context: RequestContext, refused: SignInRefused) -> Response:
        """Return the page with the reason of a refusal, and record it in the audit log of the
        account, if that is known."""
        if isinstance(refused, WrongAccount):
            return await self._refuse_other_person(context, refused)
        user_id = await self._sign_in.get_refused_user(refused)
        if user_id is not None:
            await self._own_sign_in.do_record_refusal(
                user_id, context.client_ip, refused.reason.value
            )
        self.log.info(
            "a sign-in with a provider failed: {reason}: {why}",
            reason=refused.reason.value,
            why=refused,
        )
        status = _STATUS.get(refused.reason, HTTPStatus.FORBIDDEN)
        return self._make(
            context, "upstream_refused.html", {"reason": refused.reason.value}, status
        )

    async def _refuse_other_person(
        self, context: RequestContext, refused: WrongAccount
    ) -> Response:
        actual = refused.actual or refused.provider.provider_id
        await self._own_sign_in.do_record_other_user(
            refused.owner, context.client_ip, refused.operation, actual
        )
        self.log.info("nothing is confirmed: {why}", why=refused)
        fields: dict[str, object] = {
            "owner": refused.owner,
            "actual": refused.actual,
            "provider": refused.provider.name,
        }
        return self._make(context, "upstream_other_person.html", fields, HTTPStatus.FORBIDDEN)

    async def sign_out(
        self, context: RequestContext, logout: SAMLLogout, message: SAMLLogoutMessage
    ) -> Response:
        """Handle a provider's logout request; the browser takes our response back to it."""
        try:
            response = await logout.do_end(message)
        except SignInRefused as refused:
            return await self.refuse(context, refused)
        if response is not None:
            return see_other(response)
        _ = self._pages.choose_language(context.languages).gettext
        return self._pages.render_message(context, _("You are signed out"), [])

    def choose(self, context: RequestContext, redirect_url: str, action: str) -> Response:
        """Redirect to this server's own sign-in page, which also offers the providers; without it,
        return the page that offers the providers."""
        if self._own_pages:
            query = {"redirectUrl": redirect_url, **({"action": action} if action else {})}
            url = f"{self._own_pages}?{urlencode(query)}"
            headers = {"Location": url, "Content-Type": "text/plain", "Cache-Control": "no-store"}
            return Response(HTTPStatus.FOUND, headers, b"")
        providers = [
            {
                "name": info.name,
                "icon": None if info.icon is None else icon_path(info.provider_id),
                "href": f"{REDIRECT_PATH}/{quote(info.provider_id)}"
                f"?{urlencode({'redirectUrl': redirect_url})}",
            }
            for info in self._sign_in.providers
        ]
        return self._make(context, "upstream_choice.html", {"providers": providers})

    def _ask_name(self, context: RequestContext, step: ChooseName) -> Response:
        fields: dict[str, object] = {
            "path": NAME_PATH,
            "flow_id": step.flow_id,
            "provider": step.provider,
            "username": step.username,
            "display_name": step.identity.display_name,
            "emails": step.identity.emails,
            "error": "" if step.error is None else _problem(step.error),
        }
        leads_to = (
            (f"{urlsplit(step.purpose.redirect_url).scheme}:",)
            if isinstance(step.purpose, ForClient)
            else ()
        )
        return self._make(context, "upstream_name.html", fields, leads_to=leads_to)

    def _make(
        self,
        context: RequestContext,
        template: str,
        fields: dict[str, object],
        status: int = HTTPStatus.OK,
        *,
        cookies: tuple[str, ...] = (),
        leads_to: tuple[str, ...] = (),
        script: str = "",
    ) -> Response:
        language = self._pages.choose_language(context.languages)
        return self._pages.render(
            template,
            language,
            fields,
            status,
            cookies=cookies,
            form_targets=leads_to,
            script=script,
        )


def operation_name(operation: str) -> str:
    """Return the name of an operation in templates; empty if it has none."""
    return next((name for name, start in OPERATIONS if operation.startswith(start)), "")


def read_form(body: bytes) -> dict[str, str]:
    """Parse a form; empty if it is malformed. The flow ID and the cookie protect against CSRF."""
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        return {}
    return {name: value.replace("\0", "") for name, value in pairs}


def _problem(error: MatrixError) -> str:
    if isinstance(error, UserInUse):
        return "taken"
    return "reserved" if isinstance(error, Exclusive) else "wrong"


@endpoint(
    "GET",
    f"{REDIRECT_PATH}/{{idp_id}}",
    REDIRECT_PATH,
    "/_matrix/client/r0/login/sso/redirect/{idp_id}",
    "/_matrix/client/r0/login/sso/redirect",
    auth=Auth.NONE,
    limit=Limit.LOGIN,
    cost=0.2,
)
async def get_sso_redirect(
    pages: UpstreamPages,
    sign_in: UpstreamSignIn,
    context: RequestContext,
    *,
    idp_id: str | None = None,
    redirect_url: Annotated[str, QueryNames("redirectUrl")] = "",
    action: Annotated[str, QueryNames("action", "org.matrix.msc3824.action")] = "",
) -> Response:
    """Redirect to the provider, or to a page for signing in or choosing one. `action`: `login` or
    `register`."""
    try:
        sign_in.check_client(redirect_url)
        if idp_id is None and pages.has_choice:
            return pages.choose(context, redirect_url, action)
        wanted = idp_id or (sign_in.providers[0].provider_id if sign_in.providers else "")
        return await pages.show(
            context,
            await sign_in.begin(wanted, ForClient(redirect_url), sign_in.find_browser(context)),
        )
    except SignInRefused as refused:
        return await pages.refuse(context, refused)


@endpoint("GET", PROVIDER_SIGN_IN_PATH, auth=Auth.NONE, limit=Limit.LOGIN, cost=0.2)
async def get_sign_in_with(
    pages: UpstreamPages,
    sign_in: UpstreamSignIn,
    context: RequestContext,
    *,
    provider: str = "",
    next: str = "",
    again: bool = False,
) -> Response:
    """A button of the sign-in page: redirect to the provider, and then to a path of this server."""
    try:
        purpose = ForPage(local_path_or(next, "/"), again)
        return await pages.show(
            context, await sign_in.begin(provider, purpose, sign_in.find_browser(context))
        )
    except SignInRefused as refused:
        return await pages.refuse(context, refused)


@endpoint("GET", f"{ICON_PATH}/{{provider}}", auth=Auth.NONE)
async def get_provider_icon(
    delivery: MediaDelivery, sign_in: UpstreamSignIn, context: RequestContext, *, provider: str
) -> Response:
    """A thumbnail of a provider's icon, without authentication: the operator published it. Raises
    `NotFound`."""
    icon = next((info.icon for info in sign_in.providers if info.provider_id == provider), None)
    if icon is None:
        raise NotFound("This provider has no icon")
    server_name, _, media_id = icon.removeprefix("mxc://").partition("/")
    asked = MediaRequest(context.client_ip, authenticated=True, timeout_ms=ICON_WAIT_MS)
    return await delivery.thumbnail(
        ServerName(server_name), media_id, (ICON_SIZE, ICON_SIZE), "scale", asked, animated=False
    )


@endpoint(
    "GET",
    FALLBACK_PATH,
    "/_matrix/client/r0/auth/m.login.sso/fallback/web",
    auth=Auth.NONE,
    limit=Limit.LOGIN,
    cost=0.2,
)
async def get_sso_fallback(
    pages: UpstreamPages, sign_in: UpstreamSignIn, context: RequestContext, *, session: str = ""
) -> Response:
    """The page with the operation to confirm and the providers."""
    try:
        return await pages.show(
            context, await sign_in.begin_confirmation(session, sign_in.find_browser(context))
        )
    except SignInRefused as refused:
        return await pages.refuse(context, refused)


@endpoint("POST", CONFIRM_PATH, auth=Auth.NONE, max_body=MAX_FORM)
async def post_confirm(
    pages: UpstreamPages, sign_in: UpstreamSignIn, context: RequestContext, *, body: bytes
) -> Response:
    """The user continues to the provider."""
    form = read_form(body)
    try:
        return await pages.show(
            context,
            await sign_in.do_redirect_to_confirm(
                form.get("flow", ""), form.get("provider", ""), sign_in.find_browser(context)
            ),
        )
    except SignInRefused as refused:
        return await pages.refuse(context, refused)


@endpoint("POST", NAME_PATH, auth=Auth.NONE, limit=Limit.LOGIN, cost=0.2, max_body=MAX_FORM)
async def post_name(
    pages: UpstreamPages, sign_in: UpstreamSignIn, context: RequestContext, *, body: bytes
) -> Response:
    """Take the name of a new account."""
    form = read_form(body)
    username = form.get("username", "").strip().lower()[:255]
    try:
        browser = sign_in.find_browser(context)
        step = await sign_in.do_choose_name(
            form.get("flow", ""), username, browser, context.languages
        )
        return await pages.show(context, step)
    except SignInRefused as refused:
        return await pages.refuse(context, refused)


@endpoint("POST", CLIENT_PATH, auth=Auth.NONE, max_body=MAX_FORM)
async def post_client(
    pages: UpstreamPages, sign_in: UpstreamSignIn, context: RequestContext, *, body: bytes
) -> Response:
    """The user agrees to continue to the client."""
    try:
        step = await sign_in.do_continue_to_client(
            read_form(body).get("flow", ""), sign_in.find_browser(context)
        )
        return await pages.show(context, step)
    except SignInRefused as refused:
        return await pages.refuse(context, refused)


@endpoint("GET", RESUME_PATH, auth=Auth.NONE)
async def get_resume(
    pages: UpstreamPages, sign_in: UpstreamSignIn, context: RequestContext, *, flow: str = ""
) -> Response:
    """The browser brings its cookie for an answer that was posted without it."""
    try:
        step = await sign_in.resume(flow, sign_in.find_browser(context), context.languages)
        return await pages.show(context, step)
    except SignInRefused as refused:
        return await pages.refuse(context, refused)

"""The account page: name, sessions, password, e-mail addresses, phone numbers, cross-signing keys,
audit log, data export, deactivation.

The query `?action=…&device_id=…` opens one of the views that the specification defines. Other sites
may link to these views, so opening a view changes nothing. A view describes the operation, which
starts only when the user presses a button.

spec: client-server-api#oauth-20-account-management
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

import msgspec

from federation.api.request import RequestContext
from federation.protocol.errors import MatrixError, NotFound, UserSuspended
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import Response
from homeserver.services.accounts.export import AccountExport
from homeserver.services.accounts.self_service import AccountSelfService, ReauthenticationRequired
from homeserver.services.accounts.threepids import Threepids
from homeserver.services.audit.audit import Audit
from homeserver.services.encryption.cross_signing_resets import CrossSigningResets
from homeserver.services.login.browser_sessions import BrowserSession, BrowserSessions
from homeserver.services.login.credential_epoch import AuthenticationInvalidated
from homeserver.services.oauth.metadata import (
    ACCOUNT_PATH,
    ACTIONS,
    CROSS_SIGNING_RESET,
    DEACTIVATE,
    DEVICE_DELETE,
    DEVICE_VIEW,
    PROFILE,
    UNSTABLE_ACTIONS,
)
from homeserver.services.pages.languages import Language
from homeserver.services.terms.consent import CONSENT_PATH
from homeserver.services.threepids.email_validation import EmailValidation
from homeserver.services.threepids.phone_validation import PhoneValidation
from homeserver.services.threepids.validation import ADD, EMAIL, MSISDN, ThreepidValidation
from homeserver.services.tokens.secret_tokens import SecretGenerator
from homeserver.web.audit_texts import describe_event, detail_for_owner, format_time
from homeserver.web.error_texts import NoSuchSession, PasswordsDiffer, explain
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import Pages, see_other
from homeserver.web.sign_in import SIGN_OUT_PATH, sign_in_link

MAX_RECORDS: Final = 20
UNFOLDED_RECORDS: Final = 3
"""The records that are shown unfolded."""
EXPORT_PATH: Final = "/_mahalla/account/export"
APPLICATION_PASSWORDS_PATH: Final = "/_mahalla/account/application_passwords"
ADD_ADDRESS: Final = "address"
"""Own action: the view that the link in a validation e-mail leads to."""
ADD_NUMBER: Final = "number"
"""Own action: the view that asks for a code."""
_VIEWS: Final = {
    DEVICE_VIEW: "device",
    DEVICE_DELETE: "device",
    DEACTIVATE: "deactivate",
    CROSS_SIGNING_RESET: "reset",
    ADD_ADDRESS: "address",
    ADD_NUMBER: "number",
}

_PRESERVED: Final = ("action", "device_id", "address", "sid", "client_secret")
"""The parameters that survive a sign-in."""

Fields = Mapping[str, str]


class AccountPage:
    """Makes the page and handles its forms."""

    # More than ten: one page, and each of its forms uses another service.
    def __init__(
        self,
        *,
        pages: Pages,
        forms: Forms,
        sessions: BrowserSessions,
        account: AccountSelfService,
        export: AccountExport,
        audit: Audit,
        resets: CrossSigningResets,
        threepids: Threepids,
        validation: EmailValidation,
        validations: ThreepidValidation,
        phones: PhoneValidation,
        secret_text: SecretGenerator,
        base_url: str,
        has_terms: bool,
    ) -> None:
        """`has_terms`: whether there are terms of service."""
        self._has_terms = has_terms
        self._pages = pages
        self._forms = forms
        self._sessions = sessions
        self._account = account
        self._export = export
        self._audit = audit
        self._resets = resets
        self._threepids = threepids
        self._validation = validation
        self._validations = validations
        self._phones = phones
        self._secret_text = secret_text
        self._base_url = base_url.rstrip("/")
        self._buttons: dict[
            str, Callable[[RequestContext, BrowserSession, Fields], Awaitable[Response]]
        ] = {
            "name": self._set_name,
            "end_device": self._end_device,
            "end_others": self._end_others,
            "password": self._set_password,
            "send_email": self._send_email,
            "take_address": self._take_address,
            "remove_address": self._remove_address,
            "send_code": self._send_code,
            "take_number": self._take_number,
            "remove_number": self._remove_number,
            "reset": self._reset,
            "deactivate": self._deactivate,
        }

    async def show(self, context: RequestContext, parameters: Fields) -> Response:
        """Return the requested view, or a redirect to sign in first."""
        session = await self._sessions.get(context)
        if session is None:
            return see_other(sign_in_link(_link(parameters, *_PRESERVED)))
        try:
            return await self._page(context, session, parameters)
        except NotFound:
            # the browser may be signed in to another account than the client that linked here
            fallback = {"action": PROFILE, "here": _link(parameters, "action", "device_id")}
            return await self._page(context, session, fallback, error=NoSuchSession())

    async def submit(self, context: RequestContext, fields: Fields) -> Response:
        """Handle a form of the page."""
        session = await self._sessions.get(context)
        if session is None:
            return see_other(sign_in_link(ACCOUNT_PATH))
        button = self._buttons.get(fields.get("do", ""))
        if button is None:
            return see_other(ACCOUNT_PATH)
        try:
            return await button(context, session, fields)
        except NotFound:
            return _done("session_ended")
        except AuthenticationInvalidated:
            return see_other(sign_in_link(ACCOUNT_PATH))
        except ReauthenticationRequired:
            cookie = await self._sessions.do_end(context)
            return see_other(
                sign_in_link(_link(fields, *_PRESERVED), reauthenticate=True), cookies=(cookie,)
            )
        except MatrixError as error:
            return await self._page(context, session, fields, error=error)

    async def export(self, context: RequestContext) -> Response:
        """Return the stored data of the account as a file, and record that in the audit log."""
        session = await self._sessions.get(context)
        if session is None:
            return see_other(sign_in_link(ACCOUNT_PATH))
        body = msgspec.json.format(
            msgspec.json.encode(await self._export.do_export(session.user_id, context.client_ip))
        )
        headers = {
            "Content-Type": "application/json",
            "Content-Disposition": 'attachment; filename="account.json"',
            "X-Content-Type-Options": "nosniff",
        }
        return Response(HTTPStatus.OK, headers, body)

    async def _page(
        self,
        context: RequestContext,
        session: BrowserSession,
        parameters: Fields,
        *,
        error: MatrixError | None = None,
    ) -> Response:
        language = self._pages.choose_language(context.languages)
        action = parameters.get("action", "")
        action = UNSTABLE_ACTIONS.get(action, action)
        view = _VIEWS.get(action, "home")
        if view == "number" and not parameters.get("sid"):
            view = "home"  # no code was sent yet
        overview = await self._account.get_overview(session.user_id)
        token = self._forms.token(context)
        device = None
        if view == "device":
            device = await self._account.get_device(
                session.user_id, parameters.get("device_id", "")
            )
        fields: dict[str, object] = {
            "view": view,
            "action": action if action in (*ACTIONS, ADD_ADDRESS, ADD_NUMBER) else "",
            "path": ACCOUNT_PATH,
            "export_path": EXPORT_PATH,
            "terms_path": CONSENT_PATH if self._has_terms else "",
            "sign_out_path": SIGN_OUT_PATH,
            "here": parameters.get("here") or _link(parameters, "action", "device_id"),
            "form_token": token.text,
            "user_id": session.user_id,
            "overview": overview,
            "has_password": overview.has_password,
            "programs_path": APPLICATION_PASSWORDS_PATH
            if self._account.has_application_passwords
            else "",
            "device": device,
            "format_time": format_time,
            "address": parameters.get("address", ""),
            "client_secret": parameters.get("client_secret", ""),
            "sid": parameters.get("sid", ""),
            "may_add_numbers": self._phones.supports_purpose(ADD),
            "may_add_addresses": self._validation.is_enabled,
            "records": [] if view != "home" else await self._records(session.user_id, language),
            "records_open": UNFOLDED_RECORDS,
            "reset_allowed": await self._resets.is_allowed(session.user_id),
            "problem": "" if error is None else explain(error, language),
            "done": "" if error is not None else _done_text(parameters.get("done", ""), language),
        }
        status = HTTPStatus.OK if error is None else HTTPStatus(error.status)
        return self._pages.render("account.html", language, fields, status, cookies=token.cookies)

    async def _records(self, user_id: UserID, language: Language) -> Sequence[tuple[str, str, str]]:
        """Return event, time, and place of the newest records."""
        return [
            (
                describe_event(record, language),
                format_time(record.ts),
                " · ".join(
                    each
                    for each in (detail_for_owner(record), record.device_id, record.address)
                    if each
                ),
            )
            for record in await self._audit.get_records_for_owner(user_id, MAX_RECORDS)
        ]

    async def _set_name(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        if session.is_suspended:
            raise UserSuspended
        await self._account.do_set_name(session.user_id, fields.get("name", "").strip())
        return _done("name")

    async def _end_device(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        device = await self._account.get_device(session.user_id, fields.get("device_id", ""))
        await self._account.do_end_devices(
            session.user_id, [device.row.device_id], context.client_ip
        )
        return _done("session_ended")

    async def _end_others(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        await self._sessions.do_end_other_sessions(
            context, session.user_id, self._account.remove_sessions
        )
        return _done("others_ended")

    async def _set_password(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        await self._account.check_authentication(
            session, fields.get("old_password", ""), context.client_ip
        )
        if fields.get("password", "") != fields.get("password_again"):
            raise PasswordsDiffer
        end_others = self._sessions.end_other_sessions_write(
            context, session.user_id, self._account.remove_sessions
        )
        await self._account.do_set_password(
            session, fields.get("password", ""), context.client_ip, end_others
        )
        return _done("password")

    async def _send_email(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        self._threepids.check_changes()
        secret, address = self._secret_text.session_id(), fields.get("address", "")
        query = {"action": ADD_ADDRESS, "address": address, "client_secret": secret}
        await self._validation.do_request_token(
            ADD,
            address,
            secret,
            1,
            f"{self._base_url}{ACCOUNT_PATH}?{urlencode(query)}" if self._base_url else None,
            self._pages.choose_language(context.languages),
            context.client_ip,
        )
        return see_other(f"{ACCOUNT_PATH}?{urlencode({**query, 'done': 'email'})}")

    async def _take_address(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        await self._account.check_authentication(
            session, fields.get("old_password", ""), context.client_ip
        )
        secret = fields.get("client_secret", "")
        address = fields.get("address", "").strip().lower()
        sid = await self._validations.find(ADD, EMAIL, address, secret)
        await self._threepids.do_add_confirmed(
            session.user_id, sid or "", secret, context.client_ip, session.epoch
        )
        return _done("address")

    async def _remove_address(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        if session.is_suspended:
            raise UserSuspended
        await self._threepids.do_remove(session.user_id, EMAIL, fields.get("address", ""))
        return _done("address_removed")

    async def _send_code(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        self._threepids.check_changes()
        secret = self._secret_text.session_id()
        language = self._pages.choose_language(context.languages)
        validation = await self._phones.do_request_token(
            ADD, "", fields.get("number", ""), secret, 1, None, language, context.client_ip
        )
        # without the number, because URLs end up in logs
        query = {
            "action": ADD_NUMBER,
            "sid": validation.sid,
            "client_secret": secret,
            "done": "code",
        }
        return see_other(f"{ACCOUNT_PATH}?{urlencode(query)}")

    async def _take_number(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        await self._account.check_authentication(
            session, fields.get("old_password", ""), context.client_ip
        )
        sid, secret = fields.get("sid", ""), fields.get("client_secret", "")
        await self._phones.do_submit(sid, secret, fields.get("code", ""))
        await self._threepids.do_add_confirmed(
            session.user_id, sid, secret, context.client_ip, session.epoch
        )
        return _done("number")

    async def _remove_number(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        if session.is_suspended:
            raise UserSuspended
        await self._threepids.do_remove(session.user_id, MSISDN, fields.get("number", ""))
        return _done("number_removed")

    async def _reset(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        await self._account.check_authentication(
            session, fields.get("old_password", ""), context.client_ip
        )
        await self._resets.do_allow(session.user_id, context.client_ip, session.epoch)
        return see_other(
            f"{ACCOUNT_PATH}?{urlencode({'action': CROSS_SIGNING_RESET, 'done': 'reset'})}"
        )

    async def _deactivate(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        await self._account.check_authentication(
            session, fields.get("old_password", ""), context.client_ip
        )
        await self._account.do_deactivate(
            session, context.client_ip, erase=fields.get("erase") == "true"
        )
        _ = self._pages.choose_language(context.languages).gettext
        texts = [
            _(
                "All of its sessions have ended, and it is leaving its rooms. Nobody else can get "
                "your Matrix ID."
            )
        ]
        return self._pages.render_message(context, _("Your account is closed"), texts)


def _link(parameters: Fields, *names: str) -> str:
    """Return the path of the page with those of the named parameters that are given."""
    query = {name: parameters[name] for name in names if parameters.get(name)}
    return f"{ACCOUNT_PATH}?{urlencode(query)}" if query else ACCOUNT_PATH


def _done(what: str, *, cookies: tuple[str, ...] = ()) -> Response:
    return see_other(f"{ACCOUNT_PATH}?{urlencode({'done': what})}", cookies=cookies)


def _done_text(done: str, language: Language) -> str:
    _ = language.gettext
    match done:
        case "name":
            return _("Your name was changed.")
        case "session_ended":
            return _("The session has ended.")
        case "others_ended":
            return _("All other sessions have ended.")
        case "password":
            return _("Your password was changed, and all apps are signed out.")
        case "email":
            return _("We sent an e-mail. Open its link, press the button there, and return here.")
        case "address":
            return _("The address was added.")
        case "address_removed":
            return _("The address was removed.")
        case "code":
            return _("We sent a code.")
        case "number":
            return _("The number was added.")
        case "number_removed":
            return _("The number was removed.")
        case "reset":
            return _("Allowed. Return to your app within ten minutes.")
        case _:
            return ""


@endpoint("GET", ACCOUNT_PATH, auth=Auth.NONE)
async def get_account_page(
    page: AccountPage,
    context: RequestContext,
    *,
    action: str = "",
    device_id: str = "",
    address: str = "",
    sid: str = "",
    client_secret: str = "",
    done: str = "",
) -> Response:
    """The account page."""
    parameters = {
        "action": action,
        "device_id": device_id,
        "address": address,
        "sid": sid,
        "client_secret": client_secret,
        "done": done,
    }
    return await page.show(context, parameters)


@endpoint("POST", ACCOUNT_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_account_page(
    page: AccountPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """A form of the page."""
    fields = forms.parse(context, body)
    return (
        pages.render_stale_form(context) if fields is None else await page.submit(context, fields)
    )


@endpoint("GET", EXPORT_PATH, auth=Auth.NONE)
async def get_account_export(page: AccountPage, context: RequestContext) -> Response:
    """The stored data of the account as a file."""
    return await page.export(context)

"""The page where people manage their account: name, sessions, password, addresses, numbers, keys,
the end.

`?action=…&device_id=…` leads to what the specification names, and what links of other pages may:
nothing is done before somebody presses a button on a page that says what it does.

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
from homeserver.services.accounts.self_service import OwnAccount, ProveAgain
from homeserver.services.accounts.threepids import Threepids
from homeserver.services.audit.audit import Audit
from homeserver.services.encryption.cross_signing_resets import CrossSigningResets
from homeserver.services.login.browser_sessions import BrowserSession, BrowserSessions
from homeserver.services.login.credential_epoch import ProofEnded
from homeserver.services.oauth.metadata import (
    ACCOUNT_PATH,
    ACTIONS,
    CROSS_SIGNING_RESET,
    DEACTIVATE,
    DEVICE_DELETE,
    DEVICE_VIEW,
    OLDER_ACTIONS,
    PROFILE,
)
from homeserver.services.pages.languages import Language
from homeserver.services.terms.consent import CONSENT_PATH
from homeserver.services.threepids.email_validation import EmailValidation
from homeserver.services.threepids.phone_validation import PhoneValidation
from homeserver.services.threepids.validation import ADD, EMAIL, MSISDN, ThreepidValidation
from homeserver.services.tokens.secret_tokens import SecretText
from homeserver.web.account_records import describe, detail_for_owner, moment
from homeserver.web.error_texts import NoSuchSession, PasswordsDiffer, explain
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import Pages, see_other
from homeserver.web.sign_in import SIGN_OUT_PATH, sign_in_link

RECORDS_SHOWN: Final = 20
RECORDS_OPEN: Final = 3
"""Of them; the others are folded away."""
EXPORT_PATH: Final = "/_mahalla/account/export"
PROGRAMS_PATH: Final = "/_mahalla/account/application_passwords"
ADDRESS: Final = "address"
"""Besides the actions of the specification: where somebody comes back to from a letter."""
NUMBER: Final = "number"
"""Where somebody types a code."""
_VIEWS: Final = {
    DEVICE_VIEW: "device",
    DEVICE_DELETE: "device",
    DEACTIVATE: "deactivate",
    CROSS_SIGNING_RESET: "reset",
    ADDRESS: "address",
    NUMBER: "number",
}

_KEPT: Final = ("action", "device_id", "address", "sid", "client_secret")
"""What of its address the page keeps over a sign-in."""

Fields = Mapping[str, str]


class AccountPage:
    """The page, and what its buttons do."""

    def __init__(
        self,
        pages: Pages,
        forms: Forms,
        sessions: BrowserSessions,
        account: OwnAccount,
        export: AccountExport,
        audit: Audit,
        resets: CrossSigningResets,
        threepids: Threepids,
        validation: EmailValidation,
        validations: ThreepidValidation,
        phones: PhoneValidation,
        secret_text: SecretText,
        *,
        base_url: str,
        has_terms: bool,
    ) -> None:
        """`has_terms`: there are documents that people agree to."""
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
            "send_letter": self._send_letter,
            "take_address": self._take_address,
            "remove_address": self._remove_address,
            "send_code": self._send_code,
            "take_number": self._take_number,
            "remove_number": self._remove_number,
            "reset": self._reset,
            "deactivate": self._deactivate,
        }

    async def answer(self, context: RequestContext, given: Fields) -> Response:
        """The page that an address names, for who is signed in; others sign in first."""
        session = await self._sessions.get(context)
        if session is None:
            return see_other(sign_in_link(_link(given, *_KEPT)))
        try:
            return await self._page(context, session, given)
        except NotFound:
            # perhaps somebody else is signed in here than in the app that has led here
            elsewhere = {"action": PROFILE, "here": _link(given, "action", "device_id")}
            return await self._page(context, session, elsewhere, error=NoSuchSession())

    async def press(self, context: RequestContext, fields: Fields) -> Response:
        """A button was pressed."""
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
        except ProofEnded:
            return see_other(sign_in_link(ACCOUNT_PATH))
        except ProveAgain:
            cookie = await self._sessions.do_end(context)
            return see_other(sign_in_link(_link(fields, *_KEPT), again=True), cookies=(cookie,))
        except MatrixError as error:
            return await self._page(context, session, fields, error=error)

    async def export(self, context: RequestContext) -> Response:
        """A file with what is kept of the account; that somebody took it is recorded."""
        session = await self._sessions.get(context)
        if session is None:
            return see_other(sign_in_link(ACCOUNT_PATH))
        body = msgspec.json.format(
            msgspec.json.encode(await self._export.do_make(session.user_id, context.client_ip))
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
        given: Fields,
        *,
        error: MatrixError | None = None,
    ) -> Response:
        language = self._pages.choose(context.languages)
        action = given.get("action", "")
        action = OLDER_ACTIONS.get(action, action)
        view = _VIEWS.get(action, "home")
        if view == "number" and not given.get("sid"):
            view = "home"  # there is no code yet
        overview = await self._account.look(session.user_id)
        token = self._forms.token(context)
        device = None
        if view == "device":
            device = await self._account.get_device(session.user_id, given.get("device_id", ""))
        fields: dict[str, object] = {
            "view": view,
            "action": action if action in (*ACTIONS, ADDRESS, NUMBER) else "",
            "path": ACCOUNT_PATH,
            "export_path": EXPORT_PATH,
            "terms_path": CONSENT_PATH if self._has_terms else "",
            "sign_out_path": SIGN_OUT_PATH,
            "here": given.get("here") or _link(given, "action", "device_id"),
            "form_token": token.text,
            "user_id": session.user_id,
            "overview": overview,
            "has_password": overview.has_password,
            "programs_path": PROGRAMS_PATH if self._account.has_programs else "",
            "device": device,
            "moment": moment,
            "address": given.get("address", ""),
            "client_secret": given.get("client_secret", ""),
            "sid": given.get("sid", ""),
            "may_add_numbers": self._phones.is_possible(ADD),
            "may_add_addresses": self._validation.is_possible,
            "records": [] if view != "home" else await self._records(session.user_id, language),
            "records_open": RECORDS_OPEN,
            "reset_allowed": await self._resets.is_allowed(session.user_id),
            "problem": "" if error is None else explain(error, language),
            "done": "" if error is not None else _told(given.get("done", ""), language),
        }
        status = HTTPStatus.OK if error is None else HTTPStatus(error.status)
        return self._pages.make("account.html", language, fields, status, cookies=token.cookies)

    async def _records(self, user_id: UserID, language: Language) -> Sequence[tuple[str, str, str]]:
        """What happened, when, and where."""
        return [
            (
                describe(record, language),
                moment(record.ts),
                " · ".join(
                    each
                    for each in (detail_for_owner(record), record.device_id, record.address)
                    if each
                ),
            )
            for record in await self._audit.get_records_for_owner(user_id, RECORDS_SHOWN)
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
        await self._sessions.do_end_others(context, session.user_id, self._account.remove_sessions)
        return _done("others_ended")

    async def _set_password(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        await self._account.check_proof(session, fields.get("old_password", ""), context.client_ip)
        if fields.get("password", "") != fields.get("password_again"):
            raise PasswordsDiffer
        end_others = self._sessions.ending_others(
            context, session.user_id, self._account.remove_sessions
        )
        await self._account.do_set_password(
            session, fields.get("password", ""), context.client_ip, end_others
        )
        return _done("password")

    async def _send_letter(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        self._threepids.check_changes()
        secret, address = self._secret_text.session_id(), fields.get("address", "")
        back = {"action": ADDRESS, "address": address, "client_secret": secret}
        await self._validation.do_request_token(
            ADD,
            address,
            secret,
            1,
            f"{self._base_url}{ACCOUNT_PATH}?{urlencode(back)}" if self._base_url else None,
            self._pages.choose(context.languages),
            context.client_ip,
        )
        return see_other(f"{ACCOUNT_PATH}?{urlencode({**back, 'done': 'letter'})}")

    async def _take_address(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        await self._account.check_proof(session, fields.get("old_password", ""), context.client_ip)
        secret = fields.get("client_secret", "")
        address = fields.get("address", "").strip().lower()
        sid = await self._validations.find(ADD, EMAIL, address, secret)
        await self._threepids.do_take(
            session.user_id, sid or "", secret, context.client_ip, session.era
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
        language = self._pages.choose(context.languages)
        asked = await self._phones.do_request_token(
            ADD, "", fields.get("number", ""), secret, 1, None, language, context.client_ip
        )
        # without the number: addresses of pages end up in logs
        to_code = {"action": NUMBER, "sid": asked.sid, "client_secret": secret, "done": "code"}
        return see_other(f"{ACCOUNT_PATH}?{urlencode(to_code)}")

    async def _take_number(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        await self._account.check_proof(session, fields.get("old_password", ""), context.client_ip)
        sid, secret = fields.get("sid", ""), fields.get("client_secret", "")
        await self._phones.do_submit(sid, secret, fields.get("code", ""))
        await self._threepids.do_take(session.user_id, sid, secret, context.client_ip, session.era)
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
        await self._account.check_proof(session, fields.get("old_password", ""), context.client_ip)
        await self._resets.do_allow(session.user_id, context.client_ip, session.era)
        return see_other(
            f"{ACCOUNT_PATH}?{urlencode({'action': CROSS_SIGNING_RESET, 'done': 'reset'})}"
        )

    async def _deactivate(
        self, context: RequestContext, session: BrowserSession, fields: Fields
    ) -> Response:
        await self._account.check_proof(session, fields.get("old_password", ""), context.client_ip)
        await self._account.do_deactivate(
            session, context.client_ip, erase=fields.get("erase") == "true"
        )
        _ = self._pages.choose(context.languages).gettext
        texts = [
            _(
                "All of its sessions have ended, and it leaves its rooms now. Nobody else ever gets your address."
            )
        ]
        return self._pages.message(context, _("Your account is closed"), texts)


def _link(given: Fields, *names: str) -> str:
    """The page again, with these parameters as far as they are given."""
    kept = {name: given[name] for name in names if given.get(name)}
    return f"{ACCOUNT_PATH}?{urlencode(kept)}" if kept else ACCOUNT_PATH


def _done(what: str, *, cookies: tuple[str, ...] = ()) -> Response:
    return see_other(f"{ACCOUNT_PATH}?{urlencode({'done': what})}", cookies=cookies)


def _told(done: str, language: Language) -> str:
    _ = language.gettext
    match done:
        case "name":
            return _("Your name is changed.")
        case "session_ended":
            return _("The session has ended.")
        case "others_ended":
            return _("All other sessions have ended.")
        case "password":
            return _("Your password is changed, and all apps are signed out.")
        case "letter":
            return _(
                "A letter is on its way. Open its link, press the button there, and come back here."
            )
        case "address":
            return _("The address is added.")
        case "address_removed":
            return _("The address is removed.")
        case "code":
            return _("A message with a code is on its way.")
        case "number":
            return _("The number is added.")
        case "number_removed":
            return _("The number is removed.")
        case "reset":
            return _("Allowed. Go back to your app within ten minutes.")
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
    """The page."""
    given = {
        "action": action,
        "device_id": device_id,
        "address": address,
        "sid": sid,
        "client_secret": client_secret,
        "done": done,
    }
    return await page.answer(context, given)


@endpoint("POST", ACCOUNT_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_account_page(
    page: AccountPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """A button of it."""
    fields = forms.read(context, body)
    return pages.stale_form(context) if fields is None else await page.press(context, fields)


@endpoint("GET", EXPORT_PATH, auth=Auth.NONE)
async def get_account_export(page: AccountPage, context: RequestContext) -> Response:
    """A file with what is kept of the account."""
    return await page.export(context)

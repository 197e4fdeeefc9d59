"""The page for who has forgotten the password: a letter to the address of the account, or a code to
its number, leads to a new one."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from federation.api.request import RequestContext
from federation.protocol.errors import MatrixError, MissingToken, SessionExpired
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import Response
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.login.uia import AuthData, AuthenticationRequired
from homeserver.services.login.uia_stages import EMAIL_IDENTITY, MSISDN_IDENTITY
from homeserver.services.threepids.email_validation import EmailValidation
from homeserver.services.threepids.phone_validation import PhoneValidation
from homeserver.services.threepids.validation import EMAIL, PASSWORD_RESET, ThreepidValidation
from homeserver.services.tokens.secret_tokens import SecretText
from homeserver.web.error_texts import PasswordsDiffer, explain
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import Pages
from homeserver.web.sign_in import RESET_PATH, SIGN_IN_PATH

_SET_PATH: Final = "/_mahalla/reset_password/new"


class ResetPasswordPage:
    """The page."""

    def __init__(
        self,
        pages: Pages,
        forms: Forms,
        accounts: Accounts,
        validation: EmailValidation,
        validations: ThreepidValidation,
        phones: PhoneValidation,
        secret_text: SecretText,
        *,
        base_url: str,
    ) -> None:
        self._pages = pages
        self._forms = forms
        self._accounts = accounts
        self._validation = validation
        self._validations = validations
        self._phones = phones
        self._secret_text = secret_text
        self._base_url = base_url.rstrip("/")

    def make(
        self,
        context: RequestContext,
        given: Mapping[str, str],
        *,
        state: str,
        error: MatrixError | None = None,
    ) -> Response:
        """The page. `state`: `address`, `letter` (one is under way), `password`, which asks for the
        code too where one is under way."""
        language = self._pages.choose(context.languages)
        _ = language.gettext
        if not self._validation.is_possible and not self._phones.is_possible(PASSWORD_RESET):
            texts = [
                _("This server sends no letters. Ask the people who run it for a new password.")
            ]
            return self._pages.message(
                context, _("Have you forgotten your password?"), texts, HTTPStatus.NOT_FOUND
            )
        token = self._forms.token(context)
        fields: dict[str, object] = {
            "state": state,
            "path": RESET_PATH,
            "set_path": _SET_PATH,
            "form_token": token.text,
            "by_letter": self._validation.is_possible,
            "by_code": self._phones.is_possible(PASSWORD_RESET),
            "address": given.get("address", ""),
            "number": given.get("number", ""),
            "sid": given.get("sid", ""),
            "client_secret": given.get("client_secret", ""),
            "problem": "" if error is None else explain(error, language),
        }
        status = HTTPStatus.OK if error is None else HTTPStatus(error.status)
        return self._pages.make(
            "reset_password.html", language, fields, status, cookies=token.cookies
        )

    async def send_letter(self, context: RequestContext, fields: Mapping[str, str]) -> Response:
        """Send a letter to the address of an account; where it is none's, the page says the
        same."""
        given = {
            "address": fields.get("address", ""),
            "client_secret": self._secret_text.session_id(),
        }
        back = f"{self._base_url}{RESET_PATH}?{urlencode(given)}" if self._base_url else None
        language = self._pages.choose(context.languages)
        try:
            await self._validation.do_request_token(
                PASSWORD_RESET,
                given["address"],
                given["client_secret"],
                1,
                back,
                language,
                context.client_ip,
            )
        except MatrixError as error:
            return self.make(context, given, state="address", error=error)
        return self.make(context, given, state="letter")

    async def send_code(self, context: RequestContext, fields: Mapping[str, str]) -> Response:
        """Send a code to the number of an account; where it is none's, the page says the same."""
        number, secret = fields.get("number", ""), self._secret_text.session_id()
        language = self._pages.choose(context.languages)
        try:
            asked = await self._phones.do_request_token(
                PASSWORD_RESET, "", number, secret, 1, None, language, context.client_ip
            )
        except MatrixError as error:
            return self.make(context, fields, state="address", error=error)
        given = {"number": f"+{asked.number}", "sid": asked.sid, "client_secret": secret}
        return self.make(context, given, state="password")

    async def set_password(self, context: RequestContext, fields: Mapping[str, str]) -> Response:
        """Set a new one, for who has confirmed the address, or types the code."""
        try:
            if fields.get("password", "") != fields.get("password_again"):
                raise PasswordsDiffer
            proof = (
                await self._by_code(fields) if fields.get("sid") else await self._by_letter(fields)
            )
            await self._accounts.do_reset_password(
                fields.get("password", ""), proof, context.client_ip, log_out=True
            )
        except SessionExpired as error:
            return self.make(
                context, {"number": fields.get("number", "")}, state="address", error=error
            )
        except AuthenticationRequired as required:
            return self.make(context, fields, state="password", error=required.error or required)
        except MissingToken as error:
            return self.make(context, fields, state="address", error=error)
        except MatrixError as error:
            return self.make(context, fields, state="password", error=error)
        _ = self._pages.choose(context.languages).gettext
        link = (_("Sign in"), SIGN_IN_PATH)
        return self._pages.message(
            context, _("Your password is set"), [_("All apps are signed out.")], link=link
        )

    async def _by_letter(self, fields: Mapping[str, str]) -> AuthData:
        address, secret = fields.get("address", ""), fields.get("client_secret", "")
        sid = await self._validations.find(PASSWORD_RESET, EMAIL, address.strip().lower(), secret)
        return {
            "type": EMAIL_IDENTITY,
            "threepid_creds": {"sid": sid or "", "client_secret": secret},
        }

    async def _by_code(self, fields: Mapping[str, str]) -> AuthData:
        self._accounts.check_password_policy(fields.get("password", ""))  # before a try is spent
        sid, secret = fields["sid"], fields.get("client_secret", "")
        await self._phones.do_submit(sid, secret, fields.get("code", ""))
        return {"type": MSISDN_IDENTITY, "threepid_creds": {"sid": sid, "client_secret": secret}}


@endpoint("GET", RESET_PATH, auth=Auth.NONE)
async def get_reset_password(
    page: ResetPasswordPage, context: RequestContext, *, address: str = "", client_secret: str = ""
) -> Response:
    """Where somebody begins, or comes back to from a letter."""
    given = {"address": address, "client_secret": client_secret}
    return page.make(context, given, state="password" if client_secret else "address")


@endpoint("POST", RESET_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_reset_password(
    page: ResetPasswordPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """An address or a number was given, or the letter has been read."""
    fields = forms.read(context, body)
    if fields is None:
        return pages.stale_form(context)
    if fields.get("client_secret"):
        return page.make(context, fields, state="password")
    if "number" in fields:
        return await page.send_code(context, fields)
    return await page.send_letter(context, fields)


@endpoint("POST", _SET_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_new_password(
    page: ResetPasswordPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """A new password was typed."""
    fields = forms.read(context, body)
    return pages.stale_form(context) if fields is None else await page.set_password(context, fields)

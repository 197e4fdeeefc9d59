"""The page that resets a forgotten password, by an e-mail to the account's address or a code to its
phone number."""

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
from homeserver.services.tokens.secret_tokens import SecretGenerator
from homeserver.web.error_texts import PasswordsDiffer, explain
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import Pages
from homeserver.web.sign_in import RESET_PATH, SIGN_IN_PATH

_SET_PATH: Final = "/_mahalla/reset_password/new"


class ResetPasswordPage:
    """Makes the page and handles its forms."""

    def __init__(
        self,
        *,
        pages: Pages,
        forms: Forms,
        accounts: Accounts,
        validation: EmailValidation,
        validations: ThreepidValidation,
        phones: PhoneValidation,
        secret_text: SecretGenerator,
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
        parameters: Mapping[str, str],
        *,
        state: str,
        error: MatrixError | None = None,
    ) -> Response:
        """Make the page. `state`: `address` (asks for address or number), `email` (an e-mail was
        sent), `password` (asks for the new password, and for the code if one was sent)."""
        language = self._pages.choose_language(context.languages)
        _ = language.gettext
        if not self._validation.is_enabled and not self._phones.supports_purpose(PASSWORD_RESET):
            texts = [
                _("This server cannot send e-mails. Ask its administrators for a new password.")
            ]
            return self._pages.render_message(
                context, _("Forgot your password?"), texts, HTTPStatus.NOT_FOUND
            )
        token = self._forms.token(context)
        fields: dict[str, object] = {
            "state": state,
            "path": RESET_PATH,
            "set_path": _SET_PATH,
            "form_token": token.text,
            "by_email": self._validation.is_enabled,
            "by_code": self._phones.supports_purpose(PASSWORD_RESET),
            "address": parameters.get("address", ""),
            "number": parameters.get("number", ""),
            "sid": parameters.get("sid", ""),
            "client_secret": parameters.get("client_secret", ""),
            "problem": "" if error is None else explain(error, language),
        }
        status = HTTPStatus.OK if error is None else HTTPStatus(error.status)
        return self._pages.render(
            "reset_password.html", language, fields, status, cookies=token.cookies
        )

    async def send_email(self, context: RequestContext, fields: Mapping[str, str]) -> Response:
        """Send an e-mail to an account's address. The page is the same if no account has it."""
        parameters = {
            "address": fields.get("address", ""),
            "client_secret": self._secret_text.session_id(),
        }
        return_url = (
            f"{self._base_url}{RESET_PATH}?{urlencode(parameters)}" if self._base_url else None
        )
        language = self._pages.choose_language(context.languages)
        try:
            await self._validation.do_request_token(
                PASSWORD_RESET,
                parameters["address"],
                parameters["client_secret"],
                1,
                return_url,
                language,
                context.client_ip,
            )
        except MatrixError as error:
            return self.make(context, parameters, state="address", error=error)
        return self.make(context, parameters, state="email")

    async def send_code(self, context: RequestContext, fields: Mapping[str, str]) -> Response:
        """Send a code to an account's number. The page is the same if no account has it."""
        number, secret = fields.get("number", ""), self._secret_text.session_id()
        language = self._pages.choose_language(context.languages)
        try:
            session = await self._phones.do_request_token(
                PASSWORD_RESET, "", number, secret, 1, None, language, context.client_ip
            )
        except MatrixError as error:
            return self.make(context, fields, state="address", error=error)
        parameters = {"number": f"+{session.number}", "sid": session.sid, "client_secret": secret}
        return self.make(context, parameters, state="password")

    async def set_password(self, context: RequestContext, fields: Mapping[str, str]) -> Response:
        """Set the new password, after the address was confirmed or with the typed code."""
        try:
            if fields.get("password", "") != fields.get("password_again"):
                raise PasswordsDiffer
            proof = (
                await self._by_code(fields) if fields.get("sid") else await self._by_email(fields)
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
        _ = self._pages.choose_language(context.languages).gettext
        link = (_("Sign in"), SIGN_IN_PATH)
        return self._pages.render_message(
            context, _("Your password was changed"), [_("All apps are signed out.")], link=link
        )

    async def _by_email(self, fields: Mapping[str, str]) -> AuthData:
        address, secret = fields.get("address", ""), fields.get("client_secret", "")
        sid = await self._validations.find(PASSWORD_RESET, EMAIL, address.strip().lower(), secret)
        return {
            "type": EMAIL_IDENTITY,
            "threepid_creds": {"sid": sid or "", "client_secret": secret},
        }

    async def _by_code(self, fields: Mapping[str, str]) -> AuthData:
        # check the password first: a wrong code costs an attempt
        self._accounts.check_password_policy(fields.get("password", ""))
        sid, secret = fields["sid"], fields.get("client_secret", "")
        await self._phones.do_submit(sid, secret, fields.get("code", ""))
        return {"type": MSISDN_IDENTITY, "threepid_creds": {"sid": sid, "client_secret": secret}}


@endpoint("GET", RESET_PATH, auth=Auth.NONE)
async def get_reset_password(
    page: ResetPasswordPage, context: RequestContext, *, address: str = "", client_secret: str = ""
) -> Response:
    """The first page, or the page that the link in the e-mail leads to."""
    given = {"address": address, "client_secret": client_secret}
    return page.make(context, given, state="password" if client_secret else "address")


@endpoint("POST", RESET_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_reset_password(
    page: ResetPasswordPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """Take an address or a number, or continue after the e-mail."""
    fields = forms.parse(context, body)
    if fields is None:
        return pages.render_stale_form(context)
    if fields.get("client_secret"):
        return page.make(context, fields, state="password")
    if "number" in fields:
        return await page.send_code(context, fields)
    return await page.send_email(context, fields)


@endpoint("POST", _SET_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_new_password(
    page: ResetPasswordPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """Take the new password."""
    fields = forms.parse(context, body)
    return (
        pages.render_stale_form(context)
        if fields is None
        else await page.set_password(context, fields)
    )

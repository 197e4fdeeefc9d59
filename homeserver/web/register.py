"""The registration page. The configuration decides what the page asks for besides user name and
password: a registration token, a captcha, an e-mail address, a phone number, consent to policies.

If the user enters an e-mail address, it is confirmed first. The link in the e-mail leads back to
this page, and can be opened in any browser. If the server requires a phone number, the user
confirms it next, with a code. Last, the user chooses name and password.

The form contains the ID of the UIA session. So completed stages stay completed while the user
corrects other fields. The session also reserves a use of the registration token.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from federation.api.request import RequestContext
from federation.protocol.errors import (
    ConsentNotGiven,
    InvalidParam,
    MatrixError,
    SessionExpired,
    UserAwaitingApproval,
)
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.http.responses import Response
from homeserver.services.accounts.registration import NewAccount, Registration, RegistrationRequest
from homeserver.services.login.browser_sessions import BrowserSessions
from homeserver.services.login.uia import AuthData, AuthenticationRequired
from homeserver.services.login.uia_stages import (
    DUMMY,
    EMAIL_IDENTITY,
    MSISDN_IDENTITY,
    RECAPTCHA,
    REGISTRATION_TOKEN,
    TERMS,
)
from homeserver.services.pages.languages import Language
from homeserver.services.pages.local_paths import local_path_or
from homeserver.services.terms.policies import Policies
from homeserver.services.threepids.email_validation import EmailValidation
from homeserver.services.threepids.phone_validation import PhoneValidation
from homeserver.services.threepids.validation import EMAIL, REGISTER, ThreepidValidation
from homeserver.services.tokens.secret_tokens import SecretGenerator
from homeserver.web.error_texts import PasswordsDiffer, explain
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import CAPTCHA_FIELD, Pages, ThirdPartyScript, see_other
from homeserver.web.sign_in import DEFAULT_PAGE, REGISTER_PATH, sign_in_link
from homeserver.web.terms import find_consent_problem, terms_fields

EMAIL_PATH: Final = "/_mahalla/register/email"
NUMBER_PATH: Final = "/_mahalla/register/number"
MAX_LINK_LENGTH: Final = 2000


class _StageFailed(Exception):
    """A stage failed; the UIA session keeps the completed ones."""

    def __init__(self, session_id: str, error: MatrixError) -> None:
        super().__init__(error.text)
        self.session_id = session_id
        self.error = error


class RegisterPage:
    """Makes the registration page and handles its forms."""

    # More than ten: one page, and each of its forms uses another service.
    def __init__(
        self,
        *,
        pages: Pages,
        forms: Forms,
        sessions: BrowserSessions,
        registration: Registration,
        validation: EmailValidation,
        validations: ThreepidValidation,
        phones: PhoneValidation,
        secret_text: SecretGenerator,
        policies: Policies,
        captcha: ThirdPartyScript | None,
        base_url: str,
    ) -> None:
        """`captcha`: the captcha of registration, if there is one."""
        self._captcha = captcha
        self._pages = pages
        self._forms = forms
        self._sessions = sessions
        self._registration = registration
        self._validation = validation
        self._validations = validations
        self._phones = phones
        self._secret_text = secret_text
        self._policies = policies
        self._terms = policies.all if registration.rules.terms else ()
        self._base_url = base_url.rstrip("/")

    def make(
        self,
        context: RequestContext,
        fields: Mapping[str, str],
        *,
        state: str,
        error: MatrixError | None = None,
    ) -> Response:
        """Make the page. `state`: `address` (asks for an e-mail address), `email` (an e-mail was
        sent), `number` (asks for a phone number), `code` (a code was sent), `account` (asks for
        name and password)."""
        language = self._pages.choose_language(context.languages)
        if not self._registration.is_open:
            return self._closed(context, language)
        token = self._forms.token(context)
        next_path = local_path_or(fields.get("next", ""), DEFAULT_PAGE)
        rules = self._registration.rules
        values: dict[str, object] = {
            "state": state,
            "path": REGISTER_PATH,
            "email_path": EMAIL_PATH,
            "number_path": NUMBER_PATH,
            "sign_in_path": sign_in_link(next_path),
            "without_address_path": f"{register_link(next_path)}&without_address=true",
            "form_token": token.text,
            "next_path": next_path,
            "problem": "" if error is None else explain(error, language),
            "needs_token": rules.requires_token,
            "address_is_optional": rules.email == "optional",
            "name": fields.get("name", ""),
            "registration_token": fields.get("registration_token", ""),
            "address": fields.get("address", ""),
            "sid": fields.get("sid", ""),
            "client_secret": fields.get("client_secret", ""),
            "confirmation": fields.get("confirmation", ""),
            "number": fields.get("number", ""),
            "code_sid": fields.get("code_sid", ""),
            "phone_sid": fields.get("phone_sid", ""),
            "phone_secret": fields.get("phone_secret", ""),
            **terms_fields(self._policies, self._terms, language),
        }
        status = HTTPStatus.OK if error is None else HTTPStatus(error.status)
        widget = self._captcha if state == "account" else None
        return self._pages.render(
            "register.html",
            language,
            values,
            status,
            cookies=token.cookies,
            third_party_script=widget,
        )

    async def make_first(
        self, context: RequestContext, fields: Mapping[str, str], *, without_address: bool
    ) -> Response:
        """Make the first page, or the page that the link in the e-mail leads to."""
        email = self._registration.rules.email
        secret = fields.get("client_secret")
        if secret and not fields.get("sid"):
            address = fields.get("address", "").strip().lower()
            sid = await self._validations.find(REGISTER, EMAIL, address, secret)
            fields = {**fields, "sid": sid or ""}
        is_validated = bool(fields.get("sid"))
        asks_email = email == "required" or (email == "optional" and not without_address)
        if asks_email and not is_validated:
            return self.make(context, fields, state="address")
        asks_number = self._registration.rules.phone == "required"
        return self.make(context, fields, state="number" if asks_number else "account")

    async def send_email(self, context: RequestContext, fields: Mapping[str, str]) -> Response:
        """Send an e-mail to validate an address."""
        secret = self._secret_text.session_id()
        next_path = local_path_or(fields.get("next", ""), DEFAULT_PAGE)
        query = urlencode({"address": fields.get("address", ""), "client_secret": secret})
        return_url = f"{self._base_url}{register_link(next_path)}&{query}"
        language = self._pages.choose_language(context.languages)
        try:
            self._registration.check_open()
            sid = await self._validation.do_request_token(
                REGISTER,
                fields.get("address", ""),
                secret,
                1,
                return_url if self._base_url and len(return_url) <= MAX_LINK_LENGTH else None,
                language,
                context.client_ip,
            )
        except MatrixError as error:
            return self.make(context, fields, state="address", error=error)
        return self.make(context, {**fields, "sid": sid, "client_secret": secret}, state="email")

    async def send_code(self, context: RequestContext, fields: Mapping[str, str]) -> Response:
        """Send a code to validate a phone number."""
        secret = self._secret_text.session_id()
        language = self._pages.choose_language(context.languages)
        try:
            self._registration.check_open()
            session = await self._phones.do_request_token(
                REGISTER, "", fields.get("number", ""), secret, 1, None, language, context.client_ip
            )
        except MatrixError as error:
            return self.make(context, fields, state="number", error=error)
        sent = {"number": f"+{session.number}", "code_sid": session.sid, "phone_secret": secret}
        return self.make(context, {**fields, **sent}, state="code")

    async def take_code(self, context: RequestContext, fields: Mapping[str, str]) -> Response:
        """Check the typed code and continue to name and password."""
        sid = fields["code_sid"]
        try:
            await self._phones.do_submit(
                sid, fields.get("phone_secret", ""), fields.get("code", "")
            )
        except SessionExpired as error:
            return self.make(context, fields, state="number", error=error)
        except MatrixError as error:
            return self.make(context, fields, state="code", error=error)
        return self.make(context, {**fields, "phone_sid": sid}, state="account")

    async def register(self, context: RequestContext, fields: Mapping[str, str]) -> Response:
        """Create the account and sign its owner in."""
        request = RegistrationRequest(
            username=fields.get("name", "").strip(),
            password=fields.get("password", ""),
            inhibit_login=True,
            languages=context.languages,
        )
        try:
            if request.password != fields.get("password_again"):
                raise PasswordsDiffer
            if self._terms:
                language = self._pages.choose_language(context.languages)
                problem = find_consent_problem(self._policies, self._terms, fields, language)
                if problem:
                    raise ConsentNotGiven(problem)
            registered = await self._confirm(request, fields, context.client_ip)
        except UserAwaitingApproval as error:
            return self._awaiting_approval(context, error)
        except _StageFailed as refused:
            values = {**fields, "confirmation": refused.session_id}
            return self.make(context, values, state="account", error=refused.error)
        except MatrixError as error:
            return self.make(context, fields, state="account", error=error)
        cookie = await self._sessions.do_begin(registered.user_id, context, registered.epoch)
        return see_other(local_path_or(fields.get("next", ""), DEFAULT_PAGE), cookies=(cookie,))

    async def _confirm(
        self, request: RegistrationRequest, fields: Mapping[str, str], ip: str
    ) -> NewAccount:
        """Create the account. Raises `_StageFailed` with the UIA session if something fails."""
        session_id = fields.get("confirmation", "")
        try:
            for stage in self._stages(fields):
                auth = {**stage, "session": session_id} if session_id else stage
                try:
                    return await self._registration.do_register(request, auth, ip)
                except AuthenticationRequired as more:
                    session_id = more.session_id
                    if more.error is not None:
                        raise more.error from None
            raise InvalidParam("The registration is incomplete; begin again")
        except UserAwaitingApproval:
            raise
        except MatrixError as error:
            raise _StageFailed(session_id, error) from None

    def _stages(self, fields: Mapping[str, str]) -> Sequence[AuthData]:
        stages: list[AuthData] = []
        if self._registration.rules.requires_token:
            stages.append(
                {"type": REGISTRATION_TOKEN, "token": fields.get("registration_token", "").strip()}
            )
        if self._registration.rules.captcha:
            stages.append({"type": RECAPTCHA, "response": fields.get(CAPTCHA_FIELD, "")})
        if self._registration.rules.terms:
            stages.append({"type": TERMS})
        if fields.get("sid"):
            creds = {"sid": fields["sid"], "client_secret": fields.get("client_secret", "")}
            stages.append({"type": EMAIL_IDENTITY, "threepid_creds": creds})
        if fields.get("phone_sid"):
            creds = {"sid": fields["phone_sid"], "client_secret": fields.get("phone_secret", "")}
            stages.append({"type": MSISDN_IDENTITY, "threepid_creds": creds})
        return stages or [{"type": DUMMY}]

    def _awaiting_approval(self, context: RequestContext, error: UserAwaitingApproval) -> Response:
        language = self._pages.choose_language(context.languages)
        _ = language.gettext
        return self._pages.render_message(
            context,
            _("Your account was created and is awaiting approval"),
            [explain(error, language)],
        )

    def _closed(self, context: RequestContext, language: Language) -> Response:
        _ = language.gettext
        texts = [_("The administrators of this server create accounts; please contact them.")]
        return self._pages.render_message(
            context, _("Registration is closed"), texts, HTTPStatus.FORBIDDEN
        )


def register_link(next_path: str) -> str:
    """Return the path of the page, which then continues to another path of this server."""
    return f"{REGISTER_PATH}?{urlencode({'next': next_path})}"


@endpoint("GET", REGISTER_PATH, auth=Auth.NONE)
async def get_register(
    page: RegisterPage,
    context: RequestContext,
    *,
    next: str = "",
    address: str = "",
    client_secret: str = "",
    without_address: bool = False,
) -> Response:
    """The first page; with `address`, the page that the link in the e-mail leads to."""
    fields = {"next": next, "address": address, "client_secret": client_secret}
    return await page.make_first(context, fields, without_address=without_address)


@endpoint(
    "POST", EMAIL_PATH, auth=Auth.NONE, limit=Limit.REGISTRATION, cost=0.05, max_body=MAX_BODY
)
async def post_register_email(
    page: RegisterPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """Take the e-mail address."""
    fields = forms.parse(context, body)
    return (
        pages.render_stale_form(context)
        if fields is None
        else await page.send_email(context, fields)
    )


@endpoint(
    "POST", NUMBER_PATH, auth=Auth.NONE, limit=Limit.REGISTRATION, cost=0.05, max_body=MAX_BODY
)
async def post_register_number(
    page: RegisterPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """Take the phone number or the code."""
    fields = forms.parse(context, body)
    if fields is None:
        return pages.render_stale_form(context)
    if fields.get("code_sid"):
        return await page.take_code(context, fields)
    return await page.send_code(context, fields)


@endpoint(
    "POST", REGISTER_PATH, auth=Auth.NONE, limit=Limit.REGISTRATION, cost=0.05, max_body=MAX_BODY
)
async def post_register_account(
    page: RegisterPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """Take name and password, or continue after the e-mail."""
    fields = forms.parse(context, body)
    if fields is None:
        return pages.render_stale_form(context)
    if "password" not in fields:
        return await page.make_first(context, fields, without_address=False)
    return await page.register(context, fields)

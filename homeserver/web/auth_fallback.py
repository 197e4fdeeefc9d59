"""Fallback pages for stages of user-interactive authentication that a client does not know.

A page names the operation and the account before it asks for anything. Two stages have their pages
elsewhere: single sign-on in `homeserver/web/upstream.py`, and the terms of service in
`homeserver/web/terms.py`.

spec: client-server-api#fallback
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from federation.api.request import RequestContext
from federation.protocol.errors import Forbidden, MatrixError, MissingParam, SessionExpired
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.http.responses import Response
from homeserver.services.login.uia import UIA, AuthData, UIAOperation
from homeserver.services.login.uia_stages import (
    DUMMY,
    EMAIL_IDENTITY,
    MSISDN_IDENTITY,
    PASSWORD,
    RECAPTCHA,
    REGISTRATION_TOKEN,
    THREEPID_OPERATIONS,
)
from homeserver.services.threepids.email_validation import EmailValidation
from homeserver.services.threepids.phone_validation import PhoneValidation
from homeserver.services.threepids.validation import EMAIL, ThreepidValidation
from homeserver.services.tokens.secret_tokens import SecretGenerator
from homeserver.web.error_texts import explain
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import AUTH_DONE, CAPTCHA_FIELD, Pages, ThirdPartyScript
from homeserver.web.upstream import operation_name

PATH: Final = "/_matrix/client/v3/auth/{stage}/fallback/web"
STAGES: Final = {
    PASSWORD: "password",
    REGISTRATION_TOKEN: "token",
    RECAPTCHA: "captcha",
    DUMMY: "dummy",
    EMAIL_IDENTITY: "email",
    MSISDN_IDENTITY: "phone",
}
"""The stages with a page here, and their names in the template."""


class AuthFallbackPages:
    """Makes the pages and handles their forms."""

    def __init__(
        self,
        *,
        pages: Pages,
        forms: Forms,
        uia: UIA,
        validation: EmailValidation,
        validations: ThreepidValidation,
        phones: PhoneValidation,
        secret_text: SecretGenerator,
        captcha: ThirdPartyScript | None,
    ) -> None:
        """`captcha`: the captcha of registration, if there is one."""
        self._captcha = captcha
        self._pages = pages
        self._forms = forms
        self._uia = uia
        self._validation = validation
        self._validations = validations
        self._phones = phones
        self._secret_text = secret_text

    async def show(self, context: RequestContext, stage: str, session_id: str) -> Response:
        """Return the page of a stage."""
        operation = await self._find(stage, session_id)
        return (
            self._stale_form(context)
            if operation is None
            else self._page(context, stage, session_id, operation)
        )

    async def submit(
        self, context: RequestContext, stage: str, session_id: str, fields: Mapping[str, str]
    ) -> Response:
        """Handle the form of a stage."""
        operation = await self._find(stage, session_id)
        if operation is None:
            return self._stale_form(context)
        try:
            if stage == EMAIL_IDENTITY and "client_secret" not in fields:
                return await self._send_email(context, session_id, operation, fields)
            if stage == MSISDN_IDENTITY and "sid" not in fields:
                return await self._send_code(context, session_id, operation, fields)
            auth = await self._auth(stage, operation, fields)
            if not await self._uia.do_complete_stage(session_id, stage, auth, context.client_ip):
                return self._stale_form(context)
        except MatrixError as error:
            return self._page(context, stage, session_id, operation, fields=fields, error=error)
        return self._pages.render(
            "upstream_done.html",
            self._pages.choose_language(context.languages),
            {},
            script=AUTH_DONE,
        )

    async def _find(self, stage: str, session_id: str) -> UIAOperation | None:
        operation = await self._uia.get_operation(session_id) if stage in STAGES else None
        if operation is None or (stage == PASSWORD and operation.user_id is None):
            return None
        if stage == RECAPTCHA and (self._captcha is None or operation.name != "POST register"):
            return None
        is_threepid = stage in (EMAIL_IDENTITY, MSISDN_IDENTITY)
        return None if is_threepid and operation.name not in THREEPID_OPERATIONS else operation

    async def _auth(
        self, stage: str, operation: UIAOperation, fields: Mapping[str, str]
    ) -> AuthData:
        """Return the auth data that a client would send for the stage."""
        if stage == PASSWORD:
            identifier = {"type": "m.id.user", "user": operation.user_id}
            return {"identifier": identifier, "password": fields.get("password", "")}
        if stage == REGISTRATION_TOKEN:
            if operation.name != "POST register":
                raise Forbidden("A registration token only confirms a registration")
            return {"token": fields.get("token", "").strip()}
        if stage == RECAPTCHA:
            return {"response": fields.get(CAPTCHA_FIELD, "")}
        if stage == DUMMY:
            return {}
        secret = fields.get("client_secret", "")
        if stage == MSISDN_IDENTITY:
            await self._phones.do_submit(fields.get("sid", ""), secret, fields.get("code", ""))
            return {"threepid_creds": {"sid": fields.get("sid", ""), "client_secret": secret}}
        address = fields.get("address", "").strip().lower()
        sid = await self._validations.find(
            THREEPID_OPERATIONS[operation.name], EMAIL, address, secret
        )
        return {"threepid_creds": {"sid": sid or "", "client_secret": secret}}

    async def _send_email(
        self,
        context: RequestContext,
        session_id: str,
        operation: UIAOperation,
        fields: Mapping[str, str],
    ) -> Response:
        address, secret = fields.get("address", "").strip(), self._secret_text.session_id()
        if not address:
            raise MissingParam("The address is missing")
        await self._validation.do_request_token(
            THREEPID_OPERATIONS[operation.name],
            address,
            secret,
            1,
            None,
            self._pages.choose_language(context.languages),
            context.client_ip,
        )
        sent = {"address": address, "client_secret": secret}
        return self._page(context, EMAIL_IDENTITY, session_id, operation, fields=sent)

    async def _send_code(
        self,
        context: RequestContext,
        session_id: str,
        operation: UIAOperation,
        fields: Mapping[str, str],
    ) -> Response:
        secret = self._secret_text.session_id()
        validation = await self._phones.do_request_token(
            THREEPID_OPERATIONS[operation.name],
            "",
            fields.get("number", ""),
            secret,
            1,
            None,
            self._pages.choose_language(context.languages),
            context.client_ip,
        )
        sent = {"number": f"+{validation.number}", "sid": validation.sid, "client_secret": secret}
        return self._page(context, MSISDN_IDENTITY, session_id, operation, fields=sent)

    def _page(
        self,
        context: RequestContext,
        stage: str,
        session_id: str,
        operation: UIAOperation,
        *,
        fields: Mapping[str, str] | None = None,
        error: MatrixError | None = None,
    ) -> Response:
        language = self._pages.choose_language(context.languages)
        _ = language.gettext
        entered = fields or {}
        token = self._forms.token(context)
        problem = "" if error is None else explain(error, language)
        if isinstance(error, Forbidden) and stage == PASSWORD:
            problem = _("The password is wrong.")
        if isinstance(error, Forbidden) and stage == REGISTRATION_TOKEN:
            problem = _("This registration token is not valid.")
        values: dict[str, object] = {
            "path": PATH.replace("{stage}", stage),
            "session_id": session_id,
            "form_token": token.text,
            "stage": STAGES[stage],
            "what": operation_name(operation.name),
            "user_id": operation.user_id or "",
            "address": entered.get("address", ""),
            "number": entered.get("number", ""),
            "sid": "" if isinstance(error, SessionExpired) else entered.get("sid", ""),
            "client_secret": entered.get("client_secret", ""),
            "problem": problem,
        }
        status = HTTPStatus.OK if error is None else HTTPStatus(error.status)
        widget = self._captcha if stage == RECAPTCHA else None
        return self._pages.render(
            "auth_fallback.html",
            language,
            values,
            status,
            cookies=token.cookies,
            third_party_script=widget,
        )

    def _stale_form(self, context: RequestContext) -> Response:
        _ = self._pages.choose_language(context.languages).gettext
        texts = [
            _(
                "This page has expired, was already used, or was opened in another browser. Start "
                "again in your app."
            )
        ]
        return self._pages.render_message(
            context, _("This link no longer works"), texts, HTTPStatus.BAD_REQUEST
        )


@endpoint(
    "GET",
    PATH,
    "/_matrix/client/r0/auth/{stage}/fallback/web",
    auth=Auth.NONE,
    limit=Limit.LOGIN,
    cost=0.2,
)
async def get_auth_fallback(
    page: AuthFallbackPages, context: RequestContext, *, stage: str, session: str = ""
) -> Response:
    """The page of a stage."""
    return await page.show(context, stage, session)


@endpoint(
    "POST",
    PATH,
    "/_matrix/client/r0/auth/{stage}/fallback/web",
    auth=Auth.NONE,
    limit=Limit.LOGIN,
    cost=0.2,
    max_body=MAX_BODY,
)
async def post_auth_fallback(
    page: AuthFallbackPages,
    pages: Pages,
    forms: Forms,
    context: RequestContext,
    *,
    stage: str,
    body: bytes,
) -> Response:
    """The form of a stage."""
    fields = forms.parse(context, body)
    if fields is None:
        return pages.render_stale_form(context)
    return await page.submit(context, stage, fields.get("session", ""), fields)

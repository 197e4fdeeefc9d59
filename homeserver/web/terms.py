"""Pages for terms of service: the documents, the consent page, and the consent stage of a
registration.

`GET /_mahalla/consent` is for users who are signed in on this server's pages, or who open the
signed link in an error `M_CONSENT_NOT_GIVEN`. Each document has a checkbox, and none is checked in
advance.

spec: client-server-api#terms-of-service-at-registration, client-server-api#fallback
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from federation.api.request import RequestContext
from federation.protocol.errors import NotFound
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import Response
from homeserver.services.login.browser_sessions import BrowserSessions
from homeserver.services.login.uia import UIA
from homeserver.services.login.uia_stages import TERMS
from homeserver.services.pages.languages import Language
from homeserver.services.pages.local_paths import local_path_or
from homeserver.services.terms.consent import CONSENT_PATH, Consents
from homeserver.services.terms.policies import POLICY_PATH, Policies, Policy
from homeserver.web.forms import MAX_BODY, Forms
from homeserver.web.pages import AUTH_DONE, Pages, see_other
from homeserver.web.sign_in import sign_in_link

FALLBACK_PATH: Final = "/_matrix/client/v3/auth/m.login.terms/fallback/web"
_CHECKBOX_PREFIX: Final = "agree_"


def terms_fields(
    policies: Policies, required: Sequence[Policy], language: Language
) -> dict[str, object]:
    """Return the fields for the template `terms_fields.html`."""
    documents = [(policy, policy.choose(language)) for policy in required]
    return {
        "versions": policies.fingerprint,
        "documents": [
            {
                "field": f"{_CHECKBOX_PREFIX}{policy.policy_id}",
                "name": document.name,
                "url": document.url,
                "lang": document.code.replace("_", "-"),
            }
            for policy, document in documents
        ],
    }


def find_consent_problem(
    policies: Policies, required: Sequence[Policy], fields: Mapping[str, str], language: Language
) -> str:
    """Return why a form with these fields is not an agreement; empty if it is one."""
    _ = language.gettext
    if fields.get("versions") != policies.fingerprint:
        return _("The documents have changed since you opened this page. Please read them again.")
    if any(fields.get(f"{_CHECKBOX_PREFIX}{policy.policy_id}") != "true" for policy in required):
        return _("To continue, accept each of the documents.")
    return ""


async def redirect_to_terms(consents: Consents, user_id: UserID, here: str) -> Response | None:
    """Return a redirect to the consent page, which then returns `here`; None if the user agreed to
    the current documents."""
    if not await consents.get_missing(user_id):
        return None
    return see_other(f"{CONSENT_PATH}?{urlencode({'next': here})}")


class TermsPage:
    """Makes the consent page and handles its form."""

    def __init__(
        self, *, pages: Pages, forms: Forms, sessions: BrowserSessions, consents: Consents, uia: UIA
    ) -> None:
        self._pages = pages
        self._forms = forms
        self._sessions = sessions
        self._consents = consents
        self._uia = uia

    async def answer(
        self,
        context: RequestContext,
        parameters: Mapping[str, str],
        fields: Mapping[str, str] | None,
    ) -> Response:
        """Return the page, or handle its form with `fields`. `parameters`: `user`, `signature`,
        `next`."""
        user, signature = parameters.get("user", ""), parameters.get("signature", "")
        next_path = local_path_or(parameters.get("next", ""), "")
        signed = bool(user) and self._consents.is_signed(user, signature)
        if signed:
            user_id = UserID(user)
        else:
            session = await self._sessions.get(context)
            if session is None:
                return see_other(sign_in_link(f"{CONSENT_PATH}?{urlencode({'next': next_path})}"))
            user_id = session.user_id
        language = self._pages.choose_language(context.languages)
        required = await self._consents.get_missing(user_id)
        problem = ""
        if fields is not None and required:
            problem = find_consent_problem(self._consents.policies, required, fields, language)
            if not problem:
                await self._consents.do_accept(user_id, context.client_ip)
                required = ()
        if not required and next_path:
            return see_other(next_path)
        values: dict[str, object] = {
            "path": CONSENT_PATH,
            "user": user if signed else "",
            "signature": signature if signed else "",
            "next_path": next_path,
            "user_id": user_id,
            "session": "",
        }
        return self._page(
            context, language, "ask" if required else "done", required, problem, values
        )

    async def answer_fallback(
        self, context: RequestContext, session_id: str, fields: Mapping[str, str] | None
    ) -> Response:
        """The consent stage of a registration, for clients that do not know this stage."""
        language = self._pages.choose_language(context.languages)
        operation = (
            await self._uia.get_operation(session_id)
            if session_id and "\0" not in session_id
            else None
        )
        policies = self._consents.policies
        if operation is None or operation.user_id is not None or not policies.all:
            _ = language.gettext
            texts = [_("Return to your app and start again.")]
            return self._pages.render_message(
                context, _("This page has expired"), texts, HTTPStatus.BAD_REQUEST
            )
        problem = (
            "" if fields is None else find_consent_problem(policies, policies.all, fields, language)
        )
        values: dict[str, object] = {"path": FALLBACK_PATH, "session": session_id, "user_id": ""}
        values |= {"user": "", "signature": "", "next_path": ""}
        if fields is None or problem:
            return self._page(context, language, "ask", policies.all, problem, values)
        await self._uia.do_accept_stage(session_id, TERMS)
        return self._page(context, language, "done", (), "", values, script=AUTH_DONE)

    def _page(
        self,
        context: RequestContext,
        language: Language,
        state: str,
        required: Sequence[Policy],
        problem: str,
        values: dict[str, object],
        *,
        script: str = "",
    ) -> Response:
        token = self._forms.token(context)
        listed = required or self._consents.policies.all
        fields = {
            **values,
            **terms_fields(self._consents.policies, listed, language),
            "state": state,
            "problem": problem,
            "form_token": token.text,
        }
        status = HTTPStatus.BAD_REQUEST if problem else HTTPStatus.OK
        return self._pages.render(
            "terms.html", language, fields, status, cookies=token.cookies, script=script
        )


@endpoint("GET", CONSENT_PATH, auth=Auth.NONE)
async def get_consent(
    page: TermsPage, context: RequestContext, *, user: str = "", signature: str = "", next: str = ""
) -> Response:
    """The consent page."""
    return await page.answer(context, {"user": user, "signature": signature, "next": next}, None)


@endpoint("POST", CONSENT_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_consent(
    page: TermsPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """The form of the page."""
    fields = forms.parse(context, body)
    return (
        pages.render_stale_form(context)
        if fields is None
        else await page.answer(context, fields, fields)
    )


@endpoint(
    "GET", FALLBACK_PATH, "/_matrix/client/r0/auth/m.login.terms/fallback/web", auth=Auth.NONE
)
async def get_terms_fallback(
    page: TermsPage, context: RequestContext, *, session: str = ""
) -> Response:
    """The page of the consent stage."""
    return await page.answer_fallback(context, session, None)


@endpoint("POST", FALLBACK_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_terms_fallback(
    page: TermsPage, pages: Pages, forms: Forms, context: RequestContext, *, body: bytes
) -> Response:
    """The form of the page."""
    fields = forms.parse(context, body)
    if fields is None:
        return pages.render_stale_form(context)
    return await page.answer_fallback(context, fields.get("session", ""), fields)


@endpoint("GET", POLICY_PATH, auth=Auth.NONE)
async def get_policy(
    consents: Consents,
    pages: Pages,
    context: RequestContext,
    *,
    policy_id: str,
    version: str,
    code: str,
) -> Response:
    """The text of a document that this server hosts."""
    document = consents.policies.find(policy_id, version, code)
    if document is None:
        raise NotFound("There is no such document")
    fields: dict[str, object] = {
        "document": document,
        "document_lang": document.code.replace("_", "-"),
        "version": version,
    }
    return pages.render("policy.html", pages.choose_language(context.languages), fields)

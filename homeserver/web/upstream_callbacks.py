"""Callbacks to which identity providers redirect the browser, and endpoints for the providers
themselves: logout requests and this server's SAML metadata.

The paths are those of Synapse, so a migration from Synapse usually needs no change at a provider.
Exception: with several OpenID providers, each has its own path, which the operator must register at
that provider. The option `redirect_uri` can keep Synapse's path instead.
"""

from http import HTTPStatus
from typing import Annotated, Final

import msgspec

from federation.api.endpoint import QueryNames
from federation.api.request import RequestContext
from federation.protocol.errors import Unrecognized
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.http.responses import Response
from homeserver.services.pages.local_paths import local_path_or
from homeserver.services.upstream.cas import PROVIDER_ID as CAS_ID
from homeserver.services.upstream.cas import TICKET_PATH, CASProvider
from homeserver.services.upstream.identity import RefusalReason, SignInRefused
from homeserver.services.upstream.login import UpstreamSignIn
from homeserver.services.upstream.oidc.backchannel_logout import BackchannelLogout
from homeserver.services.upstream.oidc.callbacks import CALLBACK_PATH
from homeserver.services.upstream.oidc.provider import OIDCSignIn
from homeserver.services.upstream.saml.logout import SAMLLogout, SAMLLogoutMessage, parse_query
from homeserver.services.upstream.saml.provider import LOGOUT_PATH as SAML_LOGOUT_PATH
from homeserver.services.upstream.saml.provider import (
    MAX_RESPONSE_LENGTH,
    METADATA_PATH,
    RESPONSE_PATH,
    OptionalSAML,
)
from homeserver.services.upstream.saml.provider import PROVIDER_ID as SAML_ID
from homeserver.web.pages import see_other
from homeserver.web.sign_in import DEFAULT_PAGE, sign_in_link
from homeserver.web.upstream import RESUME_PATH, UpstreamPages, read_form

LOGOUT_PATH: Final = "/_synapse/client/oidc/backchannel_logout"
MAX_LOGOUT: Final = 65536
SOAP: Final = "text/xml"
MAX_SAML_FORM: Final = 2 * MAX_RESPONSE_LENGTH
"""Base64 in a form is longer than the response itself."""


class CallbackProviders(msgspec.Struct, frozen=True):
    """The providers with a callback here."""

    oidc: tuple[OIDCSignIn, ...]
    cas: CASProvider | None


@endpoint("GET", f"/{CALLBACK_PATH}/{{provider}}", f"/{CALLBACK_PATH}", auth=Auth.NONE)
async def get_oidc_callback(
    pages: UpstreamPages,
    sign_in: UpstreamSignIn,
    providers: CallbackProviders,
    context: RequestContext,
    *,
    provider: str | None = None,
    state: str = "",
    code: str = "",
    error: str = "",
    iss: str = "",
) -> Response:
    """Callback of an OpenID provider. spec: openid-connect-core-1_0#AuthResponse"""
    browser = sign_in.find_browser(context)
    try:
        flow = await sign_in.take_callback(state, browser)
        chosen = next(
            (each for each in providers.oidc if each.info.provider_id == flow.provider), None
        )
        if chosen is None or browser is None:
            raise SignInRefused(RefusalReason.OLD)
        identity = await chosen.identify(flow, provider, code, error, iss)
        return await pages.show(
            context, await sign_in.complete(flow, identity, browser, context.languages)
        )
    except SignInRefused as refused:
        return await pages.refuse(context, refused)


@endpoint("POST", LOGOUT_PATH, auth=Auth.NONE, max_body=MAX_LOGOUT)
async def post_backchannel_logout(sign_out: BackchannelLogout, *, body: bytes) -> Response:
    """Logout request of an OpenID provider. spec: openid-connect-backchannel-1_0#BCRequest"""
    if not sign_out.is_offered:
        raise Unrecognized
    headers = {"Cache-Control": "no-store", "Content-Type": "application/json"}
    try:
        await sign_out.do_end(read_form(body).get("logout_token", ""))
    except SignInRefused as refused:
        response = {"error": "invalid_request", "error_description": str(refused)[:200]}
        return Response(HTTPStatus.BAD_REQUEST, headers, response)
    return Response(HTTPStatus.OK, headers, {})


@endpoint("GET", f"/{TICKET_PATH}", "/_matrix/client/r0/login/cas/ticket", auth=Auth.NONE)
async def get_cas_ticket(
    pages: UpstreamPages,
    sign_in: UpstreamSignIn,
    providers: CallbackProviders,
    context: RequestContext,
    *,
    flow: str = "",
    ticket: str = "",
) -> Response:
    """Callback of the CAS server."""
    browser = sign_in.find_browser(context)
    try:
        begun = await sign_in.take_callback(flow, browser)
        if providers.cas is None or begun.provider != CAS_ID or browser is None:
            raise SignInRefused(RefusalReason.OLD)
        identity = await providers.cas.identify(flow, begun, ticket)
        return await pages.show(
            context, await sign_in.complete(begun, identity, browser, context.languages)
        )
    except SignInRefused as refused:
        return await pages.refuse(context, refused)


@endpoint("POST", f"/{RESPONSE_PATH}", auth=Auth.NONE, max_body=MAX_SAML_FORM)
async def post_saml_response(
    pages: UpstreamPages,
    sign_in: UpstreamSignIn,
    saml: OptionalSAML,
    context: RequestContext,
    *,
    body: bytes,
) -> Response:
    """Response of a SAML provider, which its page posts without our cookie. The redirect that
    follows brings the cookie.

    spec: saml-bindings-2.0-os section 3.5
    """
    form = read_form(body)
    try:
        if saml.provider is None:
            raise SignInRefused(RefusalReason.UNKNOWN_PROVIDER)
        flow, browser_hash = await sign_in.take_callback_without_cookie(
            SAML_ID, form.get("RelayState", "")
        )
        identity = await saml.provider.identify(flow, form.get("SAMLResponse", ""))
        flow_id = await sign_in.store_identity(flow, identity, browser_hash)
        return see_other(f"{RESUME_PATH}?flow={flow_id}")
    except SignInRefused as refused:
        return await pages.refuse(context, refused)


@endpoint("GET", f"/{SAML_LOGOUT_PATH}", auth=Auth.NONE, limit=Limit.LOGIN, cost=0.2)
async def get_saml_logout(
    pages: UpstreamPages,
    logout: SAMLLogout,
    context: RequestContext,
    *,
    request: Annotated[str, QueryNames("SAMLRequest")] = "",
    relay_state: Annotated[str, QueryNames("RelayState")] = "",
) -> Response:
    """Logout request of a SAML provider, or the return of a browser after our logout request.

    spec: saml-bindings-2.0-os section 3.4
    """
    if not request:
        return see_other(sign_in_link(local_path_or(relay_state, DEFAULT_PAGE)))
    try:
        message = parse_query(context.uri.partition(b"?")[2].decode("latin-1"))
    except SignInRefused as refused:
        return await pages.refuse(context, refused)
    return await pages.sign_out(context, logout, message)


@endpoint(
    "POST", f"/{SAML_LOGOUT_PATH}", auth=Auth.NONE, limit=Limit.LOGIN, cost=0.2, max_body=MAX_LOGOUT
)
async def post_saml_logout(
    pages: UpstreamPages, logout: SAMLLogout, context: RequestContext, *, body: bytes
) -> Response:
    """The same in a form, or in a SOAP envelope from the provider itself. spec:
    saml-bindings-2.0-os sections 3.5, 3.2"""
    if (context.header("content-type") or "").partition(";")[0].strip().lower() == SOAP:
        return await _respond_to_envelope(logout, body)
    form = read_form(body)
    if "SAMLRequest" not in form:
        return see_other(sign_in_link(local_path_or(form.get("RelayState", ""), DEFAULT_PAGE)))
    message = SAMLLogoutMessage(form["SAMLRequest"], form.get("RelayState"))
    return await pages.sign_out(context, logout, message)


async def _respond_to_envelope(logout: SAMLLogout, body: bytes) -> Response:
    """Handle a SOAP envelope; a refusal has only a status. spec: saml-bindings-2.0-os section
    3.2.3.3"""
    headers = {"Cache-Control": "no-cache, no-store", "Pragma": "no-cache", "Content-Type": SOAP}
    try:
        response = await logout.do_end(
            SAMLLogoutMessage(body.decode("utf-8", "replace"), is_soap=True)
        )
    except SignInRefused as refused:
        logout.log.warn("a logout request is refused: {why}", why=str(refused))
        return Response(HTTPStatus.FORBIDDEN, headers, b"")
    return Response(HTTPStatus.OK, headers, (response or "").encode())


@endpoint("GET", f"/{METADATA_PATH}", auth=Auth.NONE, limit=Limit.LOGIN, cost=0.2)
async def get_saml_metadata(saml: OptionalSAML) -> Response:
    """This server's SAML metadata. spec: saml-metadata-2.0-os"""
    if saml.provider is None:
        raise Unrecognized
    return Response(
        HTTPStatus.OK,
        {"Content-Type": "application/samlmetadata+xml"},
        await saml.provider.metadata(),
    )

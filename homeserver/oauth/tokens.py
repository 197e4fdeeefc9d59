"""OAuth 2.0 endpoints that issue, revoke and introspect tokens, and begin a device authorization.

Request bodies are forms (`application/x-www-form-urlencoded`). A form that contains a parameter
twice is refused.

spec: client-server-api#token-refresh-flow, client-server-api#token-revocation, RFC 6749, RFC 7009,
RFC 7662, RFC 8628
"""

from base64 import b64decode
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, unquote_plus

from federation.api.request import RequestContext
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.oauth.clients import CODE_GRANT, DEVICE_GRANT, REFRESH_GRANT
from homeserver.services.oauth.device_grants import INTERVAL_MS, LIFETIME_MS, DeviceGrants
from homeserver.services.oauth.errors import OAuthError
from homeserver.services.oauth.metadata import (
    DEVICE_PATH,
    INTROSPECT_PATH,
    LINK_PATH,
    REVOKE_PATH,
    TOKEN_PATH,
    OAuthMetadata,
)
from homeserver.services.oauth.tokens import OAuthTokens

MAX_BODY: Final = 8192
"""The longest form, in bytes."""
_MAX_FIELDS: Final = 30


@endpoint("POST", TOKEN_PATH, auth=Auth.NONE, limit=Limit.REFRESH, max_body=MAX_BODY)
async def post_token(
    tokens: OAuthTokens,
    grants: DeviceGrants,
    metadata: OAuthMetadata,
    context: RequestContext,
    *,
    body: bytes,
) -> dict[str, object]:
    """Issue tokens for an authorization code, a refresh token or a device code."""
    metadata.check_enabled()
    parameters = _parse_parameters(body)
    client_id = _require_parameter(parameters, "client_id")
    match _require_parameter(parameters, "grant_type"):
        case grant if grant == CODE_GRANT:
            code, redirect_uri, verifier = (
                _require_parameter(parameters, name)
                for name in ("code", "redirect_uri", "code_verifier")
            )
            granted = await tokens.do_exchange_code(
                client_id, code, redirect_uri, verifier, context.client_ip
            )
        case grant if grant == REFRESH_GRANT:
            granted = await tokens.do_refresh(
                client_id, _require_parameter(parameters, "refresh_token"), context.client_ip
            )
        case grant if grant == DEVICE_GRANT:
            granted = await grants.do_exchange(
                client_id, _require_parameter(parameters, "device_code"), context.client_ip
            )
        case _:
            raise OAuthError("unsupported_grant_type", "This grant_type is not supported")
    return granted.response()


@endpoint("POST", DEVICE_PATH, auth=Auth.NONE, limit=Limit.DEVICE_AUTHORIZATION, max_body=MAX_BODY)
async def post_device(
    grants: DeviceGrants, metadata: OAuthMetadata, *, body: bytes
) -> dict[str, object]:
    """Begin a device authorization grant. spec: RFC 8628 section 3.2"""
    metadata.check_enabled()
    parameters = _parse_parameters(body)
    codes = await grants.do_create(
        _require_parameter(parameters, "client_id"), _require_parameter(parameters, "scope")
    )
    uri = metadata.base + LINK_PATH
    return {
        "device_code": codes.device_code,
        "user_code": codes.user_code,
        "verification_uri": uri,
        "verification_uri_complete": f"{uri}?user_code={codes.user_code}",
        "expires_in": LIFETIME_MS // 1000,
        "interval": INTERVAL_MS // 1000,
    }


@endpoint("POST", REVOKE_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_revoke(
    tokens: OAuthTokens, metadata: OAuthMetadata, context: RequestContext, *, body: bytes
) -> Empty:
    """End a session by one of its tokens. Anybody with the token may do so, also a finder."""
    metadata.check_enabled()
    parameters = _parse_parameters(body)
    await tokens.do_revoke(
        _require_parameter(parameters, "token"), parameters.get("client_id", ""), context.client_ip
    )
    return EMPTY


@endpoint("POST", INTROSPECT_PATH, auth=Auth.NONE, max_body=MAX_BODY)
async def post_introspect(
    tokens: OAuthTokens, metadata: OAuthMetadata, context: RequestContext, *, body: bytes
) -> Mapping[str, object]:
    """Return owner and scope of a token, for services that the operator trusts."""
    metadata.check_enabled()
    parameters = _parse_parameters(body)
    tokens.check_service(*_parse_service(context, parameters), context.client_ip)
    return await tokens.introspect(_require_parameter(parameters, "token"))


def _parse_parameters(body: bytes) -> Mapping[str, str]:
    """Parse a form; parameters without a value count as absent. Raises `OAuthError`. spec: RFC 6749
    section 3.2"""
    try:
        pairs = parse_qsl(body.decode("utf-8"), errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise OAuthError(
            "invalid_request", "The body is not a form (application/x-www-form-urlencoded)"
        ) from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise OAuthError("invalid_request", "A parameter occurs twice")
    if any("\0" in value for value in found.values()):
        raise OAuthError("invalid_request", "A parameter contains NUL")
    return found


def _require_parameter(parameters: Mapping[str, str], name: str) -> str:
    """Return a required parameter. Raises `OAuthError`."""
    value = parameters.get(name)
    if not value:
        raise OAuthError("invalid_request", f"{name} is missing")
    return value


def _parse_service(context: RequestContext, parameters: Mapping[str, str]) -> tuple[str, str]:
    """Return the name and the secret of a service, from the header or the form. spec: RFC 6749
    section 2.3.1"""
    scheme, _, encoded = (context.header("Authorization") or "").partition(" ")
    if scheme.lower() == "basic":
        try:
            name, _, secret = (
                b64decode(encoded.strip(), validate=True).decode("utf-8").partition(":")
            )
        except ValueError:
            return "", ""
        return unquote_plus(name), unquote_plus(secret)
    return parameters.get("client_id", ""), parameters.get("client_secret", "")

"""Parses the parameters of a request to the OAuth 2.0 API: a form with unique names. spec: RFC 6749
section 3.2"""

from base64 import b64decode
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, unquote_plus

from federation.api.request import RequestContext
from homeserver.services.oauth.errors import OAuthError

MAX_BODY: Final = 8192
"""The `max_body` of endpoints that take such a form, in bytes."""
_MAX_FIELDS: Final = 30


def parse_parameters(body: bytes) -> Mapping[str, str]:
    """Parse a form; parameters without a value count as absent. Raises `OAuthError`."""
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


def require_parameter(parameters: Mapping[str, str], name: str) -> str:
    """Return a required parameter. Raises `OAuthError`."""
    value = parameters.get(name)
    if not value:
        raise OAuthError("invalid_request", f"{name} is missing")
    return value


def parse_service(context: RequestContext, parameters: Mapping[str, str]) -> tuple[str, str]:
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

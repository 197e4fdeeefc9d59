"""The parameters of a request to the OAuth 2.0 API: a form, in which each name stands once. spec:
RFC 6749 section 3.2"""

from base64 import b64decode
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, unquote_plus

from federation.api.request import RequestContext
from homeserver.services.oauth.errors import OAuthError

MAX_BODY: Final = 8192
"""Bytes: the `max_body` of endpoints that take such a form."""
_MOST_FIELDS: Final = 30


def parse_parameters(body: bytes) -> Mapping[str, str]:
    """Raises `OAuthError`. A parameter without a value is as good as none."""
    try:
        pairs = parse_qsl(body.decode("utf-8"), errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise OAuthError(
            "invalid_request", "The body is not a form (application/x-www-form-urlencoded)"
        ) from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise OAuthError("invalid_request", "A parameter stands there twice")
    if any("\0" in value for value in found.values()):
        raise OAuthError("invalid_request", "A parameter has NUL in it")
    return found


def wanted(parameters: Mapping[str, str], name: str) -> str:
    """A parameter that has to be there. Raises `OAuthError`."""
    value = parameters.get(name)
    if not value:
        raise OAuthError("invalid_request", f"{name} is missing")
    return value


def parse_service(context: RequestContext, parameters: Mapping[str, str]) -> tuple[str, str]:
    """The name and the secret that a service shows, in the header or in the form. spec: RFC 6749
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

"""Errors of the OAuth 2.0 API: `error` and `error_description` instead of an errcode.

spec: RFC 6749 section 5.2, RFC 7591 section 3.2.2, RFC 8628 section 3.5
"""

from collections.abc import Mapping
from typing import ClassVar

from federation.protocol.errors import MatrixError


class OAuthError(MatrixError):
    """An OAuth error response. `error`: its registered code."""

    def __init__(self, error: str, text: str) -> None:
        super().__init__(text)
        self.error = error

    def body(self) -> Mapping[str, object]:
        """Return the JSON body, as RFC 6749 defines it."""
        return {"error": self.error, "error_description": self.text}


class UnauthorizedClient(OAuthError):
    """The client uses a grant that it did not register."""

    def __init__(self, text: str) -> None:
        super().__init__("unauthorized_client", text)


class InvalidRedirectURI(OAuthError):
    """The client uses a redirect URI that it did not register."""

    def __init__(self) -> None:
        super().__init__(
            "invalid_request", "redirect_uri is not one that this client has registered"
        )


class InvalidClient(OAuthError):
    """The client is unknown, or its authentication failed."""

    status = 401

    def __init__(self, text: str) -> None:
        super().__init__("invalid_client", text)


class InvalidService(InvalidClient):
    """The service is not one that the operator trusts. The response names the HTTP authentication
    scheme."""

    headers: ClassVar[Mapping[str, str]] = {
        "WWW-Authenticate": 'Basic realm="introspection", charset="UTF-8"'
    }

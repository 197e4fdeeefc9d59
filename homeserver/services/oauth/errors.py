"""Errors of the OAuth 2.0 API: `error` and `error_description` instead of an errcode.

spec: RFC 6749 section 5.2, RFC 7591 section 3.2.2, RFC 8628 section 3.5
"""

from collections.abc import Mapping
from typing import ClassVar

from federation.protocol.errors import MatrixError


class OAuthError(MatrixError):
    """An answer that says no, in the words of OAuth. `error`: its registered code."""

    def __init__(self, error: str, text: str) -> None:
        super().__init__(text)
        self.error = error

    def body(self) -> Mapping[str, object]:
        """As RFC 6749 has it."""
        return {"error": self.error, "error_description": self.text}


class UnauthorizedClient(OAuthError):
    """A program asks for what it has not said, when it registered, that it would."""

    def __init__(self, text: str) -> None:
        super().__init__("unauthorized_client", text)


class WrongRedirect(OAuthError):
    """A program asks to be answered at an address that it has not registered."""

    def __init__(self) -> None:
        super().__init__(
            "invalid_request", "redirect_uri is not one that this client has registered"
        )


class InvalidClient(OAuthError):
    """A program that is not known, or that does not show that it is who it says."""

    status = 401

    def __init__(self, text: str) -> None:
        super().__init__("invalid_client", text)


class InvalidService(InvalidClient):
    """A service that does not show that it is one of those which the operator trusts. It is told
    how it could."""

    headers: ClassVar[Mapping[str, str]] = {
        "WWW-Authenticate": 'Basic realm="introspection", charset="UTF-8"'
    }

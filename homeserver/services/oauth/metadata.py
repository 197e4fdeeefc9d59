"""The server metadata document of the OAuth 2.0 API: it tells clients the endpoints, and which
grants, scopes and account pages the server has.

spec: client-server-api#get_matrixclientv1auth_metadata, RFC 8414
"""

from typing import Final

from federation.protocol.errors import Unrecognized
from homeserver.services.oauth.clients import CODE_GRANT, DEVICE_GRANT, REFRESH_GRANT

AUTHORIZE_PATH: Final = "/_mahalla/oauth/authorize"
TOKEN_PATH: Final = "/_mahalla/oauth/token"
REVOKE_PATH: Final = "/_mahalla/oauth/revoke"
REGISTER_PATH: Final = "/_mahalla/oauth/register"
DEVICE_PATH: Final = "/_mahalla/oauth/device"
INTROSPECT_PATH: Final = "/_mahalla/oauth/introspect"
LINK_PATH: Final = "/_mahalla/link"
ACCOUNT_PATH: Final = "/_mahalla/account"

PROFILE: Final = "org.matrix.profile"
DEVICES_LIST: Final = "org.matrix.devices_list"
DEVICE_VIEW: Final = "org.matrix.device_view"
DEVICE_DELETE: Final = "org.matrix.device_delete"
DEACTIVATE: Final = "org.matrix.account_deactivate"
CROSS_SIGNING_RESET: Final = "org.matrix.cross_signing_reset"
UNSTABLE_ACTIONS: Final = {
    "profile": PROFILE,
    "sessions_list": DEVICES_LIST,
    "org.matrix.sessions_list": DEVICES_LIST,
    "session_view": DEVICE_VIEW,
    "org.matrix.session_view": DEVICE_VIEW,
    "session_end": DEVICE_DELETE,
    "org.matrix.session_end": DEVICE_DELETE,
}
"""Unstable names of the account page's actions."""
ACTIONS: Final = (
    PROFILE,
    DEVICES_LIST,
    DEVICE_VIEW,
    DEVICE_DELETE,
    DEACTIVATE,
    CROSS_SIGNING_RESET,
)


class OAuthMetadata:
    """Holds the metadata document."""

    def __init__(
        self, *, public_baseurl: str | None, enabled: bool, registration_open: bool
    ) -> None:
        """Without `public_baseurl` there is no OAuth 2.0 API, since its endpoints have no URL."""
        self.document: dict[str, object] | None = None
        """None if there is no OAuth 2.0 API."""
        self.issuer = ""
        self.base = (public_baseurl or "").rstrip("/")
        if public_baseurl is None or not enabled:
            return
        base = self.base
        self.issuer = base + "/"
        actions = [*ACTIONS, *UNSTABLE_ACTIONS]
        self.document = {
            "issuer": self.issuer,
            "authorization_endpoint": base + AUTHORIZE_PATH,
            "token_endpoint": base + TOKEN_PATH,
            "revocation_endpoint": base + REVOKE_PATH,
            "registration_endpoint": base + REGISTER_PATH,
            "device_authorization_endpoint": base + DEVICE_PATH,
            "introspection_endpoint": base + INTROSPECT_PATH,
            "introspection_endpoint_auth_methods_supported": [
                "client_secret_basic",
                "client_secret_post",
            ],
            "token_endpoint_auth_methods_supported": ["none"],
            "revocation_endpoint_auth_methods_supported": ["none"],
            "scopes_supported": [
                "urn:matrix:client:api:*",
                "urn:matrix:org.matrix.msc2967.client:api:*",
            ],
            "response_types_supported": ["code"],
            "response_modes_supported": ["query", "fragment"],
            "grant_types_supported": [CODE_GRANT, REFRESH_GRANT, DEVICE_GRANT],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "prompt_values_supported": ["login", "create"] if registration_open else ["login"],
            "account_management_uri": base + ACCOUNT_PATH,
            "account_management_actions_supported": actions,
            "org.matrix.msc4191.account_management_uri": base + ACCOUNT_PATH,
            "org.matrix.msc4191.account_management_actions_supported": actions,
        }

    def check_enabled(self) -> None:
        """Raises `Unrecognized` if there is no OAuth 2.0 API."""
        if self.document is None:
            raise Unrecognized("This server has no OAuth 2.0 API")

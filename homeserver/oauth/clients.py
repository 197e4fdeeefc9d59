"""Programs register themselves. spec: client-server-api#dynamic-client-registration-flow, RFC 7591"""

from http import HTTPStatus
from typing import Any

import msgspec

from federation.protocol.endpoint import Auth, Limit, endpoint
from homeserver.http.answers import Response
from homeserver.services.oauth.clients import Clients
from homeserver.services.oauth.errors import OAuthError
from homeserver.services.oauth.metadata import REGISTER_PATH, OAuthMetadata


@endpoint("POST", REGISTER_PATH, auth=Auth.NONE, limit=Limit.CLIENT_REGISTRATION, max_body=32768)
async def post_client(clients: Clients, metadata: OAuthMetadata, *, body: bytes) -> Response:
    """What was registered, with the client's id."""
    metadata.check_enabled()
    try:
        given = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise OAuthError("invalid_client_metadata", "The body must be a JSON object") from None
    return Response(HTTPStatus.CREATED, {}, await clients.do_register(given))

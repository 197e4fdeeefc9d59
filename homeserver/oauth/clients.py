"""Dynamic client registration.

spec: client-server-api#dynamic-client-registration-flow, RFC 7591
"""

from http import HTTPStatus

from federation.protocol.canonical_json import decode_object
from federation.protocol.errors import BadJson, NotJson
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.http.responses import Response
from homeserver.services.oauth.clients import OAuthClients
from homeserver.services.oauth.errors import OAuthError
from homeserver.services.oauth.metadata import REGISTER_PATH, OAuthMetadata


@endpoint("POST", REGISTER_PATH, auth=Auth.NONE, limit=Limit.CLIENT_REGISTRATION, max_body=32768)
async def post_client(clients: OAuthClients, metadata: OAuthMetadata, *, body: bytes) -> Response:
    """Register a client; return its metadata with its ID."""
    metadata.check_enabled()
    try:
        registration = decode_object(body)
    except (BadJson, NotJson):
        raise OAuthError("invalid_client_metadata", "The body must be a JSON object") from None
    return Response(HTTPStatus.CREATED, {}, await clients.do_register(registration))

"""Discovery of the OAuth 2.0 API. spec: client-server-api#server-metadata-discovery"""

from http import HTTPStatus

from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import Response
from homeserver.services.oauth.metadata import OAuthMetadata

CACHED = {"Cache-Control": "public, max-age=600"}


@endpoint(
    "GET",
    "/_matrix/client/v1/auth_metadata",
    "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata",
    "/.well-known/openid-configuration",
    "/.well-known/oauth-authorization-server",
    auth=Auth.NONE,
)
async def get_auth_metadata(metadata: OAuthMetadata) -> Response:
    """Return the metadata document; `M_UNRECOGNIZED` without an OAuth 2.0 API, so that clients use
    the older login API."""
    metadata.check_enabled()
    return Response(HTTPStatus.OK, CACHED, metadata.document)


@endpoint("GET", "/_matrix/client/unstable/org.matrix.msc2965/auth_issuer", auth=Auth.NONE)
async def get_auth_issuer(metadata: OAuthMetadata) -> Response:
    """Return only the issuer, for clients that predate the metadata endpoint."""
    metadata.check_enabled()
    return Response(HTTPStatus.OK, CACHED, {"issuer": metadata.issuer})

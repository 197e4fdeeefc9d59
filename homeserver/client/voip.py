"""What calls need of the server. spec: client-server-api#voice-over-ip"""

from federation.protocol.endpoint import Auth, Requester, endpoint
from homeserver.services.turn import Turn


@endpoint("GET", "/_matrix/client/v3/voip/turnServer", "/_matrix/client/r0/voip/turnServer", auth=Auth.GUEST)
async def get_turn_server(turn: Turn, caller: Requester) -> dict[str, object]:
    """Credentials for TURN servers."""
    return turn.get_credentials(caller)

"""Return the capabilities of the server. spec: client-server-api#capabilities-negotiation"""

import msgspec

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.discovery.capabilities import Capabilities


@endpoint(
    "GET", "/_matrix/client/v3/capabilities", "/_matrix/client/r0/capabilities", auth=Auth.GUEST
)
async def get_capabilities(capabilities: Capabilities, caller: Requester) -> msgspec.Raw:
    """Return the capabilities of this server for the caller."""
    return capabilities.body(caller)

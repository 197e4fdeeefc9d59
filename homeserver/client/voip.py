"""TURN credentials and RTC transports for calls. spec: client-server-api#voice-over-ip; proposal:
MSC4143"""

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.calls.rtc_transports import RTCTransports
from homeserver.services.calls.turn import Turn


@endpoint(
    "GET",
    "/_matrix/client/v3/voip/turnServer",
    "/_matrix/client/r0/voip/turnServer",
    auth=Auth.GUEST,
)
async def get_turn_server(turn: Turn, caller: Requester) -> dict[str, object]:
    """Return credentials for TURN servers."""
    return turn.get_credentials(caller)


@endpoint(
    "GET",
    "/_matrix/client/v1/rtc/transports",
    "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports",
    auth=Auth.GUEST,
)
async def get_rtc_transports(rtc: RTCTransports, _caller: Requester) -> dict[str, object]:
    """Return the transports for group calls."""
    return {"rtc_transports": rtc.transports}

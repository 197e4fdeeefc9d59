"""Requests the signature of a room's policy server on an event.

spec: server-server-api#post_matrixpolicyv1sign
"""

import msgspec

from federation.peers.client import FederationClient
from federation.protocol.events import Event, encode_pdu
from federation.protocol.policy_server import KEY_ID, SIGN_PATHS, PolicyServer
from federation.protocol.signing import signatures_of

SECONDS = 5.0
"""Time that a room waits for a policy server that does not answer."""
ANSWER_BYTES = 64 << 10


class PolicyServerClient:
    """Sends the requests."""

    def __init__(self, requests: FederationClient) -> None:
        self._requests = requests

    async def sign(self, server: PolicyServer, event: Event) -> str | None:
        """Return the signature, not verified yet, or None if the response has none.

        Raises RemoteError, Forbidden (the policy).
        """
        body = msgspec.Raw(encode_pdu(event))
        answer = await self._requests.post(
            server.server_name,
            SIGN_PATHS[server.named_by],
            body,
            seconds=SECONDS,
            max_bytes=ANSWER_BYTES,
        )
        return signatures_of({"signatures": answer}, server.server_name).get(KEY_ID)

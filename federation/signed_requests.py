"""Who sends us a request, proved by its signature.

spec: server-server-api#request-authentication
"""

from collections.abc import Callable

import msgspec

from federation.identity import ServerIdentity
from federation.keyring import Keyring
from federation.policy import Policy
from federation.protocol.canonical_json import encode_canonical
from federation.protocol.endpoint import Peer
from federation.protocol.errors import NotJson, Unauthorized
from federation.protocol.request_signing import check_request, parse_authorization


class SignedRequests:
    """Checks the signatures of requests: the guard's `SignatureChecker`."""

    def __init__(self, keyring: Keyring, policy: Policy, identity: ServerIdentity, now_ms: Callable[[], int]) -> None:
        self._keyring = keyring
        self._policy = policy
        self._identity = identity
        self._now_ms = now_ms

    async def get_peer(self, authorization: list[str], method: str, uri: str, body: bytes) -> Peer:
        """Raises Unauthorized, Forbidden (the policy), NotJson. `uri`: path and query as sent."""
        if not authorization:
            raise Unauthorized("The request has no X-Matrix signature")
        claimed = parse_authorization(authorization[0])
        self._policy.check_origin(claimed.origin)
        try:
            content = msgspec.Raw(encode_canonical(msgspec.json.decode(body))) if body else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise NotJson from error
        keys = await self._keyring.get_keys(claimed.origin, [claimed.key_id], self._now_ms())
        if claimed.key_id not in keys:
            raise Unauthorized(f"The key {claimed.key_id} of {claimed.origin} cannot be had, or is not valid")
        check_request(
            claimed,
            keys[claimed.key_id],
            method=method,
            uri=uri,
            destination=self._identity.server_name,
            content=content,
        )
        return Peer(claimed.origin)

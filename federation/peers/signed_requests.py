"""Who sends us a request, proved by its signature.

Most servers send their body in canonical form, which is what they have signed. So the signature is
checked over the body as it came, and only where that fails over its canonical form: a request of 50
events costs a tenth of a millisecond instead of several. Both are the same value: the body is known
to be one JSON text. One that nests too deeply to be read is known to be one object, as far as
brackets tell: what of a transaction can be read is taken in.

Whoever has proved nothing yet can send a long body with a signature that does not hold. So the
canonical form is made of bodies of so many values only, and of no long ones for an address from
which one came in vain a moment ago.

spec: server-server-api#request-authentication
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from federation.api.request import Peer
from federation.peers.event_lists import is_one_object
from federation.peers.identity import ServerIdentity
from federation.peers.keyring import Keyring
from federation.peers.peer_backoff import PeerBackoff
from federation.peers.policy import Policy
from federation.protocol.canonical_json import decode_json, encode_canonical
from federation.protocol.dense_json import has_too_many_values
from federation.protocol.errors import MatrixError, NotJson, Unauthorized
from federation.protocol.ids import KeyID
from federation.protocol.request_signing import RequestSignature, check_request, parse_authorization

MAX_SIGNATURES = 5
"""On one request."""
SHORT_BODY: Final = 1 << 16
"""Bytes of which the canonical form is made for anybody."""
MOST_VALUES: Final = 2_500_000
"""Strings, and brackets and commas between values, of which it is made: fifty events have no
more."""
REST_MS: Final = 60_000
"""For so long no long body's is made for an address from which one came whose signature did not
hold."""
MOST_RESTING: Final = 10_000

_check_json = msgspec.json.Decoder(msgspec.Raw).decode


class SignedRequests:
    """Checks the signatures of requests: the guard's `SignatureChecker`."""

    def __init__(
        self, keyring: Keyring, policy: Policy, identity: ServerIdentity, now_ms: Callable[[], int]
    ) -> None:
        self._keyring = keyring
        self._policy = policy
        self._identity = identity
        self._now_ms = now_ms
        self._resting: PeerBackoff[str] = PeerBackoff(now_ms, max_remembered=MOST_RESTING)
        """Addresses, and until when they rest."""

    async def get_peer(
        self, authorization: list[str], method: str, uri: str, body: bytes, address: str = ""
    ) -> Peer:
        """Raises Unauthorized, Forbidden (the policy), LimitExceeded, NotJson, BadJson. `uri`: path
        and query as sent; `address`: whence.

        A request may have several signatures of one server, by several keys; those by keys that
        cannot be had are passed over, and the others must be right.
        """
        signatures = self._read(authorization, uri)
        origin = signatures[0].origin
        is_deep = False
        try:
            content = _check_json(body) if body else None
        except RecursionError:  # whoever reads it sees what of it can be read
            content, is_deep = msgspec.Raw(body), True
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NotJson from error
        key_ids = [each.key_id for each in signatures]
        keys = await self._keyring.get_keys_of_caller(origin, key_ids, self._now_ms(), address)
        known = [each for each in signatures if each.key_id in keys]
        if not known:
            raise Unauthorized(f"The key {key_ids[0]} of {origin} cannot be had, or is not valid")
        try:
            self._check(known, keys, method, uri, content)
        except Unauthorized:
            if len(body) > SHORT_BODY and (
                self._resting.left_ms(address) or has_too_many_values(body, MOST_VALUES)
            ):
                raise
            try:
                canonical = encode_canonical(decode_json(body)) if body else b""
                if canonical == body:
                    raise
                self._check(known, keys, method, uri, msgspec.Raw(canonical))
            except MatrixError:  # it may also have no canonical form, which is found out late
                if len(body) > SHORT_BODY:
                    self._resting.pause(address, REST_MS)
                raise
        if is_deep and not is_one_object(body):
            raise NotJson
        return Peer(origin)

    def check_head(self, authorization: list[str], uri: str) -> None:
        """Whether the body of a request is worth taking in, by what comes before it. Raises
        Unauthorized, Forbidden (the policy)."""
        self._read(authorization, uri)

    def _read(self, authorization: list[str], uri: str) -> list[RequestSignature]:
        """The signatures, not checked, of one server that may ask."""
        signatures = _parse(authorization)
        origin = signatures[0].origin
        if any(each.origin != origin for each in signatures):
            raise Unauthorized("The request is signed by several servers")
        self._policy.check_origin(origin, uri)
        return signatures

    def _check(
        self,
        signatures: Sequence[RequestSignature],
        keys: Mapping[KeyID, bytes],
        method: str,
        uri: str,
        content: msgspec.Raw | None,
    ) -> None:
        """Raises Unauthorized."""
        for each in signatures:
            check_request(
                each,
                keys[each.key_id],
                method=method,
                uri=uri,
                destination=self._identity.server_name,
                content=content,
            )


def _parse(authorization: Sequence[str]) -> list[RequestSignature]:
    """The signatures, one at least; headers of other schemes are passed over. Raises
    Unauthorized."""
    headers = [each for each in authorization if each[:8].lower() == "x-matrix"]
    if not headers:
        raise Unauthorized("The request has no X-Matrix signature")
    if len(headers) > MAX_SIGNATURES:
        raise Unauthorized(f"The request has more than {MAX_SIGNATURES} signatures")
    return [parse_authorization(each) for each in headers]

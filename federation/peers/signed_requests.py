"""Authenticates requests of other servers by their signatures.

Most servers send the body in the canonical form that they have signed. So the signature is first
checked against the body as received, and against its canonical form only if that fails. For a
request with 50 events, the first check takes a tenth of a millisecond, and the second several
milliseconds. Either check is enough, because both forms encode the same value.

A body that nests too deeply to be parsed cannot be converted to its canonical form. So its
signature is checked only against the body as received. A scan of its brackets and strings checks
that it is one object. If the body is a transaction, `federation/receiver/transactions.py` skips the
values that nest too deeply and accepts the others.

An unauthenticated caller can send a long body with an invalid signature, to make this server
compute its canonical form. So the canonical form of a long body is computed only if the body has a
bounded number of values, and if no long body with an invalid signature came from the caller's
network address recently.

spec: server-server-api#request-authentication
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from federation.api.request import Peer
from federation.peers.federation_policy import FederationPolicy
from federation.peers.identity import ServerIdentity
from federation.peers.keyring import Keyring
from federation.peers.peer_backoff import PeerBackoff
from federation.peers.response_splitter import is_one_object
from federation.protocol.canonical_json import decode_json, encode_canonical
from federation.protocol.dense_json import has_too_many_values
from federation.protocol.errors import MatrixError, NotJson, Unauthorized
from federation.protocol.ids import KeyID
from federation.protocol.request_signing import RequestSignature, check_request, parse_authorization

MAX_SIGNATURES = 5
"""Signatures on one request."""
MAX_SHORT_BODY_BYTES: Final = 1 << 16
"""Longest body of which the canonical form is always made, in bytes."""
MAX_VALUES: Final = 2_500_000
"""Strings, brackets and commas in a body of which the canonical form is made. Fifty events have no
more."""
LONG_BODY_PAUSE_MS: Final = 60_000
"""Time in which the canonical form of long bodies is not made for an address, after one with an
invalid signature."""
MAX_PAUSED: Final = 10_000

_check_json = msgspec.json.Decoder(msgspec.Raw).decode


class RequestVerifier:
    """Checks the signatures of requests, as the `SignatureChecker` of the HTTP server."""

    def __init__(
        self,
        *,
        keyring: Keyring,
        policy: FederationPolicy,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
    ) -> None:
        self._keyring = keyring
        self._policy = policy
        self._identity = identity
        self._now_ms = now_ms
        self._paused: PeerBackoff[str] = PeerBackoff(now_ms=now_ms, max_records=MAX_PAUSED)
        """Addresses that sent a long body with an invalid signature."""

    async def get_peer(
        self, authorization: list[str], method: str, uri: str, body: bytes, address: str = ""
    ) -> Peer:
        """Return the server that signed a request.

        `uri`: path and query as sent. `address`: the network address of the caller. A request may
        have signatures by several keys of one server. Those by unavailable keys are skipped, and
        all others must be valid. Raises Unauthorized, Forbidden (the policy), LimitExceeded,
        NotJson, BadJson.
        """
        signatures = self._read(authorization, uri)
        origin = signatures[0].origin
        is_too_deep = False
        try:
            content = _check_json(body) if body else None
        except RecursionError:  # the endpoint parses the part that is not too deep
            content, is_too_deep = msgspec.Raw(body), True
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NotJson from error
        key_ids = [each.key_id for each in signatures]
        keys = await self._keyring.get_keys_of_unauthenticated(
            origin, key_ids, self._now_ms(), address
        )
        known = [each for each in signatures if each.key_id in keys]
        if not known:
            raise Unauthorized(f"The key {key_ids[0]} of {origin} is unavailable or not valid")
        try:
            self._check(known, keys, method, uri, content)
        except Unauthorized:
            if len(body) > MAX_SHORT_BODY_BYTES and (
                self._paused.left_ms(address) or has_too_many_values(body, MAX_VALUES)
            ):
                raise
            try:
                canonical = encode_canonical(decode_json(body)) if body else b""
                if canonical == body:
                    raise
                self._check(known, keys, method, uri, msgspec.Raw(canonical))
            except MatrixError:  # it may have no canonical form, which is only found out here
                if len(body) > MAX_SHORT_BODY_BYTES:
                    self._paused.pause(address, LONG_BODY_PAUSE_MS)
                raise
        if is_too_deep and not is_one_object(body):
            raise NotJson
        return Peer(origin)

    def check_head(self, authorization: list[str], uri: str) -> None:
        """Check the headers of a request, before its body is read.

        Raises Unauthorized, Forbidden (the policy).
        """
        self._read(authorization, uri)

    def _read(self, authorization: list[str], uri: str) -> list[RequestSignature]:
        """Return the unchecked signatures, all of one server that the policy allows."""
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
        """Check the signatures. Raises Unauthorized."""
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
    """Return the signatures, at least one. Headers of other schemes are skipped.

    Raises Unauthorized.
    """
    headers = [each for each in authorization if each[:8].lower() == "x-matrix"]
    if not headers:
        raise Unauthorized("The request has no X-Matrix signature")
    if len(headers) > MAX_SIGNATURES:
        raise Unauthorized(f"The request has more than {MAX_SIGNATURES} signatures")
    return [parse_authorization(each) for each in headers]

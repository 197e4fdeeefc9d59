"""Servers that publish signing keys, a notary, and a keyring that fetches from them."""

from collections.abc import Mapping
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from federation.peers.client import FederationClient
from federation.peers.federation_policy import FederationPolicy, make_rules
from federation.peers.identity import ServerIdentity
from federation.peers.keyring import Keyring, Notary
from federation.peers.server_keys import ServerKeyClient
from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.errors import RemoteError
from federation.protocol.ids import ServerName
from federation.protocol.key_documents import VerifyKey
from federation.protocol.signing import SigningKey, encode_base64, sign_json
from storage.engine.database import Database
from storage.federation.server_keys import ServerKeyStore

DAY = 24 * 3600 * 1000
START = 1_700_000_000_000
HERE, NORTH, SOUTH, NOTARY = map(
    ServerName, ("here.example", "north.example", "south.example", "notary.example")
)


def signing_key(name: str) -> SigningKey:
    """Return a key that is derived from its name."""
    return SigningKey(name, name.encode().ljust(32)[:32])


A, B, N = signing_key("a"), signing_key("b"), signing_key("n")


def key_document(
    server: str,
    *keys: SigningKey,
    until: int = START + DAY,
    old: Mapping[SigningKey, int] | None = None,
    signer: SigningKey | None = None,
) -> dict[str, Any]:
    """Return the key document of a server."""
    said = {
        "server_name": server,
        "verify_keys": {each.key_id: {"key": encode_base64(each.public_key)} for each in keys},
        "old_verify_keys": {
            each.key_id: {"key": encode_base64(each.public_key), "expired_ts": at}
            for each, at in (old or {}).items()
        },
        "valid_until_ts": until,
    }
    return sign_json(said, server, signer or keys[0])


class KeyServers:
    """Answers key requests for all other servers."""

    def __init__(self) -> None:
        self.now = START
        self.documents: dict[str, Any] = {}
        """The key document of each server. A server without one does not answer."""
        self.notary_documents: list[Any] = []
        self.rate_limited: dict[str, int] = {}
        """Servers that answer 429, and their `Retry-After` in seconds."""
        self.log: list[tuple[str, str]] = []
        self.held: list[Deferred[None]] | None = None

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireResponse:
        self.log.append((destination, request.uri))
        if self.held is not None:
            self.held.append(Deferred())
            await self.held[-1]
        if destination in self.rate_limited:
            return WireResponse(429, {"retry-after": str(self.rate_limited[destination])}, b"{}")
        if request.uri == "/_matrix/key/v2/query":
            self.question = msgspec.json.decode(request.body)["server_keys"]
            return WireResponse(
                200, {}, msgspec.json.encode({"server_keys": self.notary_documents})
            )
        if destination not in self.documents:
            raise RemoteError(destination, "nobody is there", retryable=True)
        return WireResponse(200, {}, msgspec.json.encode(self.documents[destination]))

    def count(self, server: str) -> int:
        return sum(destination == server for destination, _ in self.log)


def make_keyring(
    servers: KeyServers, database: Database, *notaries: Notary, allowed: list[str] | None = None
) -> Keyring:
    """Return a keyring that fetches keys from these servers."""
    identity = ServerIdentity(HERE, signing_key("here"))
    requests = FederationClient(
        wire=servers,
        identity=identity,
        policy=FederationPolicy(
            own=HERE, rules=make_rules(allowed), seconds=lambda: servers.now / 1000
        ),
        now_ms=lambda: servers.now,
    )
    old = {B.key_id: VerifyKey(B.public_key, START - DAY)}
    return Keyring(
        remote=ServerKeyClient(requests),
        store=ServerKeyStore(database),
        identity=identity,
        now_ms=lambda: servers.now,
        notaries=notaries,
        old_keys=old,
    )


def sign_as_notary(said: dict[str, Any], signer: SigningKey = N) -> dict[str, Any]:
    """Add the signature of the notary to a key document."""
    return sign_json(said, NOTARY, signer)

"""The keys of other servers: fetched from them when a signature is to be checked, and kept as long as they are valid.

spec: server-server-api#retrieving-server-keys
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from federation.identity import ServerIdentity
from federation.protocol.errors import InvalidParam, RemoteError, Unauthorized
from federation.protocol.event_signing import is_event_signed_by, required_signers
from federation.protocol.events import Event
from federation.protocol.ids import KeyID, ServerName
from federation.protocol.signing import is_signed_by, parse_public_key
from federation.requests import Requests

MAX_KEYS = 100
"""Of one server."""
LONGEST_VALID_MS = 7 * 24 * 3600 * 1000
"""How far in the future a key's validity is believed. spec: server-server-api#publishing-keys"""


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A server's key, and until when it is valid, in milliseconds."""

    public_key: bytes
    valid_until_ms: int


class Keyring:
    """Finds keys. For the reactor thread."""

    def __init__(self, requests: Requests, identity: ServerIdentity, now_ms: Callable[[], int]) -> None:
        self._requests = requests
        self._identity = identity
        self._now_ms = now_ms
        self._known: dict[ServerName, Mapping[KeyID, VerifyKey]] = {}

    async def get_keys(self, server: ServerName, key_ids: Collection[KeyID], valid_at_ms: int) -> Mapping[KeyID, bytes]:
        """Those of the keys that were valid then; what cannot be had is left out."""
        if server == self._identity.server_name:
            own = self._identity.key
            return {own.key_id: own.public_key} if own.key_id in key_ids else {}
        known = _valid(self._known.get(server, {}), key_ids, valid_at_ms)
        if len(known) == len(set(key_ids)):
            return known
        try:
            document = await self._requests.get(server, "/_matrix/key/v2/server", signed=False, max_bytes=1 << 20)
        except RemoteError:
            return known
        self._known[server] = read_keys(server, document, self._now_ms())
        return _valid(self._known[server], key_ids, valid_at_ms)

    async def get_signers(self, event: Event) -> Collection[ServerName]:
        """Those of an event's required signers whose valid signatures it has."""
        signers = []
        for server in required_signers(event):
            signatures = event.pdu.get("signatures", {}).get(server, {})
            key_ids = [KeyID(key_id) for key_id in signatures][:MAX_KEYS]
            at = event.origin_server_ts if event.version.enforces_key_validity else 0
            if is_event_signed_by(event, server, await self.get_keys(server, key_ids, at)):
                signers.append(server)
        return signers


def read_keys(server: ServerName, document: Mapping[str, Any], now_ms: int) -> Mapping[KeyID, VerifyKey]:
    """The keys of a document that the server has signed itself. Raises Unauthorized for any other document."""
    verify, old = document.get("verify_keys"), document.get("old_verify_keys", {})
    until = document.get("valid_until_ts")
    if document.get("server_name") != server or not isinstance(verify, dict) or not isinstance(until, int):
        raise Unauthorized(f"The document of keys is not one of {server}")
    keys: dict[KeyID, VerifyKey] = {}
    for entries, is_old in ((old, True), (verify, False)):
        for key_id, entry in list(entries.items())[:MAX_KEYS] if isinstance(entries, dict) else ():
            valid_until = entry.get("expired_ts") if is_old else min(until, now_ms + LONGEST_VALID_MS)
            try:
                keys[KeyID(key_id)] = VerifyKey(parse_public_key(key_id, entry["key"]), int(valid_until))
            except (InvalidParam, KeyError, TypeError, ValueError):
                continue
    current = {key_id: keys[KeyID(key_id)].public_key for key_id in verify if key_id in keys}
    if not is_signed_by(document, server, current):
        raise Unauthorized(f"{server} has not signed its keys")
    return keys


def _valid(keys: Mapping[KeyID, VerifyKey], wanted: Collection[KeyID], at_ms: int) -> dict[KeyID, bytes]:
    return {
        key_id: keys[key_id].public_key for key_id in wanted if key_id in keys and keys[key_id].valid_until_ms >= at_ms
    }

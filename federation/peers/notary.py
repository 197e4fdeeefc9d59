"""Answers, as a notary, requests for the keys of other servers.

Anybody may send such a request, and a small request could make us contact a hundred servers. So the
response is built from stored keys. Keys are fetched from a server only if none of its keys are
stored, if the stored keys are out of date, or if a requested key is not among them. Each request
causes a few fetches at most, and their total rate is limited. After each fetch, successful or not,
the keyring (`keyring.py`) waits before it fetches from the same server again.

spec: server-server-api#querying-keys-through-another-server
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults

from federation.peers.federation_policy import FederationPolicy
from federation.peers.identity import ServerIdentity
from federation.peers.keyring import Keyring
from federation.peers.own_keys import PublishedServerKeys
from federation.peers.token_buckets import Rate, TokenBuckets
from federation.protocol.errors import TooLarge
from federation.protocol.ids import KeyID, ServerName, is_server_name
from federation.protocol.signing import sign_json
from storage.federation.server_keys import ServerKeyStore, StoredDocument

MAX_SERVERS = 200
"""Servers in one request."""
MAX_FETCHES_PER_REQUEST = 10
FETCH_BURST = 200
FETCHES_PER_SECOND = 2.0
"""Fetches on behalf of others: in a burst, and in the long run."""
MAX_RESPONSE_BYTES = 1 << 20
"""A usual document has about a thousand bytes. Anybody may ask, and may have published long ones
first."""

_ALL = ""
"""The rate limit key of these fetches."""

Criteria = Mapping[str, Mapping[str, int | None]]
"""Servers, their key IDs, and the time until which each key has to be valid, in milliseconds. None:
now. An empty ID: all keys."""


class KeyNotaryService:
    """Returns keys of other servers. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        keyring: Keyring,
        store: ServerKeyStore,
        own_keys: PublishedServerKeys,
        identity: ServerIdentity,
        policy: FederationPolicy,
        now_ms: Callable[[], int],
    ) -> None:
        self._keyring = keyring
        self._store = store
        self._own_keys = own_keys
        self._identity = identity
        self._policy = policy
        self._now_ms = now_ms
        self._fetches = TokenBuckets(
            now=lambda: now_ms() / 1000, rate=Rate(FETCHES_PER_SECOND, FETCH_BURST)
        )

    async def get_documents(self, criteria: Criteria) -> list[msgspec.Raw]:
        """Return key documents of servers, with our signature added.

        Unknown servers are left out, and so are documents beyond `MAX_RESPONSE_BYTES`. Raises
        TooLarge for too many servers.
        """
        if len(criteria) > MAX_SERVERS:
            raise TooLarge(f"Not more than {MAX_SERVERS} servers at once")
        documents = []
        if self._identity.server_name in criteria:
            documents.append(self._own_keys.get_document())
        names = [
            ServerName(name)
            for name in criteria
            if name != self._identity.server_name
            and is_server_name(name)
            and self._policy.allows(ServerName(name))
        ]
        stored = await self._store.get_documents(names)
        outdated = [name for name in names if self._is_outdated(stored.get(name), criteria[name])]
        asked = [name for name in outdated[:MAX_FETCHES_PER_REQUEST] if self._may_fetch()]
        if asked:
            await gatherResults(
                [
                    Deferred.fromCoroutine(self._keyring.renew(name, is_unauthenticated=True))
                    for name in asked
                ]
            )
            stored = {**stored, **await self._store.get_documents(asked)}
        left = MAX_RESPONSE_BYTES
        for name in names:
            if name in stored and len(stored[name].document) <= left:
                documents.append(self._sign(stored[name]))
                left -= len(stored[name].document)
        return documents

    def _is_outdated(self, stored: StoredDocument | None, keys: Mapping[str, int | None]) -> bool:
        now = self._now_ms()
        if stored is None:
            return True
        until = max((now if at is None else at for at in keys.values()), default=now)
        # No document may reach this time. So a new one is requested after half of the lifetime
        half = (stored.fetched_at + stored.valid_until) // 2
        if stored.valid_until < until and now >= half:
            return True
        known = msgspec.json.decode(stored.document)
        return not {key_id for key_id in keys if key_id} <= {
            *_key_ids_of(known, "verify_keys"),
            *_key_ids_of(known, "old_verify_keys"),
        }

    def _may_fetch(self) -> bool:
        if self._fetches.wait(_ALL):
            return False
        self._fetches.take(_ALL)
        return True

    def _sign(self, stored: StoredDocument) -> msgspec.Raw:
        document = msgspec.json.decode(stored.document)
        return msgspec.Raw(
            msgspec.json.encode(sign_json(document, self._identity.server_name, self._identity.key))
        )


def _key_ids_of(document: Mapping[str, Any], kind: str) -> Mapping[KeyID, object]:
    found = document.get(kind)
    return found if isinstance(found, dict) else {}

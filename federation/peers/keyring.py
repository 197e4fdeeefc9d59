"""Provides the signing keys of other servers. Fetches them when needed and renews them before
expiry.

Laws:
- A key is valid until the time that its key document states (`valid_until_ts` or `expired_ts`), but
  for at most a week after the document was fetched. In old room versions, a key is valid for events
  of any time.
- Concurrent callers share one fetch. If a server does not answer, or does not have the requested
  key, it is asked again after a pause that doubles up to five minutes. So made-up key IDs and
  server names cause few requests. A server that has sent its keys is not asked again for some
  seconds, even for further keys. A server that responds 429 is not asked before the time in the
  response, but notaries are asked for its keys.
- The number of stored keys per server is limited.
- A key document is accepted if the server has signed it. A document from a notary must also be
  signed by the notary, unless the configuration accepts this notary without its signature.
- Unknown servers, of which no keys are stored, have separate limits. Otherwise anybody could delay
  all requests with made-up server names and slow servers.
  - A request from an unknown server holds a slot while it waits for keys. The slot counts for the
    request's network address and for the registered domain of the server name. A request is refused
    if the slots held for its address, or for its domain, are at least as many as the free slots. So
    a flood from one address or domain leaves slots for the others.
  - Our concurrent key requests to unknown servers have a limit of their own. It is lower than the
    number of slots, because all requests from one server wait for the same key request. Registered
    domains take turns.
- If the member list pins the keys of a server, no other keys of that server are accepted, and none
  are requested.
- The servers themselves are asked first, then the configured notaries. If the keys of many servers
  are needed at the same time, as when joining a large room, the notaries are asked first. One
  request to a notary replaces up to a hundred requests to servers.

spec: server-server-api#retrieving-server-keys
"""

from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.fair_semaphore import FairSemaphore
from federation.peers.identity import ServerIdentity
from federation.peers.peer_backoff import PeerBackoff
from federation.peers.server_keys import SERVERS_PER_QUERY, ServerKeyClient
from federation.peers.shared_work import SharedWork
from federation.protocol.errors import (
    BadEvent,
    BadJson,
    LimitExceeded,
    MatrixError,
    RemoteError,
    Unauthorized,
)
from federation.protocol.event_signing import required_signers
from federation.protocol.events import Event, encode_reference
from federation.protocol.ids import KeyID, ServerName, registered_domain_of
from federation.protocol.key_documents import (
    MAX_KEYS,
    KeyDocument,
    VerifyKey,
    read_keys,
    valid_keys,
)
from federation.protocol.signing import are_signatures_valid, is_signed_by, signatures_of
from storage.cache import LRU
from storage.federation.server_keys import (
    MAX_STORED_KEYS,
    ServerKeyStore,
    StoredDocument,
    StoredKey,
)

MAX_CONCURRENT = 30
"""Servers that are asked at the same time."""
MAX_CONCURRENT_UNAUTHENTICATED = 20
"""Unauthenticated servers that are asked at the same time."""
MAX_WAITING_UNAUTHENTICATED = 70
"""Requests that wait for keys of such servers, each held in memory. Further ones are refused."""
NO_ADDRESS = ""
"""The address of requests to us as a notary. They all share the slots of one address."""
NOTARIES_FIRST_FROM = 10
"""From this number of servers on the notaries are asked first."""
RETRIES = BackoffSchedule(5_000, 300_000)
REFETCH_PAUSE_MS = 5_000
"""Time after an answer in which a server is not asked for further keys."""
MAX_CACHED = 10_000
"""Servers whose keys, or whose failures, are held in memory."""

WantedKeys = Mapping[ServerName, Mapping[KeyID, int]]
"""Keys, and the time at which each has to have been valid, in milliseconds."""


class Notary(msgspec.Struct, frozen=True):
    """A server that we trust for the keys of other servers."""

    server_name: ServerName
    keys: Mapping[KeyID, bytes]
    """Its own keys if configured. Otherwise they are fetched from it."""
    unsigned: bool = False
    """Whether its answers are accepted without its signature."""


class _Known(msgspec.Struct, frozen=True):
    keys: Mapping[KeyID, VerifyKey]
    valid_until: int
    """End of the validity of the last document."""
    renew_at: int


class _Party(NamedTuple):
    """A network address or a domain of requests, which has a share of the slots."""

    kind: Literal["address", "domain"]
    name: str


def _parties_of(address: str, server: ServerName) -> tuple[_Party, _Party]:
    return _Party("address", address), _Party("domain", registered_domain_of(server))


class Keyring:
    """Finds the keys of servers. Use this class only on the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        *,
        remote: ServerKeyClient,
        store: ServerKeyStore,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
        notaries: Sequence[Notary] = (),
        old_keys: Mapping[KeyID, VerifyKey] | None = None,
        pinned_keys: Callable[[ServerName], Mapping[KeyID, bytes]] = lambda _: {},
    ) -> None:
        """`old_keys`: former keys of this server. `pinned_keys`: the only keys accepted for a
        server, if any."""
        self._pinned_keys = pinned_keys
        self._remote = remote
        self._store = store
        self._identity = identity
        self._now_ms = now_ms
        self._notaries = notaries
        own = VerifyKey(identity.key.public_key, 1 << 60)
        self._own = _Known({**(old_keys or {}), identity.key.key_id: own}, 1 << 60, 1 << 60)
        self._known: LRU[ServerName, _Known] = LRU(max_entries=MAX_CACHED)
        self._lacking: PeerBackoff[ServerName] = PeerBackoff(
            now_ms=now_ms, schedule=RETRIES, max_records=MAX_CACHED
        )
        """Servers whose keys neither they nor a notary could provide."""
        self._recently_fetched: PeerBackoff[ServerName] = PeerBackoff(
            now_ms=now_ms, max_records=MAX_CACHED
        )
        """Servers that have just answered with their keys."""
        self._backoff: PeerBackoff[ServerName] = PeerBackoff(now_ms=now_ms)
        """Servers that asked us to wait."""
        self._fetches: SharedWork[ServerName, bool] = SharedWork()
        self._fetch_slots = DeferredSemaphore(MAX_CONCURRENT)
        self._unauthenticated: FairSemaphore[_Party] = FairSemaphore(
            permits=MAX_WAITING_UNAUTHENTICATED,
            permits_per_key=lambda _party: self._unauthenticated.free,
            refusal=lambda _party: LimitExceeded(
                "Too many unknown servers at the moment", retry_after_ms=RETRIES.first_ms
            ),
        )
        """Requests from unauthenticated servers that wait for keys."""
        self._unauthenticated_fetch_slots: FairSemaphore[str] = FairSemaphore(
            permits=MAX_CONCURRENT_UNAUTHENTICATED,
            permits_per_key=MAX_CONCURRENT_UNAUTHENTICATED // 2,
        )
        """Key requests to such servers, by registered domain."""

    async def get_keys(
        self, server: ServerName, key_ids: Collection[KeyID], valid_at_ms: int
    ) -> Mapping[KeyID, bytes]:
        """Return the keys that were valid then. Keys that cannot be fetched are left out."""
        wanted = dict.fromkeys(key_ids, valid_at_ms)
        return valid_keys((await self._find({server: wanted}))[server].keys, wanted)

    async def get_keys_of_unauthenticated(
        self, server: ServerName, key_ids: Collection[KeyID], valid_at_ms: int, address: str
    ) -> Mapping[KeyID, bytes]:
        """Return keys as `get_keys`, for a request whose signature is not checked yet.

        `address`: the network address of the request, or the group it belongs to. Raises
        LimitExceeded if too many such requests wait.
        """
        wanted = dict.fromkeys(key_ids, valid_at_ms)
        return valid_keys(
            (await self._find({server: wanted}, address=address))[server].keys, wanted
        )

    async def get_signers(self, event: Event) -> Collection[ServerName]:
        """Return the required signers of an event that have signed it validly.

        Raises BadEvent as `required_signers`.
        """
        wanted = _wanted_for(event)
        if not wanted:
            return ()
        known = await self._find(wanted)
        message = encode_reference(event.version, event.pdu)
        return [
            server
            for server, keys in wanted.items()
            if are_signatures_valid(
                message, signatures_of(event.pdu, server), valid_keys(known[server].keys, keys)
            )
        ]

    async def prefetch(self, events: Iterable[Event]) -> None:
        """Load the keys for these events: one read, and concurrent requests to servers.

        Call it before the events are checked one after the other. Keys that cannot be fetched are
        reported missing by those checks.
        """
        wanted: dict[ServerName, dict[KeyID, int]] = {}
        for event in events:
            try:
                needed = _wanted_for(event)
            except BadEvent:
                continue
            for server, keys in needed.items():
                of_server = wanted.setdefault(server, {})
                for key_id, at_ms in keys.items():
                    of_server[key_id] = max(at_ms, of_server.get(key_id, 0))
        await self._find(wanted)

    def lacks_keys_for(self, event: Event) -> bool:
        """Return whether a required signature of the event cannot be checked at present, as its key
        cannot be fetched."""
        try:
            wanted = _wanted_for(event)
        except BadEvent:
            return False
        return any(self._lacks(server, keys) for server, keys in wanted.items())

    async def renew(self, server: ServerName, *, is_unauthenticated: bool = False) -> bool:
        """Fetch the keys of a server now. Return whether it answered with valid ones.

        Does nothing during a pause after a failure, a recent answer or a 429. `is_unauthenticated`:
        for an unauthenticated request, so not if too many of these wait.
        """
        if self._is_paused(server) or not self._may_ask(server):
            return False
        if not is_unauthenticated:
            return await self._renew(server, is_unauthenticated=False)
        try:
            with self._unauthenticated.hold_now(*_parties_of(NO_ADDRESS, server)):
                return await self._renew(server, is_unauthenticated=True)
        except LimitExceeded:
            return False

    async def _renew(self, server: ServerName, *, is_unauthenticated: bool) -> bool:
        if not await self._fetches.run(server, self._fetching(server, is_unauthenticated)):
            return False
        self._lacking.record_answer(server)
        return True

    # ---- finding

    async def _find(
        self, wanted: WantedKeys, *, address: str | None = None
    ) -> Mapping[ServerName, _Known]:
        """Return the known keys of each server, after fetching those that are missing.

        `address`: the network address of a request by the one server in `wanted`, whose present
        keys are needed. A server that has just answered is not asked again for these. Raises
        LimitExceeded if too many such requests wait.
        """
        known = {server: self._get(server) for server in wanted}
        now = self._now_ms()
        if all(
            known[server].renew_at > now and valid_keys(known[server].keys, keys)
            for server, keys in wanted.items()
        ):
            return known  # nearly always
        uncached = [
            each for each in wanted if each not in self._known and self._get_fixed(each) is None
        ]
        if uncached:
            for name, stored in (await self._store.get_keys(uncached)).items():
                keys = {
                    KeyID(key_id): VerifyKey(key.public_key, key.valid_until)
                    for key_id, key in stored.keys.items()
                }
                self._cache(ServerName(name), keys, stored.fetched_at, stored.valid_until)
        lacking = {server: keys for server, keys in wanted.items() if self._lacks(server, keys)}
        if address is not None:
            lacking = {
                server: keys
                for server, keys in lacking.items()
                if not self._was_just_fetched(server)
            }
        is_unknown = not any(server in self._known for server in lacking)
        if address is not None and lacking and is_unknown:
            (server,) = lacking
            with self._unauthenticated.hold_now(*_parties_of(address, server)):
                await self._fetch_all(lacking, is_unauthenticated=True)
        elif lacking:
            await self._fetch_all(lacking, is_unauthenticated=False)
        now = self._now_ms()
        for server in wanted:
            if (
                server not in lacking
                and self._get(server).renew_at <= now
                and not self._is_paused(server)
            ):
                Deferred.fromCoroutine(self.renew(server)).addErrback(self._log_failure)
        return {server: self._get(server) for server in wanted}

    def _get(self, server: ServerName) -> _Known:
        return self._get_fixed(server) or self._known.get(server) or _NO_KEYS

    def _get_fixed(self, server: ServerName) -> _Known | None:
        """Return keys that need no request: our own, and pinned ones."""
        if server == self._identity.server_name:
            return self._own
        pinned = self._pinned_keys(server)
        if not pinned:
            return None
        return _Known(
            {key_id: VerifyKey(key, 1 << 60) for key_id, key in pinned.items()}, 1 << 60, 1 << 60
        )

    def _lacks(self, server: ServerName, keys: Mapping[KeyID, int]) -> bool:
        """Return whether none of the keys is known and valid: one good signature is enough."""
        if self._get_fixed(server) is not None:
            return False
        return bool(keys) and not valid_keys(self._get(server).keys, keys)

    def _is_paused(self, server: ServerName) -> bool:
        return self._lacking.left_ms(server) > 0

    def _was_just_fetched(self, server: ServerName) -> bool:
        return self._recently_fetched.left_ms(server) > 0

    def _may_ask(self, server: ServerName) -> bool:
        """Return whether it has neither just answered nor asked us to wait."""
        return not self._was_just_fetched(server) and not self._backoff.left_ms(server)

    # ---- fetching

    async def _fetch_all(self, lacking: WantedKeys, is_unauthenticated: bool) -> None:
        lacking = {server: keys for server, keys in lacking.items() if not self._is_paused(server)}
        left = lacking
        if self._notaries and len(left) >= NOTARIES_FIRST_FROM:
            await self._ask_notaries(left)
            left = {server: keys for server, keys in left.items() if self._lacks(server, keys)}
        asked = [server for server in left if self._may_ask(server)]
        await _gather(
            [
                self._fetches.run(server, self._fetching(server, is_unauthenticated))
                for server in asked
            ]
        )
        left = {server: keys for server, keys in left.items() if self._lacks(server, keys)}
        if left and self._notaries and len(lacking) < NOTARIES_FIRST_FROM:
            await self._ask_notaries(left)
        for server, keys in lacking.items():
            if self._lacks(server, keys):
                if server in asked or self._notaries:
                    self._lacking.record_failure(server)
            else:
                self._lacking.record_answer(server)

    def _fetching(
        self, server: ServerName, is_unauthenticated: bool
    ) -> Callable[[], Coroutine[Deferred[Any], Any, bool]]:
        return lambda: self._fetch(server, is_unauthenticated)

    async def _fetch(self, server: ServerName, is_unauthenticated: bool) -> bool:
        """Fetch the keys of a server. Return whether it answered with valid ones."""
        domain = registered_domain_of(server)
        if is_unauthenticated:
            await self._unauthenticated_fetch_slots.acquire(domain)
        else:
            await self._fetch_slots.acquire()
        try:
            document = read_keys(server, await self._remote.fetch(server), self._now_ms())
        except (RemoteError, MatrixError) as error:
            self._log.info("no keys of {server}: {error}", server=server, error=error)
            self._lacking.record_failure(server)
            self._backoff.record_failure(server, error)
            return False
        finally:
            if is_unauthenticated:
                self._unauthenticated_fetch_slots.release(domain)
            else:
                self._fetch_slots.release()
        self._recently_fetched.pause(server, REFETCH_PAUSE_MS)
        await self._store_document(document)
        return True

    async def _ask_notaries(self, wanted: WantedKeys) -> None:
        """Ask the notaries one after the other for the keys that are still missing."""
        for notary in self._notaries:
            names = [server for server, keys in wanted.items() if self._lacks(server, keys)]
            for start in range(0, len(names), SERVERS_PER_QUERY):
                part = {
                    server: wanted[server] for server in names[start : start + SERVERS_PER_QUERY]
                }
                await self._ask_notary(notary, part)

    async def _ask_notary(self, notary: Notary, wanted: WantedKeys) -> None:
        if self._backoff.left_ms(notary.server_name):
            return
        try:
            documents = await self._remote.query(notary.server_name, wanted)
        except (RemoteError, MatrixError) as error:
            self._log.info(
                "the notary {notary} did not answer: {error}",
                notary=notary.server_name,
                error=error,
            )
            self._backoff.record_failure(notary.server_name, error)
            return
        for each in documents:
            name = each.get("server_name")
            if not isinstance(name, str) or name not in wanted:
                continue
            try:
                if not await self._is_signed_by_notary(notary, each):
                    raise Unauthorized(f"{notary.server_name} has not signed its answer")
                await self._store_if_newer(read_keys(ServerName(name), each, self._now_ms()))
            except (Unauthorized, BadJson) as error:
                self._log.warn(
                    "invalid key document from the notary {notary}: {error}",
                    notary=notary.server_name,
                    error=error,
                )

    async def _is_signed_by_notary(self, notary: Notary, document: Mapping[str, object]) -> bool:
        if notary.unsigned:
            return True
        keys = notary.keys
        if not keys:
            now = self._now_ms()
            wanted = dict.fromkeys(
                list(signatures_of(document, notary.server_name))[:MAX_KEYS], now
            )
            if self._lacks(notary.server_name, wanted) and not await self.renew(notary.server_name):
                return False
            keys = valid_keys(self._get(notary.server_name).keys, wanted)
        return is_signed_by(document, notary.server_name, keys)

    # ---- storing

    async def _store_if_newer(self, document: KeyDocument) -> None:
        """Store a document of a notary. An older one than ours only adds keys that ours lacks."""
        known = self._get(document.server_name)
        if document.valid_until_ms >= known.valid_until:
            await self._store_document(document)
        elif not document.keys.keys() <= known.keys.keys():
            server = document.server_name
            keys = _with_latest(known.keys, document.keys)
            self._known.put(server, _Known(keys, known.valid_until, known.renew_at))
            await self._store.add_keys(
                server,
                {key_id: _stored(key) for key_id, key in keys.items() if key_id not in known.keys},
            )

    async def _store_document(self, document: KeyDocument) -> None:
        server, now = document.server_name, self._now_ms()
        self._cache(
            server,
            _with_latest(document.keys, self._get(server).keys),
            now,
            document.valid_until_ms,
        )
        await self._store.set_keys(
            server,
            {key_id: _stored(key) for key_id, key in document.keys.items()},
            StoredDocument(msgspec.json.encode(document.signed), document.valid_until_ms, now),
        )

    def _cache(
        self, server: ServerName, keys: Mapping[KeyID, VerifyKey], fetched_at: int, valid_until: int
    ) -> None:
        self._known.put(server, _Known(keys, valid_until, (fetched_at + valid_until) // 2))

    def _log_failure(self, failure: Failure) -> None:
        self._log.failure("keys could not be renewed", failure)


def _stored(key: VerifyKey) -> StoredKey:
    return StoredKey(key.public_key, key.valid_until_ms)


def _with_latest(
    keys: Mapping[KeyID, VerifyKey], others: Mapping[KeyID, VerifyKey]
) -> dict[KeyID, VerifyKey]:
    """Return the keys and the longest-valid ones of `others`, at most `MAX_STORED_KEYS` in all.

    The store does the same.
    """
    left = sorted(
        ((key_id, key) for key_id, key in others.items() if key_id not in keys),
        key=lambda each: (-each[1].valid_until_ms, each[0]),
    )
    return {**keys, **dict(left[: max(0, MAX_STORED_KEYS - len(keys))])}


_NO_KEYS = _Known({}, 0, 1 << 60)


def _wanted_for(event: Event) -> dict[ServerName, dict[KeyID, int]]:
    """Return the key IDs of the required signatures of an event. Raises BadEvent."""
    at_ms = event.origin_server_ts if event.version.enforces_key_validity else 0
    return {
        server: dict.fromkeys(list(signatures_of(event.pdu, server))[:MAX_KEYS], at_ms)
        for server in required_signers(event)
    }


async def _gather(work: Sequence[Coroutine[Deferred[Any], Any, object]]) -> None:
    await gatherResults([Deferred.fromCoroutine(each) for each in work], consumeErrors=True)

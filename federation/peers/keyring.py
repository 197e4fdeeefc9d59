"""The keys of other servers: fetched when a signature is to be checked, kept for good, fetched anew
before they run out.

Laws:
- A key counts for what was signed while it was valid. How far in the future that is believed has a
  bound, and rooms of old versions ask for no validity.
- One fetch serves all who wait for it. A server that failed, or has not the key that was asked for,
  is asked again after a pause that doubles up to five minutes: whoever sends us forged names makes
  us ask little. One that has answered is not asked again for some seconds, whatever new keys it
  signs with; and of the keys that it names, a bounded number is kept. One that says when to come
  again (429) is not asked before, itself: notaries may be.
- A document counts when the server has signed it itself; one that a notary hands us, when the
  notary has signed it too.
- Requests of servers that have proved nothing yet wait for keys apart from all others: anybody can
  name any number of servers in requests, and let each answer slowly. The places are shared among
  the network addresses that requests come from, and among the registered domains that they name.
  Each may hold as many as it leaves free, so that some are left however hard one presses; the two
  are counted apart, since many who wait for the same server wait for one question. Servers are
  asked in turns of domains.
- Of a server whose keys are pinned no others are believed, and nobody is asked for them.
- Servers are asked themselves, and then the notaries of the configuration, if there are any. When
  many are wanted at once, as when a large room is joined, the notaries come first: one question
  instead of hundreds.

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
from federation.peers.server_keys import SERVERS_AT_ONCE, RemoteServerKeys
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
from storage.federation.server_keys import MOST_KEYS, ServerKeyStore, StoredDocument, StoredKey

AT_ONCE = 30
"""Servers that are asked at the same time."""
AT_DOOR = 20
"""Servers of which nothing is known that are asked at the same time since somebody named them."""
MOST_AT_DOOR = 70
"""Requests that wait for that, each held in memory. Further ones are refused."""
NO_ADDRESS = ""
"""Of those who ask us as a notary: all together count as one that asks."""
MANY = 10
"""From so many servers on the notaries are asked first."""
RETRIES = BackoffSchedule(5_000, 300_000)
REST_MS = 5_000
"""How long a server that has said its keys is not asked for more of them."""
MAX_REMEMBERED = 10_000
"""Servers whose keys, or whose failures, are held in memory."""

Wanted = Mapping[ServerName, Mapping[KeyID, int]]
"""Keys, and when each has to have been valid, in milliseconds."""


class Notary(msgspec.Struct, frozen=True):
    """A server that is believed about other servers' keys."""

    server_name: ServerName
    keys: Mapping[KeyID, bytes]
    """Its own, where they are known beforehand; else it is asked for them."""
    unsigned: bool = False
    """Whether its answers are believed though it has not signed them."""


class _Known(msgspec.Struct, frozen=True):
    keys: Mapping[KeyID, VerifyKey]
    said_until: int
    """Until when its last document is good."""
    renew_at: int


class _Party(NamedTuple):
    """One for which places are counted: the network address or the domain of a request."""

    kind: Literal["address", "domain"]
    name: str


def _parties_of(address: str, server: ServerName) -> tuple[_Party, _Party]:
    return _Party("address", address), _Party("domain", registered_domain_of(server))


class Keyring:
    """Finds keys. For the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        remote: RemoteServerKeys,
        store: ServerKeyStore,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
        *,
        notaries: Sequence[Notary] = (),
        old_keys: Mapping[KeyID, VerifyKey] | None = None,
        pinned_keys: Callable[[ServerName], Mapping[KeyID, bytes]] = lambda _: {},
    ) -> None:
        """`old_keys`: those that this server itself used to use. `pinned_keys`: of a server, the
        only ones to believe."""
        self._pinned_keys = pinned_keys
        self._remote = remote
        self._store = store
        self._identity = identity
        self._now_ms = now_ms
        self._notaries = notaries
        own = VerifyKey(identity.key.public_key, 1 << 60)
        self._own = _Known({**(old_keys or {}), identity.key.key_id: own}, 1 << 60, 1 << 60)
        self._known: dict[ServerName, _Known] = {}
        self._lacking: PeerBackoff[ServerName] = PeerBackoff(
            now_ms, RETRIES, max_remembered=MAX_REMEMBERED
        )
        """Servers whose keys could not be had, from whomever."""
        self._fresh: PeerBackoff[ServerName] = PeerBackoff(now_ms, max_remembered=MAX_REMEMBERED)
        """Servers that have just said their keys."""
        self._backoff: PeerBackoff[ServerName] = PeerBackoff(now_ms)
        """Servers that asked us to wait."""
        self._fetches: SharedWork[ServerName, bool] = SharedWork()
        self._line = DeferredSemaphore(AT_ONCE)
        self._unknown: FairSemaphore[_Party] = FairSemaphore(
            MOST_AT_DOOR,
            lambda _party: self._unknown.free,
            refusal=lambda _party: LimitExceeded(
                "Too many servers make themselves known just now", retry_after_ms=RETRIES.first_ms
            ),
        )
        """Requests of servers that have proved nothing yet."""
        self._questions: FairSemaphore[str] = FairSemaphore(AT_DOOR, AT_DOOR // 2)
        """Questions to such servers, by registered domain."""

    async def get_keys(
        self, server: ServerName, key_ids: Collection[KeyID], valid_at_ms: int
    ) -> Mapping[KeyID, bytes]:
        """Those of the keys that were valid then; what cannot be had is left out."""
        wanted = dict.fromkeys(key_ids, valid_at_ms)
        return valid_keys((await self._find({server: wanted}))[server].keys, wanted)

    async def get_keys_of_caller(
        self, server: ServerName, key_ids: Collection[KeyID], valid_at_ms: int, address: str
    ) -> Mapping[KeyID, bytes]:
        """As `get_keys`, for a request that is yet to be proved. Raises LimitExceeded where too
        many wait at the door.

        `address`: that of the network that the request comes from, or what it counts as.
        """
        wanted = dict.fromkeys(key_ids, valid_at_ms)
        return valid_keys((await self._find({server: wanted}, caller=address))[server].keys, wanted)

    async def get_signers(self, event: Event) -> Collection[ServerName]:
        """Those of an event's required signers whose valid signatures it has. Raises BadEvent as
        `required_signers`."""
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

    async def prepare(self, events: Iterable[Event]) -> None:
        """Have the keys at hand that these events need: one read, and questions to several servers
        at a time.

        Call it before many are checked one after the other; what cannot be had is found missing
        then.
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
        """Whether a signature that the event must have could not be checked just now, since its key
        cannot be had."""
        try:
            wanted = _wanted_for(event)
        except BadEvent:
            return False
        return any(self._lacks(server, keys) for server, keys in wanted.items())

    async def renew(self, server: ServerName, *, at_door: bool = False) -> bool:
        """Ask a server for its keys now, unless it is its pause, or has just said them or that we
        should wait; whether it answered well.

        `at_door`: for anybody, so not where too many wait there.
        """
        if self._is_paused(server) or not self._may_ask(server):
            return False
        if not at_door:
            return await self._renew(server, at_door=False)
        try:
            with self._unknown.hold_now(*_parties_of(NO_ADDRESS, server)):
                return await self._renew(server, at_door=True)
        except LimitExceeded:
            return False

    async def _renew(self, server: ServerName, *, at_door: bool) -> bool:
        if not await self._fetches.run(server, self._fetching(server, at_door)):
            return False
        self._lacking.record_answer(server)
        return True

    # ---- finding

    async def _find(
        self, wanted: Wanted, *, caller: str | None = None
    ) -> Mapping[ServerName, _Known]:
        """What is known of each server once all that could be done is done. Raises LimitExceeded at
        the door.

        `caller`: the address that a request of one server comes from. The keys are those with which
        it signs now: as it says these itself, it is passed over when it has just done so.
        """
        known = {server: self._get(server) for server in wanted}
        now = self._now_ms()
        if all(
            known[server].renew_at > now and valid_keys(known[server].keys, keys)
            for server, keys in wanted.items()
        ):
            return known  # as nearly always
        unread = [each for each in wanted if each not in self._known and self._given(each) is None]
        if unread:
            for name, stored in (await self._store.get_keys(unread)).items():
                keys = {
                    KeyID(key_id): VerifyKey(key.public_key, key.valid_until)
                    for key_id, key in stored.keys.items()
                }
                self._remember(ServerName(name), keys, stored.fetched_at, stored.valid_until)
        lacking = {server: keys for server, keys in wanted.items() if self._lacks(server, keys)}
        if caller is not None:
            lacking = {
                server: keys for server, keys in lacking.items() if not self._rests_now(server)
            }
        if caller is not None and lacking and not lacking.keys() & self._known.keys():
            (server,) = lacking
            with self._unknown.hold_now(*_parties_of(caller, server)):
                await self._fetch_all(lacking, at_door=True)
        elif lacking:
            await self._fetch_all(lacking, at_door=False)
        now = self._now_ms()
        for server in wanted:
            if (
                server not in lacking
                and self._get(server).renew_at <= now
                and not self._is_paused(server)
            ):
                Deferred.fromCoroutine(self.renew(server)).addErrback(self._tell)
        return {server: self._get(server) for server in wanted}

    def _get(self, server: ServerName) -> _Known:
        return self._given(server) or self._known.get(server, _NOTHING)

    def _given(self, server: ServerName) -> _Known | None:
        """The keys that nobody has to be asked for: our own, and those that are pinned."""
        if server == self._identity.server_name:
            return self._own
        pinned = self._pinned_keys(server)
        if not pinned:
            return None
        return _Known(
            {key_id: VerifyKey(key, 1 << 60) for key_id, key in pinned.items()}, 1 << 60, 1 << 60
        )

    def _lacks(self, server: ServerName, keys: Mapping[KeyID, int]) -> bool:
        """Whether none of the keys can be used as it is: one good signature is enough."""
        if self._given(server) is not None:
            return False
        return bool(keys) and not valid_keys(self._get(server).keys, keys)

    def _is_paused(self, server: ServerName) -> bool:
        return self._lacking.left_ms(server) > 0

    def _rests_now(self, server: ServerName) -> bool:
        return self._fresh.left_ms(server) > 0

    def _may_ask(self, server: ServerName) -> bool:
        """Whether it has neither just said its keys, nor asked us to wait."""
        return not self._rests_now(server) and not self._backoff.left_ms(server)

    # ---- fetching

    async def _fetch_all(self, lacking: Wanted, at_door: bool) -> None:
        lacking = {server: keys for server, keys in lacking.items() if not self._is_paused(server)}
        left = lacking
        if self._notaries and len(left) >= MANY:
            await self._ask_notaries(left)
            left = {server: keys for server, keys in left.items() if self._lacks(server, keys)}
        asked = [server for server in left if self._may_ask(server)]
        await _all([self._fetches.run(server, self._fetching(server, at_door)) for server in asked])
        left = {server: keys for server, keys in left.items() if self._lacks(server, keys)}
        if left and self._notaries and len(lacking) < MANY:
            await self._ask_notaries(left)
        for server, keys in lacking.items():
            if self._lacks(server, keys):
                if server in asked or self._notaries:
                    self._lacking.record_failure(server)
            else:
                self._lacking.record_answer(server)

    def _fetching(
        self, server: ServerName, at_door: bool
    ) -> Callable[[], Coroutine[Deferred[Any], Any, bool]]:
        return lambda: self._fetch(server, at_door)

    async def _fetch(self, server: ServerName, at_door: bool) -> bool:
        """Ask a server for its keys; whether it answered well."""
        domain = registered_domain_of(server)
        if at_door:
            await self._questions.acquire(domain)
        else:
            await self._line.acquire()
        try:
            document = read_keys(server, await self._remote.fetch(server), self._now_ms())
        except (RemoteError, MatrixError) as error:
            self._log.info("no keys of {server}: {error}", server=server, error=error)
            self._lacking.record_failure(server)
            self._backoff.record_failure(server, error)
            return False
        finally:
            if at_door:
                self._questions.release(domain)
            else:
                self._line.release()
        self._fresh.pause(server, REST_MS)
        await self._keep(document)
        return True

    async def _ask_notaries(self, wanted: Wanted) -> None:
        """Ask one after the other for what is lacking still."""
        for notary in self._notaries:
            names = [server for server, keys in wanted.items() if self._lacks(server, keys)]
            for start in range(0, len(names), SERVERS_AT_ONCE):
                part = {server: wanted[server] for server in names[start : start + SERVERS_AT_ONCE]}
                await self._ask_notary(notary, part)

    async def _ask_notary(self, notary: Notary, wanted: Wanted) -> None:
        if self._backoff.left_ms(notary.server_name):
            return
        try:
            documents = await self._remote.query(notary.server_name, wanted)
        except (RemoteError, MatrixError) as error:
            self._log.info(
                "the notary {notary} does not help: {error}", notary=notary.server_name, error=error
            )
            self._backoff.record_failure(notary.server_name, error)
            return
        for each in documents:
            name = each.get("server_name")
            if not isinstance(name, str) or name not in wanted:
                continue
            try:
                if not await self._is_by(notary, each):
                    raise Unauthorized(f"{notary.server_name} has not signed its answer")
                await self._keep_if_news(read_keys(ServerName(name), each, self._now_ms()))
            except (Unauthorized, BadJson) as error:
                self._log.warn(
                    "of the notary {notary}: {error}", notary=notary.server_name, error=error
                )

    async def _is_by(self, notary: Notary, document: Mapping[str, object]) -> bool:
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

    # ---- keeping

    async def _keep_if_news(self, document: KeyDocument) -> None:
        """Keep what a notary hands us; of a document that is older than ours only keys that ours
        does not speak of."""
        known = self._get(document.server_name)
        if document.valid_until_ms >= known.said_until:
            await self._keep(document)
        elif not document.keys.keys() <= known.keys.keys():
            server = document.server_name
            keys = _with_latest(known.keys, document.keys)
            self._known[server] = _Known(keys, known.said_until, known.renew_at)
            await self._store.add_keys(
                server,
                {key_id: _stored(key) for key_id, key in keys.items() if key_id not in known.keys},
            )

    async def _keep(self, document: KeyDocument) -> None:
        server, now = document.server_name, self._now_ms()
        self._remember(
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

    def _remember(
        self, server: ServerName, keys: Mapping[KeyID, VerifyKey], fetched_at: int, valid_until: int
    ) -> None:
        self._known.pop(server, None)
        self._known[server] = _Known(keys, valid_until, (fetched_at + valid_until) // 2)
        if len(self._known) > MAX_REMEMBERED:
            del self._known[next(iter(self._known))]

    def _tell(self, failure: Failure) -> None:
        self._log.failure("keys could not be renewed", failure)


def _stored(key: VerifyKey) -> StoredKey:
    return StoredKey(key.public_key, key.valid_until_ms)


def _with_latest(
    keys: Mapping[KeyID, VerifyKey], others: Mapping[KeyID, VerifyKey]
) -> dict[KeyID, VerifyKey]:
    """The keys, and of others those that are valid for longest, `MOST_KEYS` together: as the store
    does."""
    left = sorted(
        ((key_id, key) for key_id, key in others.items() if key_id not in keys),
        key=lambda each: (-each[1].valid_until_ms, each[0]),
    )
    return {**keys, **dict(left[: max(0, MOST_KEYS - len(keys))])}


_NOTHING = _Known({}, 0, 1 << 60)


def _wanted_for(event: Event) -> dict[ServerName, dict[KeyID, int]]:
    """The keys with which an event's required signers have signed it. Raises BadEvent."""
    at_ms = event.origin_server_ts if event.version.enforces_key_validity else 0
    return {
        server: dict.fromkeys(list(signatures_of(event.pdu, server))[:MAX_KEYS], at_ms)
        for server in required_signers(event)
    }


async def _all(work: Sequence[Coroutine[Deferred[Any], Any, object]]) -> None:
    await gatherResults([Deferred.fromCoroutine(each) for each in work], consumeErrors=True)

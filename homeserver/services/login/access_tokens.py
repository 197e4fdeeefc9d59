"""Access tokens and the users who own them, cached in memory, since every request needs them.

Laws:
- A cached token costs no query. A change of its account (`Topic.ACCOUNT`) invalidates it, on each
  node when the change arrives there.
- With PostgreSQL, a node trusts its cache only for a few seconds after it last polled the database
  for changes of other nodes (`homeserver/cluster/peer_nodes.py`). When the polls fail for longer,
  each request reads the token from the database.
- If a change of the account arrives while one of its tokens is being read, the token is not cached:
  the row may be outdated. The first use of a token from a refresh changes the account too, so that
  token is cached only at its second use.
- The cache is a map by token hash. A second, smaller map finds recent tokens by their text, without
  hashing. Both maps hold the same entry objects. When an entry is removed from the map by hash, its
  `owner` is cleared, so that the second map does not return it either.
- The cache is bounded and evicts the least recently used token.
- An entry is read again when its token or account expires.
- Unknown tokens are not cached. A token with a wrong checksum is refused without a query.
- The first use of a token from a refresh ends the pair of tokens that the refresh replaced, before
  the request continues.
- A long poll checks its token again after it has waited, before it returns new data (`recheck`).

spec: client-server-api#using-access-tokens, client-server-api#refreshing-access-tokens
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from typing import Final, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.api.request import RequestContext
from federation.protocol.errors import UnknownToken, UserLocked
from federation.protocol.ids import DeviceID, UserID
from homeserver.api.requester import Requester
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.login.last_seen import LastSeen
from homeserver.services.tokens.secret_tokens import hash_token, is_damaged
from storage.accounts.accounts import AccountStore
from storage.cache import LRU
from storage.engine.database import Database
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.engine.transaction import WriteTransaction
from storage.login.access_tokens import AccessTokenRow, PairUse, TokenStore

_ALL_USERS: Final = ""
MAX_RAW_TOKENS: Final = 2048
"""Maximum number of recent tokens that are looked up by their text, without hashing."""
MAX_RAW_TOKEN_LENGTH: Final = 256
"""Longer tokens are hashed each time."""


class PendingConsents(Protocol):
    """The consents that users still have to give."""

    @property
    def versions(self) -> Sequence[tuple[str, str]]:
        """The policies with their current versions."""
        ...

    def find_consent_block(self, row: AccessTokenRow) -> tuple[str, str] | None:
        """Return the error text and the URL of the consent page for a user who must consent first.

        None for other users. `row`: read with `versions`.
        """
        ...


class _Entry(msgspec.Struct):
    """A cache entry of a token."""

    owner: Requester | None
    """None: removed from the cache; the map by text may still hold the entry."""
    until: float
    """When to read the token again, in seconds since 1970."""


class AccessTokens:
    """Finds the owners of access tokens.

    It is not a `StreamCache`: after a write of another node it reads which accounts have changed,
    and a revoked token is cleared in every map that holds its entry.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        tokens: TokenStore,
        accounts: AccountStore,
        streams: Streams,
        last_seen: LastSeen,
        validity: AccountValidity | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        max_cached: int = 100_000,
        consents: PendingConsents | None = None,
    ) -> None:
        """`validity`: the expiry of accounts. `monotonic`: a monotonic clock in seconds.
        `consents`: the source of missing consents, which are added to each `Requester`."""
        self._validity = validity or AccountValidity(clock=clock)
        self._consents = consents
        self._clock = clock
        self._database = database
        self._tokens = tokens
        self._accounts = accounts
        self._last_seen = last_seen
        self._cache: LRU[bytes, _Entry] = LRU(max_entries=max_cached, on_remove=self._on_removed)
        """By hash of the token."""
        self._by_text: LRU[str, _Entry] = LRU(max_entries=MAX_RAW_TOKENS)
        """By the text of recent tokens: hashing would cost more than the rest of the look-up."""
        self._by_user: dict[str, dict[int, bytes]] = {}
        """Hashes of the cached tokens, by user and number of the token."""
        self._reads_in_progress: list[set[str]] = []
        self._monotonic = monotonic
        self._trusted_until = inf
        self._pending_invalidations = 0
        self._invalidation_waiters: list[Deferred[None]] = []
        streams.subscribe(self._on_changes, Topic.ACCOUNT, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    @property
    def cache(self) -> LRU[bytes, _Entry]:
        """The tokens by hash, for metrics. Lookups by the token itself are not counted."""
        return self._cache

    async def get_requester(self, token: str, context: RequestContext) -> Requester | None:
        """Return the owner of an access token; None for an unknown token.

        Raises `UnknownToken` with `soft_logout` for an expired token that can be refreshed. Locked
        and suspended accounts are returned: the caller decides.
        """
        owner = self.get_cached(token, context.client_ip, context.headers)
        if owner is None and not is_damaged(token):
            owner = await self._read(hash_token(token))
            if owner is not None and owner.device_id is not None:
                self._last_seen.record(
                    owner.user_id, owner.device_id, context.client_ip, context.headers
                )
        return owner

    def get_cached(
        self, token: str, client_ip: str, headers: Mapping[bytes, bytes]
    ) -> Requester | None:
        """Return the owner of a cached token; None if it is not cached or not trusted."""
        entry = self._by_text.get(token)
        if entry is None or entry.owner is None:
            entry = self._find_by_hash(token)
            if entry is None:
                return None
        owner = entry.owner
        if entry.until <= self._clock.seconds() or (
            self._trusted_until != inf and not self._is_trusted()
        ):
            return None
        if owner is not None and owner.device_id is not None:
            self._last_seen.record(owner.user_id, owner.device_id, client_ip, headers)
        return owner

    def _find_by_hash(self, token: str) -> _Entry | None:
        entry = self._cache.get(hash_token(token))
        if entry is not None and len(token) <= MAX_RAW_TOKEN_LENGTH:
            self._by_text.put(token, entry)
        return entry

    def recheck(self, caller: Requester) -> Awaitable[None] | None:
        """Check the token of a long poll again, after it has waited.

        Return None if the cache shows that the token is still valid. Otherwise return an awaitable
        that reads the database and raises `UnknownToken` or `UserLocked`.
        """
        if caller.appservice_id is not None:
            return None
        if (
            not self._pending_invalidations
            and caller.token_nid in self._by_user.get(caller.user_id, ())
            and self._is_trusted()
        ):
            return None
        return self._check_again(caller)

    async def _check_again(self, caller: Requester) -> None:
        await self.wait_for_invalidation()
        now = int(self._clock.seconds() * 1000)
        account = await self._tokens.get_token_state(
            caller.token_nid, caller.user_id, caller.device_id, now
        )
        if account is None or account.deactivated:
            raise UnknownToken
        if account.locked:
            raise UserLocked(soft_logout=True)
        if not account.exists:
            # The client has refreshed the session twice in the meantime: it must keep its keys.
            raise UnknownToken(soft_logout=True) if account.is_refreshed else UnknownToken
        if (
            account.expires_ts is not None
            and account.expires_ts <= now
            and not account.is_refreshed
        ):
            raise UnknownToken("The access token has expired", soft_logout=True)

    def _is_trusted(self) -> bool:
        """Return whether the cache is trusted now."""
        return self._trusted_until == inf or self._trusted_until > self._monotonic()

    def trust_until(self, seconds: float) -> None:
        """Trust the cache until this time of the monotonic clock; then read the database."""
        self._trusted_until = seconds

    async def wait_for_invalidation(self) -> None:
        """Wait until the announced changes have been invalidated."""
        if self._pending_invalidations:
            waiter: Deferred[None] = Deferred()
            self._invalidation_waiters.append(waiter)
            await waiter

    async def _read(self, token_hash: bytes) -> Requester | None:
        invalidated_users: set[str] = set()
        self._reads_in_progress.append(invalidated_users)
        try:
            policies = () if self._consents is None else self._consents.versions
            row = await self._tokens.get_access_token(token_hash, policies)
            if row is None or row.deactivated:
                return None
            if row.expires_ts is not None and row.expires_ts <= self._clock.seconds() * 1000:
                raise UnknownToken("The access token has expired", soft_logout=True)
            if not row.first_used:
                await self._end_replaced_pair(row)
        finally:
            self._reads_in_progress = [
                each for each in self._reads_in_progress if each is not invalidated_users
            ]
        owner = Requester(
            user_id=UserID(row.user_id),
            device_id=None if row.device_id is None else DeviceID(row.device_id),
            token_nid=row.token_nid,
            is_guest=row.is_guest,
            is_admin=row.is_admin,
            is_locked=row.locked,
            is_suspended=row.suspended,
            is_shadow_banned=row.shadow_banned,
            consent=None if self._consents is None else self._consents.find_consent_block(row),
            is_expired=self._validity.is_expired(row.account_expires_ts),
            oauth_client=row.oauth_client,
            device_created_ts=row.device_created_ts,
        )
        if row.user_id not in invalidated_users and _ALL_USERS not in invalidated_users:
            self._cache_owner(token_hash, owner, self._holds_until(row, owner))
        return owner

    def _holds_until(self, row: AccessTokenRow, owner: Requester) -> float:
        """Return when to read the token again, in seconds since 1970."""
        account_expiry = (
            None if owner.is_expired else self._validity.effective_expiry(row.account_expires_ts)
        )
        ends = [ts for ts in (row.expires_ts, account_expiry) if ts is not None]
        return min(ends) / 1000 if ends else float("inf")

    async def _end_replaced_pair(self, row: AccessTokenRow) -> None:
        now = int(self._clock.seconds() * 1000)

        def write(txn: WriteTransaction) -> PairUse:
            if row.refresh_nid is None or row.device_id is None:
                return PairUse.AGAIN
            use = self._tokens.set_pair_used(txn, row.refresh_nid, row.user_id, row.device_id, now)
            if use is PairUse.FIRST:
                self._accounts.set_account_changed(txn, row.user_id)
            return use

        if await self._database.write("end_replaced_token_pair", write) is PairUse.TOO_LATE:
            raise UnknownToken("The access token was replaced by another", soft_logout=True)

    def _cache_owner(self, token_hash: bytes, owner: Requester, expires: float) -> None:
        self._cache.put(token_hash, _Entry(owner, expires))
        self._by_user.setdefault(owner.user_id, {})[owner.token_nid] = token_hash

    def _on_removed(self, _token_hash: bytes, entry: _Entry) -> None:
        owner, entry.owner = entry.owner, None
        if owner is None:
            return
        of_user = self._by_user[owner.user_id]
        of_user.pop(owner.token_nid, None)
        if not of_user:
            del self._by_user[owner.user_id]

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.ACCOUNT and change.user_id is not None:
                self._invalidate(change.user_id)

    def _on_remote_write(self, after: int, upto: int) -> None:
        self._pending_invalidations += 1
        Deferred.fromCoroutine(self._invalidate_changed(after, upto))

    async def _invalidate_changed(self, after: int, upto: int) -> None:
        """Invalidate the accounts that another node has changed at these positions."""
        try:
            changed = await self._accounts.get_changed_accounts(after, upto)
        except Exception:
            # Invalidate all users rather than accept a token that another node has revoked.
            self._log.failure("could not read which accounts have changed")
            changed = {*self._by_user, _ALL_USERS}
        for user_id in changed:
            self._invalidate(user_id)
        self._pending_invalidations -= 1
        if not self._pending_invalidations:
            waiters, self._invalidation_waiters = self._invalidation_waiters, []
            for waiter in waiters:
                waiter.callback(None)

    def _invalidate(self, user_id: str) -> None:
        for invalidated_users in self._reads_in_progress:
            invalidated_users.add(user_id)
        for token_hash in tuple(self._by_user.get(user_id, {}).values()):
            self._cache.pop(token_hash)

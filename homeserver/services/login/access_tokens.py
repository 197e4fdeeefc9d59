"""Who a token belongs to: asked by every request, so answered from memory.

Laws:
- A remembered token costs no query, and is forgotten when the stream tells of a change of its
  account (`Topic.ACCOUNT`): on every node, as soon as the change is heard of.
- On several nodes what is remembered is trusted only for a while after others were last heard
  (`homeserver/cluster/peers.py`); then the database is asked each time.
- What was read while such a change came in is not remembered: it may be the state from before. Nor
  is a token that came of a refresh at its first use, which is such a change itself.
- What is remembered of a token is one record, whoever has it: forgetting blots it out
  (`_forget_token`).
- Memory is bounded: the least recently used token is forgotten first.
- Until its account is past its day a token is remembered at most: then it is read again.
- Unknown tokens are not remembered, and damaged ones are refused without a query.
- The first use of a token from a refresh ends the pair that it replaced, before the request goes
  on.
- Whose request waits is asked for again before it is told what came meanwhile (`check_again`).

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

_EVERYBODY: Final = ""
MOST_AT_HAND: Final = 2048
"""So many tokens, of those that came last, are known as they are; others by their hash."""
LONGEST_USUAL: Final = 256
"""What is longer is hashed each time."""


class OwedConsents(Protocol):
    """Who has not agreed to terms."""

    @property
    def versions(self) -> Sequence[tuple[str, str]]:
        """The documents, each with its version of now."""
        ...

    def find_block(self, row: AccessTokenRow) -> tuple[str, str] | None:
        """What somebody is told who may not write before they have agreed, and the page where they
        do; None for others. The row was read with `versions`."""
        ...


class _Known(msgspec.Struct):
    """What is remembered of a token."""

    owner: Requester | None
    """None: that was forgotten, for everybody who still has this."""
    until: float
    """When it is to be read again, in seconds since 1970."""


class AccessTokens:
    """Checks access tokens.

    No `StreamCache`: after a write of another node it asks whose tokens changed, and a token that
    was revoked is cleared for everybody who still holds its record.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        tokens: TokenStore,
        accounts: AccountStore,
        streams: Streams,
        last_seen: LastSeen,
        *,
        validity: AccountValidity | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        most_remembered: int = 100_000,
    ) -> None:
        """`validity`: whether accounts end, and which are past their day. `monotonic` counts
        seconds, and nobody sets it."""
        self._validity = validity or AccountValidity(clock)
        self._consents: OwedConsents | None = None
        self._clock = clock
        self._database = database
        self._tokens = tokens
        self._accounts = accounts
        self._last_seen = last_seen
        self._remembered: LRU[bytes, _Known] = LRU(
            max_entries=most_remembered, on_remove=self._on_removed
        )
        """By hash of the token."""
        self._at_hand: LRU[str, _Known] = LRU(max_entries=MOST_AT_HAND)
        """By tokens that came of late: after a rest a hash costs more than all else that is done to
        find out who asks."""
        self._by_user: dict[str, dict[int, bytes]] = {}
        """Their hashes, by the tokens' numbers."""
        self._forgotten_meanwhile: list[set[str]] = []
        self._monotonic = monotonic
        self._trusted_until = inf
        self._taking_in = 0
        self._settling: list[Deferred[None]] = []
        streams.subscribe(self._on_changes, Topic.ACCOUNT, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    @property
    def cache(self) -> LRU[bytes, _Known]:
        """The tokens by hash, for metrics. Lookups by the token itself are not counted."""
        return self._remembered

    def ask_for_consent(self, consents: OwedConsents) -> None:
        """From now on tell of who is asked who has not agreed to terms that they have to agree
        to."""
        self._consents = consents

    async def get_requester(self, token: str, context: RequestContext) -> Requester | None:
        """The owner of an access token; None for one that is not ours. Raises `UnknownToken`, with
        `soft_logout`, for a session that is only to be renewed. Locked and suspended accounts are
        told, not refused: the guard decides."""
        owner = self.recall(token, context.client_ip, context.headers)
        if owner is None and not is_damaged(token):
            owner = await self._learn(hash_token(token))
            if owner is not None and owner.device_id is not None:
                self._last_seen.note(
                    owner.user_id, owner.device_id, context.client_ip, context.headers
                )
        return owner

    def recall(
        self, token: str, client_ip: str, headers: Mapping[bytes, bytes]
    ) -> Requester | None:
        """As `get_requester`, where that is in memory; None else."""
        known = self._at_hand.get(token)
        if known is None or known.owner is None:
            known = self._find_by_hash(token)
            if known is None:
                return None
        owner = known.owner
        if known.until <= self._clock.seconds() or (
            self._trusted_until != inf and not self._is_trusted()
        ):
            return None
        if owner is not None and owner.device_id is not None:
            self._last_seen.note(owner.user_id, owner.device_id, client_ip, headers)
        return owner

    def _find_by_hash(self, token: str) -> _Known | None:
        known = self._remembered.get(hash_token(token))
        if known is not None and len(token) <= LONGEST_USUAL:
            self._at_hand.put(token, known)
        return known

    def check_again(self, caller: Requester) -> Awaitable[None] | None:
        """Who has waited since they were let in: None where they would be now, as is known from
        memory; else what finds out, and raises `UnknownToken`, `UserLocked` for who would not."""
        if caller.appservice_id is not None:
            return None
        if (
            not self._taking_in
            and caller.token_nid in self._by_user.get(caller.user_id, ())
            and self._is_trusted()
        ):
            return None
        return self._check_again(caller)

    async def _check_again(self, caller: Requester) -> None:
        await self.settle()
        now = int(self._clock.seconds() * 1000)
        standing = await self._tokens.get_standing(
            caller.token_nid, caller.user_id, caller.device_id, now
        )
        if standing is None or standing.deactivated:
            raise UnknownToken
        if standing.locked:
            raise UserLocked(soft_logout=True)
        if not standing.is_there:
            # Of a device that goes on, a client that has renewed its session twice meanwhile: it
            # shall keep its keys.
            raise UnknownToken(soft_logout=True) if standing.is_renewed else UnknownToken
        if (
            standing.expires_ts is not None
            and standing.expires_ts <= now
            and not standing.is_renewed
        ):
            raise UnknownToken("The access token has expired", soft_logout=True)

    def _is_trusted(self) -> bool:
        """Whether what is remembered is trusted now."""
        return self._trusted_until == inf or self._trusted_until > self._monotonic()

    def trust_until(self, seconds: float) -> None:
        """What is remembered is trusted until then, by the clock that nobody sets; from then on the
        database is asked each time."""
        self._trusted_until = seconds

    async def settle(self) -> None:
        """Wait until what was heard of is forgotten."""
        if self._taking_in:
            settled: Deferred[None] = Deferred()
            self._settling.append(settled)
            await settled

    async def _learn(self, token_hash: bytes) -> Requester | None:
        forgotten: set[str] = set()
        self._forgotten_meanwhile.append(forgotten)
        try:
            policies = () if self._consents is None else self._consents.versions
            row = await self._tokens.get_access_token(token_hash, policies)
            if row is None or row.deactivated:
                return None
            if row.expires_ts is not None and row.expires_ts <= self._clock.seconds() * 1000:
                raise UnknownToken("The access token has expired", soft_logout=True)
            if not row.first_used:
                await self._end_replaced(row)
        finally:
            self._forgotten_meanwhile = [
                each for each in self._forgotten_meanwhile if each is not forgotten
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
            consent=None if self._consents is None else self._consents.find_block(row),
            is_expired=self._validity.is_over(row.account_expires_ts),
            oauth_client=row.oauth_client,
            device_made_ts=row.device_made_ts,
        )
        if row.user_id not in forgotten and _EVERYBODY not in forgotten:
            self._remember(token_hash, owner, self._holds_until(row, owner))
        return owner

    def _holds_until(self, row: AccessTokenRow, owner: Requester) -> float:
        """When what was read of a token is to be read again, in seconds since 1970."""
        account_ends = None if owner.is_expired else self._validity.end_of(row.account_expires_ts)
        ends = [ts for ts in (row.expires_ts, account_ends) if ts is not None]
        return min(ends) / 1000 if ends else float("inf")

    async def _end_replaced(self, row: AccessTokenRow) -> None:
        now = int(self._clock.seconds() * 1000)

        def write(txn: WriteTransaction) -> PairUse:
            if row.refresh_nid is None or row.device_id is None:
                return PairUse.AGAIN
            use = self._tokens.set_pair_used(txn, row.refresh_nid, row.user_id, row.device_id, now)
            if use is PairUse.FIRST:
                self._accounts.set_account_changed(txn, row.user_id)
            return use

        if await self._database.write("set_pair_used", write) is PairUse.TOO_LATE:
            raise UnknownToken("The access token was replaced by another", soft_logout=True)

    def _remember(self, token_hash: bytes, owner: Requester, expires: float) -> None:
        self._remembered.put(token_hash, _Known(owner, expires))
        self._by_user.setdefault(owner.user_id, {})[owner.token_nid] = token_hash

    def _on_removed(self, _token_hash: bytes, known: _Known) -> None:
        owner, known.owner = known.owner, None
        if owner is None:
            return
        of_user = self._by_user[owner.user_id]
        of_user.pop(owner.token_nid, None)
        if not of_user:
            del self._by_user[owner.user_id]

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.ACCOUNT and change.user_id is not None:
                self._forget(change.user_id)

    def _on_remote_write(self, after: int, upto: int) -> None:
        self._taking_in += 1
        Deferred.fromCoroutine(self._forget_changed(after, upto))

    async def _forget_changed(self, after: int, upto: int) -> None:
        """Another process wrote these positions: find out whom they concern."""
        try:
            changed = await self._accounts.get_changed_accounts(after, upto)
        except Exception:
            # Better to ask again for everybody than to let in whom another node has put out.
            self._log.failure("could not read whose sessions have changed")
            changed = {*self._by_user, _EVERYBODY}
        for user_id in changed:
            self._forget(user_id)
        self._taking_in -= 1
        if not self._taking_in:
            settling, self._settling = self._settling, []
            for settled in settling:
                settled.callback(None)

    def _forget(self, user_id: str) -> None:
        for forgotten in self._forgotten_meanwhile:
            forgotten.add(user_id)
        for token_hash in tuple(self._by_user.get(user_id, {}).values()):
            self._remembered.pop(token_hash)

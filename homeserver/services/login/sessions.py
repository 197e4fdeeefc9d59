"""Signed-in devices: beginning a session, renewing its tokens, ending it.

Laws:
- The texts of tokens are made outside the transaction and leave the server once, in the answer.
- A session begins only while what it rests on holds: its write compares the era of the account
  (`homeserver/services/login/credential_epoch.py`).
- A sign-in on a device that exists ends the session it had, and keeps its name and keys.
- A renewal leaves the old pair usable until one of the new pair is used; `session_lifetime` bounds
  all renewals.
- A refresh token that comes after its successor was used is refused: softly, so that the client
  keeps the device and its keys. Within a minute that is all, since two tabs of a client may ask at
  once. Later one of the two who have shown it has stolen it, and neither can be told from the
  other: the tokens of the session end, for both, and whoever has the password goes on with the
  device. It begins as the others of its session do, so it is known without being kept. (OAuth 2.0
  has no soft way: there the session ends.)
- Other stores that keep something by device (keys, messages to it) take part in its removal, in the
  same write.

spec: client-server-api#relationship-between-access-tokens-and-devices,
client-server-api#refreshing-access-tokens, RFC 9700 section 4.14
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import (
    Forbidden,
    InvalidParam,
    MatrixError,
    UnknownToken,
    UserLocked,
)
from federation.protocol.ids import ALL_DEVICES, DeviceID, UserID, domain_of
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.audit.audit import Happened, note, note_refusal
from homeserver.services.login.credential_epoch import check_era
from homeserver.services.tokens.secret_tokens import (
    SecretText,
    family_of,
    hash_token,
    is_damaged,
    oauth_family_of,
)
from storage.accounts.accounts import AccountStore
from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.cross_signing import has_cross_signing_key
from storage.encryption.dehydrated_devices import select_dehydrated
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.login.access_tokens import PairUse, TokenStore


class Lifetimes(msgspec.Struct, frozen=True):
    """How long tokens and sessions live, in milliseconds; None: for ever."""

    session: int | None = None
    refreshable_access_token: int = 300_000
    refresh_token: int | None = None
    nonrefreshable_access_token: int | None = None


class NewSession(msgspec.Struct, frozen=True):
    """A session that is ready to be written, and then to be told to its client. Times are
    milliseconds since 1970."""

    user_id: UserID
    device_id: DeviceID
    access_token: str
    access_expires_ts: int | None
    now: int
    device_name: str | None = None
    refresh_token: str | None = None
    refresh_expires_ts: int | None = None
    ultimate_expires_ts: int | None = None
    address: str | None = None
    """Whence it was begun, as far as that is known."""
    era: int | None = None
    """That of the account in which its owner proved who they are; None where that is in the same
    write."""

    @property
    def expires_in_ms(self) -> int | None:
        """As clients are told."""
        return None if self.access_expires_ts is None else self.access_expires_ts - self.now


def session_answer(user_id: UserID | None, session: NewSession | None) -> dict[str, object]:
    """What a client is told of its new session. `home_server` is deprecated, and still read by old
    clients."""
    answer: dict[str, object] = {}
    if user_id is not None:
        answer |= {"user_id": user_id, "home_server": domain_of(user_id)}
    if session is None:
        return answer
    answer |= {"access_token": session.access_token, "device_id": session.device_id}
    if session.refresh_token is not None:
        answer["refresh_token"] = session.refresh_token
    if session.expires_in_ms is not None:
        answer["expires_in_ms"] = session.expires_in_ms
    return answer


class KeepsByDevice(Protocol):
    """A store that keeps something for each device."""

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Remove what is kept for these devices."""
        ...


class EndsWithSessions(Protocol):
    """A store of what lets somebody in, or of what they have confirmed: it ends when all of their
    sessions do."""

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove what is kept for a user."""
        ...


class RecordedWithSessions(Protocol):
    """As `EndsWithSessions`, of which is recorded that it ended."""

    def remove_user(self, txn: WriteTransaction, user_id: str, ip: str | None) -> None:
        """Remove what is kept for a user; `ip`: whence that was asked for, where it is known."""
        ...


class Sessions:
    """Begins, renews and ends sessions."""

    def __init__(
        self,
        clock: IReactorTime,
        secret_text: SecretText,
        database: Database,
        accounts: AccountStore,
        devices: DeviceStore,
        tokens: TokenStore,
        *,
        limiter: RateLimiter | None = None,
        lifetimes: Lifetimes | None = None,
        ends_with_sessions: Sequence[EndsWithSessions] = (),
        recorded_with_sessions: Sequence[RecordedWithSessions] = (),
        recorded_with_all_sessions: Sequence[RecordedWithSessions] = (),
        kept_by_device: Sequence[KeepsByDevice] = (),
        kept_by_session: Sequence[KeepsByDevice] = (),
        set_by_tokens: Sequence[KeepsByDevice] = (),
    ) -> None:
        """`ends_with_sessions`, `recorded_with_sessions`: goes when all sessions of a user do, and
        when the account is locked; `recorded_with_all_sessions`: outlives a lock; `kept_by_device`:
        goes with a device; `kept_by_session`: also when somebody signs in anew on the device;
        `set_by_tokens`: what of `kept_by_device` tells whoever set it up of the account, so that it
        goes too when tokens of the device were in wrong hands."""
        self._clock = clock
        self._secret_text = secret_text
        self._database = database
        self._accounts = accounts
        self._devices = devices
        self._tokens = tokens
        self._ends_with_sessions = tuple(ends_with_sessions)
        self._recorded_with_sessions = tuple(recorded_with_sessions)
        self._recorded_with_all_sessions = tuple(recorded_with_all_sessions)
        self._limiter = limiter or RateLimiter(clock, {})
        self._lifetimes = lifetimes or Lifetimes()
        self._kept_by_device = tuple(kept_by_device)
        self._kept_by_session = tuple(kept_by_session)
        self._set_by_tokens = tuple(set_by_tokens)

    def prepare(
        self,
        user_id: UserID,
        *,
        address: str | None,
        era: int | None,
        device_id: DeviceID | None = None,
        device_name: str | None = None,
        refreshable: bool = False,
        access_token: str | None = None,
        refresh_token: str | None = None,
    ) -> NewSession:
        """A session to be written with `add`; without a device id, of a new device. `address`:
        whence it is asked for, None where that is not known; `era`: in which its owner proved who
        they are, None where the write itself sees that; `access_token` and `refresh_token`: their
        texts, where they are made already."""
        if refreshable and refresh_token is None:
            refresh_token = self._secret_text.refresh_token(self._secret_text.family())
        refreshable = refresh_token is not None
        now = self._now()
        lifetimes = self._lifetimes
        ends = _after(now, lifetimes.session)
        lasts = (
            lifetimes.refreshable_access_token
            if refreshable
            else lifetimes.nonrefreshable_access_token
        )
        return NewSession(
            user_id=user_id,
            device_id=device_id or DeviceID(self._secret_text.device_id()),
            access_token=access_token or self._secret_text.access_token(),
            access_expires_ts=_earliest(_after(now, lasts), ends),
            now=now,
            device_name=device_name,
            refresh_token=refresh_token,
            refresh_expires_ts=_earliest(_after(now, lifetimes.refresh_token), ends),
            ultimate_expires_ts=ends,
            address=address,
            era=era,
        )

    def add(self, txn: WriteTransaction, session: NewSession) -> None:
        """Write a prepared session; it takes the place of the one that the device had. Raises
        `Forbidden` for a device that would be named like a cross-signing key of its user
        (signatures of one would pass for the other's), or that is the dehydrated one,
        `InvalidParam` for one that would be named as all of them are, and as `check_era`."""
        if session.era is not None:
            check_era(txn, session.user_id, session.era)
        _check_device_id(txn, session.user_id, session.device_id)
        device = DeviceRow(
            user_id=session.user_id,
            device_id=session.device_id,
            display_name=session.device_name,
            created_ts=session.now,
        )
        if not self._devices.add_device(txn, device):
            self._tokens.remove_tokens_of_devices(txn, session.user_id, [session.device_id])
            for store in self._kept_by_session:
                store.remove_devices(txn, session.user_id, [session.device_id])
            self._accounts.set_account_changed(txn, session.user_id)
        self._add_tokens(txn, session)
        note(
            txn,
            session.user_id,
            Happened.SESSION_BEGAN,
            session.now,
            ip=session.address,
            device_id=session.device_id,
        )

    async def do_add_device(self, user_id: UserID, device_id: DeviceID, name: str | None) -> bool:
        """As `add_device`, in a write of its own."""
        return await self._database.write("add_device", self.add_device, user_id, device_id, name)

    def add_device(
        self, txn: WriteTransaction, user_id: UserID, device_id: DeviceID, name: str | None
    ) -> bool:
        """Make a device that nobody is signed in on; False where the user has it. Raises
        `Forbidden`, `InvalidParam` as `add`."""
        _check_device_id(txn, user_id, device_id)
        return self._devices.add_device(txn, DeviceRow(user_id, device_id, name, self._now()))

    async def do_begin(self, session: NewSession) -> None:
        """Write a prepared session."""
        await self._database.write("begin_session", self.add, session)

    async def get_owner(self, access_token: str) -> UserID | None:
        """Whose access token it is, while it is good."""
        row = (
            None
            if is_damaged(access_token)
            else await self._tokens.get_access_token(hash_token(access_token))
        )
        if (
            row is None
            or row.deactivated
            or (row.expires_ts is not None and row.expires_ts <= self._now())
        ):
            return None
        return UserID(row.user_id)

    async def do_refresh(self, refresh_token: str, address: str) -> NewSession:
        """Exchange a refresh token for a new pair; `address`: whence it comes. Raises
        `UnknownToken`, with `soft_logout` where time is over, or it was used already, `UserLocked`,
        and `LimitExceeded`."""
        if is_damaged(refresh_token) or oauth_family_of(refresh_token) is not None:
            raise UnknownToken("Unknown refresh token")
        owner = await self._database.read_quickly(
            "find_refresh_token", self._find_owner, refresh_token
        )
        if owner is None:
            raise UnknownToken("Unknown refresh token")  # what is made up costs no write
        self._limiter.check(Limit.REFRESH_ACCOUNT, owner)
        # Texts may not be made in the transaction, which may run twice.
        family = family_of(refresh_token) or self._secret_text.family()
        texts = self._secret_text.access_token(), self._secret_text.refresh_token(family)
        renewed = await self._database.write(
            "refresh_session", self._refresh, refresh_token, texts, address
        )
        if isinstance(renewed, MatrixError):
            raise renewed
        return renewed

    def _find_owner(self, txn: Transaction, refresh_token: str) -> str | None:
        """As what it counts whose refresh token it is, or was of a session that there still is: one
        that is good no more takes nothing from what there is room for of its owner's."""
        token = self._tokens.get_refresh_token(txn, hash_token(refresh_token))
        if token is not None:
            return spent_key(token.user_id) if token.is_late(self._now()) else token.user_id
        family = family_of(refresh_token)
        current = (
            None
            if family is None
            else self._tokens.get_refresh_token_of_family(txn, hash_token(family))
        )
        return None if current is None else spent_key(current.user_id)

    def _refresh(
        self, txn: WriteTransaction, refresh_token: str, texts: tuple[str, str], address: str
    ) -> NewSession | MatrixError:
        """What is refused is returned, since a record is kept of it."""
        token_hash, now = hash_token(refresh_token), self._now()
        try:
            renewed = self.renew(txn, token_hash, *texts, now)
        except UserLocked as error:
            token = self._tokens.get_refresh_token(txn, token_hash)
            assert token is not None
            device_id = DeviceID(token.device_id)
            note_refusal(txn, UserID(token.user_id), now, "locked", ip=address, device_id=device_id)
            return error
        if renewed is None:
            return self._refuse_spent(txn, refresh_token, address)
        if renewed.refresh_token is None:
            return UnknownToken("The session has expired", soft_logout=True)
        return renewed

    def _refuse_spent(
        self, txn: WriteTransaction, refresh_token: str, address: str
    ) -> UnknownToken:
        """A refresh token came that is good no more. Just after it was replaced, it is another
        tab's. One that was never used is not used twice. (What else is under way in the session
        says nothing: a thief has always something under way.)"""
        family, token_hash, now = family_of(refresh_token), hash_token(refresh_token), self._now()
        current = (
            None
            if family is None
            else self._tokens.get_refresh_token_of_family(txn, hash_token(family))
        )
        if current is None:
            return UnknownToken("Unknown refresh token")
        is_harmless = (
            self._tokens.is_just_spent(txn, token_hash, now)
            or self._tokens.get_refresh_token(txn, token_hash) is not None
            or (current.expires_ts is not None and current.expires_ts <= now)
        )
        if not is_harmless:
            user_id, device_id = UserID(current.user_id), DeviceID(current.device_id)
            note(txn, user_id, Happened.TOKEN_REUSED, now, ip=address, device_id=device_id)
            self._tokens.expire_tokens_of_device(txn, user_id, device_id, now)
            for store in self._set_by_tokens:
                store.remove_devices(txn, user_id, [device_id])
            self._accounts.set_account_changed(txn, user_id)
        return UnknownToken("The refresh token has been used already", soft_logout=True)

    def end_reused(
        self, txn: WriteTransaction, user_id: UserID, device_id: DeviceID, address: str
    ) -> None:
        """A secret of a session of the OAuth 2.0 API was used twice: it ends."""
        note(txn, user_id, Happened.TOKEN_REUSED, self._now(), ip=address, device_id=device_id)
        self.remove_devices(txn, user_id, [device_id], address)

    def renew(
        self,
        txn: WriteTransaction,
        token_hash: bytes,
        access_token: str,
        refresh_token: str,
        now: int,
        *,
        while_locked: bool = False,
    ) -> NewSession | None:
        """Write a new pair for who shows a refresh token; both new texts are given. None for a
        token that is unknown, no refresh token in the session where its time is over. Raises
        `UserLocked`, unless that is to be told by what the new tokens are shown to, as it is that
        an account is past its day: whoever renews it needs a token."""
        old = self._tokens.get_refresh_token(txn, token_hash)
        if old is None:
            return None
        ends = old.ultimate_expires_ts
        session = NewSession(
            user_id=UserID(old.user_id),
            device_id=DeviceID(old.device_id),
            access_token=access_token,
            access_expires_ts=_earliest(now + self._lifetimes.refreshable_access_token, ends),
            now=now,
            refresh_token=refresh_token,
            refresh_expires_ts=_earliest(_after(now, self._lifetimes.refresh_token), ends),
            ultimate_expires_ts=ends,
        )
        if old.expires_ts is not None and old.expires_ts <= now:
            return NewSession(session.user_id, session.device_id, access_token, None, now)
        account = self._accounts.get_accounts_in(txn, [old.user_id])[old.user_id]
        if account.deactivated_ts is not None:
            return None
        if account.locked and not while_locked:
            raise UserLocked(soft_logout=True)
        use = self._tokens.set_pair_used(txn, old.refresh_nid, old.user_id, old.device_id, now)
        if use is PairUse.TOO_LATE:
            return None
        if use is PairUse.FIRST:
            self._accounts.set_account_changed(txn, old.user_id)
        self._add_tokens(txn, session, from_nid=old.refresh_nid)
        self._tokens.trim_exchanges(txn, old, now)
        return session

    def _add_tokens(
        self, txn: WriteTransaction, session: NewSession, *, from_nid: int | None = None
    ) -> None:
        """`from_nid`: the refresh token for which they are."""
        refresh_nid = None
        if session.refresh_token is not None:
            family = family_of(session.refresh_token)
            refresh_nid = self._tokens.add_refresh_token(
                txn,
                hash_token(session.refresh_token),
                session.user_id,
                session.device_id,
                now=session.now,
                expires_ts=session.refresh_expires_ts,
                ultimate_expires_ts=session.ultimate_expires_ts,
                family_hash=None if family is None else hash_token(family),
                from_nid=from_nid,
            )
        self._tokens.add_access_token(
            txn,
            hash_token(session.access_token),
            session.user_id,
            session.device_id,
            now=session.now,
            expires_ts=session.access_expires_ts,
            refresh_nid=refresh_nid,
            first_used=from_nid is None,
        )

    async def do_log_out(self, caller: Requester, ip: str | None = None) -> None:
        """End the caller's session, and its device with it; `ip`: whence they ask."""
        await self._database.write("log_out", self._log_out, caller, ip)

    def _log_out(self, txn: WriteTransaction, caller: Requester, ip: str | None) -> None:
        if caller.device_id is None:
            self._tokens.remove_access_token(txn, caller.token_nid)
            self._accounts.set_account_changed(txn, caller.user_id)
        else:
            self.remove_devices(txn, caller.user_id, [caller.device_id], ip)

    async def do_log_out_everywhere(self, user_id: UserID, ip: str | None = None) -> None:
        """End all sessions of a user, and all devices with them; `ip`: whence that is asked for."""
        await self._database.write("log_out_everywhere", self.remove_sessions, user_id, None, ip)

    def remove_devices(
        self,
        txn: WriteTransaction,
        user_id: UserID,
        device_ids: Iterable[DeviceID],
        ip: str | None = None,
        by: UserID | None = None,
    ) -> None:
        """Remove devices with their sessions and all that is kept for them; unknown ones are no
        error. `ip`: whence that is asked for, where it is known; `by`: the administrator who
        does."""
        gone = list(device_ids)
        if not gone:
            return
        self._tokens.remove_tokens_of_devices(txn, user_id, gone)
        for store in (*self._kept_by_device, *self._kept_by_session):
            store.remove_devices(txn, user_id, gone)
        self._devices.remove_devices(txn, user_id, gone)
        self._accounts.set_account_changed(txn, user_id)
        for device_id in gone:
            note(
                txn, user_id, Happened.SESSION_ENDED, self._now(), ip=ip, device_id=device_id, by=by
            )

    def remove_sessions(
        self,
        txn: WriteTransaction,
        user_id: UserID,
        but: Requester | None = None,
        ip: str | None = None,
    ) -> None:
        """Remove all devices and sessions of a user, but the one that asks, if it is to stay; `ip`:
        whence that is asked for, where it is known."""
        devices = self._devices.get_devices_in(txn, [user_id]).get(user_id, [])
        stays = None if but is None else but.device_id
        self.remove_devices(
            txn, user_id, [DeviceID(d.device_id) for d in devices if d.device_id != stays], ip
        )
        if but is None:
            self._tokens.remove_tokens(txn, user_id)
        else:
            self._tokens.remove_tokens_without_device(txn, user_id, but.token_nid)
        self.remove_ways_in(txn, user_id, ip)
        for store in self._recorded_with_all_sessions:
            store.remove_user(txn, user_id, ip)
        self._accounts.set_account_changed(txn, user_id)

    def remove_ways_in(self, txn: WriteTransaction, user_id: str, ip: str | None = None) -> None:
        """Remove all by which a user could begin a session without proving who they are once more,
        also where they are about to; `ip`: as in `remove_sessions`."""
        self._accounts.begin_era(txn, user_id)
        self.remove_given(txn, user_id)
        for recorded in self._recorded_with_sessions:
            recorded.remove_user(txn, user_id, ip)

    def remove_given(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove what was given in an earlier era of the account to begin a session with, and was
        not used yet."""
        for store in self._ends_with_sessions:
            store.remove_user(txn, user_id)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)


def spent_key(user_id: str) -> str:
    """What a refresh token of somebody that is good no more counts as, against rate limits."""
    return f"spent {user_id}"


def _check_device_id(txn: WriteTransaction, user_id: UserID, device_id: DeviceID) -> None:
    if device_id == ALL_DEVICES:
        raise InvalidParam("No device can be called *, which stands for all of them")
    if has_cross_signing_key(txn, user_id, device_id):
        raise Forbidden("The device has the name of a cross-signing key of its user")
    dehydrated = select_dehydrated(txn, user_id)
    if dehydrated is not None and dehydrated.device_id == device_id:
        raise Forbidden("The device has the name of the dehydrated device of its user")


def _after(now: int, lifetime: int | None) -> int | None:
    return None if lifetime is None else now + lifetime


def _earliest(*times: int | None) -> int | None:
    return min((time for time in times if time is not None), default=None)

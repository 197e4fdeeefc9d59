"""Sessions of signed-in devices: begin a session, refresh its tokens, end it.

Laws:
- Tokens are generated outside the transaction and leave the server once, in the response.
- A session begins only while the authentication behind it is valid: the write compares the
  credential epoch of the account (`homeserver/services/login/credential_epoch.py`).
- A sign-in on an existing device ends its previous session. The device keeps its name and keys.
- A refresh issues a new access token and a new refresh token. The old pair stays usable until a
  token of the new pair is used; then the old refresh token is spent. A session ends after
  `session_lifetime`, however often it is refreshed.
- A spent refresh token is refused with `soft_logout`, so that the client keeps the device and its
  keys. In the first minute after it was spent, the refusal is the only effect, because two tabs of
  a client may refresh at the same time. After this minute we assume that the token was stolen, and
  cannot tell which of its two holders is the user. So all tokens of the session expire, and the
  user signs in again on the device. All refresh tokens of a session share a prefix (their family),
  so a spent token is recognised without being stored. OAuth 2.0 has no soft logout: an OAuth
  session ends if somebody sends a refresh token that was spent more than ten seconds before.
- Stores that hold data per device (keys, to-device messages) delete it in the write that removes
  the device.

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
from homeserver.services.audit.audit import AuditEvent, record_event, record_refusal
from homeserver.services.login.credential_epoch import check_epoch
from homeserver.services.tokens.secret_tokens import (
    SecretGenerator,
    hash_token,
    is_damaged,
    parse_family,
    parse_oauth_family,
)
from storage.accounts.accounts import AccountStore
from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.cross_signing import has_cross_signing_key
from storage.encryption.dehydrated_devices import select_dehydrated
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.login.access_tokens import PairUse, TokenStore


class TokenLifetimes(msgspec.Struct, frozen=True):
    """Lifetimes of tokens and sessions in milliseconds; None: unlimited."""

    session: int | None = None
    refreshable_access_token: int = 300_000
    refresh_token: int | None = None
    nonrefreshable_access_token: int | None = None


class NewSession(msgspec.Struct, frozen=True):
    """A session prepared for the write and for the response to the client.

    Times are milliseconds since 1970.
    """

    user_id: UserID
    device_id: DeviceID
    access_token: str
    access_expires_ts: int | None
    created_ts: int
    device_name: str | None = None
    refresh_token: str | None = None
    refresh_expires_ts: int | None = None
    session_expires_ts: int | None = None
    address: str | None = None
    """The client's IP address, if known."""
    epoch: int | None = None
    """The account's credential epoch at authentication; None where the write itself
    authenticates."""

    @property
    def expires_in_ms(self) -> int | None:
        """The remaining lifetime of the access token, as responses give it."""
        return None if self.access_expires_ts is None else self.access_expires_ts - self.created_ts


def session_response(user_id: UserID | None, session: NewSession | None) -> dict[str, object]:
    """Return the response body for a new session.

    `home_server` is deprecated, but old clients still read it.
    """
    response: dict[str, object] = {}
    if user_id is not None:
        response |= {"user_id": user_id, "home_server": domain_of(user_id)}
    if session is None:
        return response
    response |= {"access_token": session.access_token, "device_id": session.device_id}
    if session.refresh_token is not None:
        response["refresh_token"] = session.refresh_token
    if session.expires_in_ms is not None:
        response["expires_in_ms"] = session.expires_in_ms
    return response


class PerDeviceStore(Protocol):
    """A store with data per device."""

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Delete the data of these devices."""
        ...


class CredentialStore(Protocol):
    """A store of credentials or confirmations that are revoked with all sessions of the user."""

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Delete the user's rows."""
        ...


class AuditedCredentialStore(Protocol):
    """Like `CredentialStore`, with an audit record for each revocation."""

    def remove_user(self, txn: WriteTransaction, user_id: str, ip: str | None) -> None:
        """Delete the user's rows. `ip`: the address of the request, if known."""
        ...


class DependentStores(msgspec.Struct, frozen=True):
    """The stores that take part in the end of a session or device."""

    ends_with_sessions: Sequence[CredentialStore] = ()
    """Revoked with all sessions of a user, and when the account is locked."""
    recorded_with_sessions: Sequence[AuditedCredentialStore] = ()
    """The same, with an audit record."""
    recorded_with_all_sessions: Sequence[AuditedCredentialStore] = ()
    """Revoked with all sessions of a user, with an audit record, but not when the account is
    locked."""
    deleted_with_device: Sequence[PerDeviceStore] = ()
    """Deleted with a device."""
    deleted_with_session: Sequence[PerDeviceStore] = ()
    """Also deleted by a new sign-in on the device."""
    set_by_tokens: Sequence[PerDeviceStore] = ()
    """Stores in `deleted_with_device` that send data of the account elsewhere (pushers). Also
    cleared when a token of the device was stolen."""


class Sessions:
    """Begins, refreshes and ends sessions."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        secret_text: SecretGenerator,
        database: Database,
        accounts: AccountStore,
        devices: DeviceStore,
        tokens: TokenStore,
        limiter: RateLimiter | None = None,
        lifetimes: TokenLifetimes | None = None,
        dependents: DependentStores | None = None,
    ) -> None:
        """`dependents`: the stores that take part in the end of a session or device."""
        self._clock = clock
        self._secret_text = secret_text
        self._database = database
        self._accounts = accounts
        self._devices = devices
        self._tokens = tokens
        self._limiter = limiter or RateLimiter(clock=clock, rates={})
        self._lifetimes = lifetimes or TokenLifetimes()
        self._dependents = dependents or DependentStores()

    def prepare(
        self,
        user_id: UserID,
        *,
        address: str | None,
        epoch: int | None,
        device_id: DeviceID | None = None,
        device_name: str | None = None,
        refreshable: bool = False,
        access_token: str | None = None,
        refresh_token: str | None = None,
    ) -> NewSession:
        """Return a session to be written with `add`; on a new device if `device_id` is None.

        `address`: the client's IP address, if known. `epoch`: the credential epoch at
        authentication; None where the write itself authenticates. `access_token`,
        `refresh_token`: the tokens, where they exist already.
        """
        if refreshable and refresh_token is None:
            refresh_token = self._secret_text.refresh_token(self._secret_text.family())
        refreshable = refresh_token is not None
        now = self._now()
        lifetimes = self._lifetimes
        session_expires = _after(now, lifetimes.session)
        token_lifetime = (
            lifetimes.refreshable_access_token
            if refreshable
            else lifetimes.nonrefreshable_access_token
        )
        return NewSession(
            user_id=user_id,
            device_id=device_id or DeviceID(self._secret_text.device_id()),
            access_token=access_token or self._secret_text.access_token(),
            access_expires_ts=_earliest(_after(now, token_lifetime), session_expires),
            created_ts=now,
            device_name=device_name,
            refresh_token=refresh_token,
            refresh_expires_ts=_earliest(_after(now, lifetimes.refresh_token), session_expires),
            session_expires_ts=session_expires,
            address=address,
            epoch=epoch,
        )

    def add(self, txn: WriteTransaction, session: NewSession) -> None:
        """Write a prepared session; it replaces the previous session of the device.

        Raises `Forbidden` where the device ID is that of a cross-signing key of the user
        (signatures of one would pass for those of the other) or of the dehydrated device,
        `InvalidParam` for `*`, and what `check_epoch` raises.
        """
        if session.epoch is not None:
            check_epoch(txn, session.user_id, session.epoch)
        _check_device_id(txn, session.user_id, session.device_id)
        device = DeviceRow(
            user_id=session.user_id,
            device_id=session.device_id,
            display_name=session.device_name,
            created_ts=session.created_ts,
        )
        if not self._devices.add_device(txn, device):
            self._tokens.remove_tokens_of_devices(txn, session.user_id, [session.device_id])
            for store in self._dependents.deleted_with_session:
                store.remove_devices(txn, session.user_id, [session.device_id])
            self._accounts.set_account_changed(txn, session.user_id)
        self._add_tokens(txn, session)
        record_event(
            txn,
            session.user_id,
            AuditEvent.SESSION_BEGAN,
            session.created_ts,
            ip=session.address,
            device_id=session.device_id,
        )

    async def do_add_device(self, user_id: UserID, device_id: DeviceID, name: str | None) -> bool:
        """Do `add_device` in its own write."""
        return await self._database.write("add_device", self.add_device, user_id, device_id, name)

    def add_device(
        self, txn: WriteTransaction, user_id: UserID, device_id: DeviceID, name: str | None
    ) -> bool:
        """Create a device without a session; return False if it exists.

        Raises `Forbidden` and `InvalidParam` like `add`.
        """
        _check_device_id(txn, user_id, device_id)
        return self._devices.add_device(txn, DeviceRow(user_id, device_id, name, self._now()))

    async def do_begin(self, session: NewSession) -> None:
        """Write a prepared session."""
        await self._database.write("begin_session", self.add, session)

    async def get_owner(self, access_token: str) -> UserID | None:
        """Return the owner of a valid access token."""
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
        """Exchange a refresh token for a new pair. `address`: the client's IP address.

        Raises `UnknownToken` (with `soft_logout` if the token or session has expired or the token
        was used already), `UserLocked` and `LimitExceeded`.
        """
        if is_damaged(refresh_token) or parse_oauth_family(refresh_token) is not None:
            raise UnknownToken("Unknown refresh token")
        owner = await self._database.read_quickly(
            "find_refresh_token", self._find_owner, refresh_token
        )
        if owner is None:
            raise UnknownToken("Unknown refresh token")  # an invented token costs no write
        self._limiter.check(Limit.REFRESH_ACCOUNT, owner)
        # Not inside the transaction, which may run twice.
        family = parse_family(refresh_token) or self._secret_text.family()
        texts = self._secret_text.access_token(), self._secret_text.refresh_token(family)
        renewed = await self._database.write(
            "refresh_session", self._refresh, refresh_token, texts, address
        )
        if isinstance(renewed, MatrixError):
            raise renewed
        return renewed

    def _find_owner(self, txn: Transaction, refresh_token: str) -> str | None:
        """Return the rate limit key for a token of an existing session; None for an unknown token.

        A used token counts under its own key, so that replaying it cannot exhaust the owner's
        limit.
        """
        token = self._tokens.get_refresh_token(txn, hash_token(refresh_token))
        if token is not None:
            return (
                used_token_limit_key(token.user_id)
                if token.is_grace_over(self._now())
                else token.user_id
            )
        family = parse_family(refresh_token)
        current = (
            None
            if family is None
            else self._tokens.get_refresh_token_of_family(txn, hash_token(family))
        )
        return None if current is None else used_token_limit_key(current.user_id)

    def _refresh(
        self, txn: WriteTransaction, refresh_token: str, texts: tuple[str, str], address: str
    ) -> NewSession | MatrixError:
        """Return a refusal instead of raising it: the write also stores its audit record."""
        token_hash, now = hash_token(refresh_token), self._now()
        try:
            renewed = self.renew(txn, token_hash, *texts, now)
        except UserLocked as error:
            token = self._tokens.get_refresh_token(txn, token_hash)
            assert token is not None
            device_id = DeviceID(token.device_id)
            record_refusal(
                txn, UserID(token.user_id), now, "locked", ip=address, device_id=device_id
            )
            return error
        if renewed is None:
            return self._refuse_used(txn, refresh_token, address)
        if renewed.refresh_token is None:
            return UnknownToken("The session has expired", soft_logout=True)
        return renewed

    def _refuse_used(self, txn: WriteTransaction, refresh_token: str, address: str) -> UnknownToken:
        """Refuse a refresh token that is no longer valid; expire the session if it was stolen.

        Harmless: a token replaced a moment ago (another tab of the client), and one that was never
        used. Other activity in the session proves nothing: a thief always causes some.
        """
        family, token_hash, now = (
            parse_family(refresh_token),
            hash_token(refresh_token),
            self._now(),
        )
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
            record_event(
                txn, user_id, AuditEvent.TOKEN_REUSED, now, ip=address, device_id=device_id
            )
            self._tokens.expire_tokens_of_device(txn, user_id, device_id, now)
            for store in self._dependents.set_by_tokens:
                store.remove_devices(txn, user_id, [device_id])
            self._accounts.set_account_changed(txn, user_id)
        return UnknownToken("The refresh token has been used already", soft_logout=True)

    def end_reused_session(
        self, txn: WriteTransaction, user_id: UserID, device_id: DeviceID, address: str
    ) -> None:
        """End an OAuth 2.0 session, one of whose secrets was used twice."""
        record_event(
            txn, user_id, AuditEvent.TOKEN_REUSED, self._now(), ip=address, device_id=device_id
        )
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
        """Write a new pair of tokens in exchange for a refresh token.

        Return None for an unknown token, and a session without refresh token if the old one has
        expired. Raises `UserLocked` unless `while_locked`: then the endpoints that receive the new
        tokens refuse them. They do the same for an expired account, whose owner needs a token to
        renew it.
        """
        old = self._tokens.get_refresh_token(txn, token_hash)
        if old is None:
            return None
        session_expires = old.session_expires_ts
        session = NewSession(
            user_id=UserID(old.user_id),
            device_id=DeviceID(old.device_id),
            access_token=access_token,
            access_expires_ts=_earliest(
                now + self._lifetimes.refreshable_access_token, session_expires
            ),
            created_ts=now,
            refresh_token=refresh_token,
            refresh_expires_ts=_earliest(
                _after(now, self._lifetimes.refresh_token), session_expires
            ),
            session_expires_ts=session_expires,
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
        self._add_tokens(txn, session, parent_nid=old.refresh_nid)
        self._tokens.trim_exchanges(txn, old, now)
        return session

    def _add_tokens(
        self, txn: WriteTransaction, session: NewSession, *, parent_nid: int | None = None
    ) -> None:
        """Write the tokens of a session. `parent_nid`: the refresh token exchanged for them."""
        refresh_nid = None
        if session.refresh_token is not None:
            family = parse_family(session.refresh_token)
            refresh_nid = self._tokens.add_refresh_token(
                txn,
                hash_token(session.refresh_token),
                session.user_id,
                session.device_id,
                now=session.created_ts,
                expires_ts=session.refresh_expires_ts,
                session_expires_ts=session.session_expires_ts,
                family_hash=None if family is None else hash_token(family),
                parent_nid=parent_nid,
            )
        self._tokens.add_access_token(
            txn,
            hash_token(session.access_token),
            session.user_id,
            session.device_id,
            now=session.created_ts,
            expires_ts=session.access_expires_ts,
            refresh_nid=refresh_nid,
            first_used=parent_nid is None,
        )

    async def do_log_out(self, caller: Requester, ip: str | None = None) -> None:
        """End the caller's session and remove its device. `ip`: the client's IP address."""
        await self._database.write("log_out", self._log_out, caller, ip)

    def _log_out(self, txn: WriteTransaction, caller: Requester, ip: str | None) -> None:
        if caller.device_id is None:
            self._tokens.remove_access_token(txn, caller.token_nid)
            self._accounts.set_account_changed(txn, caller.user_id)
        else:
            self.remove_devices(txn, caller.user_id, [caller.device_id], ip)

    async def do_log_out_everywhere(self, user_id: UserID, ip: str | None = None) -> None:
        """End all sessions of a user and remove all devices. `ip`: the client's IP address."""
        await self._database.write("log_out_everywhere", self.remove_sessions, user_id, None, ip)

    def remove_devices(
        self,
        txn: WriteTransaction,
        user_id: UserID,
        device_ids: Iterable[DeviceID],
        ip: str | None = None,
        by: UserID | None = None,
    ) -> None:
        """Remove devices with their sessions and all data per device; ignore unknown devices.

        `ip`: the client's IP address, if known. `by`: the administrator who removes them.
        """
        removed = list(device_ids)
        if not removed:
            return
        self._tokens.remove_tokens_of_devices(txn, user_id, removed)
        for store in (
            *self._dependents.deleted_with_device,
            *self._dependents.deleted_with_session,
        ):
            store.remove_devices(txn, user_id, removed)
        self._devices.remove_devices(txn, user_id, removed)
        self._accounts.set_account_changed(txn, user_id)
        for device_id in removed:
            record_event(
                txn,
                user_id,
                AuditEvent.SESSION_ENDED,
                self._now(),
                ip=ip,
                device_id=device_id,
                by=by,
            )

    def remove_sessions(
        self,
        txn: WriteTransaction,
        user_id: UserID,
        except_caller: Requester | None = None,
        ip: str | None = None,
    ) -> None:
        """Remove all devices and sessions of a user, except the session `except_caller`.

        `ip`: the client's IP address, if known.
        """
        devices = self._devices.get_devices_in(txn, [user_id]).get(user_id, [])
        excepted_device = None if except_caller is None else except_caller.device_id
        self.remove_devices(
            txn,
            user_id,
            [DeviceID(d.device_id) for d in devices if d.device_id != excepted_device],
            ip,
        )
        if except_caller is None:
            self._tokens.remove_tokens(txn, user_id)
        else:
            self._tokens.remove_tokens_without_device(txn, user_id, except_caller.token_nid)
        self.revoke_credentials(txn, user_id, ip)
        for store in self._dependents.recorded_with_all_sessions:
            store.remove_user(txn, user_id, ip)
        self._accounts.set_account_changed(txn, user_id)

    def revoke_credentials(
        self, txn: WriteTransaction, user_id: str, ip: str | None = None
    ) -> None:
        """Revoke all credentials that could begin a session without a new authentication.

        This also stops sign-ins that are in progress. `ip`: as in `remove_sessions`.
        """
        self._accounts.advance_epoch(txn, user_id)
        self.revoke_unused_credentials(txn, user_id)
        for recorded in self._dependents.recorded_with_sessions:
            recorded.remove_user(txn, user_id, ip)

    def revoke_unused_credentials(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove unused login tokens, codes and confirmations of earlier credential epochs."""
        for store in self._dependents.ends_with_sessions:
            store.remove_user(txn, user_id)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)


def used_token_limit_key(user_id: str) -> str:
    """Return the rate limit key for refresh tokens of a user that are no longer valid."""
    return f"spent {user_id}"


def _check_device_id(txn: WriteTransaction, user_id: UserID, device_id: DeviceID) -> None:
    if device_id == ALL_DEVICES:
        raise InvalidParam("The device ID must not be *, which stands for all devices")
    if has_cross_signing_key(txn, user_id, device_id):
        raise Forbidden("The device ID is the same as a cross-signing key of the user")
    dehydrated = select_dehydrated(txn, user_id)
    if dehydrated is not None and dehydrated.device_id == device_id:
        raise Forbidden("The device ID is that of the user's dehydrated device")


def _after(now: int, lifetime: int | None) -> int | None:
    return None if lifetime is None else now + lifetime


def _earliest(*times: int | None) -> int | None:
    return min((time for time in times if time is not None), default=None)

"""Device authorization grant: a client on a device without a browser shows a short user code, which
the user types on another device.

Laws:
- The user code grants nothing by itself: the user sees the client and has to allow it.
- Guessing a user code is impractical: it has 34 bits and is valid for twenty minutes, and a user or
  IP address has few attempts.
- A client that polls too often has to slow down. A device code is exchanged for tokens only once.

spec: client-server-api#device-authorisation-flow, RFC 8628
"""

from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import DeviceID, UserID
from homeserver.api.limits import Limit
from homeserver.http.rate_limits import CountedAction, RateLimiter, address_key
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.login.credential_epoch import CredentialEpoch, check_epoch
from homeserver.services.oauth.clients import DEVICE_GRANT, OAuthClient, OAuthClients
from homeserver.services.oauth.errors import OAuthError, UnauthorizedClient
from homeserver.services.oauth.scopes import parse_scope
from homeserver.services.oauth.tokens import OAuthTokens, TokenGrant
from homeserver.services.tokens.secret_tokens import SecretGenerator, hash_token
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.oauth.device_grants import DeviceGrantRow, DeviceGrantStore

LIFETIME_MS: Final = 20 * 60 * 1000
INTERVAL_MS: Final = 5000
_TOO_EARLY_MS: Final = 500
"""Tolerance for polls that come before the interval is over; clocks differ."""
_ATTEMPTS: Final = 5
_STORED_MS: Final = 3600 * 1000
"""The time for which an expired grant stays stored, so that its client gets `expired_token`."""


class DeviceCodes(msgspec.Struct, frozen=True):
    """The codes of a new device grant."""

    device_code: str
    user_code: str
    """In the form that users see: `WDJB-MJHT`."""


class DeviceGrants:
    """Creates, decides and redeems device grants."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: DeviceGrantStore,
        secret_text: SecretGenerator,
        clients: OAuthClients,
        tokens: OAuthTokens,
        limiter: RateLimiter,
    ) -> None:
        self._clock = clock
        self._database = database
        self._store = store
        self._secret_text = secret_text
        self._clients = clients
        self._tokens = tokens
        self._limiter = limiter

    async def do_create(self, client_id: str, scope: str) -> DeviceCodes:
        """Create a grant for a client. Raises `OAuthError`."""
        client = await self._clients.get(client_id)
        if DEVICE_GRANT not in client.grant_types:
            raise UnauthorizedClient("This client has not registered the device_code grant")
        parsed = parse_scope(scope)
        for _ in range(_ATTEMPTS):
            codes = DeviceCodes(self._secret_text.oauth_code(), self._secret_text.user_code())
            row = DeviceGrantRow(
                code_hash=hash_token(codes.device_code),
                user_code=codes.user_code,
                client_id=client.client_id,
                device_id=parsed.device_id,
                scope=parsed.text,
                expires_ts=self._now() + LIFETIME_MS,
                interval_ms=INTERVAL_MS,
            )
            if await self._database.write("add_device_grant", self._store.add_grant, row):
                return DeviceCodes(
                    codes.device_code, f"{codes.user_code[:4]}-{codes.user_code[4:]}"
                )
        raise RuntimeError("the random source keeps returning the same text")

    async def find(
        self, user_code: str, user_id: UserID, address: str
    ) -> tuple[DeviceGrantRow, OAuthClient] | None:
        """Return the grant and the client of a typed user code; None if there is none. Raises
        `LimitExceeded`."""
        counted = [CountedAction(Limit.USER_CODE, key) for key in (user_id, address_key(address))]
        with self._limiter.attempt(counted) as attempt:
            row = await self._store.get_grant_of_user_code(_normalize(user_code), self._now())
            client = None if row is None else await self._clients.find(row.client_id)
            if row is None or client is None:
                attempt.fail()
                return None
            return row, client

    async def do_decide(
        self,
        grant: DeviceGrantRow,
        client: OAuthClient,
        user_id: UserID,
        address: str,
        epoch: CredentialEpoch,
        origin: str | None = None,
        *,
        allowed: bool,
    ) -> bool:
        """Store the user's decision on a grant that `find` returned; False if the grant is no
        longer open. `address`: the browser's; `origin`: from the `BrowserSession`. Raises what
        `check_epoch` raises."""

        def write(txn: WriteTransaction) -> bool:
            check_epoch(txn, user_id, epoch)
            decided = self._store.set_decided(
                txn, grant.user_code, user_id, self._now(), origin, allowed=allowed
            )
            if decided:
                if allowed:
                    self._clients.record_allowed(txn, client, address)
                what = AuditEvent.APP_ALLOWED if allowed else AuditEvent.APP_DENIED
                device_id = DeviceID(grant.device_id)
                record_event(
                    txn,
                    user_id,
                    what,
                    self._now(),
                    ip=address,
                    device_id=device_id,
                    detail=client.audit_name,
                )
            return decided

        return await self._database.write("decide_device_grant", write)

    async def do_exchange(self, client_id: str, device_code: str, address: str) -> TokenGrant:
        """Redeem a device code for tokens. `address`: the device's. Raises `OAuthError`:
        `authorization_pending` and `slow_down` until the user decides, `access_denied`,
        `expired_token`, `invalid_grant`."""
        client = await self._clients.get(client_id)
        if (
            await self._database.read_quickly(
                "get_device_grant", self._store.get_grant, hash_token(device_code)
            )
            is None
        ):
            raise _unknown()  # an invented code costs no write
        family = self._secret_text.family()
        texts = self._secret_text.access_token(), self._secret_text.oauth_refresh_token(family)
        granted = await self._database.write(
            "exchange_device_code",
            self._exchange,
            client,
            hash_token(device_code),
            family,
            texts,
            address,
        )
        if isinstance(granted, OAuthError):
            raise granted
        return granted

    def _exchange(
        self,
        txn: WriteTransaction,
        client: OAuthClient,
        code_hash: bytes,
        family: str,
        texts: tuple[str, str],
        address: str,
    ) -> TokenGrant | OAuthError:
        row = self._store.get_grant(txn, code_hash)
        now = self._now()
        if row is None or row.client_id != client.client_id:
            return _unknown()
        if row.expires_ts <= now:
            return OAuthError("expired_token", "The device code has expired; begin again")
        if row.allowed is None:
            if now < row.last_poll_ts + row.interval_ms - _TOO_EARLY_MS:
                self._store.set_last_poll(txn, code_hash, now, row.interval_ms + INTERVAL_MS)
                return OAuthError(
                    "slow_down", f"Poll every {(row.interval_ms + INTERVAL_MS) // 1000} seconds"
                )
            self._store.set_last_poll(txn, code_hash, now, row.interval_ms)
            return OAuthError("authorization_pending", "The user has not decided yet")
        self._store.remove_grant(txn, code_hash)
        if not row.allowed or row.user_id is None:
            return OAuthError("access_denied", "The user denied access")
        return self._tokens.begin_session(
            txn,
            client,
            UserID(row.user_id),
            DeviceID(row.device_id),
            row.scope,
            family,
            texts,
            address,
            row.upstream_login,
        )

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` expired grants; return how many."""

        def write(txn: WriteTransaction) -> int:
            return self._store.remove_old_grants(txn, self._now() - _STORED_MS, limit)

        return await self._database.write("sweep_device_grants", write)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)


def _normalize(user_code: str) -> str:
    """Return a typed code in its stored form: upper-case letters only."""
    return "".join(char for char in user_code.upper()[:40] if char.isascii() and char.isalpha())


def _unknown() -> OAuthError:
    return OAuthError("invalid_grant", "The device_code is unknown; begin again")

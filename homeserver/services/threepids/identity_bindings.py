"""Bindings of e-mail addresses and telephone numbers to users at an identity server.

Below, an address is an e-mail address or a telephone number.

Laws:
- New bindings are made only at the configured identity server. An unbind request goes to the server
  where the binding was made.
- A binding is stored until it is unbound. It is unbound when its owner requests that, or when the
  address is removed from the account, or when the account is deactivated. The write that removes
  the address or deactivates the account also schedules the unbind, before the identity server is
  asked. A failed unbind is retried with back-off for a month. After that, the binding of a
  deactivated account is deleted. The binding of an active account stays, so that the owner can
  request the unbind again.
- Clients receive only those errors of the identity server that concern the address. Its other error
  codes have another meaning in our response: `M_UNKNOWN_TOKEN` would end the session here.

spec: client-server-api#post_matrixclientv3account3pidbind,
identity-service-api#establishing-associations
"""

from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import msgspec
from canonicaljson import encode_canonical_json
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.http_client.client import WebClient, WebResponse
from federation.http_client.errors import OutboundError
from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.identity import ServerIdentity
from federation.protocol.errors import MatrixError, OtherServerFailed, ServerNotTrusted
from federation.protocol.ids import ServerName, UserID
from federation.protocol.request_signing import make_authorization
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.audit.audit import AuditEvent, record_event
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.threepids.identity_bindings import IdentityBindingRow, IdentityBindingStore

SUCCESS: Final = "success"
NO_SUPPORT: Final = "no-support"
TIMEOUT_SECONDS: Final = 10.0
MAX_BYTES: Final = 64 * 1024
MAX_ADDRESS_LENGTH: Final = 255
RETRIES: Final = BackoffSchedule(5 * 60_000, 24 * 3600_000)
MAX_ATTEMPTS: Final = 38
"""Maximum number of attempts to unbind: about a month."""
_PATH: Final = "/_matrix/identity/v2/3pid"
_FORWARDED_CODES: Final = frozenset(
    {
        "M_EMAIL_SEND_ERROR",
        "M_INVALID_ADDRESS",
        "M_INVALID_EMAIL",
        "M_INVALID_PARAM",
        "M_NO_VALID_SESSION",
        "M_SEND_ERROR",
        "M_SESSION_EXPIRED",
        "M_SESSION_NOT_VALIDATED",
        "M_TERMS_NOT_SIGNED",
        "M_THREEPID_IN_USE",
    }
)
"""Error codes with the same meaning in our response. spec:
identity-service-api#standard-error-response"""


class IdentityServerError(MatrixError):
    """An error of the identity server about the address, passed on to the client."""

    def __init__(self, errcode: str, text: str) -> None:
        super().__init__(text)
        self._errcode = errcode

    def body(self) -> dict[str, object]:
        """Return the error as received."""
        return {"errcode": self._errcode, "error": self.text}


class _Binding(msgspec.Struct):
    medium: str
    address: str


class _Error(msgspec.Struct):
    errcode: str
    error: str = "The identity server refused the request"


class IdentityBindings:
    """Binds and unbinds addresses. `url`: of the identity server; None disables binding."""

    log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        web: WebClient,
        store: IdentityBindingStore,
        identity: ServerIdentity,
        limiter: RateLimiter,
        url: str | None,
    ) -> None:
        self._clock = clock
        self._database = database
        self._web = web
        self._store = store
        self._identity = identity
        self._limiter = limiter
        self._url = None if url is None else url.rstrip("/")

    async def do_bind(
        self, caller: Requester, id_server: str, sid: str, client_secret: str, token: str, ip: str
    ) -> None:
        """Bind an address that the caller has validated at the identity server.

        `ip`: the client's IP address. Raises `ServerNotTrusted`, `LimitExceeded`,
        `IdentityServerError`, `OtherServerFailed`.
        """
        if self._url is None or id_server != _host_of(self._url):
            raise ServerNotTrusted("This server does not use that identity server")
        if not token.isascii() or not token.isprintable():
            raise ServerNotTrusted("id_access_token is malformed")
        if caller.rate_limited:
            self._limiter.check(Limit.THREEPID, caller.user_id)
        body = {"sid": sid, "client_secret": client_secret, "mxid": caller.user_id}
        response = await self._request(
            f"{self._url}{_PATH}/bind", f"Bearer {token}", encode_canonical_json(body)
        )
        _check(response)
        try:
            binding = msgspec.json.decode(response.body, type=_Binding)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise OtherServerFailed("The identity server sent an invalid response") from None
        if (
            max(len(binding.medium), len(binding.address)) > MAX_ADDRESS_LENGTH
            or "\0" in binding.medium + binding.address
        ):
            raise OtherServerFailed("The identity server returned an invalid address")
        row = IdentityBindingRow(caller.user_id, binding.medium, binding.address, id_server)

        def write(txn: WriteTransaction) -> None:
            self._store.add_binding(txn, row)
            record_event(
                txn,
                caller.user_id,
                AuditEvent.ADDRESS_BOUND,
                self._now(),
                ip=ip,
                detail=row.address,
            )

        await self._database.write("add_identity_binding", write)

    async def do_unbind(
        self, user_id: UserID, medium: str, address: str, id_server: str | None
    ) -> str:
        """Unbind an address; return `SUCCESS` or `NO_SUPPORT`.

        `id_server`: None for all servers where it is bound. Raises `IdentityServerError`,
        `OtherServerFailed`; `do_unbind_due` then retries.
        """
        rows = await self._store.claim(
            user_id, self._now() + RETRIES.first_ms, medium, address, id_server
        )
        results = [await self._unbind(row) for row in rows]
        return SUCCESS if results and all(results) else NO_SUPPORT

    async def do_unbind_now(
        self, user_id: UserID, medium: str | None = None, address: str = ""
    ) -> str:
        """Unbind one address or all; return `SUCCESS` if no known binding is left.

        Raises nothing for errors of the identity server: `do_unbind_due` retries.
        """
        rows = await self._store.claim(
            user_id, self._now() + RETRIES.first_ms, medium, address, None
        )
        if medium is not None and not rows:
            return NO_SUPPORT
        try:
            for row in rows:
                if not await self._unbind(row):
                    return NO_SUPPORT
        except MatrixError as error:
            self.log.warn(
                "could not unbind an address of {user}, will retry: {why}",
                user=user_id,
                why=error.text,
            )
            return NO_SUPPORT
        return SUCCESS

    def schedule_unbind_all(self, txn: WriteTransaction, user_id: UserID) -> None:
        """Schedule the unbind of all addresses, in the write that deactivates the account.

        `do_unbind_due` carries out what `do_unbind_now` does not finish before.
        """
        self._store.set_due(txn, user_id, self._now() + RETRIES.first_ms)

    def schedule_unbind(
        self, txn: WriteTransaction, user_id: UserID, medium: str, address: str
    ) -> None:
        """Schedule the unbind of an address, in the write that removes it from the account."""
        self._store.set_due(txn, user_id, self._now(), medium, address)

    async def do_unbind_due(self, limit: int) -> int:
        """Unbind up to `limit` due addresses; return the number of attempts.

        Fewer than `limit`: nothing is left for now, or the identity server is unreachable and the
        rest waits.
        """
        done = 0
        while done < limit:
            row = await self._store.take_due(self._now(), _retry_ms)
            if row is None:
                break
            done += 1
            try:
                why = "" if await self._unbind(row) else "the identity server does not support it"
            except IdentityServerError as error:
                why = error.text
            except OtherServerFailed as error:
                await self._record_failure(row, error.text)
                return min(done, limit - 1)
            if why:
                await self._record_failure(row, why)
        return done

    async def _record_failure(self, row: IdentityBindingRow, why: str) -> None:
        is_last = row.attempts + 1 >= MAX_ATTEMPTS
        if is_last:
            await self._store.give_up(row)
        self.log.warn(
            "could not unbind an address of {user} at {server}{end}: {why}",
            user=row.user_id,
            server=row.id_server,
            end=", giving up" if is_last else "",
            why=why,
        )

    async def _unbind(self, row: IdentityBindingRow) -> bool:
        """Unbind at the identity server; return False if it does not support that."""
        known = (
            self._url if self._url is not None and _host_of(self._url) == row.id_server else None
        )
        url = f"{known or f'https://{row.id_server}'}{_PATH}/unbind"
        body = encode_canonical_json(
            {"mxid": row.user_id, "threepid": {"medium": row.medium, "address": row.address}}
        )
        signed = make_authorization(
            self._identity.key,
            method="POST",
            uri=urlsplit(url).path,
            origin=self._identity.server_name,
            destination=ServerName(row.id_server),
            content=msgspec.Raw(body),
        )
        response = await self._request(url, signed, body)
        if response.status in (
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.NOT_FOUND,
            HTTPStatus.NOT_IMPLEMENTED,
        ):
            try:
                msgspec.json.decode(response.body, type=_Error)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return False
        _check(response)

        def write(txn: WriteTransaction) -> None:
            if self._store.remove_unbound(txn, row):
                record_event(
                    txn,
                    UserID(row.user_id),
                    AuditEvent.ADDRESS_UNBOUND,
                    self._now(),
                    detail=row.address,
                )

        await self._database.write("remove_identity_binding", write)
        return True

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

    async def _request(self, url: str, authorization: str, body: bytes) -> WebResponse:
        headers = [("Authorization", authorization), ("Content-Type", "application/json")]
        try:
            return await self._web.request(
                "POST", url, headers, body, seconds=TIMEOUT_SECONDS, max_bytes=MAX_BYTES
            )
        except OutboundError as error:
            raise OtherServerFailed(f"The identity server cannot be reached: {error}") from None


def _retry_ms(attempts: int) -> int:
    return RETRIES.nth(attempts + 1)


def _host_of(url: str) -> str:
    return urlsplit(url).netloc


def _check(response: WebResponse) -> None:
    """Raise `IdentityServerError` for an error about the address, else `OtherServerFailed`."""
    if response.status == HTTPStatus.OK:
        return
    try:
        error = msgspec.json.decode(response.body, type=_Error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise OtherServerFailed(f"The identity server responded with {response.status}") from None
    if not 400 <= response.status < 500 or error.errcode not in _FORWARDED_CODES:
        raise OtherServerFailed(
            f"The identity server refused: {response.status} {error.errcode[:100]}"
        )
    raise IdentityServerError(error.errcode, error.error[:1000])

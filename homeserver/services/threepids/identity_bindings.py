"""Addresses by which others find people at an identity server: bound there and unbound by this
server, for its users.

Laws:
- No identity server is asked but that of the configuration, and for an unbinding the one where the
  binding was made.
- What was bound is remembered until it is unbound: when its owner asks for it, with the address, or
  with the account. That it is to be is noted before the identity server is asked, with what takes
  the address away in one write; what cannot be unbound then is tried again, less and less often,
  for a month.
- Of what the identity server says, clients hear what concerns the address. Its other codes would
  mean something else in an answer of this server: `M_UNKNOWN_TOKEN` that their session here has
  ended.

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

from federation.http_client.client import Web, WebAnswer
from federation.http_client.errors import OutboundError
from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.identity import ServerIdentity
from federation.protocol.errors import MatrixError, OtherServerFailed, ServerNotTrusted
from federation.protocol.ids import ServerName, UserID
from federation.protocol.request_signing import make_authorization
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.audit.audit import Happened, note
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.threepids.identity_bindings import BindingRow, IdentityBindingStore

SUCCESS: Final = "success"
NO_SUPPORT: Final = "no-support"
SECONDS: Final = 10.0
MAX_BYTES: Final = 64 * 1024
LONGEST_ADDRESS: Final = 255
RETRIES: Final = BackoffSchedule(5 * 60_000, 24 * 3600_000)
MOST_ATTEMPTS: Final = 38
"""At unbinding: a month of them."""
_PATH: Final = "/_matrix/identity/v2/3pid"
_PASSED_ON: Final = frozenset(
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
"""Codes that say the same of an answer of ours. spec:
identity-service-api#standard-error-response"""


class IdentityServerRefused(MatrixError):
    """What the identity server said of the address, which is passed on."""

    def __init__(self, errcode: str, text: str) -> None:
        super().__init__(text)
        self._errcode = errcode

    def body(self) -> dict[str, object]:
        """As it came."""
        return {"errcode": self._errcode, "error": self.text}


class _Bound(msgspec.Struct):
    medium: str
    address: str


class _Error(msgspec.Struct):
    errcode: str
    error: str = "The identity server refuses"


class IdentityBindings:
    """Binds and unbinds. `url`: of the identity server; None where there is none."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        web: Web,
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
        """Let somebody be found by an address that they have confirmed at the identity server.
        `ip`: whence they ask. Raises `ServerNotTrusted`, `LimitExceeded`, `IdentityServerRefused`,
        `OtherServerFailed`."""
        if self._url is None or id_server != _host_of(self._url):
            raise ServerNotTrusted("This server does not make use of that identity server")
        if not token.isascii() or not token.isprintable():
            raise ServerNotTrusted("id_access_token is none")
        if caller.rate_limited:
            self._limiter.check(Limit.THREEPID, caller.user_id)
        body = {"sid": sid, "client_secret": client_secret, "mxid": caller.user_id}
        answer = await self._ask(
            f"{self._url}{_PATH}/bind", f"Bearer {token}", encode_canonical_json(body)
        )
        _check(answer)
        try:
            bound = msgspec.json.decode(answer.body, type=_Bound)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise OtherServerFailed("The identity server answers what is no use") from None
        if (
            max(len(bound.medium), len(bound.address)) > LONGEST_ADDRESS
            or "\0" in bound.medium + bound.address
        ):
            raise OtherServerFailed("The identity server names an address that is none")
        row = BindingRow(caller.user_id, bound.medium, bound.address, id_server)

        def write(txn: WriteTransaction) -> None:
            self._store.add_binding(txn, row)
            note(
                txn, caller.user_id, Happened.ADDRESS_BOUND, self._now(), ip=ip, detail=row.address
            )

        await self._database.write("add_identity_binding", write)

    async def do_unbind(
        self, user_id: UserID, medium: str, address: str, id_server: str | None
    ) -> str:
        """Let somebody no longer be found by an address; `SUCCESS` or `NO_SUPPORT`. `id_server`:
        None for wherever it was bound. Raises `IdentityServerRefused`, `OtherServerFailed`:
        `do_unbind_due` tries again then."""
        rows = await self._store.claim(
            user_id, self._now() + RETRIES.first_ms, medium, address, id_server
        )
        results = [await self._unbind(row) for row in rows]
        return SUCCESS if results and all(results) else NO_SUPPORT

    async def try_unbind(
        self, user_id: UserID, medium: str | None = None, address: str = ""
    ) -> str:
        """Unbind an address, or all; `SUCCESS` where nothing is left bound that this server knows
        of. Raises nothing for what the identity server does: `do_unbind_due` tries again."""
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
                "an address of {user} stays bound for now: {why}", user=user_id, why=error.text
            )
            return NO_SUPPORT
        return SUCCESS

    def note_closed(self, txn: WriteTransaction, user_id: UserID) -> None:
        """In the write that closes an account: let `do_unbind_due` go on, unless `try_unbind` does
        it all before."""
        self._store.set_due(txn, user_id, self._now() + RETRIES.first_ms)

    def note_removed(
        self, txn: WriteTransaction, user_id: UserID, medium: str, address: str
    ) -> None:
        """In the write that takes an address from an account: let `do_unbind_due` unbind it."""
        self._store.set_due(txn, user_id, self._now(), medium, address)

    async def do_unbind_due(self, limit: int) -> int:
        """Unbind up to `limit` addresses that are to be; how many were tried. Fewer: nothing is
        left to do for now, or the identity server is away, for which the others wait too."""
        done = 0
        while done < limit:
            row = await self._store.take_due(self._now(), _pause_ms)
            if row is None:
                break
            done += 1
            try:
                why = "" if await self._unbind(row) else "the identity server does not do so"
            except IdentityServerRefused as error:
                why = error.text
            except OtherServerFailed as error:
                await self._note_failure(row, error.text)
                return min(done, limit - 1)
            if why:
                await self._note_failure(row, why)
        return done

    async def _note_failure(self, row: BindingRow, why: str) -> None:
        is_last = row.attempts + 1 >= MOST_ATTEMPTS
        if is_last:
            await self._store.give_up(row)
        self.log.warn(
            "an address of {user} stays bound at {server}{end}: {why}",
            user=row.user_id,
            server=row.id_server,
            end=", and is given up" if is_last else "",
            why=why,
        )

    async def _unbind(self, row: BindingRow) -> bool:
        """False where the identity server does not do so."""
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
        answer = await self._ask(url, signed, body)
        if answer.status in (
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.NOT_FOUND,
            HTTPStatus.NOT_IMPLEMENTED,
        ):
            try:
                msgspec.json.decode(answer.body, type=_Error)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return False
        _check(answer)

        def write(txn: WriteTransaction) -> None:
            if self._store.remove_unbound(txn, row):
                note(
                    txn,
                    UserID(row.user_id),
                    Happened.ADDRESS_UNBOUND,
                    self._now(),
                    detail=row.address,
                )

        await self._database.write("remove_identity_binding", write)
        return True

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

    async def _ask(self, url: str, authorization: str, body: bytes) -> WebAnswer:
        headers = [("Authorization", authorization), ("Content-Type", "application/json")]
        try:
            return await self._web.request(
                "POST", url, headers, body, seconds=SECONDS, max_bytes=MAX_BYTES
            )
        except OutboundError as error:
            raise OtherServerFailed(f"The identity server could not be asked: {error}") from None


def _pause_ms(attempts: int) -> int:
    return RETRIES.nth(attempts + 1)


def _host_of(url: str) -> str:
    return urlsplit(url).netloc


def _check(answer: WebAnswer) -> None:
    """Raises `IdentityServerRefused` where it is about the address, `OtherServerFailed` for all
    else that is no success."""
    if answer.status == HTTPStatus.OK:
        return
    try:
        error = msgspec.json.decode(answer.body, type=_Error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise OtherServerFailed(f"The identity server answers {answer.status}") from None
    if not 400 <= answer.status < 500 or error.errcode not in _PASSED_ON:
        raise OtherServerFailed(
            f"The identity server refuses: {answer.status} {error.errcode[:100]}"
        )
    raise IdentityServerRefused(error.errcode, error.error[:1000])

"""Sends the same request to several servers, one after the other, until one succeeds.

Clients and other servers supply the list of servers, so it may contain any server. If a server
fails, refuses, or sends invalid data, the next one is asked. But after three refusals with
M_FORBIDDEN no further server is asked. If no request succeeds, the failures are merged into one
error.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

from twisted.logger import Logger

from federation.peers.client import RefusedByRemote, get_retry_after_ms
from federation.peers.federation_policy import FederationPolicy
from federation.protocol.errors import (
    Forbidden,
    InviteBlocked,
    LimitExceeded,
    MatrixError,
    NotFound,
    OtherServerFailed,
    RemoteError,
    UnsupportedRoomVersion,
)
from federation.protocol.ids import ServerName, is_server_name
from federation.remote.membership import UnknownRoomVersion
from federation.rooms.rejoins import HasLeftRoom

MAX_CANDIDATES: Final = 20
MAX_REFUSALS: Final = 3
"""After this number of refusals (M_FORBIDDEN), no further server is asked."""

T = TypeVar("T")
_UNABLE: Final = frozenset({"M_UNABLE_TO_AUTHORISE_JOIN", "M_UNABLE_TO_GRANT_JOIN"})
_VERSION_ERRCODES: Final = frozenset({"M_INCOMPATIBLE_ROOM_VERSION", "M_UNSUPPORTED_ROOM_VERSION"})


class ServerFallback:
    """Sends a request to servers in turn."""

    _log = Logger()

    def __init__(self, *, policy: FederationPolicy, own: ServerName) -> None:
        self._policy = policy
        self._own = own

    async def run(
        self,
        named: Iterable[str],
        request: Callable[[ServerName], Awaitable[T]],
        *,
        max_servers: int = MAX_CANDIDATES,
    ) -> T:
        """Return the result of the first request that succeeds.

        Raises NotFound when there is no server to ask; Forbidden when they refuse, or our policy
        allows none; UnsupportedRoomVersion; LimitExceeded when they rate limit us;
        OtherServerFailed when all fail.
        """
        servers = [
            ServerName(name)
            for name in dict.fromkeys(named)
            if is_server_name(name) and name != self._own
        ]
        if not servers:
            raise NotFound("This server is not in the room, and no server in it was named")
        allowed = [server for server in servers if self._policy.allows(server)]
        if not allowed:
            self._policy.check_destination(servers[0])
        errors: list[RemoteError | MatrixError] = []
        refusals = 0
        for server in allowed[:max_servers]:
            try:
                return await request(server)
            except (RemoteError, MatrixError) as error:
                self._log.info("{server} could not help: {error}", server=server, error=str(error))
                errors.append(error)
                refusals += isinstance(error, RefusedByRemote) and error.errcode == "M_FORBIDDEN"
            if refusals == MAX_REFUSALS:
                break
        raise merge_errors(errors)


def merge_errors(errors: Sequence[RemoteError | MatrixError]) -> MatrixError:
    """Return the most helpful of the errors, as an error for our client."""
    refusals = [error for error in errors if isinstance(error, RefusedByRemote)]
    for error in errors:
        if isinstance(error, HasLeftRoom):
            return error
    for refusal in refusals:
        if refusal.errcode == "M_INVITE_BLOCKED":
            return InviteBlocked(f"{refusal.destination} refused: {refusal.text}")
    for error in errors:
        if isinstance(error, UnknownRoomVersion):
            return UnsupportedRoomVersion(
                f"The room has version {error.version!r}, which this server does not support"
            )
    for refusal in refusals:
        if refusal.errcode == "M_FORBIDDEN" or refusal.status == 403:
            return Forbidden(f"{refusal.destination} refused: {refusal.text}")
    for refusal in refusals:
        if refusal.errcode in _VERSION_ERRCODES:
            return UnsupportedRoomVersion(f"{refusal.destination} refused: {refusal.text}")
    for refusal in refusals:
        if refusal.errcode in _UNABLE:
            return Forbidden("None of the servers that were asked can let you into this room")
    retry_afters = [wait_ms for error in errors if (wait_ms := get_retry_after_ms(error))]
    if retry_afters:
        return LimitExceeded(
            "Another server limits the rate of these requests", retry_after_ms=min(retry_afters)
        )
    if refusals and all(
        isinstance(error, RefusedByRemote) and error.errcode == "M_NOT_FOUND" for error in errors
    ):
        return NotFound("None of the servers that were asked is in this room")
    for error in errors:
        if isinstance(error, MatrixError):
            return OtherServerFailed(
                f"The other server sent invalid data about the room: {error.text}"
            )
    return OtherServerFailed(f"No other server could help: {errors[0]}")

"""The guard: who asks, may they, and how fast.

The guard knows no accounts; it asks the checkers that it is made with. A kind of authentication
that no checker is wired for stops start-up when an endpoint declares it.

spec: client-server-api#using-access-tokens, application-service-api#identity-assertion,
server-server-api#request-authentication
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from federation.api.request import Peer, RequestContext
from federation.protocol.errors import (
    ConsentNotGiven,
    ExpiredAccount,
    Forbidden,
    GuestAccessForbidden,
    MissingToken,
    UnknownToken,
    UserLocked,
    UserSuspended,
)
from federation.protocol.ids import ServerName
from homeserver.api.endpoint import MAYBE_NOBODY, Auth, Endpoint
from homeserver.api.limits import PER_ADDRESS, Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter, address_key

_NOT_LET_IN: Final = (
    MissingToken,
    UnknownToken,
    UserLocked,
    ExpiredAccount,
    UserSuspended,
    ConsentNotGiven,
    Forbidden,
)


_ADMIN: Final = Auth.ADMIN
_APPSERVICE: Final = Auth.APPSERVICE
_UNLIMITED: Final = Limit.NONE
"""To ask the class for one is a call of a function, in Python 3.11."""


class TokenChecker(Protocol):
    """Finds the user behind an access token."""

    def recall(
        self, token: str, client_ip: str, headers: Mapping[bytes, bytes]
    ) -> Requester | None:
        """As `get_requester`, where it is in memory who that is; None else."""
        ...

    async def get_requester(self, token: str, context: RequestContext) -> Requester | None:
        """None for a token that was never ours. Raises `UnknownToken(soft_logout=True)` for one
        that has expired.

        A locked or suspended account is returned with its mark; the guard decides what it may still
        do.
        """
        ...


class AppserviceChecker(Protocol):
    """Finds the application service behind a token, and the user whom it acts for."""

    async def get_requester(
        self, token: str, user_id: str | None, device_id: str | None, context: RequestContext
    ) -> Requester | None:
        """None for a token that is no application service's. Raises `Forbidden` for a user outside
        its namespace."""
        ...


class SignatureChecker(Protocol):
    """Checks a server's signature on a request."""

    def check_head(self, authorization: list[str], uri: str) -> None:
        """As far as it can be checked without the body. Raises `Unauthorized`, `Forbidden`."""
        ...

    async def get_peer(
        self, authorization: list[str], method: str, uri: str, body: bytes, address: str = ""
    ) -> Peer:
        """Raises `Unauthorized`, `LimitExceeded`. `authorization`: every header of that name;
        `uri`: path and query as sent; `address`: whence it comes, as limits count it."""
        ...


class PeerTurns(Protocol):
    """Lets requests of other servers in by turns."""

    async def enter(self, server: ServerName) -> None:
        """Wait for a turn. Raises `LimitExceeded`."""
        ...

    def leave(self, server: ServerName) -> None:
        """The request is answered."""
        ...


class Credentials(msgspec.Struct, frozen=True, gc=False):
    """What a request shows: the token, and whom an application service acts for."""

    token: str | None
    user_id: str | None = None
    device_id: str | None = None


class Guard:
    """Lets a request in as somebody, or raises."""

    def __init__(
        self,
        limiter: RateLimiter,
        *,
        tokens: TokenChecker | None = None,
        appservices: AppserviceChecker | None = None,
        signatures: SignatureChecker | None = None,
        turns: PeerTurns | None = None,
        slow_turns: PeerTurns | None = None,
        token_in_query: bool = True,
    ) -> None:
        """`slow_turns`: of requests that may wait for long, so that the others of the same server
        need not wait for them."""
        self._limiter = limiter
        self._tokens = tokens
        self._appservices = appservices
        self.signatures = signatures
        self.turns = turns
        self.slow_turns = slow_turns
        self._token_in_query = token_in_query

    def can_check(self, auth: Auth) -> bool:
        """Whether there is a checker for this kind."""
        match auth:
            case Auth.NONE:
                return True
            case Auth.SERVER:
                return self.signatures is not None
            case Auth.APPSERVICE:
                return self._appservices is not None
        return self._tokens is not None

    def recall_caller(
        self, declaration: Endpoint, token: str, client_ip: str, headers: Mapping[bytes, bytes]
    ) -> Requester | None:
        """Who asks with the token in a header, where nobody need be asked for it, and may ask for
        all but what few may ask for; None else: `find_caller` finds out."""
        if self._tokens is None:
            return None
        # no application service's token: those are asked before anything is remembered, and there
        # are no others later
        caller = self._tokens.recall(token, client_ip, headers)
        if (
            caller is None
            or caller.is_locked
            or caller.is_expired
            or caller.is_suspended
            or caller.consent is not None
            or caller.is_guest
            or (declaration.auth is _ADMIN and not caller.is_admin)
            or declaration.auth is _APPSERVICE
        ):
            return None
        return caller

    async def find_caller(
        self,
        declaration: Endpoint,
        authorization: str | None,
        query: Mapping[str, Sequence[str]],
        context: RequestContext,
    ) -> Requester | None:
        """Who asks, by the header and the query of a request.

        Raises `MissingToken`, `UnknownToken`, `UserLocked`, `ExpiredAccount`, `UserSuspended`,
        `ConsentNotGiven`, `GuestAccessForbidden`, `Forbidden`.
        """
        try:
            return await self._admit(declaration, self._credentials(authorization, query), context)
        except _NOT_LET_IN:
            if declaration.auth is not Auth.IF_USABLE:
                raise
            return None

    def _credentials(
        self, authorization: str | None, query: Mapping[str, Sequence[str]]
    ) -> Credentials:
        """Find the token. A header wins over the query. Raises `MissingToken` for a header that
        holds no token."""
        token = None
        if authorization is not None:
            scheme, _, rest = authorization.partition(" ")
            if scheme.lower() == "bearer":
                token = rest.strip()
                if not token:
                    raise MissingToken("The Authorization header holds no token")
        elif self._token_in_query and "access_token" in query:
            token = query["access_token"][0] or None
        if not query or self._appservices is None:
            return Credentials(token)
        users = query.get("user_id")
        devices = query.get("device_id") or query.get("org.matrix.msc3202.device_id")
        return Credentials(token, users[0] if users else None, devices[0] if devices else None)

    async def _admit(
        self, declaration: Endpoint, shown: Credentials, context: RequestContext
    ) -> Requester | None:
        if shown.token is None:
            if declaration.auth in MAYBE_NOBODY:
                return None
            raise MissingToken
        caller: Requester | None = None
        if self._appservices is not None:
            caller = await self._appservices.get_requester(
                shown.token, shown.user_id, shown.device_id, context
            )
        if caller is None and self._tokens is not None:
            caller = await self._tokens.get_requester(shown.token, context)
        if caller is None:
            raise UnknownToken
        if caller.is_locked and not declaration.while_locked:
            raise UserLocked(soft_logout=True)
        if caller.is_expired and not declaration.while_expired:
            raise ExpiredAccount
        if caller.is_suspended and not declaration.while_suspended:
            raise UserSuspended
        if caller.consent is not None and not declaration.before_consent:
            caller.check_may_write()
        if caller.is_guest and declaration.auth not in (Auth.GUEST, *MAYBE_NOBODY):
            raise GuestAccessForbidden
        if declaration.auth is Auth.ADMIN and not caller.is_admin:
            raise Forbidden("Only a server administrator may do this")
        if declaration.auth is Auth.APPSERVICE and caller.appservice_id is None:
            raise Forbidden("Only an application service may do this")
        return caller

    def count(self, declaration: Endpoint, caller: Requester | None, client_ip: str) -> None:
        """Count the request against the limit that its endpoint declares. Raises
        `LimitExceeded`."""
        limit = declaration.limit
        if (
            caller is not None
            and caller.is_admin
            and self._limiter.has_rate(declaration.limit_of_admins)
        ):
            limit = declaration.limit_of_admins
        if limit is _UNLIMITED or (caller is not None and not caller.rate_limited):
            return
        key = address_key(client_ip) if caller is None or limit in PER_ADDRESS else caller.user_id
        self._limiter.check(limit, key, cost=declaration.cost)

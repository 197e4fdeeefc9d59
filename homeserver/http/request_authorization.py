"""Authenticates requests, checks that the caller may use the endpoint, and applies rate limits.

This module has no access to accounts. The checkers that are passed to `RequestAuthorizer` find the
user of a token (`TokenChecker`) or check a signature (`SignatureChecker`). Start-up fails if an
endpoint declares a kind of authentication for which no checker was passed.

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
from homeserver.api.endpoint import OPTIONAL_AUTH, Auth, Endpoint
from homeserver.api.limits import PER_ADDRESS, Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter, address_key

_REFUSALS: Final = (
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
"""Accessing a member of an enum class is a function call in Python 3.11, so these are constants."""


class TokenChecker(Protocol):
    """Finds the user of an access token."""

    def get_cached(
        self, token: str, client_ip: str, headers: Mapping[bytes, bytes]
    ) -> Requester | None:
        """Return what `get_requester` would, if it is cached; otherwise None."""
        ...

    async def get_requester(self, token: str, context: RequestContext) -> Requester | None:
        """Return the user of a token, or None for an unknown token. Raises
        `UnknownToken(soft_logout=True)` for an expired one.

        The result may be locked or suspended; `RequestAuthorizer` decides what such an account may
        do.
        """
        ...


class AppserviceChecker(Protocol):
    """Finds the application service of a token, and the user that it acts for."""

    async def get_requester(
        self, token: str, user_id: str | None, device_id: str | None, context: RequestContext
    ) -> Requester | None:
        """Return the requester, or None if the token does not belong to an application service.
        Raises `Forbidden` for a user outside the namespace."""
        ...


class SignatureChecker(Protocol):
    """Checks a server's signature on a request."""

    def check_head(self, authorization: list[str], uri: str) -> None:
        """Check everything that needs no body. Raises `Unauthorized`, `Forbidden`."""
        ...

    async def get_peer(
        self, authorization: list[str], method: str, uri: str, body: bytes, address: str = ""
    ) -> Peer:
        """Return the authenticated server. Raises `Unauthorized`, `LimitExceeded`.

        `authorization`: every header of that name; `uri`: path and query as sent; `address`: the
        client address as rate limits count it.
        """
        ...


class PeerAdmission(Protocol):
    """Limits how many requests of other servers run at once."""

    async def enter(self, server: ServerName) -> None:
        """Wait until the request may run. Raises `LimitExceeded`."""
        ...

    def leave(self, server: ServerName) -> None:
        """The request has ended."""
        ...


class Credentials(msgspec.Struct, frozen=True, gc=False):
    """The access token of a request, and the user and device that an application service acts
    for."""

    token: str | None
    user_id: str | None = None
    device_id: str | None = None


class RequestAuthorizer:
    """Authenticates and admits requests, or raises."""

    def __init__(
        self,
        *,
        limiter: RateLimiter,
        tokens: TokenChecker | None = None,
        appservices: AppserviceChecker | None = None,
        signatures: SignatureChecker | None = None,
        admission: PeerAdmission | None = None,
        slow_admission: PeerAdmission | None = None,
        token_in_query: bool = True,
    ) -> None:
        """`slow_admission`: the queue of long-polling requests, so that other requests of the same
        server do not wait for them."""
        self._limiter = limiter
        self._tokens = tokens
        self._appservices = appservices
        self.signatures = signatures
        self.admission = admission
        self.slow_admission = slow_admission
        self._token_in_query = token_in_query

    def can_check(self, auth: Auth) -> bool:
        """Return whether there is a checker for this kind of authentication."""
        match auth:
            case Auth.NONE:
                return True
            case Auth.SERVER:
                return self.signatures is not None
            case Auth.APPSERVICE:
                return self._appservices is not None
        return self._tokens is not None

    def find_cached_caller(
        self, declaration: Endpoint, token: str, client_ip: str, headers: Mapping[bytes, bytes]
    ) -> Requester | None:
        """Authenticate by a cached token of the header. Return None unless the caller is cached and
        an ordinary user that the endpoint admits; then `find_caller` decides."""
        if self._tokens is None:
            return None
        # This token does not belong to an application service: those are checked before a token is
        # cached, and no new application services appear later
        caller = self._tokens.get_cached(token, client_ip, headers)
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
        """Authenticate a request by its header and query.

        Raises `MissingToken`, `UnknownToken`, `UserLocked`, `ExpiredAccount`, `UserSuspended`,
        `ConsentNotGiven`, `GuestAccessForbidden`, `Forbidden`.
        """
        try:
            return await self._admit(declaration, self._credentials(authorization, query), context)
        except _REFUSALS:
            if declaration.auth is not Auth.IF_USABLE:
                raise
            return None

    def _credentials(
        self, authorization: str | None, query: Mapping[str, Sequence[str]]
    ) -> Credentials:
        """Find the access token. The header wins over the query. Raises `MissingToken` if the
        header holds none."""
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
        self, declaration: Endpoint, credentials: Credentials, context: RequestContext
    ) -> Requester | None:
        if credentials.token is None:
            if declaration.auth in OPTIONAL_AUTH:
                return None
            raise MissingToken
        caller: Requester | None = None
        if self._appservices is not None:
            caller = await self._appservices.get_requester(
                credentials.token, credentials.user_id, credentials.device_id, context
            )
        if caller is None and self._tokens is not None:
            caller = await self._tokens.get_requester(credentials.token, context)
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
        if caller.is_guest and declaration.auth not in (Auth.GUEST, *OPTIONAL_AUTH):
            raise GuestAccessForbidden
        if declaration.auth is Auth.ADMIN and not caller.is_admin:
            raise Forbidden("Only a server administrator may do this")
        if declaration.auth is Auth.APPSERVICE and caller.appservice_id is None:
            raise Forbidden("Only an application service may do this")
        return caller

    def check_rate_limit(
        self, declaration: Endpoint, caller: Requester | None, client_ip: str
    ) -> None:
        """Count the request against its endpoint's rate limit. Raises `LimitExceeded`."""
        limit = declaration.limit
        if (
            caller is not None
            and caller.is_admin
            and self._limiter.has_rate(declaration.admin_limit)
        ):
            limit = declaration.admin_limit
        if limit is _UNLIMITED or (caller is not None and not caller.rate_limited):
            return
        key = address_key(client_ip) if caller is None or limit in PER_ADDRESS else caller.user_id
        self._limiter.check(limit, key, cost=declaration.cost)

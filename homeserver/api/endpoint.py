"""The decorator `@endpoint`, which declares a handler as an endpoint, with all that the router
needs.

    @endpoint("PUT", "/_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags/{tag}",
              auth=Auth.USER, limit=Limit.ACCOUNT_DATA, max_body=4096)
    async def put_tag(account_data: AccountData, caller: Requester, *,
                      user_id: UserID, room_id: RoomID, tag: str, body: Tag) -> Empty: ...

A positional parameter is a service, or one of `Requester`, `Peer` and `RequestContext`. The router
finds services by their type at start-up. Keyword-only parameters get the values of the request: the
names in the path, `body` (a frozen msgspec Struct; `dict` or `msgspec.Raw` for any JSON object;
`bytes` or `BinaryIO` if it is not JSON), and query parameters with their defaults. A trailing
underscore is not part of the name on the wire (`from_`).

`Annotated[bool, QueryNames("use_state_after", "org.example.use_state_after")]` as the type of a
query parameter sets its names on the wire. If a request contains several of these names, the first
in this list counts.

The server does not start if a path contains a name for which the handler has no parameter, or if a
service is unknown. An endpoint may have several paths. If a path parameter has a default, some of
the paths may leave out its name, and its segment in a request may be empty. The segments of other
parameters must not be empty.
"""

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, ParamSpec, TypeVar

import msgspec

from federation.api.endpoint import DECLARATION, ServerAuth, ServerEndpoint
from homeserver.api.limits import Limit

P = ParamSpec("P")
T = TypeVar("T")


class Auth(Enum):
    """The authentication that an endpoint requires. The names follow the specification's list of
    endpoints."""

    NONE = "none"
    OPTIONAL = "optional"
    """A user's access token or none: the parameter is `Requester | None`."""
    IF_USABLE = "if usable"
    """As OPTIONAL, but an invalid token counts as none, for endpoints that the specification leaves
    unauthenticated."""
    USER = "user"
    """A user's access token; guests are refused."""
    GUEST = "guest"
    """A user's access token, guests too."""
    ADMIN = "admin"
    APPSERVICE = "appservice"
    SERVER = "server"
    """A server's X-Matrix signature."""


OPTIONAL_AUTH = frozenset({Auth.OPTIONAL, Auth.IF_USABLE})
"""The requester may be None with these."""


class BodyLimit(Enum):
    """A body size limit that is an option. The value is the key of the option."""

    UPLOAD = "max_upload_size"


class Endpoint(msgspec.Struct, frozen=True):
    """The declaration of an endpoint, as the router reads it."""

    method: str
    paths: tuple[str, ...]
    auth: Auth
    limit: Limit
    max_body: int | BodyLimit
    handler: Callable[..., Awaitable[Any]]
    cancellable: bool = False
    while_locked: bool = False
    while_suspended: bool = False
    before_consent: bool = False
    while_expired: bool = False
    long_poll: bool = False
    resource: str = "client"
    cost: float = 1
    admin_limit: Limit = Limit.NONE

    @property
    def name(self) -> str:
        """The name in logs and metrics."""
        return self.handler.__name__


def endpoint(
    method: str,
    *paths: str,
    auth: Auth,
    limit: Limit = Limit.NONE,
    admin_limit: Limit = Limit.NONE,
    cost: float = 1,
    max_body: int | BodyLimit = 65536,
    cancellable: bool | None = None,
    while_locked: bool = False,
    while_suspended: bool | None = None,
    before_consent: bool | None = None,
    while_expired: bool = False,
    long_poll: bool = False,
    resource: str = "client",
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Declare a handler. The first path is the stable one; others are older or unstable spellings.

    - `cost`: how much a request counts against `limit`; less than 1 if most requests only read.
    - `admin_limit`: a separate limit for administrators, if it is configured.
    - `max_body`: a number of bytes or an option; a longer body is refused before it is read
      (M_TOO_LARGE).
    - `cancellable`: cancel the handler when its client disconnects; the default for GETs and long
      polls.
    - `while_locked`: a locked account may call it (to log out).
    - `while_suspended`: a suspended account may call it; by default it may only GET.
    - `before_consent`: a user who has not agreed to the terms may call it; by default the endpoints
      that a suspended account may call, and those of administrators.
    - `while_expired`: an expired account may call it (to renew itself, to log out).
    - `long_poll`: the response may take long and is not logged as a slow request.
    - `resource`: the group of endpoints, which a listener serves or not
      (`listeners[].resources[].names`).
    """
    reads = method in ("GET", "HEAD")
    allow_suspended = reads if while_suspended is None else while_suspended

    def declare(handler: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        handler.__dict__[DECLARATION] = Endpoint(
            method=method,
            paths=paths,
            auth=auth,
            limit=limit,
            max_body=max_body,
            handler=handler,
            cancellable=(reads or long_poll) if cancellable is None else cancellable,
            while_locked=while_locked,
            while_suspended=allow_suspended,
            before_consent=(allow_suspended or auth is Auth.ADMIN)
            if before_consent is None
            else before_consent,
            while_expired=while_expired,
            long_poll=long_poll,
            resource=resource,
            cost=cost,
            admin_limit=admin_limit,
        )
        return handler

    return declare


def find_declaration(value: object) -> Endpoint | None:
    """Return the declaration of a handler, also of one for other servers; None for other values."""
    found = getattr(value, DECLARATION, None)
    if isinstance(found, Endpoint):
        return found
    if not isinstance(found, ServerEndpoint):
        return None
    return Endpoint(
        method=found.method,
        paths=found.paths,
        auth=Auth.SERVER if found.auth is ServerAuth.SERVER else Auth.NONE,
        limit=Limit.NONE,
        max_body=found.max_body,
        handler=found.handler,
        cancellable=found.method == "GET" or found.long_poll,
        long_poll=found.long_poll,
        resource=found.resource,
    )

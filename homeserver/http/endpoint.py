"""How an endpoint is declared: once, on its handler, with everything about it.

    @endpoint("PUT", "/_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags/{tag}", auth=Auth.USER, max_body=4096)
    async def put_tag(account_data: AccountDataService, caller: Requester, *,
                      user_id: UserID, room_id: RoomID, tag: str, body: Tag) -> Empty: ...

Positional parameters are services, found by type when the router is built; `Requester` (and `RequestContext`) among
them is who and what asks. Keyword-only parameters are the request: first the names in the path, then `body` (a frozen
msgspec Struct, or `Raw`/`dict` where any object will do), then query parameters with their defaults. A name in the path
with no parameter, or a service that nobody provides, stops start-up with a sentence.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ParamSpec, TypeVar

from federation.protocol.ids import DeviceID, UserID

P = ParamSpec("P")
T = TypeVar("T")


class Auth(Enum):
    """Who may ask. The names follow the column `auth` of the specification's list of endpoints."""

    NONE = "none"
    OPTIONAL = "optional"
    USER = "user"
    """A user's access token; guests are refused."""
    GUEST = "guest"
    """A user's access token, guests too."""
    ADMIN = "admin"
    APPSERVICE = "appservice"
    SERVER = "server"
    """A server's X-Matrix signature."""


class Limit(Enum):
    """Which rate limit a request counts against, besides those of its own. Values are keys of the configuration."""

    NONE = "none"
    MESSAGE = "rc_message"
    REGISTRATION = "rc_registration"
    LOGIN = "rc_login"
    JOIN = "rc_joins"
    INVITE = "rc_invites"
    ROOM_CREATION = "rc_room_creation"
    PROFILE = "rc_profile"


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asks, as the guard found out."""

    user_id: UserID
    device_id: DeviceID | None
    token_nid: int
    is_guest: bool = False
    is_admin: bool = False
    appservice_id: str | None = None


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What else a handler may need to know of the request."""

    request_id: str
    method: str
    path: str
    client_ip: str
    user_agent: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A declaration, as the router reads it."""

    method: str
    paths: tuple[str, ...]
    auth: Auth
    limit: Limit
    max_body: int
    handler: Callable[..., Awaitable[Any]]


def endpoint(
    method: str,
    *paths: str,
    auth: Auth,
    limit: Limit = Limit.NONE,
    max_body: int = 65536,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Declare a handler. The first path is the stable one; others are older and unstable spellings of it.

    `max_body` is in bytes; what is longer is refused before it is read (M_TOO_LARGE).
    """
    raise NotImplementedError

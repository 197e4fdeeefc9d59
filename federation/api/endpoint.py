"""The decorator `endpoint`, which declares a function as the handler of a server-server endpoint.

    @endpoint("GET", "/_matrix/federation/v1/event/{event_id}", auth=ServerAuth.SERVER)
    async def get_event(rooms: ServedRooms, peer: Peer, *, event_id: EventID) -> Response: ...

The router passes arguments to handlers by the rules in the header of `homeserver.api.endpoint`.
"""

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, Final, ParamSpec, TypeVar

import msgspec

P = ParamSpec("P")
T = TypeVar("T")

DECLARATION: Final = "__endpoint__"
"""The attribute of a handler that holds its declaration."""


class ServerAuth(Enum):
    """The authentication that an endpoint of the server-server API requires."""

    NONE = "none"
    SERVER = "server"
    """The X-Matrix signature of a server."""


class QueryNames:
    """The names of a query parameter on the wire, by preference, if they differ from the
    parameter's name in Python."""

    __slots__ = ("names",)

    def __init__(self, *names: str) -> None:
        self.names = names


class ServerEndpoint(msgspec.Struct, frozen=True):
    """The declaration of an endpoint of the server-server API."""

    method: str
    paths: tuple[str, ...]
    auth: ServerAuth
    max_body: int
    handler: Callable[..., Awaitable[Any]]
    long_poll: bool
    resource: str


def endpoint(
    method: str,
    *paths: str,
    auth: ServerAuth,
    max_body: int = 65536,
    long_poll: bool = False,
    resource: str = "federation",
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Declare a handler. The first path is the stable one; others are older spellings of it.

    - `max_body`: the limit in bytes; a longer body is refused before it is read (M_TOO_LARGE).
    - `long_poll`: the response may take long and is not logged as a slow request.
    - `resource`: the group of endpoints, which a listener serves or not.
    """

    def declare(handler: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        handler.__dict__[DECLARATION] = ServerEndpoint(
            method=method,
            paths=paths,
            auth=auth,
            max_body=max_body,
            handler=handler,
            long_poll=long_poll,
            resource=resource,
        )
        return handler

    return declare

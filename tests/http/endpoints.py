"""Example endpoints for tests of the router, the authorizer and the site."""

from enum import Enum
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
from twisted.internet.defer import Deferred

from federation.api.endpoint import QueryNames
from federation.api.request import RequestContext
from federation.protocol.errors import Forbidden, LimitExceeded, RemoteError
from federation.protocol.ids import RoomID, UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty, Response
from storage.engine.interface import DatabaseUnavailable

ROOMS = "/_matrix/client/v3/rooms/{room_id}"


class Bell:
    """A service that long polls wait for."""

    def __init__(self) -> None:
        self.waiting: list[Deferred[str]] = []
        self.cancelled = 0
        self.finished = 0

    def wait(self) -> Deferred[str]:
        waiting: Deferred[str] = Deferred(self._cancel)
        self.waiting.append(waiting)
        return waiting

    def ring(self) -> None:
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.callback("rung")

    def _cancel(self, waiting: Deferred[str]) -> None:
        self.cancelled += 1
        self.waiting.remove(waiting)


class Tag(msgspec.Struct, frozen=True):
    order: float | None = None
    words: list[str] = []


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class ColourAnswer(msgspec.Struct, frozen=True):
    colour: Colour


@endpoint(
    "PUT",
    "/_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags/{tag}",
    auth=Auth.USER,
    max_body=4096,
)
async def put_tag(
    bell: Bell,
    caller: Requester,
    *,
    user_id: UserID,
    room_id: RoomID,
    tag: str,
    body: Tag = Tag(),  # noqa: B008 - frozen
) -> Any:
    assert isinstance(bell, Bell)
    return {
        "caller": caller.user_id,
        "user": user_id,
        "room": room_id,
        "tag": tag,
        "order": body.order,
    }


@endpoint(
    "GET", ROOMS + "/state/{event_type}/{state_key}", ROOMS + "/state/{event_type}", auth=Auth.NONE
)
async def get_state(*, room_id: RoomID, event_type: str, state_key: str = "") -> Any:
    return [room_id, event_type, state_key]


@endpoint("GET", ROOMS + "/state", auth=Auth.NONE)
async def get_states(*, room_id: RoomID) -> Any:
    return [room_id]


@endpoint(
    "GET",
    "/_matrix/client/v3/search",
    "/_matrix/client/unstable/org.example/search",
    auth=Auth.NONE,
)
async def get_search(
    *,
    needed: str,
    limit: int = 10,
    full: bool = False,
    colour: Colour = Colour.RED,
    dir: Literal["b", "f"] = "f",
    server: list[str] = [],  # noqa: B006 - never changed
    at: RoomID | None = None,
    from_: str | None = None,
    after: Annotated[bool, QueryNames("use_after", "org.example.use_after")] = False,
) -> Any:
    return {
        "needed": needed,
        "limit": limit,
        "full": full,
        "colour": colour.value,
        "dir": dir,
        "server": server,
        "at": at,
        "from": from_,
        "after": after,
    }


@endpoint("POST", "/_matrix/client/v3/object", auth=Auth.NONE)
async def post_object(*, body: dict[str, Any]) -> Any:
    return body


@endpoint("POST", "/_matrix/client/v3/raw", auth=Auth.NONE)
async def post_raw(*, body: msgspec.Raw) -> msgspec.Raw:
    return body


@endpoint("POST", "/_matrix/media/v3/upload", auth=Auth.NONE, max_body=3 << 20)
async def post_upload(*, body: BinaryIO, filename: str = "") -> Any:
    return {"bytes": len(body.read()), "filename": filename}


@endpoint("GET", "/_matrix/client/v3/sync", auth=Auth.GUEST, long_poll=True)
async def get_sync(bell: Bell, caller: Requester) -> Any:
    return {"text": await bell.wait(), "caller": caller.user_id}


@endpoint("POST", "/_matrix/client/v3/slow", auth=Auth.NONE)
async def post_slow(bell: Bell) -> Empty:
    await bell.wait()
    bell.finished += 1
    return EMPTY


@endpoint("GET", "/_matrix/client/v3/who", auth=Auth.OPTIONAL)
async def get_who(context: RequestContext, caller: Requester | None) -> Any:
    return {
        "user_id": caller.user_id if caller else None,
        "ip": context.client_ip,
        "secure": context.is_secure,
        "agent": context.user_agent,
        "id": context.request_id,
        "cookies": dict(context.cookies),
    }


@endpoint("GET", "/_matrix/client/v3/anybody", auth=Auth.IF_USABLE)
async def get_if_usable(caller: Requester | None) -> Any:
    return {"user_id": caller.user_id if caller else None}


@endpoint("GET", "/_matrix/client/v3/known", auth=Auth.USER)
async def get_cached_field(_caller: Requester, *, needed: str, limit: int = 10) -> Any:
    return [needed, limit]


@endpoint("GET", "/_matrix/client/v3/known_too", auth=Auth.USER)
async def get_uncached_field(_caller: Requester, *, needed: str, limit: str = "") -> Any:
    return [needed, limit]


@endpoint(
    "POST", "/_matrix/client/v3/logout", auth=Auth.USER, while_locked=True, while_suspended=True
)
async def post_logout(_caller: Requester) -> Empty:
    return EMPTY


@endpoint("POST", "/_matrix/client/v3/login", auth=Auth.NONE, limit=Limit.LOGIN)
async def post_login() -> Empty:
    return EMPTY


@endpoint("POST", "/_matrix/client/v3/message", auth=Auth.USER, limit=Limit.MESSAGE)
async def post_message(_caller: Requester) -> Empty:
    return EMPTY


@endpoint("GET", "/_synapse/admin/v1/thing", auth=Auth.ADMIN, resource="admin")
async def get_admin(_caller: Requester) -> ColourAnswer:
    return ColourAnswer(Colour.BLUE)


@endpoint("GET", "/big", auth=Auth.NONE)
async def get_big() -> Any:
    return {"text": "word " * 1000}


@endpoint("GET", "/page", auth=Auth.NONE)
async def get_page() -> Response:
    return Response(
        202, {"Content-Type": "text/html", "Cache-Control": "max-age=5", "X-Own": "1"}, b"<p>"
    )


@endpoint("GET", "/fails/{how}", auth=Auth.NONE)
async def get_fails(*, how: str) -> Any:
    match how:
        case "forbidden":
            raise Forbidden("No, not you")
        case "remote":
            raise RemoteError("far.example", "secret detail", retryable=True)
        case "database":
            raise DatabaseUnavailable("connection refused\n")
        case "limit":
            raise LimitExceeded(retry_after_ms=1500)
        case "header":
            return Response(200, {"X-Bad": "a\r\nb: c"}, b"{}")
        case "unencodable":
            return {"thing": object()}
        case "cancelled":
            waiting: Deferred[None] = Deferred()
            waiting.cancel()
            return await waiting
    raise RuntimeError("a bug")

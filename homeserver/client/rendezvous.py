"""Rendezvous sessions, in which two devices exchange messages to sign in with a QR code.

Serves MSC4388 (JSON), and MSC4108 of 2024 (text with ETags), which released apps still use.
"""

from http import HTTPStatus
from typing import Final
from wsgiref.handlers import format_date_time

import msgspec

from federation.api.request import RequestContext
from federation.protocol.errors import ConcurrentWrite, Forbidden, InvalidParam, MissingParam
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty, Response, encode_body
from homeserver.services.login.rendezvous import RendezvousSessions
from homeserver.services.oauth.metadata import OAuthMetadata
from storage.login.rendezvous import RendezvousRow

_BODY: Final = 16384
"""The largest JSON body, in bytes. Leaves space for escapes in the data."""
_PATH: Final = "/_matrix/client/unstable/io.element.msc4388/rendezvous"
_SESSION_PATH: Final = _PATH + "/{rendezvous_id}"
OLDER_PATH: Final = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous"
_OLDER_SESSION_PATH: Final = OLDER_PATH + "/{rendezvous_id}"
_SESSION_COST: Final = 0.01
"""The rate limit cost of one request: devices poll about once a second."""


class CreateSessionBody(msgspec.Struct, frozen=True):
    data: str


class UpdateSessionBody(msgspec.Struct, frozen=True):
    sequence_token: str
    data: str


@endpoint("GET", _PATH, auth=Auth.OPTIONAL, limit=Limit.RENDEZVOUS, cost=_SESSION_COST)
async def get_rendezvous_support(
    rendezvous: RendezvousSessions, caller: Requester | None
) -> dict[str, object]:
    """Return whether the caller may create a rendezvous session."""
    rendezvous.check_enabled()
    return {"create_available": rendezvous.may_create(caller)}


@endpoint(
    "POST", _PATH, auth=Auth.OPTIONAL, limit=Limit.RENDEZVOUS, max_body=_BODY, while_suspended=True
)
async def post_rendezvous(
    rendezvous: RendezvousSessions, caller: Requester | None, *, body: CreateSessionBody
) -> dict[str, object]:
    """Create a rendezvous session."""
    rendezvous.check_enabled()
    rendezvous_id, row = await rendezvous.do_create(caller, _encoded(body.data))
    return {
        "id": rendezvous_id,
        "sequence_token": row.etag,
        "expires_in_ms": row.expires_ts - row.written_ts,
    }


@endpoint("GET", _SESSION_PATH, auth=Auth.NONE, limit=Limit.RENDEZVOUS, cost=_SESSION_COST)
async def get_rendezvous(
    rendezvous: RendezvousSessions, context: RequestContext, *, rendezvous_id: str
) -> dict[str, object]:
    """Return the current data of a session."""
    rendezvous.check_enabled()
    _check_no_page(context)
    row = await rendezvous.get(rendezvous_id)
    return {
        "data": row.data.decode("utf-8", "replace"),
        "sequence_token": row.etag,
        "expires_in_ms": row.expires_ts - rendezvous.now(),
    }


@endpoint(
    "PUT", _SESSION_PATH, auth=Auth.NONE, limit=Limit.RENDEZVOUS, cost=_SESSION_COST, max_body=_BODY
)
async def put_rendezvous(
    rendezvous: RendezvousSessions, *, rendezvous_id: str, body: UpdateSessionBody
) -> dict[str, object]:
    """Replace the data of a session."""
    rendezvous.check_enabled()
    row = await rendezvous.do_write(rendezvous_id, body.sequence_token, _encoded(body.data))
    return {"sequence_token": row.etag}


@endpoint("DELETE", _SESSION_PATH, auth=Auth.NONE, limit=Limit.RENDEZVOUS, cost=_SESSION_COST)
async def delete_rendezvous(rendezvous: RendezvousSessions, *, rendezvous_id: str) -> Empty:
    """Delete a session."""
    rendezvous.check_enabled()
    await rendezvous.do_delete(rendezvous_id)
    return EMPTY


@endpoint("POST", OLDER_PATH, auth=Auth.NONE, limit=Limit.RENDEZVOUS, max_body=_BODY)
async def post_older_rendezvous(
    rendezvous: RendezvousSessions, metadata: OAuthMetadata, context: RequestContext, *, body: bytes
) -> Response:
    """Create a session, in the older form."""
    rendezvous.check_enabled(older=True)
    _check_text(context)
    rendezvous_id, row = await rendezvous.do_create(None, body)
    headers = {**_older_headers(row), "Content-Type": "application/json"}
    return Response(
        HTTPStatus.CREATED, headers, {"url": f"{metadata.base}{OLDER_PATH}/{rendezvous_id}"}
    )


@endpoint("GET", _OLDER_SESSION_PATH, auth=Auth.NONE, limit=Limit.RENDEZVOUS, cost=_SESSION_COST)
async def get_older_rendezvous(
    rendezvous: RendezvousSessions, context: RequestContext, *, rendezvous_id: str
) -> Response:
    """Return the current data of a session, unless the client has it already; in the older form."""
    rendezvous.check_enabled(older=True)
    _check_no_page(context)
    row = await rendezvous.get(rendezvous_id)
    if (context.header("If-None-Match") or "").strip() == _etag(row):
        return Response(HTTPStatus.NOT_MODIFIED, _older_headers(row))
    return Response(HTTPStatus.OK, _older_headers(row), row.data)


@endpoint(
    "PUT",
    _OLDER_SESSION_PATH,
    auth=Auth.NONE,
    limit=Limit.RENDEZVOUS,
    cost=_SESSION_COST,
    max_body=_BODY,
)
async def put_older_rendezvous(
    rendezvous: RendezvousSessions, context: RequestContext, *, rendezvous_id: str, body: bytes
) -> Response:
    """Replace the data of a session, in the older form."""
    rendezvous.check_enabled(older=True)
    _check_text(context)
    seen = context.header("If-Match")
    if seen is None:
        raise MissingParam("The header If-Match is missing")
    if len(seen) < 2 or not (seen.startswith('"') and seen.endswith('"')):
        raise InvalidParam("If-Match must be one strong ETag")
    try:
        row = await rendezvous.do_write(rendezvous_id, seen[1:-1], body)
    except ConcurrentWrite as error:
        headers = {
            **_older_headers(await rendezvous.get(rendezvous_id)),
            "Content-Type": "application/json",
        }
        # spec: MSC4108 (2024) #unstable-prefix: an unknown errcode comes beside a known one
        refusal = {
            "errcode": "M_UNKNOWN",
            "org.matrix.msc4108.errcode": "M_CONCURRENT_WRITE",
            "error": error.text,
        }
        return Response(HTTPStatus.PRECONDITION_FAILED, headers, encode_body(refusal))
    return Response(HTTPStatus.ACCEPTED, _older_headers(row))


@endpoint("DELETE", _OLDER_SESSION_PATH, auth=Auth.NONE, limit=Limit.RENDEZVOUS, cost=_SESSION_COST)
async def delete_older_rendezvous(
    rendezvous: RendezvousSessions, *, rendezvous_id: str
) -> Response:
    """Delete a session, in the older form."""
    rendezvous.check_enabled(older=True)
    await rendezvous.do_delete(rendezvous_id)
    return Response(HTTPStatus.NO_CONTENT, {"Cache-Control": "no-store"})


def _encoded(data: str) -> bytes:
    return data.encode("utf-8", "surrogatepass")


def _check_no_page(context: RequestContext) -> None:
    """Raise `Forbidden` if a browser would show the data as a page: its content is not trusted."""
    if context.header("Sec-Fetch-Mode") == "navigate":
        raise Forbidden("A browser must not show this as a page")


def _check_text(context: RequestContext) -> None:
    kind = context.header("Content-Type")
    if kind is None:
        raise MissingParam("The header Content-Type is missing")
    if kind.partition(";")[0].strip().lower() != "text/plain":
        raise InvalidParam("Content-Type must be text/plain")


def _etag(row: RendezvousRow) -> str:
    return f'"{row.etag}"'


def _older_headers(row: RendezvousRow) -> dict[str, str]:
    return {
        "Content-Type": "text/plain",
        "Cache-Control": "no-store",
        "Pragma": "no-cache",
        "ETag": _etag(row),
        "Expires": format_date_time(row.expires_ts / 1000),
        "Last-Modified": format_date_time(row.written_ts / 1000),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }

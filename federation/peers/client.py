"""Sends signed JSON requests to other servers.

Laws:
- Nothing is sent to a server that the policy blocks.
- The caller gets a value of the requested type or a `RemoteError`, even if the other server is
  faulty or malicious. If the policy blocks the server, the caller gets `Forbidden`.

spec: server-server-api#request-authentication
"""

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from federation.http_client.body import TakeBody
from federation.http_client.retry_after import read_retry_after
from federation.peers.federation_policy import FederationPolicy
from federation.peers.identity import ServerIdentity
from federation.peers.wire import Wire, WireRequest, WireResponse
from federation.protocol.canonical_json import (
    MAX_DEPTH,
    check_text_depth,
    count_openings,
    encode_canonical,
)
from federation.protocol.dense_json import has_too_many_values, without_deep
from federation.protocol.errors import BadJson, RemoteError
from federation.protocol.ids import ServerName
from federation.protocol.request_signing import make_authorization

MAX_JSON_BYTES = 10 << 20
"""Longest response, unless a call expects more."""
MAX_ERROR_BYTES = 64 << 10
"""Longest error body that is parsed. Parsed JSON may take twenty times its size."""
LONG_JSON_BYTES, MAX_VALUES = 1 << 20, 1_500_000
"""A response longer than `LONG_JSON_BYTES` that is parsed at once may have up to `MAX_VALUES`
strings, commas and brackets. The keys of users have fewer in 16 MiB."""
MAX_OPENINGS = 200_000
"""Lists and objects in a response that nests too deeply. Replacing the deep values takes two
microseconds for each."""
MAX_ERROR_CHARS = 500
DEFAULT_RETRY_AFTER_MS, MAX_RETRY_AFTER_MS = 1_000, 3_600_000
"""Wait that we report if the other server asks for one without a time, and the longest one."""
GATEWAY_ERRORS = frozenset({502, 503, 504})
"""Statuses of proxies that have lost their backend."""

Query = Sequence[tuple[str, str]]
T = TypeVar("T")


class RefusedByRemote(RemoteError):
    """The other server answered with an error. Its HTTP status, errcode and text are all
    untrusted."""

    def __init__(
        self,
        destination: str,
        status: int,
        errcode: str,
        text: str,
        body: Mapping[str, Any],
        retry_after_ms: int,
    ) -> None:
        super().__init__(
            destination, f"{status} {errcode}: {text}", retryable=status >= 500 or status == 429
        )
        self.status = status
        self.errcode = errcode
        self.text = text
        self.body = body
        self.retry_after_ms = retry_after_ms
        """Wait that the server asks for, at most `MAX_RETRY_AFTER_MS`. 0 if it asks for none."""


def is_no_answer(error: RemoteError) -> bool:
    """Return whether there was no answer, or one from a proxy in front of the server."""
    return error.status in GATEWAY_ERRORS if isinstance(error, RefusedByRemote) else error.retryable


def get_retry_after_ms(failure: Exception) -> int:
    """Return the wait that the other server asks for in this kind of requests, or 0.

    At most `MAX_RETRY_AFTER_MS`. spec: client-server-api#rate-limiting
    """
    if isinstance(failure, RefusedByRemote) and failure.status == HTTPStatus.TOO_MANY_REQUESTS:
        return failure.retry_after_ms or DEFAULT_RETRY_AFTER_MS
    return 0


class FederationClient:
    """Sends requests in the name of this server."""

    def __init__(
        self,
        *,
        wire: Wire,
        identity: ServerIdentity,
        policy: FederationPolicy,
        now_ms: Callable[[], int],
    ) -> None:
        self._wire = wire
        self._identity = identity
        self._policy = policy
        self._now_ms = now_ms

    async def get(
        self,
        destination: ServerName,
        path: str,
        query: Query = (),
        *,
        seconds: float = 30,
        max_bytes: int = MAX_JSON_BYTES,
        signed: bool = True,
    ) -> dict[str, Any]:
        """GET a JSON object. Raises RemoteError, Forbidden (the policy)."""
        answer = _read(
            destination,
            await self._exchange("GET", destination, path, query, None, seconds, max_bytes, signed),
        )
        if not isinstance(answer, dict):
            raise RemoteError(destination, "the answer is no JSON object", retryable=False)
        return answer

    async def put(
        self,
        destination: ServerName,
        path: str,
        body: Mapping[str, Any] | msgspec.Raw,
        query: Query = (),
        *,
        seconds: float = 60,
        max_bytes: int = MAX_JSON_BYTES,
        form: Any = Any,
    ) -> Any:
        """PUT a body and return the JSON: an object, except in version 1 of some endpoints.

        A body of type `msgspec.Raw` is canonical JSON. `form`: the type to parse the response as.
        Raises RemoteError, Forbidden.
        """
        return _read(
            destination,
            await self._exchange("PUT", destination, path, query, body, seconds, max_bytes),
            form,
        )

    async def post(
        self,
        destination: ServerName,
        path: str,
        body: Mapping[str, Any] | msgspec.Raw,
        query: Query = (),
        *,
        seconds: float = 30,
        max_bytes: int = MAX_JSON_BYTES,
        signed: bool = True,
    ) -> Any:
        """POST a body and return the JSON. Raises RemoteError, Forbidden (the policy)."""
        return _read(
            destination,
            await self._exchange(
                "POST", destination, path, query, body, seconds, max_bytes, signed
            ),
        )

    async def get_as(
        self,
        form: type[T],
        destination: ServerName,
        path: str,
        query: Query = (),
        *,
        seconds: float = 30,
        max_bytes: int = MAX_JSON_BYTES,
    ) -> T:
        """GET a long response and parse it as a msgspec type. Raises RemoteError, Forbidden."""
        answer: T = _read(
            destination,
            await self._exchange("GET", destination, path, query, None, seconds, max_bytes),
            form,
        )
        return answer

    async def get_bytes(
        self,
        destination: ServerName,
        path: str,
        query: Query = (),
        *,
        seconds: float,
        max_bytes: int,
    ) -> bytes:
        """GET a response without parsing it, if it is too long to parse at once.

        Raises RemoteError, Forbidden.
        """
        return (
            await self._exchange("GET", destination, path, query, None, seconds, max_bytes)
        ).body

    async def put_bytes(
        self,
        destination: ServerName,
        path: str,
        body: Mapping[str, Any] | msgspec.Raw,
        query: Query = (),
        *,
        seconds: float,
        max_bytes: int,
    ) -> bytes:
        """PUT a body and return the response unparsed, as `get_bytes`."""
        return (
            await self._exchange("PUT", destination, path, query, body, seconds, max_bytes)
        ).body

    async def post_bytes(
        self,
        destination: ServerName,
        path: str,
        body: Mapping[str, Any] | msgspec.Raw,
        *,
        seconds: float,
        max_bytes: int,
    ) -> bytes:
        """POST a body and return the response unparsed, as `get_bytes`."""
        return (await self._exchange("POST", destination, path, (), body, seconds, max_bytes)).body

    async def download(
        self,
        destination: ServerName,
        path: str,
        query: Query,
        take: TakeBody,
        *,
        seconds: float,
        max_bytes: int,
        signed: bool,
    ) -> None:
        """Stream the body of a successful GET to `take`. Raises RemoteError, Forbidden.

        `take` is called for successful responses only.
        """
        self._policy.check_destination(destination, path)

        def take_successful(
            status: int, headers: Mapping[str, str]
        ) -> Callable[[bytes], None] | None:
            return take(status, headers) if status == 200 else None

        request = self._request(
            "GET", destination, path, query, None, seconds, max_bytes, signed, take_successful
        )
        await self._ask(destination, request)

    async def _exchange(
        self,
        method: str,
        destination: ServerName,
        path: str,
        query: Query,
        body: Mapping[str, Any] | msgspec.Raw | None,
        seconds: float,
        max_bytes: int,
        signed: bool = True,
    ) -> WireResponse:
        self._policy.check_destination(destination, path)
        request = self._request(
            method, destination, path, query, body, seconds, max_bytes, signed, None
        )
        return await self._ask(destination, request)

    async def _ask(self, destination: ServerName, request: WireRequest) -> WireResponse:
        """Return a successful response. Raises RemoteError."""
        answer = await self._wire.exchange(destination, request)
        if answer.status != 200:
            raise _refusal(destination, answer, self._now_ms())
        return answer

    def _request(
        self,
        method: str,
        destination: ServerName,
        path: str,
        query: Query,
        body: Mapping[str, Any] | msgspec.Raw | None,
        seconds: float,
        max_bytes: int,
        signed: bool,
        take: TakeBody | None,
    ) -> WireRequest:
        uri = f"{path}?{urlencode(query, quote_via=quote)}" if query else path
        content = (
            body
            if body is None or isinstance(body, msgspec.Raw)
            else msgspec.Raw(encode_canonical(body))
        )
        headers = [("Accept", "application/json" if take is None else "*/*")]
        if content is not None:
            headers.append(("Content-Type", "application/json"))
        if signed:
            authorization = make_authorization(
                self._identity.key,
                method=method,
                uri=uri,
                origin=self._identity.server_name,
                destination=destination,
                content=content,
            )
            headers.append(("Authorization", authorization))
        return WireRequest(
            method,
            uri,
            tuple(headers),
            b"" if content is None else bytes(content),
            seconds,
            max_bytes,
            take,
        )


def make_path(template: str, *values: str) -> str:
    """Fill each `{}` of a path with a value, completely percent-encoded."""
    return template.format(*(quote(value, safe="") for value in values))


def _decode(body: bytes, form: Any) -> Any:
    """Parse a body. A value that nests too deeply becomes null, so that it spoils no other value,
    such as the keys of other users."""
    try:
        value = msgspec.json.decode(body, type=form)
        check_text_depth(body)
        return value
    except (RecursionError, BadJson):
        if count_openings(body) > MAX_OPENINGS:
            raise
        return msgspec.json.decode(without_deep(body, MAX_DEPTH), type=form)


def _read(destination: ServerName, answer: WireResponse, form: Any = Any) -> Any:
    """Parse a successful response. Raises RemoteError."""
    if len(answer.body) > LONG_JSON_BYTES and has_too_many_values(answer.body, MAX_VALUES):
        raise RemoteError(
            destination,
            "the response holds too many values to be parsed at once",
            retryable=False,
        )
    try:
        value = _decode(answer.body, form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadJson) as error:
        is_json = isinstance(error, msgspec.ValidationError)
        reason = f"the answer has another form: {error}" if is_json else "the answer is no JSON"
        raise RemoteError(destination, reason[:MAX_ERROR_CHARS], retryable=False) from error
    if form is Any and not isinstance(value, dict | list):
        raise RemoteError(destination, "the answer is no JSON object", retryable=False)
    return value


def _refusal(destination: ServerName, answer: WireResponse, now_ms: int) -> RefusedByRemote:
    """Build the error for an unsuccessful response. A long body is ignored."""
    try:
        body = _decode(answer.body, Any) if len(answer.body) <= MAX_ERROR_BYTES else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadJson):
        body = {}
    if not isinstance(body, dict):
        body = {}
    errcode, text = body.get("errcode"), body.get("error")
    wait = read_retry_after(answer.headers, now_ms / 1000) or body.get("retry_after_ms")
    return RefusedByRemote(
        destination,
        answer.status,
        errcode[:MAX_ERROR_CHARS] if isinstance(errcode, str) else "M_UNKNOWN",
        text[:MAX_ERROR_CHARS] if isinstance(text, str) else "no reason given",
        body,
        min(max(wait, 0), MAX_RETRY_AFTER_MS)
        if isinstance(wait, int) and not isinstance(wait, bool)
        else 0,
    )

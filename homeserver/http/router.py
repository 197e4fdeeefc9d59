"""The router finds the endpoint of a request and calls its handler.

The steps of a request: find the endpoint, authenticate the caller, count the request against the
rate limit, parse path, query and body into typed values, call the handler. Exceptions pass through;
the site turns them into responses.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cache
from string import ascii_letters, digits
from types import ModuleType
from typing import Any, BinaryIO, Final, Protocol

import msgspec

from federation.api.request import Peer, RequestContext
from federation.protocol.errors import MethodNotAllowed, MissingToken, Unrecognized
from homeserver.api.endpoint import OPTIONAL_AUTH, Auth, BodyLimit, Endpoint, find_declaration
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.parameters import (
    Binding,
    DeclarationError,
    bind,
    find_fields,
    find_services,
    known_services,
)
from homeserver.http.paths import PathTable
from homeserver.http.rate_limits import address_key
from homeserver.http.request_authorization import RequestAuthorizer
from homeserver.http.request_head import RequestHead
from homeserver.observe.access_log import AccessRecord
from storage.cache import LRU

_NONE: Final = Auth.NONE
_SERVER: Final = Auth.SERVER
"""Accessing a member of an enum class is a function call in Python 3.11, so these are constants."""
MAX_CACHED_PREFIX: Final = 512
CACHED_PREFIXES: Final = 512
"""The number of cached path prefixes, and the largest length of each in bytes."""
PLAIN: Final = (ascii_letters + digits + "-._~").encode()
"""The characters that need no decoding in a path."""
Handler = Callable[..., Awaitable[Any]]
"""A function declared with `@endpoint`."""


class EndpointRoute(msgspec.Struct, frozen=True):
    """One endpoint at one of its paths."""

    path: str
    declaration: Endpoint
    binding: Binding
    names: tuple[str, ...]
    name: str
    """The name in logs and metrics."""
    is_limited: bool
    """Whether requests count against a rate limit."""


class Match(msgspec.Struct, frozen=True, gc=False):
    """A route, with the values from the request path."""

    route: EndpointRoute
    values: list[str]
    max_body: int
    """The largest body in bytes."""


class IncomingRequest(Protocol):
    """A complete request, as the router needs it."""

    head: RequestHead
    query: bytes
    client_ip: str
    file: BinaryIO | None
    """The body, if the endpoint takes it as a file."""
    record: AccessRecord

    def read_body(self) -> bytes:
        """Return the body, unless it is a file."""
        ...

    def release_body(self) -> None:
        """The request was authenticated and admitted: stop counting its body against the budget."""
        ...

    def make_context(self) -> RequestContext:
        """Return the context that handlers may ask for."""
        ...


class Router:
    """Finds and calls endpoints. The constructor raises `DeclarationError` for wrong
    declarations."""

    def __init__(
        self,
        *,
        sources: Iterable[ModuleType | Handler],
        services: Mapping[type, object],
        authorizer: RequestAuthorizer,
        body_limits: Mapping[BodyLimit, int] | None = None,
    ) -> None:
        self._authorizer = authorizer
        self._body_limits = body_limits or {}
        self._table, endpoints = _read(tuple(sources))
        self._services: dict[Handler, tuple[object, ...]] = {}
        self._recent_matches: LRU[tuple[str, bytes], Match] = LRU(max_entries=CACHED_PREFIXES)
        """Recent matches by method and path prefix, without the last value, for endpoints whose
        last segment may be any text, such as a transaction ID."""
        known = known_services(services)
        for declaration, binding in endpoints:
            self._add(declaration, binding, known)

    def _add(self, declaration: Endpoint, binding: Binding, known: Mapping[Any, object]) -> None:
        if not self._authorizer.can_check(declaration.auth):
            raise DeclarationError(
                f"{_where(declaration)}: its auth is {declaration.auth.value}, "
                f"but there is no checker for it"
            )
        max_body = declaration.max_body
        if isinstance(max_body, BodyLimit) and max_body not in self._body_limits:
            raise DeclarationError(
                f"{_where(declaration)}: the size of {max_body.value} is not given"
            )
        self._services[declaration.handler] = find_services(declaration, binding, known)

    def routes(self) -> list[tuple[str, str]]:
        """Return method and path of all endpoints, sorted by path."""
        return sorted(
            (
                (method, route.path)
                for leaf in self._table.leaves()
                for method, route in leaf.items()
            ),
            key=lambda item: (item[1], item[0]),
        )

    def find(self, method: str, path: bytes) -> Match:
        """Find the endpoint of a path.

        Raises `Unrecognized` for an unknown path, `MethodNotAllowed` with the field `allow`,
        `InvalidParam`.
        """
        before, _, last = path.rpartition(b"/")
        known = self._recent_matches.get((method, before))
        if known is not None and last and not last.translate(None, PLAIN):
            return Match(known.route, [*known.values, last.decode()], known.max_body)
        found = self._table.find(path)
        if found is None:
            raise Unrecognized
        leaf, values, is_open = found
        route = leaf.get(method)
        if route is None and method == "HEAD":
            route = leaf.get("GET")
        if route is None:
            raise MethodNotAllowedHere(sorted(leaf))
        limit = route.declaration.max_body
        max_body = self._body_limits[limit] if isinstance(limit, BodyLimit) else limit
        if is_open and len(before) <= MAX_CACHED_PREFIX:
            self._recent_matches.put((method, before), Match(route, values[:-1], max_body))
        return Match(route, values, max_body)

    def check_head(self, match: Match, authorization: Sequence[bytes], uri: bytes) -> None:
        """Check the headers before a long body is accepted. Raises MissingToken, and for endpoints
        of other servers Unauthorized and Forbidden."""
        auth = match.route.declaration.auth
        if auth is Auth.SERVER:
            assert self._authorizer.signatures is not None
            self._authorizer.signatures.check_head(_texts(authorization), uri.decode("latin-1"))
        elif (
            auth not in (Auth.NONE, *OPTIONAL_AUTH)
            and not authorization
            and b"access_token=" not in uri
        ):
            raise MissingToken

    def call(self, match: Match, incoming: IncomingRequest) -> Awaitable[object]:
        """Return the handler's result. Raises whatever the authorizer, the parameters and the
        handler raise."""
        declaration = match.route.declaration
        if declaration.auth is _NONE:
            return self._call_handler(match, incoming, None, None)
        if declaration.auth is _SERVER:
            return self._call_as_peer(match, incoming)
        head = incoming.head
        if head.token is not None:
            caller = self._authorizer.find_cached_caller(
                declaration, head.token, incoming.client_ip, head.by_name
            )
            if caller is not None:
                return self._call_handler(match, incoming, caller, None)
        return self._call_as_user(match, incoming)

    async def _call_as_user(self, match: Match, incoming: IncomingRequest) -> object:
        """Authenticate the user, then call the handler."""
        route, authorization = match.route, incoming.head.by_name.get(b"authorization")
        caller = await self._authorizer.find_caller(
            route.declaration,
            None if authorization is None else authorization.decode("utf-8", "replace"),
            find_fields(incoming.query) if incoming.query else {},
            incoming.make_context(),
        )
        return await self._call_handler(match, incoming, caller, None)

    async def _call_as_peer(self, match: Match, incoming: IncomingRequest) -> object:
        """Authenticate the server, wait for a free slot, then call the handler."""
        assert self._authorizer.signatures is not None
        peer = await self._authorizer.signatures.get_peer(
            _texts(incoming.head.get(b"authorization")),
            incoming.head.method,
            incoming.head.uri.decode("latin-1"),
            incoming.read_body(),
            address_key(incoming.client_ip),
        )
        incoming.record.caller = peer.server_name
        turns = (
            self._authorizer.slow_admission
            if match.route.declaration.long_poll
            else self._authorizer.admission
        )
        if turns is None:
            return await self._call_handler(match, incoming, None, peer)
        await turns.enter(peer.server_name)
        try:
            return await self._call_handler(match, incoming, None, peer)
        finally:
            turns.leave(peer.server_name)

    def _call_handler(
        self, match: Match, incoming: IncomingRequest, caller: Requester | None, peer: Peer | None
    ) -> Awaitable[object]:
        """Count the authenticated request, parse it and call the handler."""
        route = match.route
        if caller is not None:
            incoming.record.caller = caller.user_id
        if route.is_limited:
            self._authorizer.check_rate_limit(route.declaration, caller, incoming.client_ip)
        incoming.release_body()
        binding = route.binding
        keywords = binding.make_keywords(route.names, match.values, incoming.query)
        if binding.decode_body is not None:
            keywords["body"] = binding.decode_body(incoming.read_body())
        elif binding.takes_file:
            keywords["body"] = incoming.file
        handler = route.declaration.handler
        positional = list(self._services[handler])
        for at, kind in binding.filled_positions:
            positional[at] = (
                caller if kind is Requester else peer if kind is Peer else incoming.make_context()
            )
        return handler(*positional, **keywords)


def _texts(values: Sequence[bytes]) -> list[str]:
    return [value.decode("utf-8", "replace") for value in values]


class MethodNotAllowedHere(MethodNotAllowed):
    """A 405 error that knows the allowed methods."""

    def __init__(self, methods: list[str]) -> None:
        super().__init__()
        self.allow = ", ".join([*methods, "OPTIONS"])


@cache
def _read(
    sources: tuple[ModuleType | Handler, ...],
) -> tuple[PathTable[dict[str, EndpointRoute]], Sequence[tuple[Endpoint, Binding]]]:
    """Read the declarations of all sources, and build their path table. Cached, since all servers
    of a process share them. Raises `DeclarationError`."""
    table: PathTable[dict[str, EndpointRoute]] = PathTable()
    endpoints: list[tuple[Endpoint, Binding]] = []
    for declaration in _declarations(sources):
        if not declaration.paths:
            raise DeclarationError(f"{_where(declaration)}: has no path")
        binding = bind(declaration)
        endpoints.append((declaration, binding))
        for path in declaration.paths:
            names = tuple(segment[1:-1] for segment in path.split("/") if segment.startswith("{"))
            node = table.add(path, may_be_empty=binding.optional_in_path)
            if node.leaf is None:
                node.leaf = {}
            if declaration.method in node.leaf:
                other = _where(node.leaf[declaration.method].declaration)
                raise DeclarationError(
                    f"{_where(declaration)}: {declaration.method} {path} is already {other}"
                )
            node.leaf[declaration.method] = EndpointRoute(
                path, declaration, binding, names, declaration.name, _is_limited(declaration)
            )
    return table, endpoints


def _is_limited(declaration: Endpoint) -> bool:
    has_limit = declaration.limit is not Limit.NONE or declaration.admin_limit is not Limit.NONE
    return has_limit and declaration.auth is not Auth.SERVER


def _where(declaration: Endpoint) -> str:
    return f"{declaration.handler.__module__}.{declaration.handler.__qualname__}"


def _declarations(sources: Iterable[ModuleType | Handler]) -> Iterable[Endpoint]:
    for source in sources:
        if isinstance(source, ModuleType):
            yield from _declared_in(source)
            continue
        declaration = find_declaration(source)
        if declaration is None:
            raise DeclarationError(f"{source} is not declared as an endpoint")
        yield declaration


def _declared_in(module: ModuleType) -> Sequence[Endpoint]:
    """Return the endpoints of a module."""
    found = (find_declaration(value) for value in vars(module).values())
    return [
        each for each in found if each is not None and each.handler.__module__ == module.__name__
    ]

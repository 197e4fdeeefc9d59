"""The router: all declared endpoints, and the way of one request through its endpoint.

The order of a request: find the endpoint, let the guard look at who asks, count it against its rate limit, read path,
query and body into typed values, call the handler. Whatever is raised leaves here as it is; the site makes it an
answer.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, BinaryIO

import msgspec

from federation.protocol.endpoint import MAYBE_NOBODY, Auth, BodyLimit, Endpoint, Peer, RequestContext, Requester
from federation.protocol.errors import MethodNotAllowed, MissingToken, Unrecognized
from homeserver.http.guard import Guard
from homeserver.http.parameters import Binding, DeclarationError, bind, known_services, services_of
from homeserver.http.paths import PathTable
from homeserver.http.rate_limits import address_key
from homeserver.observe.context import set_caller

Handler = Callable[..., Awaitable[Any]]
"""A function that `@endpoint` has declared."""


class Route(msgspec.Struct, frozen=True):
    """One endpoint at one of its paths."""

    path: str
    declaration: Endpoint
    binding: Binding
    names: tuple[str, ...]
    name: str
    """What logs and metrics call it."""


class Match(msgspec.Struct, frozen=True, gc=False):
    """A route, and the values in the request's path."""

    route: Route
    values: list[str]


class Incoming(msgspec.Struct, frozen=True):
    """A request that has arrived whole. `file` holds the body instead of `body` where the endpoint asks for one."""

    context: RequestContext
    query: bytes
    authorization: Sequence[bytes]
    body: bytes
    let_in: Callable[[], None]
    """To be called once who asks is known, and has their turn."""
    file: BinaryIO | None = None


class Router:
    """Finds and calls endpoints. Raises `DeclarationError` when it is made from declarations that are wrong."""

    def __init__(
        self,
        sources: Iterable[ModuleType | Handler],
        services: Mapping[type, object],
        *,
        guard: Guard,
        body_limits: Mapping[BodyLimit, int] | None = None,
    ) -> None:
        self._guard = guard
        self._body_limits = body_limits or {}
        self._table, endpoints = _read(tuple(sources))
        self._services: dict[Handler, tuple[object, ...]] = {}
        known = known_services(services)
        for declaration, binding in endpoints:
            self._add(declaration, binding, known)

    def _add(self, declaration: Endpoint, binding: Binding, known: Mapping[Any, object]) -> None:
        if not self._guard.can_check(declaration.auth):
            raise DeclarationError(
                f"{_where(declaration)}: its auth is {declaration.auth.value}, and no checker is wired for that"
            )
        max_body = declaration.max_body
        if isinstance(max_body, BodyLimit) and max_body not in self._body_limits:
            raise DeclarationError(f"{_where(declaration)}: nobody says how large {max_body.value} is")
        self._services[declaration.handler] = services_of(declaration, binding, known)

    def max_body_of(self, route: Route) -> int:
        """How many bytes of body it takes."""
        limit = route.declaration.max_body
        return self._body_limits[limit] if isinstance(limit, BodyLimit) else limit

    def routes(self) -> list[tuple[str, str]]:
        """Method and path of everything that is served, sorted by path."""
        return sorted(
            ((method, route.path) for leaf in self._table.leaves() for method, route in leaf.items()),
            key=lambda item: (item[1], item[0]),
        )

    def find(self, method: str, path: bytes) -> Match:
        """Raises `Unrecognized` for an unknown path, `MethodNotAllowed` with the field `allow`, `InvalidParam`."""
        found = self._table.find(path)
        if found is None:
            raise Unrecognized
        leaf, values = found
        route = leaf.get(method)
        if route is None and method == "HEAD":
            route = leaf.get("GET")
        if route is None:
            raise MethodRefused(sorted(leaf))
        return Match(route, values)

    def check_head(self, match: Match, authorization: Sequence[bytes], uri: bytes) -> None:
        """Whether a long body is worth taking in, by what comes before it. Raises MissingToken, and for other servers Unauthorized
        and Forbidden."""
        auth = match.route.declaration.auth
        if auth is Auth.SERVER:
            assert self._guard.signatures is not None
            self._guard.signatures.check_head(_texts(authorization), uri.decode("latin-1"))
        elif auth not in (Auth.NONE, *MAYBE_NOBODY) and not authorization and b"access_token=" not in uri:
            raise MissingToken

    async def call(self, match: Match, incoming: Incoming) -> object:
        """The handler's answer. Raises whatever the guard, the parameters and the handler raise."""
        route = match.route
        declaration = route.declaration
        context = incoming.context
        fields = route.binding.query.fields(incoming.query) if incoming.query else {}
        caller: Requester | None = None
        if declaration.auth is Auth.SERVER:
            return await self._call_as_peer(match, incoming)
        if declaration.auth is not Auth.NONE:
            given = incoming.authorization
            authorization = given[-1].decode("utf-8", "replace") if given else None
            caller = await self._guard.find_caller(declaration, authorization, fields, context)
            if caller is not None:
                set_caller(caller.user_id)
        self._guard.count(declaration, caller, context)
        incoming.let_in()
        return await self._call_handler(match, incoming, caller, None)

    async def _call_as_peer(self, match: Match, incoming: Incoming) -> object:
        """For another server, when it has its turn."""
        assert self._guard.signatures is not None
        peer = await self._guard.signatures.get_peer(
            _texts(incoming.authorization),
            incoming.context.method,
            incoming.context.uri.decode("latin-1"),
            incoming.body,
            address_key(incoming.context.client_ip),
        )
        set_caller(peer.server_name)
        turns = self._guard.slow_turns if match.route.declaration.long_poll else self._guard.turns
        if turns is None:
            incoming.let_in()
            return await self._call_handler(match, incoming, None, peer)
        await turns.enter(peer.server_name)
        incoming.let_in()
        try:
            return await self._call_handler(match, incoming, None, peer)
        finally:
            turns.leave(peer.server_name)

    async def _call_handler(
        self,
        match: Match,
        incoming: Incoming,
        caller: Requester | None,
        peer: Peer | None,
    ) -> object:
        binding = match.route.binding
        keywords = binding.keywords(match.route.names, match.values, incoming.query)
        if binding.decode_body is not None:
            keywords["body"] = binding.decode_body(incoming.body)
        elif binding.takes_file:
            keywords["body"] = incoming.file
        handler = match.route.declaration.handler
        positional = list(self._services[handler])
        for at, kind in binding.filled_in:
            positional[at] = caller if kind is Requester else incoming.context if kind is RequestContext else peer
        answer: object = await handler(*positional, **keywords)
        return answer


def _texts(values: Sequence[bytes]) -> list[str]:
    return [value.decode("utf-8", "replace") for value in values]


class MethodRefused(MethodNotAllowed):
    """405, knowing what the path does take."""

    def __init__(self, methods: list[str]) -> None:
        super().__init__()
        self.allow = ", ".join([*methods, "OPTIONS"])


@cache
def _read(
    sources: tuple[ModuleType | Handler, ...],
) -> tuple[PathTable[dict[str, Route]], Sequence[tuple[Endpoint, Binding]]]:
    """The paths of declarations, and all of these with their signatures, which are the same for each server of a process. Raises
    `DeclarationError`."""
    table: PathTable[dict[str, Route]] = PathTable()
    endpoints: list[tuple[Endpoint, Binding]] = []
    for declaration in _declarations(sources):
        if not declaration.paths:
            raise DeclarationError(f"{_where(declaration)}: has no path")
        binding = bind(declaration)
        endpoints.append((declaration, binding))
        for path in declaration.paths:
            names = tuple(segment[1:-1] for segment in path.split("/") if segment.startswith("{"))
            node = table.node(path, may_be_empty=binding.optional_in_path)
            if node.leaf is None:
                node.leaf = {}
            if declaration.method in node.leaf:
                other = _where(node.leaf[declaration.method].declaration)
                raise DeclarationError(f"{_where(declaration)}: {declaration.method} {path} is already {other}")
            node.leaf[declaration.method] = Route(path, declaration, binding, names, declaration.name)
    return table, endpoints


def _where(declaration: Endpoint) -> str:
    return f"{declaration.handler.__module__}.{declaration.handler.__qualname__}"


def _declarations(sources: Iterable[ModuleType | Handler]) -> Iterable[Endpoint]:
    for source in sources:
        if isinstance(source, ModuleType):
            yield from _declared_in(source)
            continue
        declaration = getattr(source, "__endpoint__", None)
        if not isinstance(declaration, Endpoint):
            raise DeclarationError(f"{source} is not declared as an endpoint")
        yield declaration


def _declared_in(module: ModuleType) -> Sequence[Endpoint]:
    """The endpoints of a module."""
    found = (getattr(value, "__endpoint__", None) for value in vars(module).values())
    return [each for each in found if isinstance(each, Endpoint) and each.handler.__module__ == module.__name__]

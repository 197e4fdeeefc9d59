"""Sends requests to the real site in memory, through a connection, a channel and a request but no
socket.

client = client_for([handlers_module], {Service: service}, tokens=FakeTokens({"secret": requester}))
answer = client.request("GET", "/_matrix/client/v3/sync", token="secret")
pending = client.start("GET", "/_matrix/client/v3/sync?timeout=30000", token="secret")
client.clock.advance(30); assert pending.done; pending.answer.json
"""

# mypy: allow-untyped-calls

import json as json_module
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from types import ModuleType
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from federation.api.request import RequestContext
from federation.peers.token_buckets import Rate
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.body_budget import BodyBudget
from homeserver.http.channel import MatrixChannel
from homeserver.http.rate_limits import RateLimiter
from homeserver.http.request_authorization import (
    AppserviceChecker,
    PeerAdmission,
    RequestAuthorizer,
    SignatureChecker,
    TokenChecker,
)
from homeserver.http.router import Handler, Router
from homeserver.http.site import Site
from homeserver.http.site_options import SiteOptions
from homeserver.observe.access_log import AccessRecord
from homeserver.observe.metrics import HttpMetrics


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. Header names are in lower case; the last of equal headers wins."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json_module.loads(self.body)

    @property
    def errcode(self) -> str:
        return str(self.json["errcode"])


class FakeTokens:
    """Accepts the given tokens."""

    def __init__(self, known: Mapping[str, Requester | Exception]) -> None:
        self.known = dict(known)

    def get_cached(
        self, token: str, _client_ip: str, _headers: Mapping[bytes, bytes]
    ) -> Requester | None:
        found = self.known.get(token)
        return None if isinstance(found, Exception) else found

    async def get_requester(self, token: str, context: RequestContext) -> Requester | None:
        found = self.known.get(token)
        if isinstance(found, Exception):
            raise found
        return found


class RememberingAccessLog:
    """Stores the access log records of all requests."""

    def __init__(self) -> None:
        self.records: list[AccessRecord] = []

    def write(self, record: AccessRecord) -> None:
        self.records.append(record)


class WatchedTransport(StringTransport):
    """Calls `on_write` after each write."""

    on_write: Callable[[], None] | None = None

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.on_write is not None:
            self.on_write()


class Connection:
    """One connection to the site, on which bytes can be sent."""

    def __init__(self, site: Site, ip: str = "127.0.0.1") -> None:
        address = (IPv6Address if ":" in ip else IPv4Address)("TCP", ip, 54321)
        self.transport = WatchedTransport(peerAddress=address)
        self.channel: MatrixChannel = site.buildProtocol(address)
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        """Deliver bytes to the server as one piece, if it still reads."""
        self.channel.dataReceived(data)

    def received(self) -> bytes:
        """All bytes that the server wrote."""
        return bytes(self.transport.value())

    def close(self) -> None:
        """Close the connection from the client's end."""
        self.channel.connectionLost(Failure(ConnectionDone()))

    def answers(self, *, heads: int = 0) -> list[Answer]:
        """Return the complete responses so far. The first `heads` of them answer HEAD requests and
        have no body."""
        answers: list[Answer] = []
        rest = self.received()
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines[1:])
            }
            if status == 100:
                continue
            has_body = len(answers) >= heads
            if "content-length" not in headers and headers.get("connection") == "close":
                body, rest = rest, b""
            elif headers.get("transfer-encoding") == "chunked" and has_body:
                body, rest = _unchunk(rest)
            else:
                length = int(headers.get("content-length", "0")) if has_body else 0
                body, rest = rest[:length], rest[length:]
            answers.append(Answer(status, headers, body))
        return answers


def _unchunk(data: bytes) -> tuple[bytes, bytes]:
    """Decode a chunked body. Return it and the bytes after it."""
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body += data[:length]
        assert data[length : length + 2] == b"\r\n", "the response is not complete"
        data = data[length + 2 :]
        if not length:
            return body, data


class Pending:
    """A request whose response may be pending."""

    def __init__(self, connection: Connection, *, is_head: bool) -> None:
        self.connection = connection
        self._heads = 1 if is_head else 0

    @property
    def done(self) -> bool:
        return bool(self.connection.received())

    @property
    def answer(self) -> Answer:
        assert self.done, "the server has not answered yet"
        return self.connection.answers(heads=self._heads)[0]

    def disconnect(self) -> None:
        """Close the connection before the response arrives."""
        self.connection.close()


class Client:
    """Sends requests to a site, each on a connection of its own."""

    def __init__(self, site: Site, *, clock: Clock, access_log: RememberingAccessLog) -> None:
        self.site = site
        self.clock = clock
        self.access_log = access_log

    def start(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        json: Any = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        ip: str = "127.0.0.1",
    ) -> Pending:
        """Send a request; the response may come later."""
        if json is not None:
            body = json_module.dumps(json).encode()
        lines = {"Host": "example.org", **(headers or {})}
        if token is not None:
            lines["Authorization"] = f"Bearer {token}"
        if body is not None:
            lines.setdefault("Content-Length", str(len(body)))
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in lines.items()
        )
        connection = Connection(self.site, ip)
        connection.send(head.encode() + b"\r\n" + (body or b""))
        return Pending(connection, is_head=method == "HEAD")

    def request(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        json: Any = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        ip: str = "127.0.0.1",
    ) -> Answer:
        """Send a request that must be answered immediately. Return the response."""
        pending = self.start(
            method, path, token=token, json=json, body=body, headers=headers, ip=ip
        )
        answer = pending.answer
        if not pending.connection.transport.disconnecting:
            pending.connection.close()
        return answer

    def connect(self, ip: str = "127.0.0.1") -> Connection:
        """Open a connection to which a test writes raw bytes."""
        return Connection(self.site, ip)


def client_for(
    sources: Iterable[ModuleType | Handler],
    services: Mapping[type, object],
    *,
    tokens: TokenChecker | None = None,
    appservices: AppserviceChecker | None = None,
    signatures: SignatureChecker | None = None,
    turns: PeerAdmission | None = None,
    rates: Mapping[Limit, Rate] | None = None,
    options: SiteOptions | None = None,
    bodies: BodyBudget | None = None,
    token_in_query: bool = True,
    clock: Clock | None = None,
    registry: CollectorRegistry | None = None,
) -> Client:
    """Build a site with these endpoints only; return a client of it."""
    clock = clock or Clock()
    authorizer = RequestAuthorizer(
        limiter=RateLimiter(clock=clock, rates=rates or {}),
        tokens=tokens or FakeTokens({}),
        appservices=appservices,
        signatures=signatures,
        admission=turns,
        token_in_query=token_in_query,
    )
    access_log = RememberingAccessLog()
    numbers = count(1)
    site = Site(
        router=Router(sources=sources, services=services, authorizer=authorizer),
        clock=clock,
        metrics=HttpMetrics(registry or CollectorRegistry()),
        access_log=access_log,
        next_request_id=lambda: f"r{next(numbers)}",
        body_budget=bodies,
        options=options,
    )
    return Client(site, clock=clock, access_log=access_log)

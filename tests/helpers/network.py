"""Complete servers in one process, on a simulated network that the test controls.

    network = Network(tmp_path)
    north, south = network.add("north.example"), network.add("south.example")
    network.cut("north.example", "south.example")     # until network.mend(...)

All servers share one clock. A request reaches the other server at once unless the path is cut.
`network.hold()` queues requests, and `network.deliver()` delivers them in an order that the test
chooses. `network.choose_fate` decides the fate of each request.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from federation.http_client.client import WebClient
from federation.http_client.errors import OutboundError
from federation.peers.member_list_refresher import Fetch
from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.errors import AnswerTooLong, RemoteError
from federation.protocol.ids import ServerName
from federation.protocol.signing import SigningKey
from federation.remote.media import Follow
from storage.engine.database import Database
from tests.helpers.databases import silence
from tests.helpers.http import Pending
from tests.helpers.server import START, TestServer, fetch_nothing, follow_nowhere


class Network:
    """The servers and the connections between them."""

    def __init__(
        self, folder: Path, open_database: Callable[[], Database], now: float = START
    ) -> None:
        """`open_database` opens a new database for each server."""
        self.clock = Clock()
        self.clock.advance(now)
        self.servers: dict[str, TestServer] = {}
        self.log: list[tuple[str, str, str, str]] = []
        """(origin, destination, method, URI) of all requests, in order."""
        self.interceptors: list[Callable[[ServerName, WireRequest], WireResponse | None]] = []
        """Functions that can answer a request instead of its destination."""
        self.choose_fate: Callable[[Transfer], Fate] = lambda _: Fate.ARRIVES
        self._folder = folder
        self._open_database = open_database
        self._sends = False
        self._completes = False
        self._built = 0
        self._cuts: set[frozenset[str]] = set()
        self._forgers: dict[str, Forger] = {}
        self._held: list[tuple[Transfer, Deferred[WireResponse]]] | None = None

    def add(
        self,
        name: str,
        further_config: str = "",
        *,
        fetch: Fetch = fetch_nothing,
        follow: Follow = follow_nowhere,
        web: WebClient | None = None,
    ) -> TestServer:
        """Add a server. `fetch` gets documents at URLs, `follow` gets files at URLs, `web` reaches
        push gateways."""
        folder = self._folder / name
        folder.mkdir()
        return self._build(folder, name, self._open_database(), further_config, fetch, web, follow)

    def rebuild(
        self,
        name: str,
        further_config: str = "",
        *,
        fetch: Fetch = fetch_nothing,
        key: SigningKey | None = None,
        database: Database | None = None,
    ) -> TestServer:
        """Build a server again on its database, as after a crash; unsent transactions in memory are
        lost. `key` replaces its signing key; `database` replaces its database, for example by an
        older copy."""
        Deferred.fromCoroutine(self.servers[name].app.federation_sender.sender.stop())
        self.servers[name].app.federation_receiver.completions.stop()
        self.servers[name].app.federation.unverified_events.stop()
        self.servers[name].app.federated_rooms.leaving.stop()
        self.servers[name].app.federated_rooms.planned_invites.stop()
        silence(self.servers[name].app.database.streams)
        database = database or self.servers[name].app.database
        return self._build(self._folder / name, name, database, further_config, fetch, key=key)

    def _build(
        self,
        folder: Path,
        name: str,
        database: Database,
        further_config: str,
        fetch: Fetch,
        web: WebClient | None = None,
        follow: Follow = follow_nowhere,
        key: SigningKey | None = None,
    ) -> TestServer:
        self._built += 1
        server = TestServer(
            folder,
            database,
            further_config,
            seed=self._built,  # a rebuilt server must not repeat its IDs
            server_name=name,
            clock=self.clock,
            wire=NetworkWire(self, name),
            fetch=fetch,
            follow=follow,
            web=web,
            key=key,
        )
        self.servers[name] = server
        if self._sends:
            server.app.federation_sender.sender.start()
            server.app.federation.unverified_events.start()
        if self._completes:
            server.app.federation_receiver.completions.start()
        return server

    def start_sending(self) -> None:
        """Let all servers send to the others and recheck unproved events, as in production; see
        `settle`."""
        self._sends = True
        for server in self.servers.values():
            server.app.federation_sender.sender.start()
            server.app.federation.unverified_events.start()

    def stop_sending(self) -> None:
        """Let servers that are built later send nothing, like a node while another node sends."""
        self._sends = False

    def start_completing(self) -> None:
        """Let all servers resync partial state, as in production; see `settle`."""
        self._completes = True
        for server in self.servers.values():
            server.app.federation_receiver.completions.start()

    def settle(self) -> None:
        """Run everything that is due now, on all servers."""
        self.clock.advance(0)  # runs until nothing is due

    def cut(self, one: str, other: str) -> None:
        """Cut the connection between two servers."""
        self._cuts.add(frozenset((one, other)))

    def mend(self, one: str, other: str) -> None:
        """Restore the connection between two servers."""
        self._cuts.discard(frozenset((one, other)))

    def forge(self, server: str, forger: "Forger") -> None:
        """Replace the responses of a server by those that the forger returns."""
        self._forgers[server] = forger

    def hold(self) -> None:
        """Queue requests until `deliver`."""
        self._held = []

    def held(self) -> Sequence["Transfer"]:
        """Return the queued requests, in order."""
        return [transfer for transfer, _ in self._held or ()]

    def deliver(
        self, choose: Callable[[Sequence["Transfer"]], int] = lambda _: 0, most: int | None = None
    ) -> int:
        """Deliver queued requests, in the order of `choose`. Return their number.

        By default, deliver all and stop queueing. With `most`, deliver at most that many; the
        others stay queued, and arrive later even if their origin has timed out.
        """
        count = 0
        while self._held and (most is None or count < most):
            transfer, answered = self._held.pop(choose([each for each, _ in self._held]))
            count += 1
            self._send(transfer, answered)
        if most is None:
            self._held = None
        return count

    async def exchange(
        self, origin: str, destination: ServerName, request: WireRequest
    ) -> WireResponse:
        """Exchange a request and its response, as a server's wire does."""
        answer = await self._exchange(origin, destination, request)
        if request.take is None and len(answer.body) > request.max_bytes:
            raise AnswerTooLong(destination, "the response is too long")
        return answer if request.take is None else stream_body(destination, request, answer)

    async def _exchange(
        self, origin: str, destination: ServerName, request: WireRequest
    ) -> WireResponse:
        self.log.append((origin, destination, request.method, request.uri))
        for intercept in self.interceptors:
            answer = intercept(destination, request)
            if answer is not None:
                return answer
        answered: Deferred[WireResponse] = Deferred()
        transfer = Transfer(origin, destination, request)
        if self._held is not None:
            self._held.append((transfer, answered))
        else:
            self._send(transfer, answered)
        answered.addTimeout(
            request.seconds, self.clock, lambda _failure, _seconds: _late(destination)
        )
        return await answered

    def _send(self, transfer: "Transfer", answered: "Deferred[WireResponse]") -> None:
        fate = self.choose_fate(transfer)
        if fate is Fate.IS_NOT_ANSWERED:
            return
        if fate is not Fate.IS_LOST:
            nobody: Deferred[WireResponse] = Deferred()
            nobody.addErrback(lambda failure: failure.trap(RemoteError))
            self._carry(transfer, nobody if fate is Fate.ANSWER_IS_LOST else answered)
            if fate is Fate.ARRIVES_TWICE:
                self._carry(transfer, nobody)
        if fate in (Fate.IS_LOST, Fate.ANSWER_IS_LOST):
            answered.errback(
                RemoteError(transfer.destination, "the connection was lost", retryable=True)
            )

    def _carry(self, transfer: "Transfer", answered: "Deferred[WireResponse]") -> None:
        server = self.servers.get(transfer.destination)
        if server is None or frozenset((transfer.origin, transfer.destination)) in self._cuts:
            answered.errback(
                RemoteError(transfer.destination, "the connection is cut", retryable=True)
            )
            return
        request = transfer.request
        pending = server.client.start(
            request.method, request.uri, headers=dict(request.headers), body=request.body or None
        )

        def look() -> None:
            answers = pending.connection.answers() if _is_whole(pending) else []
            if answers and not answered.called:
                answer = WireResponse(answers[0].status, dict(answers[0].headers), answers[0].body)
                forger = self._forgers.get(transfer.destination)
                try:
                    answered.callback(answer if forger is None else forger(request, answer))
                except RemoteError as error:
                    answered.errback(error)

        pending.connection.transport.on_write = look
        look()


Forger = Callable[[WireRequest, WireResponse], WireResponse]
"""Returns another response, or raises RemoteError."""


class Fate(Enum):
    """The fate of a request whose connection is not cut."""

    ARRIVES = "arrives"
    ARRIVES_TWICE = "arrives twice"
    IS_LOST = "is lost"
    ANSWER_IS_LOST = "its answer is lost"
    IS_NOT_ANSWERED = "is not answered until the origin times out"


class Transfer:
    """A request in transit."""

    def __init__(self, origin: str, destination: ServerName, request: WireRequest) -> None:
        self.origin = origin
        self.destination = destination
        self.request = request


class NetworkWire:
    """The wire of one server."""

    def __init__(self, network: Network, origin: str) -> None:
        self._network = network
        self._origin = origin

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireResponse:
        return await self._network.exchange(self._origin, destination, request)


PIECE = 1000
"""The size in bytes of the pieces of a long response."""


def count_requests(network: Network, server: str | None = None, word: str = "") -> int:
    """Return the number of requests whose URI has the word, to one server or to all."""
    return sum(
        1 for _, to, _, uri in network.log if (server is None or to == server) and word in uri
    )


def stream_body(
    destination: ServerName, request: WireRequest, answer: WireResponse
) -> WireResponse:
    """Stream the body to the request's consumer, as a real wire does. Raises RemoteError."""
    assert request.take is not None
    try:
        give = request.take(answer.status, answer.headers)
        if give is None:
            return answer
        if len(answer.body) > request.max_bytes:
            raise OutboundError("the response is too long", retryable=False)
        for start in range(0, len(answer.body), PIECE):
            give(answer.body[start : start + PIECE])
    except OutboundError as error:
        raise RemoteError(destination, str(error), retryable=error.retryable) from error
    return WireResponse(answer.status, answer.headers, b"")


def _late(destination: str) -> WireResponse:
    raise RemoteError(destination, "the request timed out", retryable=True)


def _is_whole(pending: Pending) -> bool:
    """Whether the response has its head and all bytes of its content length."""
    head, separator, body = pending.connection.received().partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(separator) and (not lengths or len(body) >= int(lengths[0].partition(b":")[2]))


def forge_responses(
    network: Network, server: str, word: str, answer: Callable[[Any], Any]
) -> list[Any]:
    """Replace a server's responses to requests with a word in their path.

    `answer`: returns the response for a request body, or for the URI of a request without one.
    Returns the list of these bodies and URIs, which grows with each request.
    """
    asked: list[Any] = []

    def answer_for(destination: ServerName, request: WireRequest) -> WireResponse | None:
        if destination != server or f"/{word}/" not in request.uri:
            return None
        asked.append(msgspec.json.decode(request.body) if request.body else request.uri)
        return WireResponse(200, {}, msgspec.json.encode(answer(asked[-1])))

    network.interceptors.append(answer_for)
    return asked

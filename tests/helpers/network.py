"""Whole servers in one process, on a network that a test holds in its hand.

    network = Network(tmp_path)
    north, south = network.add("north.example"), network.add("south.example")
    network.cut("north.example", "south.example")     # until network.mend(...)

All servers share one clock. A request is carried to the other server's site when it is made, unless
the way is cut; `network.hold()` keeps requests back, and `network.deliver()` carries them, in an
order that the test may choose. What else may become of a request on its way is up to
`network.weather`.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from federation.http_client.client import Web
from federation.http_client.errors import OutboundError
from federation.peers.member_lists import Fetch
from federation.peers.wire import WireAnswer, WireRequest
from federation.protocol.errors import AnswerTooLong, RemoteError
from federation.protocol.ids import ServerName
from federation.protocol.signing import SigningKey
from federation.remote.media import Follow
from storage.engine.database import Database
from tests.helpers.databases import silence
from tests.helpers.http import Pending
from tests.helpers.server import START, TestServer, fetch_nothing, follow_nowhere


class Network:
    """The servers, and the ways between them."""

    def __init__(
        self, folder: Path, open_database: Callable[[], Database], now: float = START
    ) -> None:
        """`open_database` gives each server one of its own."""
        self.clock = Clock()
        self.clock.advance(now)
        self.servers: dict[str, TestServer] = {}
        self.log: list[tuple[str, str, str, str]] = []
        """(from, to, method, uri) of all requests that were made, in order."""
        self.liars: list[Callable[[ServerName, WireRequest], WireAnswer | None]] = []
        """Each may answer a request in the place of the server to which it goes."""
        self.weather: Callable[[Letter], Fate] = lambda _: Fate.ARRIVES
        self._folder = folder
        self._open_database = open_database
        self._sends = False
        self._completes = False
        self._built = 0
        self._cuts: set[frozenset[str]] = set()
        self._forgers: dict[str, Forger] = {}
        self._held: list[tuple[Letter, Deferred[WireAnswer]]] | None = None

    def add(
        self,
        name: str,
        further_config: str = "",
        *,
        fetch: Fetch = fetch_nothing,
        follow: Follow = follow_nowhere,
        web: Web | None = None,
    ) -> TestServer:
        """One server more; `fetch`: how it gets what is at an address; `follow`: files there;
        `web`: its way to push gateways."""
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
        """A server again, upon its database: as after a crash, but for what it would still have
        sent. `key`: it signs with another from now on; `database`: upon this one, a copy of an
        older state."""
        Deferred.fromCoroutine(self.servers[name].app.federation_out.sender.stop())
        self.servers[name].app.incoming.completions.stop()
        self.servers[name].app.federation.unproved.stop()
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
        web: Web | None = None,
        follow: Follow = follow_nowhere,
        key: SigningKey | None = None,
    ) -> TestServer:
        self._built += 1
        server = TestServer(
            folder,
            database,
            further_config,
            seed=self._built,  # one that is built again would else make the ids that it made before
            server_name=name,
            clock=self.clock,
            wire=Way(self, name),
            fetch=fetch,
            follow=follow,
            web=web,
            key=key,
        )
        self.servers[name] = server
        if self._sends:
            server.app.federation_out.sender.start()
            server.app.federation.unproved.start()
        if self._completes:
            server.app.incoming.completions.start()
        return server

    def start_sending(self) -> None:
        """Let all servers tell the others what happens, and mend what they could not check, as they
        do outside of tests; see `settle`."""
        self._sends = True
        for server in self.servers.values():
            server.app.federation_out.sender.start()
            server.app.federation.unproved.start()

    def stop_sending(self) -> None:
        """Servers that are built from now on tell the others nothing, as a node does not while
        another one sends."""
        self._sends = False

    def start_completing(self) -> None:
        """Let all servers fetch what they lack of the state of rooms, as they do outside of tests;
        see `settle`."""
        self._completes = True
        for server in self.servers.values():
            server.app.incoming.completions.start()

    def settle(self) -> None:
        """Let happen what is to happen at once, on all servers."""
        self.clock.advance(0)  # which goes on until nothing is due

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between the two from now on."""
        self._cuts.add(frozenset((one, other)))

    def mend(self, one: str, other: str) -> None:
        """Let requests pass again from now on."""
        self._cuts.discard(frozenset((one, other)))

    def forge(self, server: str, forger: "Forger") -> None:
        """From now on the server answers what the forger makes of its answers."""
        self._forgers[server] = forger

    def hold(self) -> None:
        """Keep requests back until `deliver`."""
        self._held = []

    def held(self) -> Sequence["Letter"]:
        """The held requests, in order."""
        return [letter for letter, _ in self._held or ()]

    def deliver(
        self, choose: Callable[[Sequence["Letter"]], int] = lambda _: 0, most: int | None = None
    ) -> int:
        """Carry what is held, the one that `choose` points at next; how many there were.

        Until none is left: then nothing is held any longer. Or as many as `most` says; the others
        go on waiting, and arrive in the end though nobody may wait for their answer by then.
        """
        count = 0
        while self._held and (most is None or count < most):
            letter, answered = self._held.pop(choose([each for each, _ in self._held]))
            count += 1
            self._send(letter, answered)
        if most is None:
            self._held = None
        return count

    async def exchange(
        self, origin: str, destination: ServerName, request: WireRequest
    ) -> WireAnswer:
        """Carry a request as a server's wire does."""
        answer = await self._exchange(origin, destination, request)
        if request.take is None and len(answer.body) > request.max_bytes:
            raise AnswerTooLong(destination, "its answer is too long")
        return answer if request.take is None else hand_over(destination, request, answer)

    async def _exchange(
        self, origin: str, destination: ServerName, request: WireRequest
    ) -> WireAnswer:
        self.log.append((origin, destination, request.method, request.uri))
        for lie in self.liars:
            answer = lie(destination, request)
            if answer is not None:
                return answer
        answered: Deferred[WireAnswer] = Deferred()
        letter = Letter(origin, destination, request)
        if self._held is not None:
            self._held.append((letter, answered))
        else:
            self._send(letter, answered)
        answered.addTimeout(
            request.seconds, self.clock, lambda _failure, _seconds: _late(destination)
        )
        return await answered

    def _send(self, letter: "Letter", answered: "Deferred[WireAnswer]") -> None:
        fate = self.weather(letter)
        if fate is Fate.IS_NOT_ANSWERED:
            return
        if fate is not Fate.IS_LOST:
            nobody: Deferred[WireAnswer] = Deferred()
            nobody.addErrback(lambda failure: failure.trap(RemoteError))
            self._carry(letter, nobody if fate is Fate.ANSWER_IS_LOST else answered)
            if fate is Fate.ARRIVES_TWICE:
                self._carry(letter, nobody)
        if fate in (Fate.IS_LOST, Fate.ANSWER_IS_LOST):
            answered.errback(
                RemoteError(letter.destination, "the connection was lost", retryable=True)
            )

    def _carry(self, letter: "Letter", answered: "Deferred[WireAnswer]") -> None:
        server = self.servers.get(letter.destination)
        if server is None or frozenset((letter.origin, letter.destination)) in self._cuts:
            answered.errback(
                RemoteError(letter.destination, "there is no way to it", retryable=True)
            )
            return
        request = letter.request
        pending = server.client.start(
            request.method, request.uri, headers=dict(request.headers), body=request.body or None
        )

        def look() -> None:
            answers = pending.connection.answers() if _is_whole(pending) else []
            if answers and not answered.called:
                answer = WireAnswer(answers[0].status, dict(answers[0].headers), answers[0].body)
                forger = self._forgers.get(letter.destination)
                try:
                    answered.callback(answer if forger is None else forger(request, answer))
                except RemoteError as error:
                    answered.errback(error)

        pending.connection.transport.heard = look
        look()


Forger = Callable[[WireRequest, WireAnswer], WireAnswer]
"""Makes another answer of one, or raises RemoteError."""


class Fate(Enum):
    """The fate of a request that is not cut off."""

    ARRIVES = "arrives"
    ARRIVES_TWICE = "arrives twice"
    IS_LOST = "is lost"
    ANSWER_IS_LOST = "its answer is lost"
    IS_NOT_ANSWERED = "nobody answers, until the caller gives up"


class Letter:
    """A request under way."""

    def __init__(self, origin: str, destination: ServerName, request: WireRequest) -> None:
        self.origin = origin
        self.destination = destination
        self.request = request


class Way:
    """A server's wire."""

    def __init__(self, network: Network, origin: str) -> None:
        self._network = network
        self._origin = origin

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireAnswer:
        return await self._network.exchange(self._origin, destination, request)


PIECE = 1000
"""How many bytes of a long answer come at once."""


def hand_over(destination: ServerName, request: WireRequest, answer: WireAnswer) -> WireAnswer:
    """Give the body of an answer to whom the request names, as a real wire does while it comes.
    Raises RemoteError."""
    assert request.take is not None
    try:
        give = request.take(answer.status, answer.headers)
        if give is None:
            return answer
        if len(answer.body) > request.max_bytes:
            raise OutboundError("its answer is too long", retryable=False)
        for start in range(0, len(answer.body), PIECE):
            give(answer.body[start : start + PIECE])
    except OutboundError as error:
        raise RemoteError(destination, str(error), retryable=error.retryable) from error
    return WireAnswer(answer.status, answer.headers, b"")


def _late(destination: str) -> WireAnswer:
    raise RemoteError(destination, "it did not answer in time", retryable=True)


def _is_whole(pending: Pending) -> bool:
    """Whether the head and as many bytes as it announces are there."""
    head, separator, body = pending.connection.received().partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(separator) and (not lengths or len(body) >= int(lengths[0].partition(b":")[2]))

"""Long bodies of unauthenticated requests are limited."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from federation.api.request import Peer
from federation.protocol.errors import Unauthorized
from federation.protocol.ids import ServerName
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.body_budget import FREE_BYTES, MAX_SECONDS, BodyBudget
from tests.helpers.http import Answer, Client, Connection, FakeTokens, client_for

PIECE = 1 << 15
LONG = 4 * FREE_BYTES


class Signatures:
    """Accepts signatures when the test says so, if the header is valid."""

    def __init__(self) -> None:
        self.waiting: list[Deferred[None]] = []

    def check_head(self, authorization: list[str], uri: str) -> None:
        if authorization != ["X-Matrix good"]:
            raise Unauthorized

    async def get_peer(
        self, authorization: list[str], method: str, uri: str, body: bytes, address: str = ""
    ) -> Peer:
        self.waiting.append(Deferred())
        await self.waiting[-1]
        return Peer(ServerName("north.example"))


@endpoint("PUT", "/send", auth=Auth.SERVER, max_body=2 * LONG)
async def put_send(peer: Peer, *, body: dict[str, Any]) -> Any:
    return [peer.server_name, len(body["a"])]


@endpoint("PUT", "/write", auth=Auth.USER, max_body=2 * LONG)
async def put_write(*, body: dict[str, Any]) -> Any:
    return len(body["a"])


class World:
    """A site, and requests in progress."""

    def __init__(self, *, most_of_one: int = 100 * LONG, most: int = 100 * LONG) -> None:
        self.clock = Clock()
        self.bodies = BodyBudget(clock=self.clock, max_per_address=most_of_one, max_total=most)
        self.signatures = Signatures()
        self.client: Client = client_for(
            [put_send, put_write],
            {},
            tokens=FakeTokens({}),
            signatures=self.signatures,
            bodies=self.bodies,
            clock=self.clock,
        )

    def begin(
        self,
        size: int,
        *,
        ip: str = "10.0.0.1",
        path: str = "/send",
        signed: str = "X-Matrix good",
        more: int = 2,
    ) -> Connection:
        """Send `size` bytes of a body that is `more` bytes longer."""
        connection = self.client.connect(ip)
        head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size + more}\r\n"
        head += f"Authorization: {signed}\r\n\r\n" if signed else "\r\n"
        connection.send(head.encode())
        body = b'{"a": "' + b"x" * (size - 7)
        for start in range(0, size, PIECE):
            connection.send(body[start : start + PIECE])
        return connection


def refusal(connection: Connection) -> tuple[int, str]:
    answer: Answer = connection.answers()[0]
    assert answer.headers["connection"] == "close"
    return answer.status, answer.errcode


def test_a_long_body_is_counted_until_its_sender_is_authenticated() -> None:
    world = World()
    connection = world.begin(LONG)
    assert world.bodies.size == LONG - FREE_BYTES
    connection.send(b'"}')
    assert world.bodies.size == LONG - FREE_BYTES + 2, "the signature is not checked yet"
    world.signatures.waiting[0].callback(None)
    assert connection.answers()[0].json == ["north.example", LONG - 7]
    assert world.bodies.size == 0


def test_a_short_body_is_not_counted() -> None:
    world = World()
    world.begin(FREE_BYTES)
    assert world.bodies.size == 0


@pytest.mark.parametrize(
    ("path", "signed", "errcode"),
    [("/send", "", "M_UNAUTHORIZED"), ("/write", "", "M_MISSING_TOKEN")],
)
def test_a_long_body_without_credentials_is_refused_at_once(
    path: str, signed: str, errcode: str
) -> None:
    world = World()
    connection = world.begin(FREE_BYTES, path=path, signed=signed)
    assert not connection.received()
    connection.send(b"x")
    assert refusal(connection) == (401, errcode)
    assert world.bodies.size == 0


def test_bodies_of_one_address_are_limited() -> None:
    world = World(most_of_one=2 * LONG)
    first, second = world.begin(LONG), world.begin(LONG)
    third = world.begin(LONG)
    assert refusal(third) == (429, "M_LIMIT_EXCEEDED")
    assert third.answers()[0].headers["retry-after"] == "5"
    assert not first.received()
    assert not second.received()
    assert not world.begin(LONG, ip="10.0.0.2").received(), "other addresses are not affected"
    first.close()
    assert not world.begin(LONG).received()


def test_bodies_of_all_addresses_are_limited() -> None:
    world = World(most=2 * LONG)
    connections = [world.begin(LONG, ip=f"10.0.0.{number}") for number in range(2)]
    assert refusal(world.begin(LONG, ip="10.0.0.4")) == (429, "M_LIMIT_EXCEEDED")
    assert not world.begin(FREE_BYTES, ip="10.0.0.4").received(), "short bodies are accepted"
    for connection in connections:
        connection.close()
    assert not world.begin(LONG, ip="10.0.0.4").received()


def test_a_slow_long_body_is_refused() -> None:
    world = World()
    connection = world.begin(LONG, more=1000)
    waited = 0.0
    while not connection.received() and waited < 2 * MAX_SECONDS:
        world.clock.advance(50)
        waited += 50
        connection.send(b"x")
    assert refusal(connection) == (408, "M_UNKNOWN")
    assert MAX_SECONDS < waited <= MAX_SECONDS + 50
    assert world.bodies.size == 0


def test_a_body_refused_for_its_length_is_not_counted() -> None:
    world = World()
    connection = world.client.connect("10.0.0.1")
    connection.send(
        b"PUT /send HTTP/1.1\r\nHost: x\r\nAuthorization: X-Matrix good\r\nTransfer-Encoding: "
        b"chunked\r\n\r\n"
    )
    for _ in range(2 * LONG // PIECE):
        connection.send(b"8000\r\n" + b"x" * PIECE + b"\r\n")
    assert world.bodies.size == 2 * LONG - FREE_BYTES
    connection.send(b"1\r\nx\r\n")
    assert refusal(connection) == (413, "M_TOO_LARGE")
    assert world.bodies.size == 0

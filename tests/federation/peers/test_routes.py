"""Well-known files and SRV records are cached, each for its time."""

from collections.abc import Sequence

from twisted.internet.task import Clock

from federation.http_client.client import WebResponse
from federation.http_client.errors import OutboundError
from federation.peers.routes import GRACE_SECONDS, RETRIES, Routes
from federation.protocol.discovery import Hop, Service
from federation.protocol.ids import ServerName
from tests.helpers.loopback_servers import FakeNames

SOUTH = ServerName("south.example")


class Web:
    """Gives what a test says, and counts."""

    def __init__(self) -> None:
        self.count = 0
        self.delegates("matrix.example:443")

    def delegates(self, name: str, *headers: tuple[str, str]) -> None:
        self.answer: WebResponse | None = WebResponse(
            "", 200, dict(headers), f'{{"m.server": "{name}"}}'.encode()
        )

    def answers(self, status: int) -> None:
        self.answer = WebResponse("", status, {}, b"")

    def is_down(self) -> None:
        self.answer = None

    async def request(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        *,
        seconds: float,
        max_bytes: int,
        redirects: int,
        only_https: bool,
    ) -> WebResponse:
        assert only_https
        self.count += 1
        if self.answer is None:
            raise OutboundError("down")
        return self.answer


def start() -> tuple[Web, FakeNames, Clock, Routes]:
    web, names, clock = Web(), FakeNames(), Clock()
    return web, names, clock, Routes(clock=clock, web=web, names=names, draw=lambda: 0.0)


async def hop(routes: Routes) -> Hop:
    return (await routes.find(SOUTH)).hops[0]


async def test_an_expired_well_known_file_is_fetched_again() -> None:
    web, _, clock, routes = start()
    web.delegates("matrix.example:443", ("cache-control", "max-age=1000"))
    await hop(routes)
    clock.advance(999)
    await hop(routes)
    assert web.count == 1
    clock.advance(2)
    web.delegates("new.example:443")
    assert await hop(routes) == Hop("new.example", 443)


async def test_a_cached_delegation_is_used_for_some_hours_while_the_server_is_down() -> None:
    web, _, clock, routes = start()
    web.delegates("matrix.example:443", ("cache-control", "max-age=1000"))
    await hop(routes)
    web.is_down()
    clock.advance(1001)
    assert await hop(routes) == Hop("matrix.example", 443)
    clock.advance(GRACE_SECONDS)
    assert await hop(routes) == Hop("south.example", 8448)


async def test_a_removed_well_known_file_ends_the_delegation() -> None:
    web, _, clock, routes = start()
    web.delegates("matrix.example:443", ("cache-control", "max-age=1000"))
    await hop(routes)
    web.answers(404)
    clock.advance(1001)
    assert await hop(routes) == Hop("south.example", 8448)


async def test_failed_lookups_are_retried_less_and_less_often() -> None:
    web, _, clock, routes = start()
    web.is_down()
    for _ in range(24 * 60):
        await hop(routes)
        clock.advance(60)
    assert 24 <= web.count <= 32


async def test_a_failed_connection_refreshes_the_route_soon() -> None:
    web, names, clock, routes = start()
    web.delegates("matrix.example")
    names.services["_matrix-fed._tcp.matrix.example"] = [Service(1, 1, "old.example", 1)]
    await hop(routes)
    names.services["_matrix-fed._tcp.matrix.example"] = [Service(1, 1, "new.example", 1)]
    assert await hop(routes) == Hop("old.example", 1)
    routes.invalidate(SOUTH)
    assert await hop(routes) == Hop("new.example", 1)
    assert web.count == 1
    clock.advance(RETRIES.first_ms / 1000 + 1)
    await hop(routes)
    assert web.count == 2

"""Measures the cost of pushing a message to the apps of a room's members."""

from time import perf_counter
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTCP
from twisted.internet.protocol import ServerFactory
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from bench_parts.bench import Bench
from bench_parts.client import V3
from bench_parts.connection import Connection
from bench_parts.measurement import Figures

MEMBERS = 100
"""The number of members, each with an app."""
MESSAGES = 20


class Gateway(Resource):
    """A push gateway that accepts all pushes and counts them."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self._left = 0
        self._all: Deferred[None] = Deferred()

    def expect(self, number: int) -> Deferred[None]:
        """Return a Deferred that fires after this many more pushes."""
        self._left, self._all = number, Deferred()
        return self._all

    def render_POST(self, request: Request) -> bytes:
        self._left -= 1
        if self._left == 0:
            self._all.callback(None)
        request.setHeader(b"Content-Type", b"application/json")
        return b'{"rejected":[]}'


async def push(bench: Bench, figures: Figures) -> None:
    """A message in a room of 101 members, pushed to 100 apps, until the last push arrived. The
    notes show the CPU for one push."""
    world = bench.world
    people = (await world.people(MEMBERS + 1))[: MEMBERS + 1]
    (link,) = await world.connections(1)
    room = await world.client.create_room(link, people[0], preset="public_chat", name="Pushed")
    gateway = Gateway()
    factory = cast(ServerFactory[Any], Site(gateway))
    port = cast(IReactorTCP, bench.clock).listenTCP(0, factory, interface="127.0.0.1")
    url = f"http://127.0.0.1:{cast(IPv4Address, port.getHost()).port}/_matrix/push/v1/notify"

    async def enter(at: int, connection: Connection) -> None:
        user = people[at + 1]
        await world.client.join(connection, user, room)
        pusher = {
            "kind": "http",
            "app_id": "org.example.bench",
            "pushkey": f"key{at}",
            "app_display_name": "Bench",
            "device_display_name": "Bench",
            "lang": "en",
            "data": {"url": url, "format": "event_id_only"},
        }
        await connection.request("POST", f"{V3}/pushers/set", pusher, user.token)

    await world.run(enter, MEMBERS, at_once=4)
    arrived = gateway.expect(MEMBERS)
    await world.client.send(link, people[0], room)
    await arrived
    async with bench.meter.measure("push", figures) as run:
        for _ in range(MESSAGES):
            arrived = gateway.expect(MEMBERS)
            started = perf_counter()
            await world.client.send(link, people[0], room)
            await arrived
            run.add(perf_counter() - started)
        run.notes["pushes"] = MESSAGES * MEMBERS
        run.notes["pushes per second"] = MESSAGES * MEMBERS / sum(run.latencies)
    figures.notes["ms of CPU for one push"] = figures.cpu_ms / MEMBERS
    await maybeDeferred(port.stopListening)
    link.close()

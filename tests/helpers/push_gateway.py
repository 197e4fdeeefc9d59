"""An in-memory push gateway that records requests and answers as configured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from federation.http_client.client import WebResponse
from federation.http_client.errors import OutboundError
from storage.engine.database import Database
from tests.helpers.clocks import settle
from tests.helpers.http import Answer
from tests.helpers.leases import stop_renewing
from tests.helpers.server import START, TestServer, User

URL = "https://push.example.com/_matrix/push/v1/notify"


@dataclass(frozen=True)
class PushRequest:
    """A received request."""

    url: str
    notification: dict[str, Any]

    @property
    def pushkey(self) -> str:
        return str(self.notification["devices"][0]["pushkey"])


class PushGateway:
    """Stands for all push gateways. `failure` is an exception to raise or a status to answer;
    `rejected` holds pushkeys."""

    def __init__(self) -> None:
        self.asked: list[PushRequest] = []
        """All requests, including failed ones."""
        self.taken: list[PushRequest] = []
        self.failure: OutboundError | int | None = None
        self.wait: str | None = None
        """The `Retry-After` header of failures."""
        self.most_bytes: int | None = None
        """The size in bytes above which a request is refused."""
        self.refusal = 413
        """The status of a refused request."""
        self.failing_hosts: set[str] = set()
        self.rejected: set[str] = set()
        self.held: list[Deferred[None]] | None = None
        self.answer: Callable[[PushRequest], bytes] = lambda _: b""

    async def request(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        seconds: float = 30,
        max_bytes: int = 1 << 20,
        redirects: int = 0,
        only_https: bool = False,
    ) -> WebResponse:
        assert (method, dict(headers)["Content-Type"], redirects) == ("POST", "application/json", 0)
        notified = PushRequest(url, msgspec.json.decode(body)["notification"])
        self.asked.append(notified)
        if self.held is not None:
            gate: Deferred[None] = Deferred()
            self.held.append(gate)
            await gate
        if any(host in url for host in self.failing_hosts):
            raise OutboundError("the push gateway is down")
        if isinstance(self.failure, OutboundError):
            raise self.failure
        if isinstance(self.failure, int):
            return WebResponse(
                url, self.failure, {} if self.wait is None else {"retry-after": self.wait}, b""
            )
        if self.most_bytes is not None and len(body) > self.most_bytes:
            return WebResponse(url, self.refusal, {}, b"")
        self.taken.append(notified)
        given = self.answer(notified)
        rejected = [key for key in (notified.pushkey,) if key in self.rejected]
        return WebResponse(url, 200, {}, given or msgspec.json.encode({"rejected": rejected}))

    def release(self) -> None:
        """Answer the held requests, and hold no more."""
        held, self.held = self.held or [], None
        for gate in held:
            gate.callback(None)

    @property
    def events(self) -> list[str]:
        """Return the event IDs of accepted requests, in order."""
        return [
            each.notification["event_id"] for each in self.taken if "event_id" in each.notification
        ]

    @property
    def badges(self) -> list[int]:
        """Return the unread counts of pushes that only set the badge."""
        return [
            each.notification["counts"]["unread"]
            for each in self.taken
            if "event_id" not in each.notification
        ]


def pusher(pushkey: str = "key", **further: Any) -> dict[str, Any]:
    """Return the request body that sets a pusher."""
    return {
        "kind": "http",
        "app_id": "org.example.app",
        "pushkey": pushkey,
        "app_display_name": "App",
        "device_display_name": "Telephone",
        "lang": "en",
        "data": {"url": URL},
        **further,
    }


def set_pusher(user: User, pushkey: str = "key", /, **further: Any) -> Answer:
    """Set a pusher."""
    return user.post("/_matrix/client/v3/pushers/set", {**pusher(pushkey), **further})


def start(
    folder: Path, database: Database, gateway: PushGateway, seed: int = 1, now: float = START
) -> TestServer:
    """Start a server that pushes to the gateway."""
    server = TestServer(folder, database, seed=seed, now=now, web=gateway)
    server.app.pushers.start()
    settle(server)
    return server


def crash(server: TestServer, folder: Path, gateway: PushGateway, seconds: float = 0) -> TestServer:
    """Restart the server on the same database after `seconds`, without stopping the old one
    properly."""
    old = server.app
    stop_renewing(old.pushers.reading)
    old.pushers.deliveries.stop()
    return start(folder, old.database, gateway, seed=2, now=server.clock.seconds() + seconds + 31)

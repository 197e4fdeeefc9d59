"""Slots for pushes under way, shared by gateways that hang and gateways that answer."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from federation.http_client.client import WebResponse
from federation.http_client.errors import OutboundError
from homeserver.observe.push import PushMetrics
from homeserver.services.pushers.gateways import (
    FAST_SECONDS,
    MAX_PER_GATEWAY,
    MAX_TO_FAST,
    MAX_TO_SLOW,
    RETRIES,
    TIMEOUT_SECONDS,
    Gateways,
    PushFailed,
)


@dataclass
class HangingWeb:
    """Answers at once, except for hosts that hang: requests to those time out."""

    clock: Clock
    hanging: Callable[[str], bool]
    under_way: Counter[str] = field(default_factory=Counter)

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
        if self.hanging(url):
            over: Deferred[None] = Deferred()
            self.under_way[url] += 1
            self.clock.callLater(seconds, over.callback, None)
            await over
            self.under_way[url] -= 1
            raise OutboundError("it did not answer in time", retryable=True)
        return WebResponse(url, 200, {}, b"")


@dataclass
class Job:
    """One push."""

    gateways: Gateways
    url: str
    outcome: list[str]

    async def send(self) -> None:
        try:
            await self.gateways.notify(self.url, "key", b"{}")
        except PushFailed as error:
            self.outcome.append(str(error))
        else:
            self.outcome.append("taken")


class Pushing:
    def __init__(self, hanging: Callable[[str], bool]) -> None:
        self.clock = Clock()
        self.web = HangingWeb(self.clock, hanging)
        self.gateways = Gateways(
            clock=self.clock, web=self.web, metrics=PushMetrics(CollectorRegistry())
        )

    def push(self, host: str) -> list[str]:
        outcome: list[str] = []
        url = f"https://{host}/_matrix/push/v1/notify"
        self.gateways.add(url, Job(self.gateways, url, outcome))
        return outcome


def test_a_gateway_that_answers_gets_a_slot_however_many_others_hang() -> None:
    pushing = Pushing(lambda url: "hangs" in url)
    for number in range(100):
        for _ in range(2 * MAX_PER_GATEWAY):
            pushing.push(f"hangs{number}.example")
    assert pushing.web.under_way.total() == MAX_TO_SLOW
    fresh = pushing.push("good.example")
    assert fresh == [], "nobody knows it yet"
    pushing.clock.pump([1.0] * int(TIMEOUT_SECONDS * 40))
    assert fresh == ["taken"], "it has its turn among those that hang"
    for number in range(100, 200):
        for _ in range(2 * MAX_PER_GATEWAY):
            pushing.push(f"hangs{number}.example")
    assert pushing.push("good.example") == ["taken"], "from then on it waits for none of them"
    pushing.gateways.stop()


def test_gateways_that_begin_to_hang_lose_their_slots_soon() -> None:
    evil = False
    pushing = Pushing(lambda url: evil and "turns" in url)
    hosts = [f"turns{number}.example" for number in range(MAX_TO_FAST // MAX_PER_GATEWAY + 5)]
    assert pushing.push("good.example") == ["taken"]
    assert all(pushing.push(host) == ["taken"] for host in hosts)
    evil = True
    for host in hosts:
        for _ in range(MAX_PER_GATEWAY):
            pushing.push(host)
    assert pushing.web.under_way.total() == MAX_TO_FAST
    waits = pushing.push("good.example")
    assert waits == []
    pushing.clock.advance(FAST_SECONDS)
    assert waits == ["taken"]
    assert pushing.push("good.example") == ["taken"]
    pushing.clock.pump([1.0] * 60)
    assert max(pushing.web.under_way.values()) <= 1, "each is tried with one push"
    evil = False
    pushing.clock.pump([30.0] * 60)
    assert all(pushing.push(host) == ["taken"] for host in hosts), "who answers again is as before"
    assert not pushing.clock.getDelayedCalls()


def test_hanging_gateways_are_detected_again_after_a_stop() -> None:
    """A node stops its pushes when it loses the lease of the pushers, and may take it again."""
    hangs = False
    pushing = Pushing(lambda url: hangs and "turns" in url)
    hosts = [f"turns{number}.example" for number in range(MAX_TO_FAST // MAX_PER_GATEWAY + 5)]
    for _ in range(2):
        pushing.gateways.stop()
        hangs = False
        pushing.clock.pump([1.0] * int(TIMEOUT_SECONDS))
        assert all(pushing.push(host) == ["taken"] for host in ["good.example", *hosts])
        hangs = True
        for host in hosts:
            for _ in range(MAX_PER_GATEWAY):
                pushing.push(host)
        waits = pushing.push("good.example")
        assert waits == []
    pushing.clock.advance(FAST_SECONDS)
    assert waits == ["taken"]
    pushing.gateways.stop()


@pytest.mark.parametrize("number", [1, MAX_PER_GATEWAY, MAX_PER_GATEWAY + 3])
def test_one_gateway_has_a_bounded_number_of_slots(number: int) -> None:
    pushing = Pushing(lambda _: True)
    for _ in range(number):
        pushing.push("hangs.example")
    assert pushing.web.under_way.total() == min(number, MAX_PER_GATEWAY)
    pushing.gateways.stop()


def test_a_gateway_that_hung_is_retried_with_one_request() -> None:
    pushing = Pushing(lambda _: True)
    for _ in range(3 * MAX_PER_GATEWAY):
        pushing.push("hangs.example")
    assert pushing.web.under_way.total() == MAX_PER_GATEWAY
    pushing.clock.pump([1.0] * int(TIMEOUT_SECONDS + RETRIES.first_ms / 1000))
    assert pushing.web.under_way.total() == 1
    pushing.gateways.stop()

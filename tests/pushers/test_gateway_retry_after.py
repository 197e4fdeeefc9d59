"""Gateways that answer with a `Retry-After` header."""

from email.utils import formatdate

import pytest

from tests.helpers.clocks import pass_time
from tests.helpers.push_gateway import PushGateway
from tests.helpers.room_actions import say
from tests.helpers.server import TestServer
from tests.pushers.test_failing_gateways import gateway, server, two

__all__ = ["gateway", "server"]


@pytest.mark.parametrize(
    ("wait", "seconds"), [("120", 120), ("9000", 3600), ("soon", 5), ("-1", 5), ("9" * 50, 5)]
)
def test_a_retry_after_in_seconds_is_respected_up_to_an_hour(
    server: TestServer, gateway: PushGateway, wait: str, seconds: int
) -> None:
    """An hour at most; a value that is neither seconds nor a date is ignored."""
    _, bob, room_id = two(server)
    gateway.failure, gateway.wait = 429, wait
    say(bob, room_id, "1")
    pass_time(server, seconds - 1, 1)
    assert len(gateway.asked) == 1
    pass_time(server, 2, 1)
    assert len(gateway.asked) == 2


@pytest.mark.parametrize(("after", "seconds"), [(120, 120), (9000, 3600), (-60, 5)])
def test_a_retry_after_with_a_date_is_respected_up_to_an_hour(
    server: TestServer, gateway: PushGateway, after: int, seconds: int
) -> None:
    _, bob, room_id = two(server)
    gateway.failure, gateway.wait = 429, formatdate(server.clock.seconds() + after, usegmt=True)
    say(bob, room_id, "1")
    pass_time(server, seconds - 2, 1)
    assert len(gateway.asked) == 1
    pass_time(server, 3, 1)
    assert len(gateway.asked) == 2

"""The log of requests, and secrets that it must not contain."""

import json
from io import StringIO
from itertools import count

import pytest
from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel

from homeserver.http.rate_limits import RateLimiter
from homeserver.http.request_authorization import RequestAuthorizer
from homeserver.http.router import Router
from homeserver.http.site import Site
from homeserver.observe.access_log import FormattedAccessLog, mask_secrets
from homeserver.observe.context import CURRENT_REQUEST, RequestInfo
from homeserver.observe.logs import MAX_BUFFERED_LINES, JsonObserver, LogFile, TextObserver
from homeserver.observe.metrics import HttpMetrics
from tests.helpers.http import Client, RememberingAccessLog
from tests.http import endpoints
from tests.http.conftest import TOKENS
from tests.http.endpoints import Bell

SYNC = "/_matrix/client/v3/sync?since=s1&access_token=alice"
SLOW = "/_matrix/client/v3/slow"


def _logged(
    lines: list[str], bell: Bell, *, as_json: bool = False, only_slow: bool = False
) -> Client:
    clock = Clock()
    numbers = count(1)
    site = Site(
        router=Router(
            sources=[endpoints],
            services={Bell: bell},
            authorizer=RequestAuthorizer(limiter=RateLimiter(clock=clock, rates={}), tokens=TOKENS),
        ),
        clock=clock,
        metrics=HttpMetrics(CollectorRegistry()),
        access_log=FormattedAccessLog(
            write=lines.append,
            write_soon=lambda make: lines.append(make()),
            as_json=as_json,
            slow_seconds=5,
            only_slow=only_slow,
        ),
        next_request_id=lambda: f"r{next(numbers)}",
    )
    return Client(site, clock=clock, access_log=RememberingAccessLog())


def test_an_access_line_is_structured_and_contains_no_token(bell: Bell) -> None:
    lines: list[str] = []
    client = _logged(lines, bell, as_json=True)
    client.start("GET", SYNC, ip="192.0.2.1")
    client.clock.advance(30)
    bell.ring()
    (line,) = [json.loads(line) for line in lines]
    assert line["level"] == "info"
    assert (line["method"], line["status"], line["endpoint"]) == ("GET", 200, "get_sync")
    assert (line["request_id"], line["client_ip"], line["caller"]) == (
        "r1",
        "192.0.2.1",
        "@alice:example.org",
    )
    assert line["milliseconds"] == 30_000
    assert "since=s1" in line["uri"]
    assert "=alice" not in lines[0]


def test_buffered_lines_are_written_in_order_and_their_number_is_bounded() -> None:
    output = StringIO()
    file = LogFile(output)
    file.write_later(lambda: "one\n")
    file.write_later(lambda: "two\n")
    assert output.getvalue() == ""
    file.write("loud\n")
    file.write_later(lambda: "three\n")
    file.flush()
    assert output.getvalue() == "one\ntwo\nloud\nthree\n"
    for _ in range(MAX_BUFFERED_LINES + 1):
        file.write_later(lambda: "more\n")
    assert output.getvalue().count("more") == MAX_BUFFERED_LINES + 1


def test_a_slow_request_is_a_warning(bell: Bell) -> None:
    lines: list[str] = []
    client = _logged(lines, bell, only_slow=True)
    client.request("GET", "/big")
    client.start("POST", SLOW)
    client.clock.advance(6)
    bell.ring()
    (line,) = lines
    assert "warn" in line
    assert "POST /_matrix/client/v3/slow 200 6000.0 ms" in line
    assert "(slow)" in line


@pytest.mark.parametrize(
    ("uri", "logged"),
    [
        ("/a?access_token=x&since=1", "/a?access_token=…&since=1"),
        ("/a?b=1&loginToken=secret", "/a?b=1&loginToken=…"),
        ("/a?client_secret=s&sid=1", "/a?client_secret=…&sid=…"),
        ("/access_token=1", "/access_token=1"),
        ("/cas/ticket?flow=a&ticket=ST-1", "/cas/ticket?flow=a&ticket=…"),
        ("/consent?user=%40a&signature=x", "/consent?user=%40a&signature=…"),
        ("/web?session=abc", "/web?session=…"),
        # the target that the sign-in page redirects to
        ("/sign_in?a=1&next=%2Faccount%3Fclient_secret%3Dx&b=2", "/sign_in?a=1&next=…&b=2"),
        ("/sign_in?next=/account?sid=1&b=2", "/sign_in?next=…&b=2"),
        ("/a?=token&b=1", "/a?=…&b=1"),
        (
            "/_mahalla/reset_password?address=alice%40example.org&a=1",
            "/_mahalla/reset_password?address=…&a=1",
        ),
        (
            "/_mahalla/sign_in?next=/_mahalla/reset_password?address=a@b.org",
            "/_mahalla/sign_in?next=…",
        ),
        (
            "/x/unstable/io.element.msc4388/rendezvous/abc",
            "/x/unstable/io.element.msc4388/rendezvous/…",
        ),
        (
            "/x/unstable/org.matrix.msc4108/rendezvous/abc?a=1",
            "/x/unstable/org.matrix.msc4108/rendezvous/…?a=1",
        ),
        (
            "/_matrix/client/unstable/org.matrix.msc4108/rendezvous",
            "/_matrix/client/unstable/org.matrix.msc4108/rendezvous",
        ),
        ("/_synapse/admin/v1/registration_tokens/ABCD", "/_synapse/admin/v1/registration_tokens/…"),
        ("/_matrix/client/v1/delayed_events/ABCD/send", "/_matrix/client/v1/delayed_events/…/send"),
        (
            "/_synapse/admin/v1/threepid/email/users/a@b.org",
            "/_synapse/admin/v1/threepid/email/users/…",
        ),
        (
            "/_matrix/client/v3/rooms/!a:b/send/m.room.message/1",
            "/_matrix/client/v3/rooms/!a:b/send/m.room.message/1",
        ),
    ],
)
def test_secrets_in_uris_are_masked(uri: str, logged: str) -> None:
    assert mask_secrets(uri) == logged


@pytest.mark.parametrize(
    "query", ["x?" + "token" * 400_000, "token&" * 400_000, "a=token?" * 400_000]
)
def test_masking_takes_linear_time(query: str) -> None:
    """The queries have megabytes: quadratic parsing would take hours."""
    assert mask_secrets("/a?" + query).count("token") == (
        1 if "=" not in query else 0
    ) * query.count("token")


def test_every_event_has_its_request() -> None:
    lines: list[str] = []
    log = Logger("part", observer=JsonObserver(write=lines.append))
    token = CURRENT_REQUEST.set(RequestInfo("r7", "put_tag", "@a:b"))
    try:
        log.info("event {event_id} rejected", event_id="$x")
    finally:
        CURRENT_REQUEST.reset(token)
    line = json.loads(lines[0])
    assert (line["text"], line["event_id"]) == ("event $x rejected", "$x")
    assert (line["request_id"], line["endpoint"], line["caller"]) == ("r7", "put_tag", "@a:b")
    assert line["time"].endswith("Z")


def test_a_failure_has_a_traceback_and_its_text_is_one_line() -> None:
    lines: list[str] = []
    texts: list[str] = []
    both = (JsonObserver(write=lines.append), TextObserver(write=texts.append))
    for observer in both:
        log = Logger("part", observer=observer)
        try:
            raise RuntimeError("oh")
        except RuntimeError:
            log.failure("it\nbroke: {thing}", thing=object())
    assert "RuntimeError: oh" in json.loads(lines[0])["traceback"]
    assert texts[0].count("\n") == 1
    assert "RuntimeError: oh" in texts[1]


def test_unencodable_values_are_logged() -> None:
    lines: list[str] = []
    log = Logger("part", observer=JsonObserver(write=lines.append))
    log.info("bad", value="\ud800", keys={(1, 2): 3})
    assert json.loads(lines[0])["text"]


def test_low_levels_and_messages_of_twisted_are_dropped() -> None:
    lines: list[str] = []
    observer = JsonObserver(write=lines.append, minimum=LogLevel.info)
    Logger("part", observer=observer).debug("quiet")
    Logger("twisted.internet.protocol", observer=observer).info("starting factory")
    Logger("twisted.internet.protocol", observer=observer).error("broken")
    Logger("log_legacy", observer=observer).info("(TCP Port 8008 Closed)")
    assert [json.loads(line)["text"] for line in lines] == ["broken"]

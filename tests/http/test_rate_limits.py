"""Rate limits: which requests are refused, and for how long."""

from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from federation.peers.token_buckets import Rate
from federation.protocol.errors import Forbidden, LimitExceeded, RemoteError
from homeserver.api.limits import Limit
from homeserver.http.rate_limits import CountedAction, RateLimiter, address_key
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from tests.helpers.dehydrated_devices import PATH as DEHYDRATED
from tests.helpers.dehydrated_devices import dehydrated_device
from tests.helpers.http import Client, client_for
from tests.helpers.keys import V3, cross_signing_key, identity_keys, one_time_keys, upload
from tests.helpers.room_actions import create, ok, redact, room_path, say
from tests.helpers.server import TestServer, User
from tests.http import endpoints
from tests.http.conftest import TOKENS
from tests.http.endpoints import Bell

LOGIN = "/_matrix/client/v3/login"
MESSAGE = "/_matrix/client/v3/message"


def _limited() -> Client:
    rates = {Limit.LOGIN: Rate(0.1, 2), Limit.MESSAGE: Rate(1, 3)}
    return client_for([endpoints], {Bell: Bell()}, tokens=TOKENS, rates=rates)


def test_a_burst_is_allowed_and_then_a_steady_rate() -> None:
    client = _limited()
    assert [client.request("POST", LOGIN).status for _ in range(3)] == [200, 200, 429]
    refused = client.request("POST", LOGIN)
    assert refused.errcode == "M_LIMIT_EXCEEDED"
    assert refused.json["retry_after_ms"] == 10_000
    assert refused.headers["retry-after"] == "10"
    client.clock.advance(9.9)
    assert client.request("POST", LOGIN).status == 429
    client.clock.advance(0.1)
    assert [client.request("POST", LOGIN).status for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("began", [0, 1_789_012_345.678901])
@pytest.mark.parametrize("per_second", [0.003, 0.7, 1000, 65_536])
def test_a_client_that_waits_for_retry_after_is_admitted(began: float, per_second: float) -> None:
    """Times since 1970 are exact to a quarter of a microsecond."""
    clock = Clock()
    clock.advance(began)
    limiter = RateLimiter(clock=clock, rates={Limit.LOGIN: Rate(per_second, 5)})
    refused = 0
    for _ in range(10_000):
        try:
            limiter.check(Limit.LOGIN, "a")
        except LimitExceeded as error:
            refused += 1
            clock.advance(int(str(error.fields["retry_after_ms"])) / 1000)
            limiter.check(Limit.LOGIN, "a")
    assert refused > 50


def test_addresses_and_users_count_separately() -> None:
    client = _limited()
    assert [client.request("POST", LOGIN, ip="10.0.0.1").status for _ in range(3)] == [
        200,
        200,
        429,
    ]
    assert client.request("POST", LOGIN, ip="10.0.0.2").status == 200
    assert [client.request("POST", MESSAGE, token="alice").status for _ in range(4)] == [
        200,
        200,
        200,
        429,
    ]
    assert client.request("POST", MESSAGE, token="bob").status == 200


def test_ipv6_addresses_count_by_their_64() -> None:
    client = _limited()
    assert [client.request("POST", LOGIN, ip=f"2001:db8::{n}").status for n in (1, 2, 3)] == [
        200,
        200,
        429,
    ]
    assert client.request("POST", LOGIN, ip="2001:db8:0:1::1").status == 200
    assert address_key("192.0.2.1") == "192.0.2.1"


def test_exempt_users_are_not_limited() -> None:
    client = _limited()
    assert {client.request("POST", MESSAGE, token="free").status for _ in range(10)} == {200}


def test_a_large_action_is_allowed_and_delays_the_next() -> None:
    clock = Clock()
    limiter = RateLimiter(clock=clock, rates={Limit.KEY_CLAIM_OF_USER: Rate(2, 10)})
    limiter.check_and_overdraw(Limit.KEY_CLAIM_OF_USER, "a", 3)
    limiter.check_and_overdraw(Limit.KEY_CLAIM_OF_USER, "a", 27)
    for seconds in (0, 10.4):
        clock.advance(seconds)
        with pytest.raises(LimitExceeded):
            limiter.check_and_overdraw(Limit.KEY_CLAIM_OF_USER, "a", 0)
    clock.advance(0.2)
    limiter.check_and_overdraw(Limit.KEY_CLAIM_OF_USER, "a", 0)
    limiter.check_and_overdraw(Limit.KEY_CLAIM_OF_USER, "b", 1)


def test_check_only_counts_nothing_and_forget_fills_the_bucket() -> None:
    limiter = RateLimiter(clock=Clock(), rates={Limit.LOGIN_FAILED: Rate(0.1, 1)})
    for _ in range(5):
        limiter.check_without_counting(Limit.LOGIN_FAILED, "@a:b")
    limiter.check(Limit.LOGIN_FAILED, "@a:b")
    with pytest.raises(LimitExceeded):
        limiter.check_without_counting(Limit.LOGIN_FAILED, "@a:b")
    limiter.reset(Limit.LOGIN_FAILED, "@a:b")
    limiter.check_without_counting(Limit.LOGIN_FAILED, "@a:b")


@pytest.mark.parametrize(
    "failure",
    [Forbidden(), RemoteError("south.example", "away", retryable=True), CancelledError()],
    ids=repr,
)
def test_failed_actions_are_refunded(failure: Exception) -> None:
    limiter = RateLimiter(clock=Clock(), rates={Limit.JOIN_ROOM: Rate(0.1, 2)})
    for _ in range(5):
        with pytest.raises(type(failure)), limiter.count_unless_failed(Limit.JOIN_ROOM, "!r"):
            raise failure
    for _ in range(2):
        with limiter.count_unless_failed(Limit.JOIN_ROOM, "!r"):
            pass
    with pytest.raises(LimitExceeded):
        limiter.check(Limit.JOIN_ROOM, "!r")


def test_concurrent_attempts_count_where_failures_count() -> None:
    limiter = RateLimiter(clock=Clock(), rates={Limit.FALSE_INVITE_CLAIM: Rate(0.1, 2)})
    for _ in range(5):
        with limiter.count_unless_succeeded(Limit.FALSE_INVITE_CLAIM, "a"):
            pass
    with limiter.count_unless_succeeded(Limit.FALSE_INVITE_CLAIM, "a"):
        with (
            pytest.raises(Forbidden),
            limiter.count_unless_succeeded(Limit.FALSE_INVITE_CLAIM, "a"),
        ):
            raise Forbidden
        with pytest.raises(LimitExceeded):
            limiter.check_without_counting(Limit.FALSE_INVITE_CLAIM, "a")
    limiter.check(Limit.FALSE_INVITE_CLAIM, "a")
    with pytest.raises(LimitExceeded):
        limiter.check(Limit.FALSE_INVITE_CLAIM, "a")


def test_an_attempt_counts_until_it_ends_without_failure() -> None:
    limiter = RateLimiter(
        clock=Clock(), rates={Limit.LOGIN_FAILED: Rate(0.1, 2), Limit.LOGIN: Rate(0.1, 10)}
    )
    both = [CountedAction(Limit.LOGIN_FAILED, "a", 2.0), CountedAction(Limit.LOGIN, "b", 10.0)]
    for _ in range(5):
        with limiter.attempt(both), pytest.raises(LimitExceeded):
            limiter.check_without_counting(Limit.LOGIN_FAILED, "a")
    with pytest.raises(ValueError, match="broken"), limiter.attempt(both):
        raise ValueError("broken")
    limiter.check(Limit.LOGIN, "b", cost=1.0)
    with pytest.raises(LimitExceeded), limiter.attempt(both):
        pass
    limiter.check_without_counting(
        Limit.LOGIN_FAILED, "a"
    )  # nothing was counted if one bucket refused
    with limiter.attempt(both[:1]) as attempt:
        attempt.fail()
    with pytest.raises(LimitExceeded):
        limiter.check_without_counting(Limit.LOGIN_FAILED, "a")


def test_a_given_rate_replaces_the_configured_one() -> None:
    limiter = RateLimiter(clock=Clock(), rates={})
    limiter.check(Limit.MESSAGE, "@a:b", rate=Rate(1, 1))
    with pytest.raises(LimitExceeded):
        limiter.check(Limit.MESSAGE, "@a:b", rate=Rate(1, 1))


def test_the_number_of_buckets_is_bounded_and_the_emptiest_are_kept() -> None:
    clock = Clock()
    limiter = RateLimiter(clock=clock, rates={Limit.LOGIN: Rate(0.1, 2)}, max_buckets=100)
    limiter.check(Limit.LOGIN, "attacker")
    limiter.check(Limit.LOGIN, "attacker")
    for number in range(1000):
        limiter.check(Limit.LOGIN, str(number))
        assert limiter.bucket_count(Limit.LOGIN) <= 100
    with pytest.raises(LimitExceeded):
        limiter.check(Limit.LOGIN, "attacker")


def test_full_buckets_are_evicted() -> None:
    clock = Clock()
    limiter = RateLimiter(clock=clock, rates={Limit.LOGIN: Rate(1, 2)}, max_buckets=10)
    for number in range(10):
        limiter.check(Limit.LOGIN, str(number))
    clock.advance(60)
    limiter.check(Limit.LOGIN, "new")
    assert limiter.bucket_count(Limit.LOGIN) == 1


@pytest.mark.parametrize(("per_second", "burst_count"), [(0, 1), (-1, 1), (1, 0)])
def test_a_rate_of_zero_is_refused(per_second: float, burst_count: float) -> None:
    with pytest.raises(ValueError, match="rate limit needs"):
        Rate(per_second, burst_count)


@pytest.mark.parametrize(
    ("name", "method", "path"),
    [
        ("rc_hierarchy", "GET", "/_matrix/client/v1/rooms/{room}/hierarchy"),
        ("rc_threads", "GET", "/_matrix/client/v1/rooms/{room}/threads"),
        (
            "rc_timestamp_to_event",
            "GET",
            "/_matrix/client/v1/rooms/{room}/timestamp_to_event?ts=9999999999999&dir=b",
        ),
        ("rc_receipts", "POST", "/_matrix/client/v3/rooms/{room}/receipt/m.read/{event}"),
        ("rc_receipts", "POST", "/_matrix/client/v3/rooms/{room}/read_markers"),
        ("rc_typing", "PUT", "/_matrix/client/v3/rooms/{room}/typing/{user}"),
        ("rc_account_data", "PUT", "/_matrix/client/v3/user/{user}/account_data/x"),
        ("rc_account_data", "PUT", "/_matrix/client/v3/user/{user}/rooms/{room}/account_data/x"),
        ("rc_account_data", "DELETE", "/_matrix/client/v3/user/{user}/account_data/x"),
        ("rc_account_data", "DELETE", "/_matrix/client/v3/user/{user}/rooms/{room}/account_data/x"),
        ("rc_account_data", "PUT", "/_matrix/client/v3/user/{user}/rooms/{room}/tags/u.x"),
        ("rc_account_data", "DELETE", "/_matrix/client/v3/user/{user}/rooms/{room}/tags/u.x"),
        ("rc_account_data", "POST", "/_matrix/client/v3/user/{user}/filter"),
        ("rc_aliases", "PUT", "/_matrix/client/v3/directory/list/room/{room}"),
        ("rc_forget", "POST", "/_matrix/client/v3/rooms/{left}/forget"),
    ],
)
def test_endpoints_are_limited(
    tmp_path: Path, sqlite_database: Database, name: str, method: str, path: str
) -> None:
    server = TestServer(tmp_path, sqlite_database, f"{name}: {{per_second: 0.1, burst_count: 2}}\n")
    alice = server.register("alice")
    room, left = create(alice), create(alice)
    assert alice.post(room_path(left, "leave")).status == 200
    path = path.format(room=room, left=left, event=say(alice, room, "salom"), user=alice.user_id)
    body = None if method == "GET" else {"typing": True} if method == "PUT" else {}

    statuses = [alice.start(method, path, body).answer.status for _ in range(3)]

    assert statuses == [200, 200, 429]


def test_changes_of_push_rules_are_limited(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(
        tmp_path, sqlite_database, "rc_account_data: {per_second: 0.1, burst_count: 4}\n"
    )
    alice = server.register("alice")
    rule = "/_matrix/client/v3/pushrules/global/content/tea"
    changes: list[tuple[str, str, dict[str, object]]] = [
        ("PUT", rule, {"actions": ["notify"], "pattern": "tea"}),
        ("PUT", f"{rule}/enabled", {"enabled": False}),
        ("PUT", f"{rule}/actions", {"actions": []}),
        ("DELETE", rule, {}),
    ]
    assert [alice.start(*change).answer.status for change in (*changes, changes[0])] == [
        200
    ] * 4 + [429]


def test_device_changes_that_are_broadcast_are_limited(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(
        tmp_path, sqlite_database, "rc_device_changes: {per_second: 0.1, burst_count: 6}\n"
    )
    alice = server.register("alice")
    (key, identity), (master_key, master) = (
        identity_keys(alice),
        cross_signing_key(alice, "master", 2),
    )
    device = f"{V3}/devices/{alice.device_id}"
    changes: list[tuple[str, str, dict[str, object]]] = [
        ("POST", f"{V3}/keys/upload", {"device_keys": identity}),
        ("PUT", device, {"display_name": "another"}),
        ("POST", f"{V3}/keys/device_signing/upload", {"master_key": master}),
        (
            "POST",
            f"{V3}/keys/signatures/upload",
            {alice.user_id: {master_key.public: key.sign(dict(master), alice)}},
        ),
        ("PUT", DEHYDRATED, dehydrated_device(alice)),
        ("DELETE", DEHYDRATED, {}),
    ]
    assert [alice.start(*change).answer.status for change in changes] == [200] * 6
    assert [alice.start(*change).answer.status for change in changes] == [429] * 6
    assert upload(alice, one_time_keys=one_time_keys("a")) == {"signed_curve25519": 1}, (
        "one-time keys are not broadcast"
    )


def test_membership_changes_and_messages_count_separately(
    tmp_path: Path, sqlite_database: Database
) -> None:
    limits = (
        "rc_memberships: {per_second: 0.1, burst_count: 1}\n"
        "rc_message: {per_second: 0.1, burst_count: 1}\n"
    )
    server = TestServer(tmp_path, sqlite_database, limits)
    alice, bob = server.register("alice"), server.register("bob")
    room = create(alice)
    for action in ("ban", "unban", "kick", "leave"):
        body = {} if action == "leave" else {"user_id": bob.user_id}
        if action == "kick":
            ok(alice.post(room_path(room, "invite"), body))
        say(alice, room, "cleaning up")
        assert [alice.post(room_path(room, action), body).status for _ in range(2)] == [200, 429], (
            action
        )
        server.clock.advance(10)


async def make_admin(server: TestServer, user: User) -> None:
    store = AccountStore(server.app.database)
    await server.app.database.write("set_flags", store.set_flags, user.user_id, is_admin=True)


@pytest.mark.parametrize("configured", [True, False])
async def test_redactions_of_administrators_have_a_limit_of_their_own(
    tmp_path: Path, sqlite_database: Database, configured: bool
) -> None:
    config = "rc_admin_redaction: {per_second: 0.001, burst_count: 3}\n" if configured else ""
    server = TestServer(tmp_path, sqlite_database, config)
    admin, bob = server.register("admin"), server.register("bob")
    await make_admin(server, admin)
    for user, limited in ((admin, configured), (bob, False)):
        room = create(user)
        said = [say(user, room, "x") for _ in range(4)]
        for event_id in said[:3]:
            ok(redact(user, room, event_id))
        answer = redact(user, room, said[3])
        if limited:
            assert (answer.status, answer.errcode) == (429, "M_LIMIT_EXCEEDED")
        else:
            ok(answer)
        say(user, room, "messages are another matter")

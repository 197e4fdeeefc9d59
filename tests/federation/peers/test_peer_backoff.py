"""How long servers are left alone: the schedule of pauses, 429, silences, and what bounds the
memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.client import RefusedByRemote
from federation.peers.peer_backoff import PeerBackoff
from federation.protocol.errors import RemoteError

NORTH, SOUTH = "north", "south"
GONE = RemoteError(NORTH, "no answer", retryable=True)


class Time:
    now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def time() -> Time:
    return Time()


def busy(wait_ms: int) -> RefusedByRemote:
    return RefusedByRemote(NORTH, 429, "M_LIMIT_EXCEEDED", "later", {}, wait_ms)


def test_a_server_is_left_alone_for_as_long_as_it_asks(time: Time) -> None:
    backoff: PeerBackoff[str] = PeerBackoff(now_ms=time)
    backoff.record_failure(NORTH, busy(7000))
    assert (backoff.left_ms(NORTH), backoff.left_ms(SOUTH)) == (7000, 0)
    time.now_ms += 6999
    assert backoff.left_ms(NORTH) == 1
    time.now_ms += 1
    assert backoff.left_ms(NORTH) == 0


def test_without_a_schedule_other_failures_leave_no_pause(time: Time) -> None:
    backoff: PeerBackoff[str] = PeerBackoff(now_ms=time)
    backoff.record_failure(NORTH, GONE)
    backoff.record_failure(NORTH, RefusedByRemote(NORTH, 403, "M_FORBIDDEN", "no", {}, 0))
    assert backoff.left_ms(NORTH) == 0


def test_pauses_grow_with_failures_in_a_row_and_an_answer_ends_them(time: Time) -> None:
    backoff: PeerBackoff[str] = PeerBackoff(now_ms=time, schedule=BackoffSchedule(100, 400))
    for backoff_ms in (100, 200, 400, 400):
        backoff.record_failure(NORTH, GONE)
        backoff.record_failure(NORTH, GONE)  # the same failure
        assert backoff.left_ms(NORTH) == backoff_ms
        time.now_ms += backoff_ms
        assert backoff.left_ms(NORTH) == 0
    backoff.record_failure(NORTH, GONE)
    backoff.record_answer(NORTH)
    assert backoff.left_ms(NORTH) == 0
    backoff.record_failure(NORTH, GONE)
    assert backoff.left_ms(NORTH) == 100


def test_a_wait_that_a_server_asks_for_does_not_count_as_a_failure(time: Time) -> None:
    backoff: PeerBackoff[str] = PeerBackoff(now_ms=time, schedule=BackoffSchedule(100, 400))
    backoff.record_failure(NORTH, busy(5000))
    assert backoff.left_ms(NORTH) == 5000
    time.now_ms += 5000
    backoff.record_failure(NORTH, GONE)
    assert backoff.left_ms(NORTH) == 100


def test_a_server_that_answers_something_else_meanwhile_has_not_failed(time: Time) -> None:
    backoff: PeerBackoff[str] = PeerBackoff(now_ms=time, schedule=BackoffSchedule(60_000, 60_000))
    began = time.now_ms
    time.now_ms += 3000
    backoff.record_answer(NORTH)
    time.now_ms += 7000
    backoff.record_failure(NORTH, asked_at_ms=began)
    assert backoff.left_ms(NORTH) == 0
    backoff.record_failure(NORTH, asked_at_ms=began + 3000)
    assert (backoff.left_ms(NORTH), backoff.failing_ms(NORTH)) == (60_000, 7000)


def test_a_server_fails_since_the_first_request_within_its_pauses(time: Time) -> None:
    backoff: PeerBackoff[str] = PeerBackoff(now_ms=time, schedule=BackoffSchedule(60_000, 60_000))
    backoff.record_failure(NORTH, asked_at_ms=time.now_ms - 8000)
    time.now_ms += 30_000
    backoff.record_failure(NORTH, asked_at_ms=time.now_ms - 8000)
    assert (backoff.left_ms(NORTH), backoff.failing_ms(NORTH)) == (60_000, 38_000)
    time.now_ms += 60_000
    assert backoff.failing_ms(NORTH) == 0
    backoff.record_failure(NORTH, asked_at_ms=time.now_ms - 8000)
    assert backoff.failing_ms(NORTH) == 8000


def test_only_the_latest_servers_are_remembered(time: Time) -> None:
    backoff: PeerBackoff[int] = PeerBackoff(
        now_ms=time, schedule=BackoffSchedule(100, 100), max_records=3
    )
    for server in (0, 1, 2, 0, 3):
        backoff.record_failure(server)
    assert [backoff.left_ms(server) > 0 for server in range(4)] == [True, False, True, True]
    for server in range(5, 9):
        backoff.record_answer(server)
    began = time.now_ms - 1
    backoff.record_failure(5, asked_at_ms=began)
    backoff.record_failure(8, asked_at_ms=began)
    assert [backoff.left_ms(server) > 0 for server in (5, 8)] == [True, False]


@given(
    first_ms=st.integers(1, 10**7),
    factor=st.integers(1, 1000),
    growth=st.floats(1, 100),
    failures=st.integers(1, 10**6),
)
def test_a_schedule_grows_within_its_bounds(
    first_ms: int, factor: int, growth: float, failures: int
) -> None:
    schedule = BackoffSchedule(first_ms, first_ms * factor, growth)
    assert schedule.nth(1) == schedule.after(0) == first_ms
    backoff_ms = schedule.nth(failures)
    assert first_ms <= backoff_ms <= schedule.max_ms
    assert backoff_ms <= schedule.nth(failures + 1)
    assert backoff_ms <= schedule.after(backoff_ms) <= schedule.max_ms

"""Token buckets: a burst, a steady rate, and bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.peers.token_buckets import Rate, TokenBuckets


class Time:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_a_burst_and_then_a_steady_rate() -> None:
    time = Time()
    buckets = TokenBuckets(now=time, rate=Rate(0.5, 3))
    for left in (3, 2, 1):
        assert (buckets.count_tokens("a"), buckets.wait("a")) == (left, 0)
        buckets.take("a")
    assert (buckets.count_tokens("a"), buckets.wait("a"), buckets.wait("a", 2)) == (0, 2, 4)
    assert buckets.wait("b") == 0
    time.now += 2
    assert (buckets.count_tokens("a"), buckets.wait("a")) == (1, 0)


def test_returned_tokens_can_be_taken_again() -> None:
    buckets = TokenBuckets(now=Time(), rate=Rate(1, 2))
    buckets.take("a", 5)
    assert buckets.wait("a") == 4
    buckets.refund("a", 4)
    assert buckets.count_tokens("a") == 1
    buckets.take("a")
    buckets.fill("a")
    assert (buckets.count_tokens("a"), len(buckets)) == (2, 0)
    buckets.refund("a")
    assert buckets.count_tokens("a") == 2, "a bucket holds no more than a burst"


def test_another_rate_replaces_the_usual_one() -> None:
    buckets = TokenBuckets(now=Time(), rate=Rate(1, 2))
    tight = Rate(0.1, 1)
    buckets.take("a", rate=tight)
    assert buckets.wait("a", rate=tight) == 10


def test_the_emptiest_buckets_are_kept() -> None:
    buckets = TokenBuckets(now=Time(), rate=Rate(1, 1), max_buckets=10)
    buckets.take("empty", 1000)
    for number in range(100):
        buckets.take(f"{number}")
    assert len(buckets) <= 10
    assert buckets.wait("empty") == 1000


@pytest.mark.parametrize(("per_second", "burst_count"), [(0, 1), (-1, 1), (1, 0.5)])
def test_a_rate_of_zero_is_refused(per_second: float, burst_count: float) -> None:
    with pytest.raises(ValueError, match="per_second"):
        Rate(per_second, burst_count)


@given(
    per_second=st.floats(0.01, 1000),
    burst_count=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 5), max_size=60),
)
def test_a_bucket_never_exceeds_its_burst_and_rate(
    per_second: float, burst_count: int, pauses: list[float]
) -> None:
    time = Time()
    buckets = TokenBuckets(now=time, rate=Rate(per_second, burst_count))
    began, taken = time.now, 0
    for pause in pauses:
        time.now += pause
        wait, room = buckets.wait("a"), buckets.count_tokens("a")
        assert (room > 0) is (wait == 0)
        if not wait:
            buckets.take("a")
            taken += 1
        assert taken <= burst_count + (time.now - began + 1e-3) * per_second + 1e-6

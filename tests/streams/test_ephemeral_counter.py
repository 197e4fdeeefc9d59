"""Ephemeral positions on nodes whose clocks differ, and with clients that send made-up
positions."""

from twisted.internet.task import Clock

from homeserver.services.streams.ephemeral_counter import MAX_CLOCK_SKEW_US, EphemeralCounter


def test_other_nodes_follow_where_a_client_advances_one() -> None:
    clock, late_clock = Clock(), Clock()
    clock.advance(1000.5)
    late_clock.advance(1000.0)
    here, there = EphemeralCounter(clock), EphemeralCounter(late_clock)
    made_up = here.position + MAX_CLOCK_SKEW_US
    here.advance_to(made_up)
    change = here.next()
    assert change == made_up + 1
    assert there.adopt_position(change) == change
    assert here.position == there.position


def test_a_client_advances_a_node_at_most_by_the_permitted_clock_skew() -> None:
    clock = Clock()
    clock.advance(1000.0)
    counter = EphemeralCounter(clock)
    before = counter.position
    counter.advance_to(before + MAX_CLOCK_SKEW_US + 1)
    assert counter.position == before
    assert counter.adopt_position(before + 3 * MAX_CLOCK_SKEW_US) == before + 1

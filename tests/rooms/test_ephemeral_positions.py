"""Positions of what is not durable, at nodes whose clocks differ, and which clients lead astray."""

from twisted.internet.task import Clock

from homeserver.services.streams.ephemeral_counter import AHEAD, EphemeralCounter


def test_where_a_client_moves_one_node_the_others_follow() -> None:
    clock, behind = Clock(), Clock()
    clock.advance(1000.5)
    behind.advance(1000.0)
    here, there = EphemeralCounter(clock), EphemeralCounter(behind)
    made_up = here.position + AHEAD
    here.meet(made_up)
    change = here.next()
    assert change == made_up + 1
    assert there.take(change) == change
    assert here.position == there.position


def test_nobody_moves_a_node_further_than_a_clock_may_be_ahead() -> None:
    clock = Clock()
    clock.advance(1000.0)
    counter = EphemeralCounter(clock)
    before = counter.position
    counter.meet(before + AHEAD + 1)
    assert counter.position == before
    assert counter.take(before + 3 * AHEAD) == before + 1

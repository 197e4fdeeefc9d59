"""The defects that `tests/federation/rooms/test_convergence.py` must detect."""

import re
from typing import Any

import pytest

from federation.remote.transactions import TransactionClient
from federation.rooms.rejoins import UnacknowledgedLeaves
from tests.helpers.convergence_machine import ConvergenceMachine


def lose_what_the_south_says_last(
    monkeypatch: pytest.MonkeyPatch, *, was_away_before: bool
) -> tuple[ConvergenceMachine, list[str]]:
    """Lose a message: its sender leaves, and rejoins through servers that never had it. Return the
    machine and the lost event."""
    monkeypatch.setattr(
        "tests.helpers.convergence_machine.event", lambda _: None
    )  # of a run by Hypothesis
    machine = ConvergenceMachine()
    machine.begin("11")
    if was_away_before:
        for who in (0, 2):
            machine.leave(who)
            machine.join(who, 1)

    async def lose(*_: Any) -> int:
        return 0  # of the events could not be taken

    lost: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(TransactionClient, "send", lose)
        south = machine.sides[1]
        for act in (machine.say, machine.leave):
            act(1)
            lost += south.server.run(south.extremities(machine.room_id))
    return machine, lost


@pytest.mark.parametrize("was_away_before", [False, True])
def test_a_message_that_is_lost_is_noticed(
    was_away_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is lost although no event follows it."""

    async def find_nothing(*_: Any) -> dict[Any, Any]:
        return {}

    monkeypatch.setattr(UnacknowledgedLeaves, "find_replaced", find_nothing)
    machine, lost = lose_what_the_south_says_last(monkeypatch, was_away_before=was_away_before)
    with pytest.raises(
        AssertionError, match="|".join(re.escape(f"'{event_id}'") for event_id in lost)
    ):
        machine.teardown()


@pytest.mark.parametrize("was_away_before", [False, True])
def test_a_user_who_rejoins_continues_from_their_own_messages(
    was_away_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, _ = lose_what_the_south_says_last(monkeypatch, was_away_before=was_away_before)
    machine.teardown()

"""What `test_convergence.py` takes for a defect."""

import re
from typing import Any

import pytest

from federation.remote.transactions import Transactions
from tests.servers.test_convergence import Towns


@pytest.mark.parametrize("was_away_before", [False, True])
def test_a_message_that_is_lost_is_noticed(was_away_before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever says it leaves, and comes back by others, who never had it: nobody goes on from it."""
    monkeypatch.setattr("tests.servers.test_convergence.event", lambda _: None)  # of a run by Hypothesis
    towns = Towns()
    towns.begin("11")
    if was_away_before:
        for who in (0, 2):
            towns.leave(who)
            towns.join(who, 1)

    async def lose(*_: Any) -> int:
        return 0  # of the events could not be taken

    with monkeypatch.context() as patch:
        patch.setattr(Transactions, "send", lose)
        south = towns.sides[1]
        lost: list[str] = []
        for act in (towns.say, towns.leave):
            act(1)
            lost += south.server.run(south.extremities(towns.room_id))
    with pytest.raises(AssertionError, match="|".join(re.escape(f"'{event_id}'") for event_id in lost)):
        towns.teardown()

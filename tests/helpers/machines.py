"""Runs state machines of Hypothesis, as all laws of rooms and of both kinds of sync are run."""

import os
from collections.abc import Collection

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

WHERE_SHRINKING_TAKES_LONG = [Phase.explicit, Phase.reuse, Phase.generate]
"""Phases; a failure is made smaller where MAHALLA_SYNC_SHRINK is set."""
if os.environ.get("MAHALLA_SYNC_SHRINK"):
    WHERE_SHRINKING_TAKES_LONG.append(Phase.shrink)


ANEW_EACH_TIME = settings(derandomize=False, print_blob=True)
"""Other histories in each run, also where continuous integration has the same ones each time
otherwise."""


def run_machine(
    machine: type[RuleBasedStateMachine],
    runs: int,
    steps: int,
    phases: Collection[Phase] = tuple(Phase),
    parent: settings | None = None,
) -> None:
    """So many histories of at most so many steps; a step takes as long as it takes."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            parent,
            max_examples=runs,
            stateful_step_count=steps,
            deadline=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )

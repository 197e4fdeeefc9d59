"""Runs Hypothesis state machines with the settings of all law tests."""

import os
from collections.abc import Collection

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

PHASES_WITHOUT_SHRINKING = [Phase.explicit, Phase.reuse, Phase.generate]
"""Phases without shrinking, unless MAHALLA_SYNC_SHRINK is set."""
if os.environ.get("MAHALLA_SYNC_SHRINK"):
    PHASES_WITHOUT_SHRINKING.append(Phase.shrink)


RANDOM_EXAMPLES = settings(derandomize=False, print_blob=True)
"""Different examples in each run, also in continuous integration, which otherwise repeats the same
ones."""


def run_machine(
    machine: type[RuleBasedStateMachine],
    runs: int,
    steps: int,
    phases: Collection[Phase] = tuple(Phase),
    parent: settings | None = None,
) -> None:
    """Run a machine `runs` times with at most `steps` steps. A step has no deadline."""
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

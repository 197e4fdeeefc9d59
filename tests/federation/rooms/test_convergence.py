"""Three complete servers on a network that delays, loses, repeats and reorders: after repair, all
have the same room.

In the end everybody comes back into the room, as far as its rules let them, and reads it to its
beginning: then all three servers have the same state and the same events. Those who could not come
back, since nobody was left who may let them in, are compared as far as they take each other to be
in the room.

Some runs are part of the suite, others each time; `MAHALLA_CONVERGENCE_RUNS=1000 pytest
tests/federation/rooms/test_convergence.py` makes as many. `--hypothesis-seed=N` makes the same ones
again.
"""

import os

from tests.helpers.convergence_machine import ConvergenceMachine
from tests.helpers.state_machines import RANDOM_EXAMPLES, run_machine

RUNS = int(os.environ.get("MAHALLA_CONVERGENCE_RUNS", "50"))


def test_rooms_on_all_servers_converge() -> None:
    run_machine(ConvergenceMachine, RUNS, 20, parent=RANDOM_EXAMPLES)

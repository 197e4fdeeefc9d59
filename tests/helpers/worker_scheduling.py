"""Distributes tests over the workers of pytest-xdist. Tests that share expensive fixtures stay on
one worker, and long tests start first.

The `--dist loadgroup` of pytest-xdist writes a group into a test's ID, which pytest 9.2 no longer
reads.
"""

from typing import Final

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

WAITING: Final = ("interop", "nodes", "clients", "identity_providers")
"""Folders whose tests start processes and mostly wait. Their first tests keep one worker busy for
long."""

LONG: Final = (
    "federation/rooms/test_convergence",
    "federation/rooms/partial_state/test_partial_convergence",
    "sync/test_sync_agreement",
    "federation/rooms/test_partition_convergence",
    "encryption/test_device_lists_law",
    "sync/test_sync_law",
    "sliding_sync/test_fast_path",
    "pushers/test_push_law",
)
"""Files whose tests need much CPU time."""

TOGETHER: Final = {"interop": True, "clients": False, "identity_providers": False, "layout": True}
"""Folders whose tests share expensive fixtures: True for the complete folder, False within a
file."""


def long_tests_first(items: list[pytest.Item]) -> None:
    """Sort tests into the order in which they start."""

    def place(item: pytest.Item) -> int:
        name = _name(item.nodeid)
        folder = name.partition("/")[0]
        return WAITING.index(folder) if folder in WAITING else len(WAITING) + (name not in LONG)

    items.sort(key=place)


def _name(nodeid: str) -> str:
    """Return the name of a test's file as `folder/test_topic`."""
    return nodeid.partition("::")[0].removeprefix("tests/").removesuffix(".py")


class WorkerScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Schedules tests in their order, and groups that belong together on one worker."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        name = _name(nodeid)
        folder = name.partition("/")[0]
        together = TOGETHER.get(folder)
        return nodeid if together is None else folder if together else name

    def mark_test_complete(
        self, node: WorkerController, item_index: int, duration: float = 0
    ) -> None:
        """Mark a test as complete, and drop its work unit when that is complete. Otherwise the cost
        of each test grows with the number of earlier tests."""
        scope = self._split_scope(self.registered_collections[node][item_index])
        super().mark_test_complete(node, item_index, duration)
        if all(self.assigned_work[node][scope].values()):
            del self.assigned_work[node][scope]

"""Distributes tests over the workers of pytest-xdist: tests that share something costly stay on one
worker, and slow ones begin first.

pytest-xdist's own `--dist loadgroup` writes a group into a test's id, where pytest 9.2 does not
look any more.
"""

from typing import Final

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

WAITING: Final = ("interop", "nodes", "clients", "upstream")
"""Folders of tests with processes of their own, which mostly wait. One worker has the first of them
for long."""

LONG: Final = (
    "servers/test_convergence",
    "servers/test_partial_convergence",
    "servers/test_sync_agreement",
    "rooms/test_partitions",
    "http/test_device_lists_law",
    "http/test_sync_law",
    "http/test_sliding_sync_both_ways",
    "push/test_push_law",
)
"""Files with tests that keep a processor busy for long."""

TOGETHER: Final = {"interop": True, "clients": False, "upstream": False, "layout": True}
"""Folders whose tests share what is costly to make: in all of the folder, or within a file."""


def begin_with_long(items: list[pytest.Item]) -> None:
    """Bring tests into the order in which they are to begin."""

    def place(item: pytest.Item) -> int:
        name = _name(item.nodeid)
        folder = name.partition("/")[0]
        return WAITING.index(folder) if folder in WAITING else len(WAITING) + (name not in LONG)

    items.sort(key=place)


def _name(nodeid: str) -> str:
    """Of a test's file: `folder/test_topic`."""
    return nodeid.partition("::")[0].removeprefix("tests/").removesuffix(".py")


class Sharing(LoadScopeScheduling):  # type: ignore[misc]  # which has no types
    """Hands out the tests in their order, and what belongs together at once."""

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
        """A test is done. What is done as a whole is not looked at again: else each test costs what
        there were before it."""
        scope = self._split_scope(self.registered_collections[node][item_index])
        super().mark_test_complete(node, item_index, duration)
        if all(self.assigned_work[node][scope].values()):
            del self.assigned_work[node][scope]

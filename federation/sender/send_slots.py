"""Limits how many transactions start concurrently, so that unresponsive servers do not delay
others.

A request needs a slot to start, and releases it when it ends. A request that takes longer than
`MAX_SLOT_SECONDS` releases its slot then, and continues without one. While other servers wait for a
slot and fewer than `MANY_RUNNING` requests are running, a request releases its slot after one
second. When more requests are running, slow ones keep their slots for `MAX_SLOT_SECONDS`, so
their number grows more slowly. Each request has a time limit, so the number of running requests is
bounded.

Servers get slots in the order in which their transactions became ready. A waiting server that sends
us something gets the next slot, because it is reachable.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from federation.peers.fair_semaphore import FairSemaphore
from federation.protocol.ids import ServerName

MAX_SLOT_SECONDS: Final = 5
"""Longest time that a request holds its slot. Most are answered within one second."""
MANY_RUNNING: Final = 512
"""From this number of running requests on, each holds its slot for the longest time."""

T = TypeVar("T")


class SendSlots:
    """Runs requests, one at a time for each server. Use this class only on the reactor thread."""

    def __init__(self, *, clock: IReactorTime, size: int) -> None:
        self._clock = clock
        self._slots: FairSemaphore[ServerName] = FairSemaphore(permits=size, permits_per_key=1)
        self._running = 0

    async def run(self, server: ServerName, work: Callable[[], Awaitable[T]]) -> T:
        """Wait for a slot and do the work. Return its result or raise its error."""
        await self._slots.acquire(server)
        self._running += 1
        slot = _Slot(server)
        self._schedule_check(slot)
        try:
            return await work()
        finally:
            self._running -= 1
            if slot.check is not None:
                slot.check.cancel()
                self._release(slot)

    def prioritize(self, server: ServerName) -> None:
        """Give the server the next free slot, if it waits for one."""
        self._slots.prioritize(server)

    def _schedule_check(self, slot: "_Slot") -> None:
        slot.check = self._clock.callLater(1, self._check, slot)

    def _check(self, slot: "_Slot") -> None:
        slot.seconds += 1
        if slot.seconds >= MAX_SLOT_SECONDS or (
            self._slots.total_waiting and self._running < MANY_RUNNING
        ):
            self._release(slot)
        else:
            self._schedule_check(slot)

    def _release(self, slot: "_Slot") -> None:
        slot.check = None
        self._slots.release(slot.server)


class _Slot(msgspec.Struct):
    """A slot. It is held while `check` is a scheduled call."""

    server: ServerName
    seconds: int = 0
    check: IDelayedCall | None = None

"""Takes and renews a lease in regular rounds, and starts and stops the work that needs it.

Laws:
- Usually one node works at a time. The loop starts the work with `LeasedWork.begin`, and ends it
  with `on_lease_lost` or `finish`.
- In each round, the node that has the lease renews it and stores the position up to which all work
  is done. (On SQLite it writes only if the position has changed.) The node that takes the lease
  next continues from that position.
- A node that loses the lease ends the work in its next round. Until then two nodes may work. So
  repeated work must do no harm (`node_lease.py`).
- If a round fails, the work neither starts nor stops. The next round tries again.
- `LeaseLoop.stop` ends the work, stores the position, and releases the lease.
"""

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from storage.cluster.leases import Lease
from storage.cluster.node_lease import FIRST_RENEWAL_SECONDS, NodeLease
from storage.engine.interface import DatabaseUnavailable

LEASE_DURATION_MS: Final = 30_000
ROUND_SECONDS: Final = 10.0


class LeasedWork(Protocol):
    """Work that one node does at a time."""

    def is_idle(self) -> bool:
        """Return whether no work of an earlier lease still runs."""
        ...

    async def begin(self, lease: Lease) -> None:
        """Start the work. If this raises, the next round tries again."""
        ...

    async def store_progress(self) -> int:
        """Store progress that the position does not cover. Return the position up to which all work
        is done."""
        ...

    def on_lease_lost(self) -> None:
        """Stop the work: another node does it now."""
        ...

    async def finish(self) -> int:
        """Stop the work, and store progress that the position does not cover. Return the
        position."""
        ...


class LeaseLoop:
    """Runs the rounds of one kind of work. Use this class only on the reactor thread."""

    log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        lease: NodeLease,
        work: LeasedWork,
        name: str,
        after_round: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`name` is the name of the work in the log. `after_round` is called after each round,
        whether the lease is held or not."""
        self._clock = clock
        self._lease = lease
        self._work = work
        self._name = name
        self._after_round = after_round
        self._round = LoopingCall(self._start_round)
        self._round.clock = clock
        self._rounds_end: Deferred[LoopingCall] | None = None
        self.is_held = False
        self.stored_position = 0
        """The stored position, while the lease is held."""

    @property
    def is_single_node(self) -> bool:
        """Whether there can be no other node."""
        return self._lease.is_single_node

    def start(self) -> None:
        """Start the rounds. Takes the lease as soon as no other node has it."""
        self._rounds_end = self._round.start(ROUND_SECONDS)

    async def stop(self) -> None:
        """End the work, and release the lease."""
        if self._round.running and self._rounds_end is not None:
            self._round.stop()
            await self._rounds_end  # the current round may be taking the lease
        if self.is_held:
            self.is_held = False
            await self._lease.renew(0, await self._work.finish())

    def _start_round(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._run_round())

    async def _run_round(self) -> None:
        """Take or renew the lease. Raises nothing."""
        try:
            if self.is_held:
                await self._renew()
            elif self._work.is_idle():
                await self._take()
            if self._after_round is not None:
                await self._after_round()
        except DatabaseUnavailable as error:
            self.log.warn(
                "the lease of the {name} could not be renewed: {error}",
                name=self._name,
                error=error,
            )
        except Exception:  # an unexpected error: the next round tries again
            self.log.failure("the lease of the {name} could not be renewed", name=self._name)

    async def _take(self) -> None:
        now = self._now_ms()
        lease = await self._lease.take(now, now + LEASE_DURATION_MS)
        if lease is None:
            return
        await self._work.begin(lease)
        self.stored_position = lease.position
        self.is_held = True
        self._round.interval = FIRST_RENEWAL_SECONDS

    async def _renew(self) -> None:
        self._round.interval = ROUND_SECONDS
        position = await self._work.store_progress()
        if self._lease.is_single_node and position == self.stored_position:
            return
        if await self._lease.renew(self._now_ms() + LEASE_DURATION_MS, position):
            self.stored_position = position
        else:
            self.log.warn("another node has the lease of the {name} now", name=self._name)
            self.is_held = False
            self._work.on_lease_lost()

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)

"""Other processes on the same database: this node asks once a second how far the one sequence has come.

What others wrote is heard of within that second: long-polls wake, a revoked token is refused, a redacted event is
forgotten. A node that writes hears of it sooner, since its writes follow upon theirs. Typing is known to its own node only.
"""

from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from storage.database import Database
from storage.engine import DatabaseUnavailable

SECONDS: Final = 1.0


class OtherNodes:
    """Listens to what other nodes write."""

    log = Logger()

    def __init__(self, clock: IReactorTime, database: Database) -> None:
        self._database = database
        self._asking = LoopingCall(self._ask)
        self._asking.clock = clock
        self._is_cut_off = False

    def start(self) -> None:
        """Ask from now on."""
        self._asking.start(SECONDS, now=False)

    def stop(self) -> None:
        """Ask no more."""
        if self._asking.running:
            self._asking.stop()

    def _ask(self) -> Deferred[None]:
        asked = Deferred.fromCoroutine(self._poll())
        return asked.addErrback(lambda failure: self.log.failure("what other nodes wrote is not known", failure))

    async def _poll(self) -> None:
        """Ask once. That the database is away is told when it begins and when it ends, not every second."""
        try:
            await self._database.poll()
        except DatabaseUnavailable as error:
            if not self._is_cut_off:
                self.log.error("the database cannot be reached: {error}", error=str(error).strip())
            self._is_cut_off = True
        else:
            if self._is_cut_off:
                self.log.info("the database can be reached again")
            self._is_cut_off = False

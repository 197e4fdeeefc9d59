"""Other processes on the same database: how far the one sequence has come there.

What others wrote is heard of within a tenth of a second or two: long-polls wake, a redacted event
is forgotten. Who has written says so (`homeserver/cluster/notify.py`, by which nodes also tell one
another what is not written, as who types); a node that writes itself hears of it by that, since its
writes follow upon theirs; and where a word was lost, it is asked for once a second. What concerns
whom is said too (`homeserver/cluster/outgoing_changes.py`).

What ends a session or changes what an account may do is not acknowledged before it holds on all
nodes: they are called as it is written (`storage/engine/postgres_notify.py`), and each answers once
it has forgotten what it remembered. A node that does not answer is waited for only so long, since
none trusts what it remembers longer than that after it has last asked.

Laws:
- No node lets in by a token of which another has answered that it has ended.
- A node that is cut off from the database, or hangs, holds up others for `TRUSTED` seconds at most,
  but where it hangs amid a write (`write_lock_timeout` of `storage/engine/postgres_config.py`).
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from homeserver.cluster.notify import NodeNotes
from homeserver.cluster.outgoing_changes import KIND, Written
from storage.engine.database import Database
from storage.engine.interface import DatabaseUnavailable, NodeCalls, NodeCallsLost
from storage.engine.postgres_notify import Changed, Heard, Note

SECONDS: Final = 1.0
TRUSTED: Final = 3.0
"""Seconds after a question for which what is remembered is trusted: as long as a few that get
lost."""
GREETING: Final = "[]"
"""The note of a node that has begun to hear the others: they have somebody to tell things."""
COUNTED_EVERY: Final = 15
"""Seconds after which a node looks whether it is alone."""
OWN_CALLS: Final = 1000
"""Of so many of its latest calls a node knows that they are its own."""


class Remembered(Protocol):
    """What a node remembers and others make untrue: who owns a token."""

    def trust_until(self, seconds: float) -> None:
        """On the clock that nobody sets; from then on the database is asked each time."""
        ...

    async def settle(self) -> None:
        """Wait until what was heard of is forgotten."""
        ...


class _Waiting:
    """A write that waits until these nodes have heard of it."""

    def __init__(self, position: int, missing: set[int]) -> None:
        self.position = position
        self.missing = missing
        self.done: Deferred[None] = Deferred()


class OtherNodes:
    """Listens to what other nodes write."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        remembered: Remembered,
        notes: NodeNotes,
        monotonic: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._database = database
        self._remembered = remembered
        self._notes = notes
        self._monotonic = monotonic
        self._asking = LoopingCall(self._ask)
        self._asking.clock = clock
        self._is_cut_off = False
        self._readers: IReactorFDSet | None = None
        self._ear: _Ear | None = None
        self._called_upto = 0
        self._answered_upto = 0
        self._is_answering = False
        self._written_upto = 0
        self._is_looking = False
        self._until_counted = 1
        self._is_to_greet = False
        self._notes_heard = 0
        self._own_calls: deque[int] = deque(maxlen=OWN_CALLS)
        self._heard_upto: dict[int, int] = {}
        """By node, what it has answered."""
        self._waiting: list[_Waiting] = []
        notes.register(KIND, Written, self._hear_written)

    @property
    def node(self) -> int:
        """The number of this node among those that hear one another; 0 while it does not hear
        them."""
        return 0 if self._ear is None else self._ear.node

    def start(self, readers: IReactorFDSet | None = None) -> None:
        """Ask from now on. `readers`: where this node hears others call, and what it remembers is
        trusted only while it does."""
        self._readers = readers
        if readers is not None:
            self._remembered.trust_until(0.0)
            self._database.wait_for_nodes(self._wait_until_heard)
        self._asking.start(SECONDS, now=readers is not None)

    def stop(self) -> None:
        """Ask no more."""
        if self._asking.running:
            self._asking.stop()
        self._readers = None
        self._stop_hearing()

    def _ask(self) -> Deferred[None]:
        asked = Deferred.fromCoroutine(self._hear_and_poll())
        return asked.addErrback(
            lambda failure: self.log.failure("what other nodes wrote is not known", failure)
        )

    async def _hear_and_poll(self) -> None:
        """What is done each second: one after the other, so that there is one connection by which
        others are heard."""
        if self._readers is not None and self._ear is None:
            with suppress(DatabaseUnavailable):  # the question tells
                await self._begin_hearing(self._readers)
        if self._is_to_greet and (ear := self._ear) is not None:
            with suppress(
                DatabaseUnavailable
            ):  # a node that believes to be alone hears of this one by nothing else
                await self._database.tell_notes(ear.node, [GREETING])
                self._is_to_greet = False
        if await self._poll():
            self._answer_calls()
        self._until_counted -= 1
        if self._until_counted <= 0:
            self._until_counted = COUNTED_EVERY
            with suppress(DatabaseUnavailable):
                await self._count_nodes()

    def _connect(self) -> None:
        if self._ear is not None and not self._notes.is_connected:
            self._notes.connect(partial(self._database.tell_notes, self._ear.node))

    async def _count_nodes(self) -> None:
        """Who is alone tells nobody anything, until another node is heard."""
        ear, heard = self._ear, self._notes_heard
        if ear is None or not self._notes.is_connected:
            return
        nodes = await self._database.get_nodes()
        if nodes <= {ear.node} and heard == self._notes_heard:  # else one has come meanwhile
            self._notes.connect(None)

    def _hear_written(self, _node: int, written: Written) -> None:
        if written.ranges:
            self._written_upto = max(self._written_upto, written.upto)
        if not self._is_looking and self._written_upto > self._database.streams.current():
            self._is_looking = True
            looked = Deferred.fromCoroutine(self._look())
            looked.addErrback(
                lambda failure: self.log.failure("what other nodes wrote is not known", failure)
            )

    async def _look(self) -> None:
        try:
            while (wanted := self._written_upto) > self._database.streams.current():
                if not await self._poll() or self._database.streams.current() < wanted:
                    self._written_upto = 0  # the question of each second finds what there is
        finally:
            self._is_looking = False

    async def _poll(self) -> bool:
        """Ask once; False where the database is away. That it is, is told when it begins and when
        it ends, not every second."""
        try:
            ear, began = self._ear, self._monotonic()
            await self._database.poll()
        except DatabaseUnavailable as error:
            if not self._is_cut_off:
                self.log.error("the database cannot be reached: {error}", error=str(error).strip())
            self._is_cut_off = True
            return False
        if self._is_cut_off:
            self.log.info("the database can be reached again")
        self._is_cut_off = False
        if ear is not None:
            await self._remembered.settle()
            if ear is self._ear:
                self._remembered.trust_until(began + TRUSTED)
        return True

    async def _begin_hearing(self, readers: IReactorFDSet) -> None:
        calls = await self._database.connect_node()
        if calls is None:
            return
        if self._readers is None:
            calls.close()  # stopped meanwhile
            return
        self._ear = _Ear(calls, readers, self._take, self._stop_hearing)
        self._is_to_greet = True
        self._connect()

    def _stop_hearing(self) -> None:
        ear, self._ear = self._ear, None
        if ear is None:
            return
        self._remembered.trust_until(0.0)
        self._notes.connect(None)
        ear.close()

    def _take(self, came: Sequence[object]) -> None:
        for call in came:
            match call:
                case Changed(position=position) if position not in self._own_calls:
                    self._called_upto = max(self._called_upto, position)
                case Heard(node=node, position=position):
                    self._note_heard(node, position)
                case Note(node=node, body=body) if self._ear is not None and node != self._ear.node:
                    self._notes_heard += 1
                    self._connect()
                    self._notes.hear(node, body)
        self._answer_calls()

    def _answer_calls(self) -> None:
        if self._called_upto > self._answered_upto and not self._is_answering:
            self._is_answering = True
            answered = Deferred.fromCoroutine(self._answer())
            answered.addErrback(
                lambda failure: self.log.failure("other nodes could not be answered", failure)
            )

    async def _answer(self) -> None:
        try:
            while self._called_upto > self._answered_upto and (ear := self._ear) is not None:
                upto = self._called_upto
                if not await self._poll():
                    return
                await self._database.tell_heard(ear.node, upto)
                self._answered_upto = upto
        finally:
            self._is_answering = False

    def _note_heard(self, node: int, position: int) -> None:
        self._heard_upto[node] = max(position, self._heard_upto.get(node, 0))
        for waiting in list(self._waiting):
            if waiting.position <= position:
                waiting.missing.discard(node)
                if not waiting.missing and not waiting.done.called:
                    waiting.done.callback(None)

    async def _wait_until_heard(self, position: int) -> None:
        """Wait until all other nodes have taken in what was committed at that position, or none can
        trust what it had before."""
        self._own_calls.append(position)
        committed = self._monotonic()
        waiting = _Waiting(position, set())
        try:
            nodes = await self._database.get_nodes()
        except DatabaseUnavailable:
            pass  # whoever is there cannot be told either
        else:
            others = nodes if self._ear is None else nodes - {self._ear.node}
            self._heard_upto = {
                node: upto for node, upto in self._heard_upto.items() if node in others
            }
            waiting.missing = {node for node in others if self._heard_upto.get(node, 0) < position}
            if not waiting.missing:
                return
        self._waiting.append(waiting)
        left = max(0.0, committed + TRUSTED - self._monotonic())
        timeout = self._clock.callLater(left, waiting.done.callback, None)
        try:
            await waiting.done
        finally:
            self._waiting.remove(waiting)
            if timeout.active():
                timeout.cancel()


@implementer(IReadDescriptor)
class _Ear:
    """The connection by which others are heard, as the reactor reads it."""

    def __init__(
        self,
        calls: NodeCalls,
        readers: IReactorFDSet,
        take: Callable[[Sequence[object]], None],
        lost: Callable[[], None],
    ) -> None:
        self._calls = calls
        self._readers = readers
        self._take = take
        self._lost = lost
        self.node = calls.node
        readers.addReader(self)

    def fileno(self) -> int:
        return self._calls.fileno()

    def doRead(self) -> None:
        try:
            came = self._calls.take()
        except NodeCallsLost:
            self._lost()
            return
        self._take(came)

    def connectionLost(self, reason: Failure) -> None:
        self._lost()

    def logPrefix(self) -> str:
        return "nodes"

    def close(self) -> None:
        self._readers.removeReader(self)
        self._calls.close()

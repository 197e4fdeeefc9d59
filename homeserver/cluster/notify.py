"""What nodes tell one another of what is kept nowhere: who types, who is there.

Notes are gathered for a moment and told together (`homeserver/cluster/peers.py` brings them over),
of those with one key the latest alone: however busy the rooms are, a node calls the others fifty
times a second at most. A note may be lost, where the database is away or too many wait: it tells
what is soon over, or told again, or asked for by who was not there.

For the reactor thread.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from storage.engine.interface import DatabaseUnavailable

INTERVAL: Final = 0.02
"""Seconds between calls at least."""
MOST_WAITING: Final = 10_000
MOST_AT_ONCE: Final = 20
"""Calls that are made together; what is left goes with the next ones."""
LONGEST_BODY: Final = 7_000
"""Bytes of a call: PostgreSQL takes less than 8,000."""

Tell = Callable[[Sequence[str]], Awaitable[None]]
"""Brings these bodies to all other nodes. Raises DatabaseUnavailable."""


class NodeNotes:
    """The notes that wait to be told, and who takes in those of others."""

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._tell: Tell | None = None
        self._hearers: dict[str, list[Callable[[int, bytes], None]]] = {}
        self._questions: list[tuple[str, object]] = []
        self._waiting: dict[tuple[str, Hashable], object] = {}
        self._not_understood: set[str] = set()
        """Kinds that were heard of, of which some note was not understood."""
        self._is_due = False
        self._not_before = 0.0

    def connect(self, tell: Tell | None) -> None:
        """How others are reached from now on; None: no more. What waits then is not told to those
        who come later: it was of its time."""
        is_begun = tell is not None and self._tell is None
        self._tell = tell
        if tell is None:
            self._waiting.clear()
        if is_begun:
            for kind, note in self._questions:
                self.put(kind, None, note)

    def ask(self, kind: str, note: object) -> None:
        """Tell this to the others whenever this node begins to hear them: that they tell what it
        does not know, since it has just started, or was cut off."""
        self._questions.append((kind, note))

    def register(self, kind: str, form: type[Any], hearer: Callable[[int, Any], None]) -> None:
        """Who takes in notes of a kind, which have that form, with the number of the node; may not
        raise and may not block."""
        decoder = msgspec.json.Decoder(form)
        self._hearers.setdefault(kind, []).append(
            lambda node, note: hearer(node, decoder.decode(note))
        )

    @property
    def is_connected(self) -> bool:
        """Whether others are told, and heard."""
        return self._tell is not None

    def waiting(self, kind: str, key: Hashable) -> object:
        """What waits to be told under a key; None: nothing does."""
        return self._waiting.get((kind, key))

    def put(self, kind: str, key: Hashable, note: object) -> None:
        """Tell the others soon, instead of what waits under the same key."""
        if self._tell is None:
            return
        if len(self._waiting) < MOST_WAITING or (kind, key) in self._waiting:
            self._waiting[kind, key] = note
        if not self._is_due:
            self._is_due = True
            self._clock.callLater(max(0.0, self._not_before - self._clock.seconds()), self._start)

    def hear(self, node: int, body: str) -> None:
        """Another node's call. What a node of another version tells, and this one does not know, is
        passed over, and nothing else."""
        unknown: set[str] = set()
        try:
            notes = msgspec.json.decode(body, type=list[tuple[str, msgspec.Raw]])
        except (msgspec.MsgspecError, UnicodeError):
            notes = []
            unknown.add("")
        for kind, note in notes:
            try:
                for hearer in self._hearers.get(kind, ()):
                    hearer(node, bytes(note))
            except (msgspec.MsgspecError, UnicodeError):
                unknown.add(kind)
        if not unknown <= self._not_understood:
            self._not_understood |= unknown  # once is enough: it may go on fifty times a second
            self.log.warn(
                "another node tells what is not understood: {kinds}", kinds=sorted(unknown)
            )

    def _start(self) -> None:
        told = Deferred.fromCoroutine(self._tell_others())
        told.addErrback(lambda failure: self.log.failure("other nodes could not be told", failure))

    async def _tell_others(self) -> None:
        self._not_before = self._clock.seconds() + INTERVAL
        try:
            bodies = self._take_bodies()
            if bodies and self._tell is not None:
                await self._tell(bodies)
        except DatabaseUnavailable:
            pass  # so says who asks the database each second
        finally:
            self._is_due = False
            if self._waiting:
                (kind, key), note = next(iter(self._waiting.items()))
                self.put(kind, key, note)

    def _take_bodies(self) -> list[str]:
        bodies: list[str] = []
        taken: list[bytes] = []
        length = 0
        while self._waiting and len(bodies) < MOST_AT_ONCE:
            first = next(iter(self._waiting))
            encoded = msgspec.json.encode((first[0], self._waiting.pop(first)))
            if len(encoded) > LONGEST_BODY:
                continue
            if length + len(encoded) > LONGEST_BODY:
                bodies.append(_body(taken))
                taken, length = [], 0
            taken.append(encoded)
            length += len(encoded) + 1
        if taken:
            bodies.append(_body(taken))
        return bodies


def _body(notes: Sequence[bytes]) -> str:
    return f"[{b','.join(notes).decode()}]"

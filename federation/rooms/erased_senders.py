"""Users of this server whose accounts were erased: from whom what they sent is kept back.

Laws:
- Whoever comes into a room after the erasure, a user or a server, gets what the erased user sent
  there as if it were redacted, but for the state of the room, which is the room's. Whoever was
  there sees what they saw. No redaction is sent.
- A user was there who was in the room at the time of the erasure, or before it, for what stands
  before their leaving; or when the event came. Who only looked on (a guest of a room that all may
  read, somebody who was invited) was not.
- Who was erased is known from memory: a page costs nothing for it where it shows nothing of theirs
  to who came later, and else a few look-ups, however many events there are.

spec: client-server-api#post_matrixclientv3accountdeactivate (`erase`)
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.rooms.current_states import CurrentStates
from federation.rooms.events import RoomEvents, StoredEvent
from storage.accounts.erasures import ErasureStore
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow

MAX_CHANGES_BACK: Final = 20
"""How many changes of a reader's membership are followed back to the time of an erasure."""
MOST_KEPT: Final = 2000
"""Events without content that are kept, with the bytes that clients get."""
_ALL: Final = 2**53


class ErasedSenders:
    """Knows them, and what is kept back from whom. For the reactor thread."""

    def __init__(
        self, store: ErasureStore, streams: Streams, states: CurrentStates, events: RoomEvents
    ) -> None:
        self._store = store
        self._states = states
        self._events = events
        self._since: dict[str, int] | None = None
        """When each was erased; None: that has not been read yet."""
        self._changes_heard = 0
        self._pruned: OrderedDict[int, tuple[StoredEvent, StoredEvent]] = OrderedDict()
        self._log = Logger()
        streams.subscribe(self._hear, Topic.ERASURE)
        streams.watch(self._heed_others)

    async def get(self) -> Mapping[str, int]:
        """Who was erased, and at which position."""
        while self._since is None:
            heard = self._changes_heard
            found = await self._store.get_since(0)
            if heard == self._changes_heard:  # else somebody was erased while it was read
                self._since = {}
                self._take(found)
        return self._since

    async def find_hidden(
        self, own: MembershipRow | None, shown: Sequence[tuple[StoredEvent, str]]
    ) -> set[int]:
        """Which of the events (of one room), by number, are for a user without their content.
        `own`: the user's present membership; with each event, theirs once it had happened."""
        since = await self.get()
        if not since or since.keys().isdisjoint(event.event.sender for event, _ in shown):
            return set()
        theirs = [
            event
            for event, membership in shown
            if event.event.sender in since and membership != "join"
        ]
        ends = await self._find_ends(own, {since[event.event.sender] for event in theirs})
        return {event.nid for event in theirs if event.depth > ends[since[event.event.sender]]}

    async def hides_from_server(self, joined: int, event: StoredEvent) -> bool:
        """Whether a server that has been in the room since a position gets the event without its
        content."""
        erased = (await self.get()).get(event.event.sender)
        return (
            erased is not None
            and joined > erased
            and not event.is_outlier
            and (event.position or 0) < joined
        )

    def without_content(self, stored: StoredEvent) -> StoredEvent:
        """The event as if it were redacted."""
        kept = self._pruned.get(stored.nid)
        if kept is not None and kept[0] is stored:
            self._pruned.move_to_end(stored.nid)
            return kept[1]
        pruned = stored.without_content()
        self._pruned[stored.nid] = (stored, pruned)
        if len(self._pruned) > MOST_KEPT:
            self._pruned.popitem(last=False)
        return pruned

    async def _find_ends(
        self, own: MembershipRow | None, positions: Iterable[int]
    ) -> dict[int, int]:
        """For each position, down to which depth the user was in the room before it; -1: they were
        not."""
        if own is None:
            return dict.fromkeys(positions, -1)
        if own.membership == "join" and own.position <= min(positions, default=0):
            return dict.fromkeys(positions, _ALL)
        changes: list[StoredEvent] = []
        nid: int | None = own.event_nid
        while nid is not None and len(changes) < MAX_CHANGES_BACK:
            event = (await self._events.get_events([nid])).get(nid)
            if event is None:
                break
            changes.append(event)
            nid = event.replaces
        ends = {position: _end_before(changes, position) for position in positions}
        if len(changes) == MAX_CHANGES_BACK:
            for position in [position for position, end in ends.items() if end < 0]:
                if await self._states.was_joined_at(own, position):
                    ends[position] = _ALL
        return ends

    def _take(self, found: Mapping[str, int]) -> None:
        if self._since is not None:
            self._since.update(found)

    def _hear(self, changes: Sequence[Change]) -> None:
        self._changes_heard += 1
        self._take(
            {change.user_id: change.position for change in changes if change.user_id is not None}
        )

    def _heed_others(self, after: int, _upto: int) -> None:
        """Another node has written: perhaps that somebody was erased."""
        self._changes_heard += 1
        Deferred.fromCoroutine(self._read_others(after)).addErrback(self._forget)

    async def _read_others(self, after: int) -> None:
        self._take(await self._store.get_since(after))

    def _forget(self, failure: Failure) -> None:
        """It is not known whom other nodes erased: whoever asks next reads all anew."""
        self._log.failure("whom other nodes erased is not known", failure)
        self._since = None


def _end_before(changes: Sequence[StoredEvent], position: int) -> int:
    """As `_find_ends`. `changes` of somebody's membership, the latest first."""
    after: StoredEvent | None = None
    for change in changes:
        if change.event.membership == "join" and (change.position or 0) <= position:
            is_there_still = after is None or (after.position or 0) > position
            return _ALL if after is None or is_there_still else after.depth
        after = change
    return -1

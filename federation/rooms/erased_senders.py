"""Hides the content of erased users' events from users and servers that joined the room after the
erasure or never joined it. A user is erased when their account is deactivated with `erase`.

Laws:
- State events keep their content. No redaction event is sent.
- A user sees the content of an erased user's event in three cases: they were joined when the event
  arrived, they were joined at the time of the erasure, or they last left before the erasure but
  after the event. All other users get the event in redacted form, also guests of a world-readable
  room and invited users.
- A server that joined before the erasure gets the erased user's events with their content. A server
  that joined later gets those from before its join in redacted form.
- The erased users are cached. A page without events of erased users costs no query. Any other page
  costs a few queries, however many events it has.

spec: client-server-api#post_matrixclientv3accountdeactivate (`erase`)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from federation.rooms.current_states import CurrentStates
from federation.rooms.events import RoomEvents, StoredEvent
from storage.accounts.erasures import ErasureStore
from storage.cache import LRU, StreamValue
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow

MAX_CHANGES_BACK: Final = 20
"""Changes of a reader's membership that are followed back to the time of an erasure."""
MAX_PRUNED: Final = 2000
"""Events without content in the cache, with their encoded client form."""
_ALL: Final = 2**53


class ErasedSenders:
    """Decides which events are shown without their content. Use this class only on the reactor
    thread."""

    def __init__(
        self, *, store: ErasureStore, streams: Streams, states: CurrentStates, events: RoomEvents
    ) -> None:
        self._store = store
        self._states = states
        self._events = events
        self._since: StreamValue[dict[str, int]] = StreamValue(
            streams, Topic.ERASURE, load=lambda: self._store.get_erasures_since(0), update=_update
        )
        self._pruned: LRU[int, tuple[StoredEvent, StoredEvent]] = LRU(max_entries=MAX_PRUNED)

    async def get(self) -> Mapping[str, int]:
        """Return the erased users, with the positions of their erasures."""
        return await self._since.get()

    async def find_hidden(
        self, own: MembershipRow | None, shown: Sequence[tuple[StoredEvent, str]]
    ) -> set[int]:
        """Return the numbers of the events, of one room, that a user gets without their content.

        `own`: the user's current membership; each event comes with their membership after it.
        """
        since = await self.get()
        if not since or since.keys().isdisjoint(event.event.sender for event, _ in shown):
            return set()
        erased = [
            event
            for event, membership in shown
            if event.event.sender in since and membership != "join"
        ]
        ends = await self._find_ends(own, {since[event.event.sender] for event in erased})
        return {event.nid for event in erased if event.depth > ends[since[event.event.sender]]}

    async def hides_from_server(self, joined: int, event: StoredEvent) -> bool:
        """Return whether a server that has been in the room since a position gets the event without
        its content."""
        erased = (await self.get()).get(event.event.sender)
        return (
            erased is not None
            and joined > erased
            and not event.is_outlier
            and (event.position or 0) < joined
        )

    def without_content(self, stored: StoredEvent) -> StoredEvent:
        """Return the event in redacted form."""
        cached = self._pruned.get(stored.nid)
        if cached is not None and cached[0] is stored:
            return cached[1]
        pruned = stored.without_content()
        self._pruned.put(stored.nid, (stored, pruned))
        return pruned

    async def _find_ends(
        self, own: MembershipRow | None, positions: Iterable[int]
    ) -> dict[int, int]:
        """Return for each position the depth up to which the user was in the room before it; -1:
        they were not."""
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


def _update(since: dict[str, int], change: Change) -> bool:
    if change.user_id is None:
        return False
    since.setdefault(change.user_id, change.position)
    return True


def _end_before(changes: Sequence[StoredEvent], position: int) -> int:
    """Return the depth for one position. `changes` of a membership, the latest first."""
    after: StoredEvent | None = None
    for change in changes:
        if change.event.membership == "join" and (change.position or 0) <= position:
            is_still_joined = after is None or (after.position or 0) > position
            return _ALL if after is None or is_still_joined else after.depth
        after = change
    return -1

"""Who is typing where: in memory, each notice with an end.

Positions are of the ephemeral counter, which begins at the time of the start in microseconds: it never runs backwards
over a restart, and a client that comes with a position from before is told where anybody types.

spec: client-server-api#typing-notifications
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from federation.protocol.ids import UserID
from homeserver.notifier import Notifier

MAX_TIMEOUT_MS: Final = 120_000
DEFAULT_TIMEOUT_MS: Final = 30_000
MAX_ROOMS: Final = 10_000
"""Of how many rooms the latest change is remembered."""


class Typing:
    """The notices of all rooms. For the reactor thread."""

    def __init__(self, notifier: Notifier, clock: IReactorTime) -> None:
        self._notifier = notifier
        self._clock = clock
        self._start = self._position = int(clock.seconds() * 1_000_000)
        self._ends: dict[int, dict[UserID, IDelayedCall]] = {}
        self._changed: OrderedDict[int, int] = OrderedDict()
        """Position of the latest change by room, the latest last."""

    @property
    def position(self) -> int:
        """The position of the latest change."""
        return self._position

    def start(self, room_nid: int, user_id: UserID, timeout_ms: int) -> None:
        """The user types, and will be taken to do so for that long."""
        users = self._ends.setdefault(room_nid, {})
        known = users.get(user_id)
        seconds = min(max(timeout_ms, 1), MAX_TIMEOUT_MS) / 1000
        if known is not None and known.active():
            known.reset(seconds)
            return
        users[user_id] = self._clock.callLater(seconds, self.stop, room_nid, user_id)
        self._change(room_nid)

    def stop(self, room_nid: int, user_id: UserID) -> None:
        """The user has stopped typing."""
        users = self._ends.get(room_nid)
        if not users or user_id not in users:
            return
        call = users.pop(user_id)
        if call.active():
            call.cancel()
        if not users:
            del self._ends[room_nid]
        self._change(room_nid)

    def get_changed(self, room_nids: Iterable[int], since: int | None) -> Mapping[int, list[UserID]]:
        """Who types in those of the rooms where that has changed since the position; None: where anybody types."""
        found: dict[int, list[UserID]] = {}
        for room_nid in room_nids:
            if since is None or not self._start <= since <= self._position:
                if room_nid in self._ends:
                    found[room_nid] = list(self._ends[room_nid])
            elif self._changed.get(room_nid, 0) > since:
                found[room_nid] = list(self._ends.get(room_nid, ()))
        return found

    def changed_rooms(self, since: int) -> set[int]:
        """The rooms where something has changed since the position, or where anybody types for who comes from long ago."""
        if since == self._position:
            return set()
        if not self._start <= since <= self._position:
            return set(self._ends)
        changed: set[int] = set()
        for room_nid in reversed(self._changed):
            if self._changed[room_nid] <= since:
                break
            changed.add(room_nid)
        return changed

    def _change(self, room_nid: int) -> None:
        self._position += 1
        self._changed[room_nid] = self._position
        self._changed.move_to_end(room_nid)
        if len(self._changed) > MAX_ROOMS:
            _, self._start = self._changed.popitem(last=False)
        self._notifier.wake_room(room_nid)

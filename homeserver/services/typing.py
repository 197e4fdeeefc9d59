"""Who is typing where: in memory, each notice with an end.

Positions are of the ephemeral counter, which begins at the time of the start in microseconds: it never runs backwards
over a restart, and a client that comes with a position from before is told the present state of every room.

spec: client-server-api#typing-notifications
"""

from collections.abc import Iterable, Mapping
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from federation.protocol.ids import UserID
from homeserver.notifier import Notifier

MAX_TIMEOUT_MS: Final = 120_000
DEFAULT_TIMEOUT_MS: Final = 30_000


class Typing:
    """The notices of all rooms. For the reactor thread."""

    def __init__(self, notifier: Notifier, clock: IReactorTime) -> None:
        self._notifier = notifier
        self._clock = clock
        self._start = self._position = int(clock.seconds() * 1_000_000)
        self._ends: dict[int, dict[UserID, IDelayedCall]] = {}
        self._changed: dict[int, int] = {}

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
            if since is None or since < self._start or since > self._position:
                if room_nid in self._ends:
                    found[room_nid] = list(self._ends[room_nid])
            elif self._changed.get(room_nid, 0) > since:
                found[room_nid] = list(self._ends.get(room_nid, ()))
        return found

    def changed_rooms(self, since: int) -> set[int]:
        """The rooms where something has changed since the position."""
        if since == self._position:
            return set()
        return {room_nid for room_nid, position in self._changed.items() if position > since}

    def _change(self, room_nid: int) -> None:
        self._position += 1
        self._changed[room_nid] = self._position
        self._notifier.wake_room(room_nid)

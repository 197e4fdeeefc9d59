"""Rooms that people leave, or are put out of, are forgotten for them at once, where the operator
wants that.

Whoever says that they are no longer there, here or on another server: it is heard from the stream.
What was not forgotten so, since a server ended meanwhile, or since it was not wanted then, is by a
job.

spec: client-server-api#mforget_forced_upon_leave-capability
"""

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow, MembershipStore


class Forgetting:
    """Forgets rooms for those who left them. For the reactor thread."""

    _log = Logger()

    def __init__(self, store: MembershipStore, streams: Streams, clock: IReactorTime) -> None:
        self._store = store
        self._clock = clock
        streams.subscribe(self._on_changes, Topic.MEMBERSHIP)

    async def do_forget(self, limit: int) -> int:
        """Forget what was left and is not forgotten; of so many departures at most, how many it has
        looked at."""
        return await self._store.forget_left(limit)

    def _on_changes(self, changes: Sequence[Change]) -> None:
        left = [
            (row.room_nid, row.user_id)
            for change in changes
            if isinstance(row := change.detail, MembershipRow)
            and row.is_local
            and row.membership in ("leave", "ban")
            and not row.forgotten
        ]
        if left:
            self._clock.callLater(0, self._do, left)

    def _do(self, left: Sequence[tuple[int, str]]) -> None:
        Deferred.fromCoroutine(self._forget(left)).addErrback(
            lambda failure: self._log.failure("rooms that were left are not forgotten", failure)
        )

    async def _forget(self, left: Sequence[tuple[int, str]]) -> None:
        for room_nid, user_id in left:
            await self._store.set_forgotten(room_nid, user_id)

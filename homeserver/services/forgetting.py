"""Rooms that people leave, or are put out of, are forgotten for them at once, where the operator wants that.

Whoever says that they are no longer there, here or on another server: it is heard from the stream. What was not forgotten before the
server stopped is when it starts.

spec: client-server-api#mforget_forced_upon_leave-capability
"""

from collections.abc import Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from storage.memberships import MembershipRow, MembershipStore
from storage.streams import Change, Streams, Topic

AT_ONCE: Final = 500


class Forgetting:
    """Forgets rooms for those who left them. For the reactor thread."""

    _log = Logger()

    def __init__(self, store: MembershipStore, streams: Streams, clock: IReactorTime) -> None:
        self._store = store
        self._clock = clock
        streams.subscribe(self._hear, Topic.MEMBERSHIP)

    def resume(self) -> None:
        """After a start: forget what was left before."""
        self._do([])

    def _hear(self, changes: Sequence[Change]) -> None:
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
        work = self._forget(left) if left else self._forget_all()
        Deferred.fromCoroutine(work).addErrback(
            lambda failure: self._log.failure("rooms that were left are not forgotten", failure)
        )

    async def _forget(self, left: Sequence[tuple[int, str]]) -> None:
        for room_nid, user_id in left:
            await self._store.set_forgotten(room_nid, user_id)

    async def _forget_all(self) -> None:
        while left := await self._store.get_unforgotten(AT_ONCE):
            await self._forget(left)

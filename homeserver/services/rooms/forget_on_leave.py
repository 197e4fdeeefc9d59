"""Forgets rooms for users who leave or are removed, if the operator enabled that.

A leave from this or another server arrives on the stream, and the room is forgotten for that user
at once. A job forgets the rooms that were missed: because the server stopped meanwhile, or because
the option was off.

spec: client-server-api#mforget_forced_upon_leave-capability
"""

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from storage.engine.streams import Change, Stage, Streams, Topic
from storage.rooms.memberships import MembershipRow, MembershipStore


class ForgetOnLeave:
    """Forgets rooms for users who left them. Use this class only on the reactor thread."""

    _log = Logger()

    def __init__(self, *, store: MembershipStore, streams: Streams, clock: IReactorTime) -> None:
        self._store = store
        self._clock = clock
        streams.subscribe(self._on_changes, Topic.MEMBERSHIP, stage=Stage.SEND)

    async def do_forget(self, limit: int) -> int:
        """Forget rooms that users left, at most `limit` memberships; return the number of
        memberships that were checked."""
        return await self._store.forget_left_rooms(limit)

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
            self._clock.callLater(0, self._start, left)

    def _start(self, left: Sequence[tuple[int, str]]) -> None:
        Deferred.fromCoroutine(self._forget(left)).addErrback(
            lambda failure: self._log.failure("could not forget rooms that users left", failure)
        )

    async def _forget(self, left: Sequence[tuple[int, str]]) -> None:
        for room_nid, user_id in left:
            await self._store.set_forgotten(room_nid, user_id)

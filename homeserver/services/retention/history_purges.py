"""Purges the history of a room if an administrator requests it, or some time after all local users
have forgotten the room. A job runs the purges and continues them after a restart.

Laws:
- State events stay. A purge by an administrator also keeps the newest visible message, with its
  edits, reactions and poll votes, and the root of its thread. Such a purge also keeps redactions
  whose target stays, because they explain the missing content.
- Purged content is gone for all local users; other servers keep their copies. Only messages of a
  forgotten room may be fetched again, for a user who rejoins.
- Events that arrive after the start of a purge stay. The purge of a forgotten room ends if a local
  user returns to the room.
- A request is refused while a purge of the same room is active. Purges of several rooms run one
  after another. A failed purge does not stop the others.
"""

from collections.abc import Callable, Sequence, Set
from typing import Any, Final

from twisted.logger import Logger

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import MatrixError, NotFound
from federation.protocol.ids import EventID, RoomID, UserID
from federation.rooms.events import RoomEvents
from federation.rooms.history.purging import MessagePurging
from homeserver.observe.metrics import RetentionMetrics
from homeserver.services.retention.trusted_clock import TrustedClock
from homeserver.services.tokens.secret_tokens import SecretGenerator
from storage.engine.interface import DatabaseUnavailable
from storage.engine.transaction import WriteTransaction
from storage.retention.history_purges import (
    HistoryPurge,
    HistoryPurgeStore,
    PurgeRunning,
    check_running,
    record_progress,
)
from storage.retention.history_refetch import HistoryRefetchStore
from storage.retention.purging import (
    BEFORE_FIRST,
    DAY_MS,
    PurgeableMessage,
    PurgeCause,
    PurgingStore,
)
from storage.rooms.rooms import RoomStore

BATCH: Final = 100
"""Messages that are purged in one write."""
CANCEL_BATCH: Final = 1000
ROOM_BATCH: Final = 200
"""Rooms that are checked in one write: whether all local users have forgotten them."""
MAX_POSITION: Final = 2**62
VISIBLE_TYPES: Final = (
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.poll.start",
    "org.matrix.msc3381.poll.start",
)
"""Event types of visible messages; the newest one stays."""
RETENTION_MS: Final = 365 * DAY_MS
"""The time for which the outcome of a purge can be read."""


class HistoryPurges:
    """Starts purges, reports their status, and runs them in steps."""

    _log = Logger()

    def __init__(
        self,
        *,
        store: HistoryPurgeStore,
        messages: PurgingStore,
        purging: MessagePurging,
        refetch: HistoryRefetchStore,
        rooms: RoomStore,
        events: RoomEvents,
        identity: ServerIdentity,
        secret_text: SecretGenerator,
        now_ms: Callable[[], int],
        metrics: RetentionMetrics,
    ) -> None:
        self._store = store
        self._messages = messages
        self._purging = purging
        self._refetch = refetch
        self._rooms = rooms
        self._events = events
        self._identity = identity
        self._secret_text = secret_text
        self._now_ms = now_ms
        self._metrics = metrics

    async def do_start(
        self,
        room_id: RoomID,
        event_id: EventID | None,
        before_ts: int | None,
        *,
        include_local: bool,
        by: UserID,
    ) -> str:
        """Start to purge the events above an event, or else those sent before a time. Return the ID
        of the purge.

        A future time counts as now. `include_local`: also purge events of local users. Raises
        NotFound, MatrixError.
        """
        now = self._now_ms()
        if before_ts is not None:
            before_ts = min(before_ts, now + 1)  # includes events of this millisecond
        room = await self._rooms.get_room(room_id)
        if room is None:
            raise NotFound("This server does not know the room")
        depth = None
        if event_id is not None:
            event = (await self._events.get_in_any_room([event_id])).get(event_id)
            if event is None:
                raise NotFound("This server does not know the event")
            if event.room_nid != room.room_nid:
                raise MatrixError("The event is in another room")
            depth, before_ts = event.depth, None
        extent = await self._store.get_extent(room.room_nid, VISIBLE_TYPES)
        purge = HistoryPurge(
            self._secret_text.purge_id(),
            room.room_nid,
            PurgeCause.PURGE.value,
            before_ts,
            depth,
            include_local,
            extent.newest_message,
            BEFORE_FIRST,
            0,
            by,
            now,
            extent.upto_nid,
        )
        try:
            await self._store.add(purge)
        except PurgeRunning:
            raise MatrixError("The history of this room is already being purged") from None
        return purge.purge_id

    async def get_status(self, purge_id: str) -> dict[str, Any]:
        """Return the status of a purge. Raises NotFound."""
        purge = await self._store.get(purge_id)
        if purge is None:
            raise NotFound("There is no such purge")
        known = {"messages": purge.messages, "by": purge.by_user_id, "created_ts": purge.created_ts}
        if purge.finished_ts is None:
            return {"status": "active", **known}
        if purge.error is not None:
            return {"status": "failed", "error": purge.error, **known}
        return {"status": "complete", **known}

    async def do_step(self, limit: int) -> int:
        """Process up to `limit` messages of active purges and return their number."""
        done = 0
        while done < limit:
            purge = await self._store.get_active()
            if purge is None:
                break
            try:
                done += await self._continue(purge, min(BATCH, limit - done))
            except DatabaseUnavailable:
                raise
            except Exception:  # an unexpected error would repeat forever and stop the other purges
                self._log.failure("the purge {id} failed", id=purge.purge_id)
                self._metrics.failures.inc()
                await self._store.set_finished(
                    purge.purge_id, self._now_ms(), "An internal error: see the server's log"
                )
        return done

    async def _continue(self, purge: HistoryPurge, limit: int) -> int:
        if purge.after == BEFORE_FIRST and purge.cause == PurgeCause.PURGE.value:
            await self._cancel_refetches(purge)
        found = await self._messages.get_following(purge.room_nid, purge.after, limit)
        in_period = [
            each
            for each in found
            if purge.before_ts is None or each.origin_server_ts < purge.before_ts
        ]
        if not in_period:
            await self._purging.truncate_log()
            await self._store.set_finished(purge.purge_id, self._now_ms(), None)
            return 0
        last = in_period[-1]

        def record(txn: WriteTransaction, count: int) -> None:
            record_progress(txn, purge, (last.origin_server_ts, last.event_nid), count)

        await self._purging.purge(
            purge.room_nid,
            await self._choose(purge, in_period),
            PurgeCause(purge.cause),
            record,
            lambda txn: check_running(txn, purge, self._now_ms()),
        )
        return len(in_period)

    async def _cancel_refetches(self, purge: HistoryPurge) -> None:
        """Make sure that purged events are not fetched from other servers again."""
        before_ms = MAX_POSITION if purge.before_ts is None else purge.before_ts
        before_depth = MAX_POSITION if purge.before_depth is None else purge.before_depth
        while await self._refetch.stop_fetching(
            purge.room_nid, before_ms, before_depth, CANCEL_BATCH
        ):
            pass

    async def _choose(
        self, purge: HistoryPurge, candidates: Sequence[PurgeableMessage]
    ) -> Sequence[PurgeableMessage]:
        """Return the messages to purge."""
        if purge.cause == PurgeCause.FORGOTTEN.value:
            return [each for each in candidates if self._is_wanted(purge, each)]
        nids = [each.event_nid for each in candidates]
        redacted = await self._store.get_redacted(purge.room_nid, nids)
        retained: Set[int] = frozenset()
        if purge.retained_nid is not None:
            asked = [
                *nids,
                *(target.event_nid for target in redacted.values() if target is not None),
            ]
            retained = await self._store.get_retained(purge.retained_nid, asked)

        def is_purged(message: PurgeableMessage) -> bool:
            return message.event_nid not in retained and self._is_wanted(purge, message)

        def is_needed(message: PurgeableMessage) -> bool:
            """Return whether the message redacts an event that stays."""
            if message.event_nid not in redacted:
                return False
            target = redacted[message.event_nid]
            is_late = (
                target is not None
                and purge.before_ts is not None
                and target.origin_server_ts >= purge.before_ts
            )
            return target is None or is_late or not is_purged(target)

        return [each for each in candidates if is_purged(each) and not is_needed(each)]

    def _is_wanted(self, purge: HistoryPurge, message: PurgeableMessage) -> bool:
        if message.event_nid > purge.upto_nid:
            return False
        if purge.before_depth is not None and message.depth >= purge.before_depth:
            return False
        return purge.include_local or not self._identity.is_local(UserID(message.sender))

    async def do_remove_old(self, limit: int) -> int:
        """Delete the records of up to `limit` purges that ended long ago. Return their number."""
        return await self._store.remove_finished(self._now_ms() - RETENTION_MS, limit)


class ForgottenRoomPurges:
    """Finds rooms that all local users have forgotten, and starts their purges after a delay."""

    def __init__(
        self,
        *,
        store: HistoryPurgeStore,
        secret_text: SecretGenerator,
        time: TrustedClock,
        period_ms: int,
    ) -> None:
        """`period_ms`: the time between the detection of a forgotten room and its purge."""
        self._store = store
        self._secret_text = secret_text
        self._time = time
        self._period_ms = period_ms
        self._upto = 0

    async def do_step(self, limit: int) -> int:
        """Check up to `limit` rooms and return their number. After the last one, start the purges
        that are due.

        Does nothing while the clock is not trusted.
        """
        now = await self._time.read()
        if now is None:
            return 0
        done = 0
        while done < limit:
            checked = await self._store.record_forgotten(
                self._upto, min(ROOM_BATCH, limit - done), now
            )
            done += checked.count
            self._upto = checked.upto
            if checked.count == 0:
                self._upto = 0
                while await self._store.start_forgotten(
                    now - self._period_ms, now, self._secret_text.purge_id()
                ):
                    pass
                break
        return done

"""Reads the stream for users with pushers, and creates pushes, e-mails and badges.

Laws:
- Pushes come from the stream, never from the code that made the change: an event of another node,
  or from before a restart, needs no special case.
- One node pushes at a time: the holder of the lease. On SQLite, which serves only one node, a node
  takes the lease even if it has not expired. The row of the lease stores a position: everything up
  to it was sent, except to failing pushers, which have positions of their own (`deliveries.py`).
- An event is skipped without being loaded if its flags say that it notifies nobody, or if nobody
  whom it could notify has a pusher. Any other event is evaluated for all members with pushers, in
  several turns of the reactor if there are many.
- The changes of the stream come from memory (`stream_listener.py`). They are read from the database
  only after a start or an error, when too many wait in memory, or when another node wrote them.
- A node that stops or loses the lease creates no further pushes. When events are read again after a
  database error, they are pushed only to users who have not received them.

spec: client-server-api#push-notifications
"""

from collections.abc import Callable, Iterable, Mapping, Set
from itertools import islice
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from federation.protocol.ids import UserID
from federation.rooms.events import RoomEvents
from federation.rooms.joins.out_of_room import OutOfRoomMemberships, is_out_of_room
from federation.rooms.memberships import Memberships
from homeserver.services.push.actions import Actions
from homeserver.services.push.decisions import PushDecisions
from homeserver.services.push.unread_counts import COUNTED, REDACTION
from homeserver.services.pushers.badges import BadgeCounts
from homeserver.services.pushers.deliveries import PushDeliveries
from homeserver.services.pushers.display_names import EventToPush
from homeserver.services.pushers.email_pushers import EmailNotifier
from homeserver.services.pushers.pusher_users import PusherUsers
from homeserver.services.pushers.pushers import HTTP
from homeserver.services.pushers.stream_listener import PushChange, PushStreamListener
from storage.accounts.accounts import AccountStore
from storage.cluster.lease_loop import LeaseLoop
from storage.cluster.leases import Lease
from storage.cluster.node_lease import NodeLease
from storage.engine.database import DatabaseUnavailable
from storage.engine.streams import Streams
from storage.events.events import EventFlag
from storage.push.event_push_actions import MAIN
from storage.push.push_stream import MovedReceipt, PushedEvent, PushStream
from storage.push.pushers import PusherRow, PusherStore
from storage.rooms.memberships import MembershipRow
from storage.rooms.receipts import UNTHREADED
from storage.rooms.rooms import RoomStore

ROUNDS_UNTIL_ALL_STATES: Final = 6
"""The number of rounds after which the state of healthy pushers is stored."""
READ_BATCH: Final = 500
"""Events that are read from the database at once."""
NOTIFY_BATCH: Final = 200
"""Members that are notified in one turn of the reactor."""
MAX_BEHIND: Final = 200_000
"""Failing pushers read at most this many positions before the lease's again. Older events are
dropped, since all other pushers wait for this.
"""


class _LeaseLost(Exception):
    """The lease is lost: another node continues from the stored position."""


class PushStreamReader:
    """Reads the stream. Use this class only on the reactor thread."""

    log = Logger()

    # More than ten: each kind of change of the stream concerns another part.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        streams: Streams,
        lease: NodeLease,
        stream: PushStream,
        store: PusherStore,
        accounts: AccountStore,
        rooms: RoomStore,
        events: RoomEvents,
        memberships: Memberships,
        out_of_room: OutOfRoomMemberships,
        decisions: PushDecisions,
        pusher_users: PusherUsers,
        badges: BadgeCounts,
        deliveries: PushDeliveries,
        emails: EmailNotifier,
        now_ms: Callable[[], int],
    ) -> None:
        self._clock = clock
        self._streams = streams
        self._lease = LeaseLoop(clock=clock, lease=lease, work=self, name="pushers")
        self._stream = stream
        self._store = store
        self._accounts = accounts
        self._rooms = rooms
        self._events = events
        self._memberships = memberships
        self._out_of_room = out_of_room
        self._decisions = decisions
        self._pusher_users = pusher_users
        self._badges = badges
        self._deliveries = deliveries
        self._emails = emails
        self._now_ms = now_ms
        self._floor = 0
        """Everything up to here was sent to pushers that were healthy when the lease was taken."""
        self._behind: Set[str] = frozenset()
        """Users of pushers that were failing at that time."""
        self._done = 0
        self._attempted_upto = 0
        """Everything below was read, though an error may have stopped its processing."""
        self._notified_at = 0
        self._notified_users: set[str] = set()
        """Users who were notified of the event at `_notified_at`."""
        self._listener = PushStreamListener(
            streams=streams, pusher_users=pusher_users, badges=badges, schedule=self._schedule
        )
        self._scheduled = False
        self._rounds = 0

    def start(self) -> None:
        """Start to push as soon as no other node does."""
        self._lease.start()

    async def stop(self) -> None:
        """Stop pushing, and store the position up to which everything is sent."""
        await self._lease.stop()

    # ----------------------------------------------------------------------------------------------
    # the stream

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._start_processing)

    def _start_processing(self) -> None:
        Deferred.fromCoroutine(self._process_changes())

    async def _process_changes(self) -> None:
        try:
            while self._lease.is_held and (
                self._deliveries.is_behind or self._listener.has_changes(self._done)
            ):
                await self._send_changed_badges()
                # read changed pushers first: one that was just set gets the events that follow
                while self._listener.changed_users:
                    await self._refresh()
                if self._deliveries.is_behind and self._done >= self._floor:
                    self._deliveries.catch_up()
                upto = self._listener.in_database
                if self._done < upto:
                    await self._read_database()
                else:
                    await self._read_memory()
                # do not wait until the stream is at its end: there may always be more
                if self._done >= upto and not self._deliveries.is_behind:
                    self._deliveries.wake_changed()
        except _LeaseLost:
            pass
        except DatabaseUnavailable as error:
            self._listener.drop_collected()
            self.log.warn("pushes are delayed: {error}", error=error)
        except Exception:  # an unexpected error: the next round tries again
            self._listener.drop_collected()
            self.log.failure("reading the stream for pushes failed")
        finally:
            self._scheduled = False

    def _check_lease(self) -> None:
        """Check that the lease is held, before something is sent. Raises `_LeaseLost`."""
        if not self._lease.is_held:
            raise _LeaseLost

    async def _refresh(self) -> None:
        users, newly_set = self._listener.take_changed()
        try:
            refreshed = await self._pusher_users.refresh(users)
            self._check_lease()
            for user_id, rows in refreshed.items():
                if not rows:
                    # their receipts are not collected any more
                    self._badges.invalidate_user(user_id)
                to_apps = [row for row in rows if row.kind == HTTP]
                self._deliveries.change(user_id, to_apps, newly_set=user_id in newly_set)
        except BaseException:
            self._listener.changed_users |= users
            raise
        finally:
            self._listener.refreshed = frozenset()

    async def _read_database(self) -> None:
        listener = self._listener
        batch = await self._stream.get_batch(self._done, listener.in_database, READ_BATCH)
        changed = await self._store.get_changed_users(self._done, batch.upto)
        listener.changed_users |= changed
        if self._done > self._floor:
            listener.newly_set |= changed  # by another node
        listener.changed_users |= await self._accounts.get_changed_accounts(self._done, batch.upto)
        if listener.changed_users:
            await self._refresh()
        changes: list[PushChange] = [
            *batch.events,
            *batch.receipts,
            *filter(is_out_of_room, batch.invites),
        ]
        await self._process(sorted(changes, key=lambda each: each.position))
        since = max(self._done, self._floor) + 1
        for room_nid in batch.rooms_with_removals:
            listener.mark_badges_changed(self._badges.invalidate_room(room_nid), since)
        listener.mark_badges_changed(
            (user_id for user_id in batch.changed_members if listener.may_have_pushers(user_id)),
            since,
        )
        listener.mark_counts_changed(batch.changed_filters, since)
        self._done = batch.upto

    async def _read_memory(self) -> None:
        changes = self._listener.take()
        await self._process(each for each in changes if each.position > self._done)
        if changes:
            self._done = max(self._done, changes[-1].position)

    async def _process(self, changes: Iterable[PushChange]) -> None:
        attempted_upto = self._attempted_upto
        for each in changes:
            if each.position <= attempted_upto:
                continue
            self._attempted_upto = each.position - 1
            try:
                self._check_lease()
                if isinstance(each, PushedEvent):
                    await self._process_event(each)
                elif isinstance(each, MovedReceipt):
                    await self._process_receipt(each)
                else:
                    await self._process_invite(each)
            except (DatabaseUnavailable, _LeaseLost):
                raise
            except Exception:  # an unexpected error must not stop later pushes
                self.log.failure(
                    "the change at position {position} was not pushed", position=each.position
                )
        await self._emails.flush()

    async def _process_event(self, event: PushedEvent) -> None:
        if event.type == REDACTION:
            self._listener.mark_badges_changed(
                self._badges.invalidate_room(event.room_nid), event.position
            )
        if not event.flags & COUNTED:
            return
        if event.sender in self._pusher_users.users and event.flags & EventFlag.NOTIFIES:
            await self._process_own_message(event)
        users = self._pusher_users.users if event.position > self._floor else self._behind
        members = await self._memberships.local_members(event.room_nid)
        smaller, larger = (users, members) if len(users) < len(members) else (members, users)
        recipients = {
            UserID(user_id) for user_id in smaller if user_id in larger and user_id != event.sender
        }
        if event.type == "m.room.member" and event.state_key in users:
            recipients.add(UserID(event.state_key or ""))  # an invited user is not a member yet
        if not recipients:
            return
        stored = (await self._events.get_events([event.event_nid])).get(event.event_nid)
        if stored is None:
            return
        queued_ms = self._now_ms()
        if event.position <= self._floor:  # it has waited since before the restart
            queued_ms = min(queued_ms, stored.event.origin_server_ts)
        to_push = EventToPush(stored, event.position, event.room_nid, event.thread_root, queued_ms)
        for user_id in recipients:
            self._badges.invalidate_room_of_user(user_id, event.room_nid)
        await self._notify(to_push, recipients)

    async def _process_own_message(self, event: PushedEvent) -> None:
        """Mark the thread of a user's own message as read up to that message."""
        self._badges.invalidate_room_of_user(event.sender, event.room_nid)
        self._deliveries.mark_read(
            event.sender, event.room_nid, event.thread_root, event.position, all_threads=False
        )
        await self._queue_badges({event.sender: event.position})

    async def _queue_badges(self, positions: Mapping[str, int]) -> None:
        found = await self._pusher_users.get(positions)
        self._check_lease()
        for user_id, pushers in found.items():
            for pusher in pushers:
                if pusher.kind == HTTP and positions[user_id] > self._floor:
                    self._deliveries.set_badge_due(pusher, positions[user_id])

    async def _send_changed_badges(self) -> None:
        """Send changed badges. Each stays in `changed` until it is sent: the lease's position is
        below the change."""
        changed = self._listener.changed_badges
        while changed:
            batch = dict(islice(changed.items(), NOTIFY_BATCH))
            try:
                await self._queue_badges(batch)
            except (DatabaseUnavailable, _LeaseLost):
                raise
            except Exception:  # an unexpected error must not stop later pushes
                self.log.failure("changed badges were not sent")
            for user_id in batch:
                del changed[user_id]
            if changed:
                await deferLater(self._clock, 0)

    async def _process_invite(self, row: MembershipRow) -> None:
        """Push an invite to a room that this server is not in."""
        if row.user_id not in (
            self._pusher_users.users if row.position > self._floor else self._behind
        ):
            return
        room = (await self._rooms.get_rooms_by_nid([row.room_nid])).get(row.room_nid)
        stored = None if room is None else await self._out_of_room.find_event(room, row)
        if stored is not None:
            to_push = EventToPush(
                stored, row.position, row.room_nid, None, self._now_ms(), out_of_room=row
            )
            await self._notify(to_push, {UserID(row.user_id)})

    async def _notify(self, event: EventToPush, user_ids: Iterable[UserID]) -> None:
        if self._notified_at != event.position:
            self._notified_at, self._notified_users = event.position, set()
        left = iter([user_id for user_id in user_ids if user_id not in self._notified_users])
        while batch := list(islice(left, NOTIFY_BATCH)):
            decided = await self._decisions.get_actions(event.stored, batch)
            for user_id, pushers in (await self._pusher_users.get(decided)).items():
                for pusher in pushers:
                    self._check_lease()
                    await self._notify_pusher(pusher, event, decided[UserID(user_id)])
                self._notified_users.add(user_id)
            self._check_lease()
            if len(batch) == NOTIFY_BATCH:
                await deferLater(self._clock, 0)

    async def _notify_pusher(self, pusher: PusherRow, event: EventToPush, actions: Actions) -> None:
        was_healthy = pusher.failing_since_ts is None
        if was_healthy and event.position <= self._floor:
            return
        if event.position <= pusher.position:
            if pusher.kind == HTTP:
                self._deliveries.skip(pusher, event.position)
        elif pusher.kind == HTTP:
            self._deliveries.add(pusher, event, actions)
        elif actions.mails:
            await self._emails.record(pusher, event.room_nid)

    async def _process_receipt(self, receipt: MovedReceipt) -> None:
        if receipt.user_id not in self._pusher_users.users:
            return
        self._badges.invalidate_room_of_user(receipt.user_id, receipt.room_nid)
        self._emails.record_read(receipt.user_id, receipt.room_nid)
        if receipt.event_position is not None:
            self._deliveries.mark_read(
                receipt.user_id,
                receipt.room_nid,
                None if receipt.thread_id == MAIN else receipt.thread_id,
                receipt.event_position,
                all_threads=receipt.thread_id == UNTHREADED,
            )
        await self._queue_badges({receipt.user_id: receipt.position})

    # ----------------------------------------------------------------------------------------------
    # the lease

    def is_idle(self) -> bool:
        """Return whether no turn is scheduled; see `LeasedWork.is_idle`."""
        return not self._scheduled

    async def begin(self, lease: Lease) -> None:
        """Start to push: first what is in the database, then what follows. Raises
        DatabaseUnavailable."""
        await self._pusher_users.load()
        failing = [row for row in await self._store.get_failing() if row.kind == HTTP]
        self._behind = {row.user_id for row in failing}
        self._floor = lease.position
        self._done = min((row.position for row in failing), default=lease.position)
        self._done = max(min(self._done, lease.position), lease.position - MAX_BEHIND)
        self._badges.clear()
        self._attempted_upto = self._notified_at = 0
        self._listener.begin(self._floor)
        self._deliveries.start(failing, self._floor)
        self._emails.start()
        self._schedule()

    async def store_progress(self) -> int:
        """Store the state of pushers and return the position; see `LeasedWork.store_progress`."""
        if self._listener.has_changes(self._done):
            self._schedule()  # retry what failed
        self._rounds += 1
        await self._deliveries.store_states(all_states=self._rounds % ROUNDS_UNTIL_ALL_STATES == 0)
        self._skip_idle()
        return self._position()

    def on_lease_lost(self) -> None:
        """Stop at once; see `LeasedWork.on_lease_lost`."""
        self._stop_reading()
        self._deliveries.stop()

    async def finish(self) -> int:
        """Store all states and stop; see `LeasedWork.finish`."""
        self._skip_idle()
        self._stop_reading()
        await self._deliveries.store_states(all_states=True)
        position = self._position()
        self._deliveries.stop()
        return position

    def _stop_reading(self) -> None:
        self._listener.end()
        self._emails.stop()

    def _skip_idle(self) -> None:
        """Move the position past changes that concern nobody with a pusher."""
        if not self._scheduled and not self._listener.has_changes(self._done):
            self._done = max(self._done, self._streams.current())

    def _position(self) -> int:
        """Return the position up to which everything is sent or stored."""
        positions = [*self._listener.changed_badges.values()]
        if (lowest := self._deliveries.lowest()) is not None:
            positions.append(lowest)
        return max(
            self._lease.stored_position, min(self._done, min(positions, default=self._done + 1) - 1)
        )

"""Reads the stream for those who have pushers: what happens becomes pushes, letters and badges.

Laws:
- What is told comes from the stream, never from whoever made the change: an event of another node,
  or of before a restart, is nothing special. Up to the lease's position all is told, or noted with
  its pusher.
- One node pushes at a time: it has the lease. On SQLite, which is for one node, it is taken by
  force.
- An event that notifies nobody costs nothing (its flags say so), nor does one in a room where
  nobody has a pusher; any other is decided for all who have, where they are many in pieces: others
  have the reactor between.
- The stream is read from memory (`stream_listener.py`); from the database only after a start, and
  what other nodes wrote.
- Who loses the lease, or ends, stops between two users: the position that is noted is below all
  that is not told. What is read once more, since the database was away, is told to those alone who
  were not told.

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
from federation.rooms.joins.out_of_room import OutsideMemberships, is_outside
from federation.rooms.memberships import Memberships
from homeserver.services.push.actions import Actions
from homeserver.services.push.decisions import PushDecisions
from homeserver.services.push.unread_counts import COUNTED, REDACTION
from homeserver.services.pushers.badges import Badges
from homeserver.services.pushers.deliveries import Deliveries
from homeserver.services.pushers.display_names import Told
from homeserver.services.pushers.email_pushers import Letters
from homeserver.services.pushers.pusher_users import Roster
from homeserver.services.pushers.pushers import HTTP
from homeserver.services.pushers.stream_listener import Heard, Hearing
from storage.accounts.accounts import AccountStore
from storage.cluster.lease_loop import LeaseLoop
from storage.cluster.leases import Lease
from storage.cluster.node_lease import NodeLease
from storage.engine.database import DatabaseUnavailable
from storage.engine.streams import Streams
from storage.events.events import EventFlag
from storage.push.event_push_actions import MAIN
from storage.push.push_stream import NewEvent, NewReceipt, PushStream
from storage.push.pushers import PusherRow, PusherStore
from storage.rooms.memberships import MembershipRow
from storage.rooms.receipts import UNTHREADED
from storage.rooms.rooms import RoomStore

ROUNDS_TO_NOTE_ALL: Final = 6
"""How many rounds pass until it is noted how pushers stand that push without trouble."""
AT_ONCE: Final = 500
"""Events that are read from the database at once."""
TOLD_AT_ONCE: Final = 200
"""Users of a room who are told in one go: then others have the reactor."""
MOST_BEHIND: Final = 200_000
"""So many positions before the lease's are read again for pushers that fail. What is older is given
up: all others wait."""


class _LeaseGone(Exception):
    """Another reads on from the position that was noted, or is to be."""


class PushReading:
    """The reader. For the reactor thread."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        streams: Streams,
        lease: NodeLease,
        stream: PushStream,
        store: PusherStore,
        accounts: AccountStore,
        rooms: RoomStore,
        events: RoomEvents,
        memberships: Memberships,
        outside: OutsideMemberships,
        decisions: PushDecisions,
        roster: Roster,
        badges: Badges,
        deliveries: Deliveries,
        letters: Letters,
        now_ms: Callable[[], int],
    ) -> None:
        self._clock = clock
        self._streams = streams
        self._lease = LeaseLoop(clock, lease, self, "pushers")
        self._stream = stream
        self._store = store
        self._accounts = accounts
        self._rooms = rooms
        self._events = events
        self._memberships = memberships
        self._outside = outside
        self._decisions = decisions
        self._roster = roster
        self._badges = badges
        self._deliveries = deliveries
        self._letters = letters
        self._now_ms = now_ms
        self._floor = 0
        """Up to here all is told to pushers that were well when the lease was taken."""
        self._behind: Set[str] = frozenset()
        """Users of pushers that were not."""
        self._done = 0
        self._taken = 0
        """All below that was taken, though perhaps something failed before it was done."""
        self._told_at = 0
        self._told_users: set[str] = set()
        """Who was told of what stands there."""
        self._hearing = Hearing(streams, roster, badges, self._schedule)
        self._scheduled = False
        self._rounds = 0

    def start(self) -> None:
        """Push from now on, as soon as no other node does."""
        self._lease.start()

    async def stop(self) -> None:
        """Push no more, and note how far all is told."""
        await self._lease.stop()

    # ---------------------------------------------------------------------------------------------------
    # the stream

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._start_turn)

    def _start_turn(self) -> None:
        Deferred.fromCoroutine(self._turn())

    async def _turn(self) -> None:
        try:
            while self._lease.is_held and (
                self._deliveries.is_behind or self._hearing.has_news(self._done)
            ):
                await self._tell_renumbered()
                while (
                    self._hearing.changed_users
                ):  # up to now: who has just set a pusher is told of what follows
                    await self._refresh()
                if self._deliveries.is_behind and self._done >= self._floor:
                    self._deliveries.catch_up()
                upto = self._hearing.in_database
                if self._done < upto:
                    await self._read_database()
                else:
                    await self._read_memory()
                if (
                    self._done >= upto and not self._deliveries.is_behind
                ):  # up to now: there may always be more
                    self._deliveries.wake_touched()
        except _LeaseGone:
            pass
        except DatabaseUnavailable as error:
            self._hearing.forget()
            self.log.warn("what happened is pushed later: {error}", error=error)
        except Exception:  # a bug of ours: the next round tries again
            self._hearing.forget()
            self.log.failure("what happened could not be pushed")
        finally:
            self._scheduled = False

    def _check_lease(self) -> None:
        """Before something is told. Raises _LeaseGone."""
        if not self._lease.is_held:
            raise _LeaseGone

    async def _refresh(self) -> None:
        users, set_now = self._hearing.take_changed()
        try:
            refreshed = await self._roster.refresh(users)
            self._check_lease()
            for user_id, rows in refreshed.items():
                if not rows:
                    self._badges.forget(user_id)  # what they read from here on is not heard of
                to_apps = [row for row in rows if row.kind == HTTP]
                self._deliveries.change(user_id, to_apps, set_now=user_id in set_now)
        except BaseException:
            self._hearing.changed_users |= users
            raise
        finally:
            self._hearing.refreshed = frozenset()

    async def _read_database(self) -> None:
        hearing = self._hearing
        stretch = await self._stream.get_stretch(self._done, hearing.in_database, AT_ONCE)
        changed = await self._store.get_changed_users(self._done, stretch.upto)
        hearing.changed_users |= changed
        if self._done > self._floor:
            hearing.set_now |= changed  # by another node
        hearing.changed_users |= await self._accounts.get_changed_accounts(self._done, stretch.upto)
        if hearing.changed_users:
            await self._refresh()
        heard: list[Heard] = [
            *stretch.events,
            *stretch.receipts,
            *filter(is_outside, stretch.invites),
        ]
        await self._take(sorted(heard, key=lambda each: each.position))
        since = max(self._done, self._floor) + 1
        for room_nid in stretch.taken_from:
            hearing.renumber(self._badges.touch_room(room_nid), since)
        hearing.renumber(
            (user_id for user_id in stretch.moved if hearing.may_have_pushers(user_id)), since
        )
        hearing.renumber_everywhere(stretch.hiding, since)
        self._done = stretch.upto

    async def _read_memory(self) -> None:
        heard = self._hearing.take()
        await self._take(each for each in heard if each.position > self._done)
        if heard:
            self._done = max(self._done, heard[-1].position)

    async def _take(self, heard: Iterable[Heard]) -> None:
        taken = self._taken
        for each in heard:
            if each.position <= taken:
                continue
            self._taken = each.position - 1
            try:
                self._check_lease()
                if isinstance(each, NewEvent):
                    await self._take_event(each)
                elif isinstance(each, NewReceipt):
                    await self._take_receipt(each)
                else:
                    await self._take_invite(each)
            except (DatabaseUnavailable, _LeaseGone):
                raise
            except (
                Exception
            ):  # a bug of ours: it must not keep everybody from hearing of what follows
                self.log.failure(
                    "what happened at {position} is pushed to nobody", position=each.position
                )
        await self._letters.flush()

    async def _take_event(self, event: NewEvent) -> None:
        if event.type == REDACTION:
            self._hearing.renumber(self._badges.touch_room(event.room_nid), event.position)
        if not event.flags & COUNTED:
            return
        if event.sender in self._roster.users and event.flags & EventFlag.NOTIFIES:
            await self._take_answer(event)
        users = self._roster.users if event.position > self._floor else self._behind
        members = await self._memberships.local_members(event.room_nid)
        smaller, larger = (users, members) if len(users) < len(members) else (members, users)
        concerned = {
            UserID(user_id) for user_id in smaller if user_id in larger and user_id != event.sender
        }
        if event.type == "m.room.member" and event.state_key in users:
            concerned.add(UserID(event.state_key or ""))  # who is invited is no member yet
        if not concerned:
            return
        stored = (await self._events.get_events([event.event_nid])).get(event.event_nid)
        if stored is None:
            return
        queued_ms = self._now_ms()
        if event.position <= self._floor:  # it has waited since before the restart
            queued_ms = min(queued_ms, stored.event.origin_server_ts)
        told = Told(stored, event.position, event.room_nid, event.thread_root, queued_ms)
        for user_id in concerned:
            self._badges.touch(user_id, event.room_nid)
        await self._tell(told, concerned)

    async def _take_answer(self, event: NewEvent) -> None:
        """Who writes has read, up to their message, the thread that it stands in."""
        self._badges.touch(event.sender, event.room_nid)
        self._deliveries.mark_read(
            event.sender, event.room_nid, event.thread_root, event.position, everything=False
        )
        await self._tell_badges({event.sender: event.position})

    async def _tell_badges(self, positions: Mapping[str, int]) -> None:
        found = await self._roster.get(positions)
        self._check_lease()
        for user_id, pushers in found.items():
            for pusher in pushers:
                if pusher.kind == HTTP and positions[user_id] > self._floor:
                    self._deliveries.set_badge_due(pusher, positions[user_id])

    async def _tell_renumbered(self) -> None:
        """Each stays among them until it is told: the position of the lease is below what made it
        another."""
        renumbered = self._hearing.renumbered
        while renumbered:
            some = dict(islice(renumbered.items(), TOLD_AT_ONCE))
            try:
                await self._tell_badges(some)
            except (DatabaseUnavailable, _LeaseGone):
                raise
            except (
                Exception
            ):  # a bug of ours: it must not keep everybody from hearing of what follows
                self.log.failure("numbers that may be others are told to nobody")
            for user_id in some:
                del renumbered[user_id]
            if renumbered:
                await deferLater(self._clock, 0)

    async def _take_invite(self, row: MembershipRow) -> None:
        """Into a room that this server is not in."""
        if row.user_id not in (self._roster.users if row.position > self._floor else self._behind):
            return
        room = (await self._rooms.get_rooms_by_nid([row.room_nid])).get(row.room_nid)
        stored = None if room is None else await self._outside.find_event(room, row)
        if stored is not None:
            told = Told(stored, row.position, row.room_nid, None, self._now_ms(), outside=row)
            await self._tell(told, {UserID(row.user_id)})

    async def _tell(self, told: Told, user_ids: Iterable[UserID]) -> None:
        if self._told_at != told.position:
            self._told_at, self._told_users = told.position, set()
        left = iter([user_id for user_id in user_ids if user_id not in self._told_users])
        while some := list(islice(left, TOLD_AT_ONCE)):
            decided = await self._decisions.get_actions(told.stored, some)
            for user_id, pushers in (await self._roster.get(decided)).items():
                for pusher in pushers:
                    self._check_lease()
                    await self._tell_pusher(pusher, told, decided[UserID(user_id)])
                self._told_users.add(user_id)
            self._check_lease()
            if len(some) == TOLD_AT_ONCE:
                await deferLater(self._clock, 0)

    async def _tell_pusher(self, pusher: PusherRow, told: Told, actions: Actions) -> None:
        was_well = pusher.failing_since_ts is None
        if was_well and told.position <= self._floor:
            return
        if told.position <= pusher.position:
            if pusher.kind == HTTP:
                self._deliveries.pass_over(pusher, told.position)
        elif pusher.kind == HTTP:
            self._deliveries.add(pusher, told, actions)
        elif actions.mails:
            await self._letters.note(pusher, told.room_nid)

    async def _take_receipt(self, receipt: NewReceipt) -> None:
        if receipt.user_id not in self._roster.users:
            return
        self._badges.touch(receipt.user_id, receipt.room_nid)
        self._letters.note_reading(receipt.user_id, receipt.room_nid)
        if receipt.event_position is not None:
            self._deliveries.mark_read(
                receipt.user_id,
                receipt.room_nid,
                None if receipt.thread_id == MAIN else receipt.thread_id,
                receipt.event_position,
                everything=receipt.thread_id == UNTHREADED,
            )
        await self._tell_badges({receipt.user_id: receipt.position})

    # ----------------------------------------------------------------------------------------------------
    # the lease

    def is_idle(self) -> bool:
        """As `LeasedWork.is_idle`."""
        return not self._scheduled

    async def begin(self, lease: Lease) -> None:
        """Push what the database knows of, and what follows. Raises DatabaseUnavailable."""
        await self._roster.load()
        failing = [row for row in await self._store.get_failing() if row.kind == HTTP]
        self._behind = {row.user_id for row in failing}
        self._floor = lease.position
        self._done = min((row.position for row in failing), default=lease.position)
        self._done = max(min(self._done, lease.position), lease.position - MOST_BEHIND)
        self._badges.forget_all()
        self._taken = self._told_at = 0
        self._hearing.begin(self._floor)
        self._deliveries.start(failing, self._floor)
        self._letters.start()
        self._schedule()

    async def note(self) -> int:
        """As `LeasedWork.note`."""
        if self._hearing.has_news(self._done):
            self._schedule()  # what failed is tried again
        self._rounds += 1
        await self._deliveries.note(all_standings=self._rounds % ROUNDS_TO_NOTE_ALL == 0)
        self._pass_by()
        return self._position()

    def lose(self) -> None:
        """As `LeasedWork.lose`."""
        self._stop_reading()
        self._deliveries.stop()

    async def finish(self) -> int:
        """As `LeasedWork.finish`."""
        self._pass_by()
        self._stop_reading()
        await self._deliveries.note(all_standings=True)
        position = self._position()
        self._deliveries.stop()
        return position

    def _stop_reading(self) -> None:
        self._hearing.end()
        self._letters.stop()

    def _pass_by(self) -> None:
        """Of what came since that was not told, nothing concerns anybody."""
        if not self._scheduled and not self._hearing.has_news(self._done):
            self._done = max(self._done, self._streams.current())

    def _position(self) -> int:
        """Up to where all is told or noted."""
        firsts = [*self._hearing.renumbered.values()]
        if (lowest := self._deliveries.lowest()) is not None:
            firsts.append(lowest)
        return max(self._lease.noted, min(self._done, min(firsts, default=self._done + 1) - 1))

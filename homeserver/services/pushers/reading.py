"""Reads the stream for those who have pushers: what happens becomes pushes, letters and badges.

Laws:
- What is told comes from the stream, never from whoever made the change: an event of another node, or of before a
  restart, is nothing special. Up to the lease's position all is told, or noted with its pusher.
- One node pushes at a time: it has the lease. On SQLite, which is for one node, it is taken by force.
- An event that notifies nobody costs nothing (its flags say so), nor does one in a room where nobody has a pusher; any
  other is decided for all who have, where they are many in pieces: others have the reactor between.
- The stream is read from memory; from the database only after a start, and what other nodes wrote.

spec: client-server-api#push-notifications
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import islice
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from federation.protocol.ids import UserID
from federation.rooms.memberships import Memberships
from federation.rooms.outside import OutsideMemberships, is_outside
from federation.rooms.room_events import RoomEvents
from homeserver.services.push.actions import Actions
from homeserver.services.push.decisions import PushDecisions
from homeserver.services.pushers.badges import Badges
from homeserver.services.pushers.deliveries import Deliveries
from homeserver.services.pushers.details import Told
from homeserver.services.pushers.letters import Letters
from homeserver.services.pushers.pushers import HTTP
from homeserver.services.pushers.roster import Roster
from homeserver.services.unread import COUNTED, READ_TYPES, REDACTION
from storage.accounts import AccountStore
from storage.database import DatabaseUnavailable
from storage.events import EventFlag, EventRow
from storage.memberships import MembershipRow
from storage.node_lease import FIRST_RENEWAL_SECONDS, NodeLease
from storage.partial_rooms import PartialRoom
from storage.purging import PurgedMessages
from storage.push_outcomes import MAIN
from storage.push_stream import HIDING, NewEvent, NewReceipt, PushStream
from storage.pushers import PusherRow, PusherStore
from storage.receipts import UNTHREADED, ReceiptRow
from storage.rooms import RoomStore
from storage.streams import Change, Streams, Topic

LEASE_MS: Final = 30_000
ROUND_SECONDS: Final = 10.0
"""How often the lease is renewed, and noted how far all is told."""
ROUNDS_TO_NOTE_ALL: Final = 6
"""How many rounds pass until it is noted how pushers stand that push without trouble."""
AT_ONCE: Final = 500
"""Events that are read from the database at once."""
TOLD_AT_ONCE: Final = 200
"""Users of a room who are told in one go: then others have the reactor."""
MOST_BEHIND: Final = 200_000
"""So many positions before the lease's are read again for pushers that fail. What is older is given up: all others wait."""
MOVED: Final = frozenset({"join", "leave", "ban"})
"""By coming an invite is answered, which counts too."""
MOST_HEARD: Final = 20_000
"""Of what was heard and not come to yet; the rest is read from the database."""

Heard = NewEvent | NewReceipt | MembershipRow


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
        self._lease = lease
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
        self._has_lease = False
        self._told = 0
        """What the database knows of how far all is told."""
        self._floor = 0
        """Up to here all is told to pushers that were well when the lease was taken."""
        self._behind: Set[str] = frozenset()
        """Users of pushers that were not."""
        self._done = 0
        self._in_database = 0
        """Up to here memory does not have the stream."""
        self._heard: list[Heard] = []
        self._changed_users: set[str] = set()
        self._set_now: set[str] = set()
        """Those of them whose pushers were set while this process pushes."""
        self._refreshed: Set[str] = frozenset()
        """Users whose pushers are being read: they may come to have some."""
        self._renumbered: dict[str, int] = {}
        """Users whose number may be another, though nobody wrote or read: something was taken away, or they came into a room or left one.
        With the position from which on that stands in the stream."""
        self._scheduled = False
        self._rounds = 0
        self._round = LoopingCall(self._start_round)
        self._round.clock = clock
        self._rounds_end: Deferred[LoopingCall] | None = None
        streams.subscribe(
            self._hear,
            Topic.PUSHER,
            Topic.ACCOUNT,
            Topic.EVENT,
            Topic.REDACTED,
            Topic.RECEIPT,
            Topic.MEMBERSHIP,
            Topic.ACCOUNT_DATA,
            Topic.PURGED,
            Topic.COMPLETENESS,
        )
        streams.watch(self._heed_others)

    def start(self) -> None:
        """Push from now on, as soon as no other node does."""
        self._rounds_end = self._round.start(ROUND_SECONDS)

    async def stop(self) -> None:
        """Push no more, and note how far all is told."""
        if self._round.running and self._rounds_end is not None:
            self._round.stop()
            await self._rounds_end  # with the one that is under way: it may just be taking the lease
        if self._has_lease:
            self._has_lease = False
            self._letters.stop()
            await self._deliveries.note(all_standings=True)
            position = self._position()
            self._deliveries.stop()
            await self._lease.renew(0, position)

    # --------------------------------------------------------------------------------------------------- the stream

    def _hear(self, changes: Sequence[Change]) -> None:
        if not self._has_lease:
            return
        news = {change.position for change in changes if change.topic is Topic.EVENT}
        for change in changes:
            row, heard = change.detail, len(self._heard)
            if change.topic in (Topic.PUSHER, Topic.ACCOUNT) and change.user_id is not None:
                self._changed_users.add(change.user_id)
                if change.topic is Topic.PUSHER:
                    self._set_now.add(change.user_id)
                self._schedule()
            elif isinstance(row, EventRow):
                if (row.flags & COUNTED or row.type == REDACTION) and self._may_anybody_have_pushers():
                    self._heard.append(
                        NewEvent(
                            change.position,
                            row.event_nid,
                            row.room_nid,
                            row.type,
                            row.sender,
                            row.state_key,
                            row.flags,
                            row.thread_root,
                        )
                    )
            elif isinstance(row, ReceiptRow):
                if row.receipt_type in READ_TYPES and self._may_have_pushers(row.user_id):
                    self._heard.append(
                        NewReceipt(change.position, row.room_nid, row.user_id, row.thread_id, row.event_position)
                    )
            elif isinstance(row, MembershipRow):
                self._badges.touch(row.user_id, row.room_nid)
                has_moved = row.membership in MOVED and not row.is_further_join
                if has_moved and self._may_have_pushers(row.user_id):
                    self._renumber([row.user_id], change.position)
                if row.membership == "invite" and is_outside(row) and self._may_have_pushers(row.user_id):
                    self._heard.append(row)
            elif isinstance(row, PurgedMessages | PartialRoom):
                # with all of its state a room may lose messages that were counted
                self._renumber(self._badges.touch_room(row.room_nid), change.position)
            elif change.topic is Topic.REDACTED:
                if change.position not in news:  # by what was read back from the past: in which room is not known here
                    self._badges.doubt_all()
            elif change.topic is Topic.ACCOUNT_DATA and change.user_id is not None and not change.room_id:
                if change.detail in HIDING:
                    self._renumber_everywhere([change.user_id], change.position)
            elif change.topic in (Topic.EVENT, Topic.RECEIPT, Topic.MEMBERSHIP):
                self._in_database = max(self._in_database, change.position)
                self._schedule()
            if len(self._heard) > heard:
                self._schedule()
        if len(self._heard) > MOST_HEARD:
            self._forget_heard()

    def _renumber(self, user_ids: Iterable[str], position: int) -> None:
        for user_id in user_ids:
            self._renumbered.setdefault(user_id, position)
        if self._renumbered:
            self._schedule()

    def _renumber_everywhere(self, user_ids: Iterable[str], position: int) -> None:
        """What they have not read may be more or less in any room."""
        for user_id in user_ids:
            self._badges.forget(user_id)
            if self._may_have_pushers(user_id):
                self._renumber([user_id], position)

    def _may_anybody_have_pushers(self) -> bool:
        return bool(self._roster.users or self._changed_users or self._refreshed)

    def _may_have_pushers(self, user_id: str) -> bool:
        return user_id in self._roster.users or user_id in self._changed_users or user_id in self._refreshed

    def _heed_others(self, _after: int, upto: int) -> None:
        """Another node wrote."""
        if self._has_lease:
            self._in_database = max(self._in_database, upto)
            self._badges.doubt_all()
            self._schedule()

    def _forget_heard(self) -> None:
        """Read it from the database instead."""
        self._heard.clear()
        self._in_database = max(self._floor, self._streams.current())

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._start_turn)

    def _start_turn(self) -> None:
        Deferred.fromCoroutine(self._turn())

    async def _turn(self) -> None:
        try:
            while self._has_lease and (
                self._changed_users
                or self._renumbered
                or self._done < self._in_database
                or self._heard
                or self._deliveries.is_behind
            ):
                if self._changed_users:
                    await self._refresh()
                if self._deliveries.is_behind and self._done >= self._floor:
                    self._deliveries.catch_up()
                await self._tell_renumbered()
                if self._done < self._in_database:
                    await self._read_database()
                else:
                    await self._read_memory()
            self._deliveries.wake_touched()
        except DatabaseUnavailable as error:
            self._forget_heard()
            self.log.warn("what happened is pushed later: {error}", error=error)
        except Exception:  # a bug of ours: the next round tries again
            self._forget_heard()
            self.log.failure("what happened could not be pushed")
        finally:
            self._scheduled = False

    async def _refresh(self) -> None:
        users, self._changed_users = self._changed_users, set()
        set_now, self._set_now = self._set_now, set()
        self._refreshed = users
        try:
            for user_id, rows in (await self._roster.refresh(users)).items():
                if not rows:
                    self._badges.forget(user_id)  # what they read from here on is not heard of
                to_apps = [row for row in rows if row.kind == HTTP]
                self._deliveries.change(user_id, to_apps, set_now=user_id in set_now)
        except BaseException:
            self._changed_users |= users
            raise
        finally:
            self._refreshed = frozenset()

    async def _read_database(self) -> None:
        stretch = await self._stream.get_stretch(self._done, self._in_database, AT_ONCE)
        changed = await self._store.get_changed_users(self._done, stretch.upto)
        self._changed_users |= changed
        if self._done > self._floor:
            self._set_now |= changed  # by another node
        self._changed_users |= await self._accounts.get_changed_accounts(self._done, stretch.upto)
        if self._changed_users:
            await self._refresh()
        heard: list[Heard] = [*stretch.events, *stretch.receipts, *filter(is_outside, stretch.invites)]
        await self._take(sorted(heard, key=lambda each: each.position))
        since = max(self._done, self._floor) + 1
        for room_nid in stretch.taken_from:
            self._renumber(self._badges.touch_room(room_nid), since)
        self._renumber((user_id for user_id in stretch.moved if self._may_have_pushers(user_id)), since)
        self._renumber_everywhere(stretch.hiding, since)
        self._done = stretch.upto

    async def _read_memory(self) -> None:
        heard, self._heard = self._heard, []
        await self._take(each for each in heard if each.position > self._done)
        if heard:
            self._done = max(self._done, heard[-1].position)

    async def _take(self, heard: Iterable[Heard]) -> None:
        for each in heard:
            try:
                if isinstance(each, NewEvent):
                    await self._take_event(each)
                elif isinstance(each, NewReceipt):
                    await self._take_receipt(each)
                else:
                    await self._take_invite(each)
            except DatabaseUnavailable:
                raise
            except Exception:  # a bug of ours: it must not keep everybody from hearing of what follows
                self.log.failure("what happened at {position} is pushed to nobody", position=each.position)
        await self._letters.flush()

    async def _take_event(self, event: NewEvent) -> None:
        if event.type == REDACTION:
            self._renumber(self._badges.touch_room(event.room_nid), event.position)
        if not event.flags & COUNTED:
            return
        if event.sender in self._roster.users and event.flags & EventFlag.NOTIFIES:
            await self._take_answer(event)
        users = self._roster.users if event.position > self._floor else self._behind
        members = await self._memberships.local_members(event.room_nid)
        smaller, larger = (users, members) if len(users) < len(members) else (members, users)
        concerned = {UserID(user_id) for user_id in smaller if user_id in larger and user_id != event.sender}
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
        self._deliveries.mark_read(event.sender, event.room_nid, event.thread_root, event.position, everything=False)
        await self._tell_badges({event.sender: event.position})

    async def _tell_badges(self, positions: Mapping[str, int]) -> None:
        for user_id, pushers in (await self._roster.get(positions)).items():
            for pusher in pushers:
                if pusher.kind == HTTP and positions[user_id] > self._floor:
                    self._deliveries.set_badge_due(pusher, positions[user_id])

    async def _tell_renumbered(self) -> None:
        """Each stays among them until it is told: the position of the lease is below what made it another."""
        while self._has_lease and self._renumbered:
            some = dict(islice(self._renumbered.items(), TOLD_AT_ONCE))
            try:
                await self._tell_badges(some)
            except DatabaseUnavailable:
                raise
            except Exception:  # a bug of ours: it must not keep everybody from hearing of what follows
                self.log.failure("numbers that may be others are told to nobody")
            for user_id in some:
                del self._renumbered[user_id]
            if self._renumbered:
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
        left = iter(user_ids)
        while self._has_lease and (some := list(islice(left, TOLD_AT_ONCE))):
            decided = await self._decisions.get_actions(told.stored, some)
            for user_id, pushers in (await self._roster.get(decided)).items():
                for pusher in pushers:
                    await self._tell_pusher(pusher, told, decided[UserID(user_id)])
            if len(some) == TOLD_AT_ONCE:
                await deferLater(self._clock, 0)

    async def _tell_pusher(self, pusher: PusherRow, told: Told, actions: Actions) -> None:
        was_well = pusher.failing_since_ts is None
        if told.position <= pusher.position or (was_well and told.position <= self._floor):
            return
        if pusher.kind == HTTP:
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

    # ---------------------------------------------------------------------------------------------------- the lease

    def _start_round(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._make_round())

    async def _make_round(self) -> None:
        """Take the lease or renew it; raises nothing."""
        try:
            if self._has_lease:
                await self._renew()
            else:
                await self._take_lease()
        except DatabaseUnavailable as error:
            self.log.warn("the lease of the pushers could not be renewed: {error}", error=error)
        except Exception:  # a bug of ours: the next round tries again
            self.log.failure("the lease of the pushers could not be renewed")

    async def _take_lease(self) -> None:
        now = self._now_ms()
        lease = await self._lease.take(now, now + LEASE_MS)
        if lease is None:
            return
        await self._roster.load()
        failing = [row for row in await self._store.get_failing() if row.kind == HTTP]
        self._behind = {row.user_id for row in failing}
        self._told = self._floor = lease.position
        self._done = min((row.position for row in failing), default=lease.position)
        self._done = max(min(self._done, lease.position), lease.position - MOST_BEHIND)
        self._badges.forget_all()
        self._has_lease = True
        self._round.interval = FIRST_RENEWAL_SECONDS
        self._forget_heard()
        self._deliveries.start(failing)
        self._letters.start()
        self._schedule()

    async def _renew(self) -> None:
        self._round.interval = ROUND_SECONDS
        if self._done < self._in_database or self._heard or self._changed_users or self._renumbered:
            self._schedule()  # what failed is tried again
        self._rounds += 1
        await self._deliveries.note(all_standings=self._rounds % ROUNDS_TO_NOTE_ALL == 0)
        position = self._position()
        if self._lease.is_alone and position == self._told:
            return
        if await self._lease.renew(self._now_ms() + LEASE_MS, position):
            self._told = position
        else:
            self.log.warn("another node pushes now")
            self._has_lease = False
            self._letters.stop()
            self._deliveries.stop()

    def _position(self) -> int:
        """Up to where all is told or noted."""
        if not self._heard and not self._scheduled and self._done >= self._in_database:
            self._done = max(self._done, self._streams.current())  # nothing of what came since concerns anybody
        firsts = [*self._renumbered.values()]
        if (lowest := self._deliveries.lowest()) is not None:
            firsts.append(lowest)
        return max(self._told, min(self._done, min(firsts, default=self._done + 1) - 1))

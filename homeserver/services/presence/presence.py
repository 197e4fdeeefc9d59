"""Who is there: kept in memory, told in batches to those who share a room and listen.

Laws:
- It takes no position of the one sequence: what is told has one of the ephemeral counter.
- Changes are told in batches. After a batch that woke many there is a pause in proportion, so that all that presence costs
  is bounded, whatever the number of people; how somebody is there when asked for by name is never late.
- A change costs what it concerns: who does nothing, and whom nothing is heard of, costs nothing but memory.
- What a restart must not forget (the message of a status, who was there) is written: a status before it is acknowledged, the
  rest in batches.

spec: client-server-api#presence
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Final, Literal

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from federation.protocol.endpoint import Limit, Requester
from federation.protocol.errors import Forbidden, InvalidParam, LimitExceeded
from federation.protocol.ids import ServerName, UserID, domain_of
from federation.rooms.memberships import Memberships
from homeserver.http.rate_limits import RateLimiter
from homeserver.notifier import Listener, Notifier
from homeserver.services.ephemeral import EphemeralCounter
from homeserver.services.presence.people import (
    LONGEST_STATUS,
    Device,
    Person,
    PresenceTimes,
    RemotePerson,
    Shown,
    State,
)
from homeserver.services.presence.remote_people import PresenceUpdate, RemotePeople
from storage.database import Database
from storage.presence import PresenceRow, PresenceStore
from storage.transaction import WriteTransaction

WAKES_A_SECOND: Final = 200
"""How many readers presence wakes in the long run."""
MAX_TOLD: Final = 20_000
"""Of how many people the latest change is remembered."""
WRITE_INTERVAL: Final = 30.0
RETRY_AFTER: Final = 10.0
"""Seconds after which is tried again what the database failed."""
RESTART: Final = "\0restart"
"""Stands for the devices with which somebody was there before a restart."""

Mode = Literal[True, False, "untracked"]


Subscriber = Callable[[Sequence[PresenceUpdate]], None]
"""Called with what is new of this server's users; may not raise and may not block."""


class Presence:
    """The people who are there. For the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        store: PresenceStore,
        memberships: Memberships,
        notifier: Notifier,
        counter: EphemeralCounter,
        limiter: RateLimiter,
        *,
        server_name: ServerName,
        times: PresenceTimes,
        mode: Mode,
    ) -> None:
        """`mode`: False for no presence at all, "untracked" for that of other servers' users only."""
        self._clock = clock
        self._database = database
        self._store = store
        self._memberships = memberships
        self._notifier = notifier
        self._counter = counter
        self._limiter = limiter
        self._server_name = server_name
        self._times = times
        self.is_on = mode is not False
        self._tracks = mode is True
        self._people: dict[UserID, Person] = {}
        self._remote = RemotePeople(clock, server_name, self._change)
        self._told: OrderedDict[UserID, int] = OrderedDict()
        """Position of the latest change of each, the latest last."""
        self._told_from = counter.position
        self._pending: dict[UserID, None] = {}
        self._releasing = False
        self._not_before = 0.0
        self._watchers: dict[UserID, set[Listener]] = {}
        self._subscribers: tuple[Subscriber, ...] = ()
        self._unwritten: dict[UserID, Person] = {}
        self._writing = LoopingCall(lambda: Deferred.fromCoroutine(self.flush()))
        self._writing.clock = clock

    # what our users do

    def arrive(self, caller: Requester, wanted: State | None) -> None:
        """A device begins to synchronise, and says how its user is there (None: it does not say). `leave` follows."""
        if self._tracks:
            self._meet(caller, wanted, is_new_choice=False).syncing += 1

    def leave(self, caller: Requester) -> None:
        """The device's request has ended."""
        person = self._people.get(caller.user_id)
        device = person.devices.get(caller.device_id or "") if person is not None else None
        if person is not None and device is not None:
            device.syncing -= 1
            device.left = self._clock.seconds()
            if device.syncing <= 0:
                self._check_at(person, device.left + self._times.grace)

    def note_active(self, caller: Requester) -> None:
        """The user has just done something. spec: client-server-api#last-active-ago"""
        person = self._people.get(caller.user_id)
        if person is None:
            return
        person.last_active = self._clock.seconds()
        device = person.devices.get(caller.device_id or "")
        if device is not None and device.wanted == "unavailable":
            device.wanted = "online"
        if not person.shown.currently_active:
            self._look_at(person)

    async def do_set(self, caller: Requester, user_id: UserID, state: State, status_msg: str | None) -> None:
        """Say how one is there. Raises Forbidden, InvalidParam."""
        if user_id != caller.user_id:
            raise Forbidden("You can only say of yourself how you are there")
        if status_msg is not None and (len(status_msg) > LONGEST_STATUS or "\0" in status_msg):
            raise InvalidParam(f"status_msg has at most {LONGEST_STATUS} characters")
        if not self._tracks:
            return
        known = (await self._store.get_states([user_id])).get(user_id)
        if (status_msg or None) != (None if known is None else known.status_msg):
            now_ms = int(self._clock.seconds() * 1000)
            row = PresenceRow(user_id, state, status_msg or None, now_ms)
            await self._database.write("set_presence_status", self._store.set_states, [row])
        device = self._meet(caller, state, is_new_choice=True)
        device.left = self._clock.seconds()
        person = self._people[user_id]
        person.status_msg, person.is_read = status_msg or None, True
        person.last_active = device.left
        self._look_at(person)

    # reading

    async def get_status(self, caller: Requester, user_id: UserID) -> dict[str, object]:
        """How somebody is there just now. Raises Forbidden for who shares no room with the caller."""
        if user_id != caller.user_id and not await self.shares_room(caller.user_id, user_id):
            raise Forbidden("You share no room with this user")
        person = self._find(user_id)
        if self.is_on and person is not None and (person.is_read if isinstance(person, Person) else True):
            return self.content_of(person, person.current(self._clock.seconds(), self._times))
        if not self.is_on or domain_of(user_id) != self._server_name:
            return {"presence": "offline"}
        row = (await self._store.get_states([user_id])).get(user_id)
        if person is None:
            person = Person(user_id)
        if isinstance(person, Person) and row is not None:
            _take(person, row)
        return self.content_of(person, person.current(self._clock.seconds(), self._times))

    async def shares_room(self, user_id: UserID, other: UserID) -> bool:
        """Whether both are in some room."""
        mine, theirs = await self._memberships.of_user(user_id), await self._memberships.of_user(other)
        few, many = (mine, theirs) if len(mine) < len(theirs) else (theirs, mine)
        return any(
            row.membership == "join" and nid in many and many[nid].membership == "join" for nid, row in few.items()
        )

    def content_of(self, person: Person | RemotePerson, shown: Shown) -> dict[str, object]:
        """Content of an m.presence event, as of now."""
        content: dict[str, object] = {"presence": shown.state}
        if person.last_active is not None:
            content["last_active_ago"] = self._milliseconds_since(person.last_active)
        if shown.state == "online":
            content["currently_active"] = shown.currently_active
        if shown.status_msg is not None:
            content["status_msg"] = shown.status_msg
        return content

    def get_changed(self, since: int | None) -> Collection[Person | RemotePerson]:
        """Whose presence was told anew since the position.

        None: everybody who is not offline; a position that reaches too far back: these, and who has lately become so.
        """
        if since == self._counter.position:
            return ()
        if since is not None and self._told_from <= since <= self._counter.position:
            recent: list[Person | RemotePerson] = []
            for user_id in reversed(self._told):
                if self._told[user_id] <= since:
                    break
                person = self._find(user_id)
                if person is not None:
                    recent.append(person)
            return recent
        everybody: list[Person | RemotePerson] = [*self._people.values(), *self._remote.values()]
        return [
            person
            for person in everybody
            if person.shown.state != "offline" or (since is not None and person.user_id in self._told)
        ]

    def get_present(self, user_id: str) -> Person | RemotePerson | None:
        """Somebody, unless they are offline."""
        person = self._find(UserID(user_id))
        return person if person is not None and person.shown.state != "offline" else None

    def watch(self, listener: Listener) -> None:
        """Wake the listener when there is something new for its user, until `unwatch`."""
        self._watchers.setdefault(listener.user_id, set()).add(listener)

    def unwatch(self, listener: Listener) -> None:
        """Wake it no more."""
        listeners = self._watchers.get(listener.user_id)
        if listeners is not None:
            listeners.discard(listener)
            if not listeners:
                del self._watchers[listener.user_id]

    # other servers

    def subscribe(self, subscriber: Subscriber) -> None:
        """Hear of every later change of this server's users, in batches."""
        self._subscribers += (subscriber,)

    def receive(self, origin: ServerName, updates: Sequence[PresenceUpdate]) -> None:
        """What another server says of its users; what it says of others' is passed over."""
        if self.is_on:
            self._remote.receive(origin, updates)

    async def do_expire_remote(self, limit: int) -> int:
        """Take those to be offline of whom their server has said nothing for long; how many."""
        return self._remote.expire(limit)

    # over restarts

    async def start(self) -> None:
        """Begin with who was there before; they are given the usual time to come back. Then write now and then."""
        if not self._tracks:
            return
        self._writing.start(WRITE_INTERVAL, now=False)
        now = self._clock.seconds()
        for row in await self._store.get_present():
            person = self._people.setdefault(UserID(row.user_id), Person(UserID(row.user_id)))
            if person.is_read or row.state not in ("online", "unavailable"):
                continue
            _take(person, row)
            state: State = "online" if row.state == "online" else "unavailable"
            person.shown = Shown(state, False, row.status_msg)
            person.devices[RESTART] = Device(state, 0, now)
            self._check_at(person, now + self._times.grace)

    async def stop(self) -> None:
        """Write what waits, and no more."""
        if self._writing.running:
            self._writing.stop()
        await self.flush()

    async def flush(self) -> None:
        """Write how people are there now. What fails is written with the next change."""
        people, self._unwritten = self._unwritten, {}
        if not people:
            return
        rows = [
            PresenceRow(
                person.user_id,
                person.shown.state,
                person.status_msg,
                None if person.last_active is None else int(person.last_active * 1000),
            )
            for person in people.values()
            if person.is_read and person.is_kept
        ]
        try:
            await self._database.write("set_presence_states", self._store.set_states, rows)
        except Exception:
            self._log.failure("could not write who is there")

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Somebody's account ends: they are offline, and nothing is kept of them."""
        self._store.remove_state(txn, user_id)
        txn.after_commit(lambda: self._remove(UserID(user_id)))

    # within

    def _remove(self, user_id: UserID) -> None:
        person = self._people.get(user_id)
        if person is not None:
            person.devices.clear()
            person.status_msg, person.last_active, person.is_kept = None, None, False
            self._look_at(person)

    def _find(self, user_id: UserID) -> Person | RemotePerson | None:
        return self._people.get(user_id) or self._remote.get(user_id)

    def _milliseconds_since(self, moment: float) -> int:
        return max(0, round((self._clock.seconds() - moment) * 1000))

    def _meet(self, caller: Requester, wanted: State | None, *, is_new_choice: bool) -> Device:
        """The device of the caller, that is there in the way that it says."""
        now = self._clock.seconds()
        person = self._people.get(caller.user_id)
        if person is None:
            person = self._people[caller.user_id] = Person(caller.user_id)
        key = caller.device_id or ""
        device = person.devices.get(key)
        if device is None:
            device = person.devices[key] = Device(wanted or "online", 0, now)
            if device.wanted == "online" and person.shown.state == "offline":
                person.last_active = now
        elif wanted is None or wanted == device.wanted or not (is_new_choice or self._may_choose(caller)):
            return device
        else:
            device.wanted = wanted
            if wanted == "online":
                person.last_active = now
        self._look_at(person)
        return device

    def _may_choose(self, caller: Requester) -> bool:
        """Whether another choice in /sync counts: one too many is passed over, not refused."""
        if not caller.rate_limited:
            return True
        try:
            self._limiter.check(Limit.PRESENCE, caller.user_id)
        except LimitExceeded:
            return False
        return True

    def _look_at(self, person: Person) -> None:
        """Something of the person may have changed."""
        now = self._clock.seconds()
        if not person.is_read or person.current(now, self._times) != person.shown:
            self._change(person.user_id)
        moment = person.next_change(now, self._times)
        if moment is not None:
            self._check_at(person, moment)

    def _check_at(self, person: Person, moment: float) -> None:
        """Look at the person then at the latest."""
        if person.check is not None:
            if person.check.getTime() <= moment:
                return
            person.check.cancel()
        person.check = self._clock.callLater(max(0.0, moment - self._clock.seconds()), self._check, person)

    def _check(self, person: Person) -> None:
        person.check = None
        person.drop_devices(self._clock.seconds(), self._times)
        self._look_at(person)
        if not person.devices and person.shown.state == "offline" and person.user_id not in self._told:
            self._forget(person)

    def _change(self, user_id: UserID) -> None:
        """Tell of the person with the next batch."""
        self._pending[user_id] = None
        if not self._releasing:
            self._releasing = True
            self._clock.callLater(max(0.0, self._not_before - self._clock.seconds()), self._begin_release)

    def _begin_release(self) -> None:
        Deferred.fromCoroutine(self._release()).addErrback(
            lambda failure: self._log.failure("could not tell who is there", failure)
        )

    async def _release(self) -> None:
        """Tell of all whose presence is another one than was last told."""
        pending, self._pending = self._pending, {}
        now = self._clock.seconds()
        try:
            await self._read_unread(pending)
            changed = [user_id for user_id in pending if self._tell(user_id, now)]
            woken = 0
            if changed:
                self._forget_oldest()
                self._tell_subscribers(changed)
                if self._watchers:
                    woken = await self._wake(changed)
            self._not_before = now + woken / WAKES_A_SECOND
        except Exception:
            self._pending = {**pending, **self._pending}
            self._not_before = now + RETRY_AFTER
            raise
        finally:
            self._releasing = False
            for user_id in list(self._pending):
                self._change(user_id)

    async def _read_unread(self, user_ids: Collection[UserID]) -> None:
        people = [self._people[user_id] for user_id in user_ids if user_id in self._people]
        unread = [person for person in people if not person.is_read]
        if unread:
            rows = await self._store.get_states([person.user_id for person in unread])
            for person in unread:
                row = rows.get(person.user_id)
                if row is not None and not person.is_read:
                    _take(person, row)
                person.is_read = True

    def _tell(self, user_id: UserID, now: float) -> bool:
        """Give what is new of somebody a position; False where nothing is."""
        person = self._find(user_id)
        if person is None:
            return False
        shown = person.current(now, self._times)
        if shown == person.shown:
            return False
        if isinstance(person, Person) and (shown.state, shown.status_msg) != (
            person.shown.state,
            person.shown.status_msg,
        ):
            self._unwritten[user_id] = person
        person.shown = shown
        self._told[user_id] = self._counter.next()
        self._told.move_to_end(user_id)
        return True

    def _forget_oldest(self) -> None:
        while len(self._told) > MAX_TOLD:
            user_id, self._told_from = self._told.popitem(last=False)
            person = self._people.get(user_id)
            if person is not None and person.shown.state == "offline" and not person.devices:
                self._forget(person)

    def _forget(self, person: Person) -> None:
        self._people.pop(person.user_id, None)

    def _tell_subscribers(self, changed: Sequence[UserID]) -> None:
        updates = [
            PresenceUpdate(
                user_id,
                person.shown.state,
                None if person.last_active is None else self._milliseconds_since(person.last_active),
                person.shown.currently_active,
                person.shown.status_msg,
            )
            for user_id in changed
            if (person := self._people.get(user_id)) is not None
        ]
        if updates:
            for subscriber in self._subscribers:
                subscriber(updates)

    async def _wake(self, changed: Sequence[UserID]) -> int:
        """Wake the watchers whom this concerns; how many."""
        watchers = self._watchers
        woken: set[str] = set()
        for user_id in changed:
            if user_id in watchers:
                woken.add(user_id)
            for nid, row in list((await self._memberships.of_user(user_id)).items()):
                if row.membership == "join":
                    woken |= watchers.keys() & (await self._memberships.local_members(nid))
        listeners = [listener for user_id in woken for listener in watchers.get(UserID(user_id), ())]
        self._notifier.wake(listeners)
        return len(listeners)


def _take(person: Person, row: PresenceRow) -> None:
    """What was written of the person."""
    person.status_msg = row.status_msg
    if person.last_active is None and row.last_active_ts is not None:
        person.last_active = row.last_active_ts / 1000
    person.is_read = True

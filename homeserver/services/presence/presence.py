"""Who is there: what this server's people do, and what other servers say of theirs.

Laws:
- It takes no position of the one sequence: what is told has one of the ephemeral counter (see
  `telling`).
- A change costs what it concerns: who does nothing, and whom nothing is heard of, costs nothing but
  memory.
- How somebody is there when asked for by name is never late, whatever has been told.
- The message of a status is written before it is acknowledged; the rest in batches (see `roster`).
- Nodes tell one another how people are there with the devices of each, as that changes and every
  `AGAIN` seconds: what a node says holds for `HOLDS`, and no longer where the node is gone.

spec: client-server-api#presence
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from federation.protocol.errors import Forbidden, InvalidParam, LimitExceeded
from federation.protocol.ids import ServerName, UserID, domain_of
from federation.rooms.memberships import Memberships
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.cluster.notify import NodeNotes
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.presence.active_users import Roster, take_written
from homeserver.services.presence.broadcast import Subscriber, Telling
from homeserver.services.presence.remote_users import PresenceUpdate, RemotePeople
from homeserver.services.presence.states import (
    LONGEST_STATUS,
    Device,
    Person,
    PresenceTimes,
    RemotePerson,
    Shown,
    State,
)
from storage.engine.transaction import WriteTransaction

Mode = Literal[True, False, "untracked"]

KIND: Final = "presence"
REMOTE: Final = "remote_presence"
"""Of notes to other nodes."""
AGAIN: Final = 20.0
HOLDS: Final = 50.0
"""Seconds."""
STATUS_BETWEEN_NODES: Final = 1000
"""Characters of a status of another server's user that one node tells the others; our own users'
are read."""


class PresenceNote(msgspec.Struct, frozen=True, array_like=True):
    """How somebody is there with the devices of a node."""

    user_id: UserID
    state: State
    last_active: float | None
    has_new_status: bool = False
    chosen_for: str | None = None
    """A device, if this is what its user has just chosen for it, which may synchronise with other
    nodes too."""


class RemoteNote(msgspec.Struct, frozen=True, array_like=True):
    """What another server told a node of one of its users."""

    origin: ServerName
    update: PresenceUpdate


class Presence:
    """The people who are there. For the reactor thread."""

    def __init__(
        self,
        clock: IReactorTime,
        roster: Roster,
        remote: RemotePeople,
        telling: Telling,
        memberships: Memberships,
        limiter: RateLimiter,
        *,
        server_name: ServerName,
        times: PresenceTimes,
        mode: Mode,
        notes: NodeNotes | None,
    ) -> None:
        """`mode`: False for no presence at all, "untracked" for that of other servers' users only.
        `notes`: how other nodes are told; None where there are none."""
        self._clock = clock
        self.roster = roster
        self._remote = remote
        self.telling = telling
        self._memberships = memberships
        self._limiter = limiter
        self._server_name = server_name
        self._times = times
        self.is_on = mode is not False
        self._tracks = mode is True
        self._notes = notes
        self._telling_again = LoopingCall(self._tell_nodes_again)
        self._telling_again.clock = clock
        if notes is not None and self._tracks:
            notes.register(KIND, PresenceNote, self._hear_node)
        if notes is not None and self.is_on:
            notes.register(REMOTE, RemoteNote, self._hear_of_remote)

    # what our users do

    def arrive(self, caller: Requester, wanted: State | None) -> None:
        """A device begins to synchronise, and says how its user is there (None: it does not say).
        `leave` follows."""
        if self._tracks:
            self._meet(caller, wanted, is_new_choice=False).syncing += 1

    def leave(self, caller: Requester) -> None:
        """The device's request has ended."""
        person = self.roster.people.get(caller.user_id)
        device = person.devices.get(caller.device_id or "") if person is not None else None
        if person is not None and device is not None:
            device.syncing = device.syncing - 1 if device.syncing else 0
            device.left = self._clock.seconds()
            moment = device.left + self._times.grace
            if not device.syncing and (person.check is None or moment < person.check_at):
                self._check_at(person, moment)

    def note_active(self, caller: Requester) -> None:
        """The user has just done something. spec: client-server-api#last-active-ago"""
        person = self.roster.people.get(caller.user_id)
        if person is None:
            return
        person.last_active = self._clock.seconds()
        device = person.devices.get(caller.device_id or "")
        if device is not None and device.wanted == "unavailable":
            device.wanted = "online"
        if not person.shown.currently_active:
            self._look_at(person)

    async def do_set(
        self, caller: Requester, user_id: UserID, state: State, status_msg: str | None
    ) -> None:
        """Say how one is there. Raises Forbidden, InvalidParam."""
        if user_id != caller.user_id:
            raise Forbidden("You can only say of yourself how you are there")
        if status_msg is not None and (len(status_msg) > LONGEST_STATUS or "\0" in status_msg):
            raise InvalidParam(f"status_msg has at most {LONGEST_STATUS} characters")
        if not self._tracks:
            return
        status_msg = status_msg or None
        known = await self.roster.read_one(user_id)
        if status_msg != (None if known is None else known.status_msg):
            await self.roster.do_write_status(user_id, state, status_msg)
            self._tell_new_status(user_id)
        device = self._meet(caller, state, is_new_choice=True)
        device.left = self._clock.seconds()
        person = self.roster.people[user_id]
        person.status_msg, person.is_read = status_msg, True
        person.last_active = device.left
        self._look_at(person)

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Somebody's account ends: they are offline, and nothing is kept of them."""
        self.roster.remove(txn, user_id)
        txn.after_commit(lambda: self._remove(UserID(user_id)))

    # reading

    async def get_status(self, caller: Requester, user_id: UserID) -> dict[str, object]:
        """How somebody is there just now. Raises Forbidden for who shares no room with the
        caller."""
        if user_id != caller.user_id and not await self.shares_room(caller.user_id, user_id):
            raise Forbidden("You share no room with this user")
        if not self.is_on:
            return {"presence": "offline"}
        person = self.roster.find(user_id)
        if person is None:
            person = Person(user_id)
        if (
            isinstance(person, Person)
            and not person.is_read
            and domain_of(user_id) == self._server_name
        ):
            row = await self.roster.read_one(user_id)
            if row is not None and not person.is_read:
                take_written(person, row)
        return self.content_of(person, person.current(self._clock.seconds(), self._times))

    async def shares_room(self, user_id: UserID, other: UserID) -> bool:
        """Whether both are in some room."""
        mine, theirs = (
            await self._memberships.of_user(user_id),
            await self._memberships.of_user(other),
        )
        few, many = (mine, theirs) if len(mine) < len(theirs) else (theirs, mine)
        return any(
            row.membership == "join" and nid in many and many[nid].membership == "join"
            for nid, row in few.items()
        )

    def content_of(self, person: Person | RemotePerson, shown: Shown) -> dict[str, object]:
        """Content of an m.presence event, as of now."""
        content: dict[str, object] = {"presence": shown.state}
        if person.last_active is not None:
            content["last_active_ago"] = max(
                0, round((self._clock.seconds() - person.last_active) * 1000)
            )
        if shown.state == "online":
            content["currently_active"] = shown.currently_active
        if shown.status_msg is not None:
            content["status_msg"] = shown.status_msg
        return content

    # other servers

    def subscribe(self, subscriber: Subscriber) -> None:
        """Hear of every later change of this server's users, in batches."""
        self.telling.subscribe(subscriber)

    def receive(self, origin: ServerName, updates: Sequence[PresenceUpdate]) -> None:
        """What another server says of its users; what it says of others' is passed over."""
        if not self.is_on:
            return
        for user_id in self._remote.receive(origin, updates):
            self.telling.change(user_id)
        if self._notes is not None:
            for update in updates:
                status = (
                    None if update.status_msg is None else update.status_msg[:STATUS_BETWEEN_NODES]
                )
                note = RemoteNote(origin, msgspec.structs.replace(update, status_msg=status))
                self._notes.put(REMOTE, update.user_id, note)

    async def do_expire_remote(self, limit: int) -> int:
        """Take those to be offline of whom their server has said nothing for long; how many."""
        expired = self._remote.expire(limit)
        for user_id in expired:
            self.telling.change(user_id)
        return len(expired)

    # over restarts

    async def start(self) -> None:
        """Begin with who was there before."""
        if self._tracks:
            for person in await self.roster.start():
                self._look_at(person)
            if self._notes is not None and not self._telling_again.running:
                self._telling_again.start(AGAIN)

    async def stop(self) -> None:
        """Write what waits, and no more."""
        if self._telling_again.running:
            self._telling_again.stop()
        await self.roster.stop()

    # other nodes

    def _hear_node(self, node: int, note: PresenceNote) -> None:
        """How another node's devices are there. Raises nothing."""
        now = self._clock.seconds()
        person = self.roster.people.get(note.user_id)
        if note.chosen_for is not None:
            if person is not None and note.chosen_for in person.devices:
                person.devices[note.chosen_for].wanted = note.state
                self._look_at(person)
            return
        if person is None:
            if note.state == "offline" and not note.has_new_status:
                return
            person = self.roster.people[note.user_id] = Person(note.user_id)
        if note.has_new_status:
            person.status_msg, person.is_read = None, False
        elif note.state == "offline":
            person.elsewhere.pop(node, None)
        else:
            # it is there for as long as what the node says holds
            person.elsewhere[node] = Device(note.state, 0, now + HOLDS - self._times.grace)
        if note.last_active is not None and note.last_active > (person.last_active or 0.0):
            person.last_active = person.noted_active = min(note.last_active, now)
        self._look_at(person)

    def _hear_of_remote(self, _node: int, note: RemoteNote) -> None:
        for user_id in self._remote.receive(note.origin, [note.update]):
            self.telling.change(user_id)

    def _tell_nodes(self, person: Person, *, again: bool) -> None:
        state = person.here(self._clock.seconds(), self._times)
        if self._notes is not None and (again or state != person.noted):
            person.noted, person.noted_active = state, person.last_active
            self._notes.put(
                KIND, person.user_id, PresenceNote(person.user_id, state, person.last_active)
            )

    def _tell_nodes_again(self) -> None:
        for person in self.roster.people.values():
            if person.noted != "offline" or person.last_active != person.noted_active:
                self._tell_nodes(person, again=True)

    def _tell_new_status(self, user_id: UserID) -> None:
        if self._notes is not None:
            self._notes.put(
                KIND,
                (user_id, "status"),
                PresenceNote(user_id, "offline", None, has_new_status=True),
            )

    # within

    def _meet(self, caller: Requester, wanted: State | None, *, is_new_choice: bool) -> Device:
        """The device of the caller, that is there in the way that it says."""
        person = self.roster.people.get(caller.user_id)
        if person is None:
            person = self.roster.people[caller.user_id] = Person(caller.user_id)
        key = caller.device_id or ""
        device = person.devices.get(key)
        if device is None:
            device = person.devices[key] = Device(wanted or "online", 0, self._clock.seconds())
            if device.wanted == "online" and person.shown.state == "offline":
                person.last_active = device.left
        elif (
            wanted is None
            or wanted == device.wanted
            or not (is_new_choice or self._may_choose(caller))
        ):
            return device
        else:
            device.wanted = wanted
            if wanted == "online":
                person.last_active = self._clock.seconds()
        self._look_at(person)
        if wanted is not None and self._notes is not None:
            note = PresenceNote(caller.user_id, wanted, None, chosen_for=key)
            self._notes.put(KIND, (caller.user_id, key), note)
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
        self._tell_nodes(person, again=False)
        if not person.is_read or person.current(now, self._times) != person.shown:
            self.telling.change(person.user_id)
        moment = person.next_change(now, self._times)
        if moment is not None:
            self._check_at(person, moment)

    def _check_at(self, person: Person, moment: float) -> None:
        """Look at the person then at the latest."""
        if person.check is not None:
            if person.check_at <= moment:
                return
            person.check.cancel()
        person.check_at = moment
        person.check = self._clock.callLater(
            max(0.0, moment - self._clock.seconds()), self._check, person
        )

    def _check(self, person: Person) -> None:
        person.check = None
        person.drop_devices(self._clock.seconds(), self._times)
        self._look_at(person)
        self.roster.forget_idle(person.user_id)

    def _remove(self, user_id: UserID) -> None:
        person = self.roster.people.get(user_id)
        if person is not None:
            person.devices.clear()
            person.status_msg, person.last_active, person.is_kept = None, None, False
            self._look_at(person)
        self._tell_new_status(user_id)

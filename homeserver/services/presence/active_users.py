"""Those who are there, or were lately: in memory, with what of them a restart must not forget.

Who is offline, and of whom nothing was told for long, is forgotten. For the reactor thread.
"""

from collections.abc import Collection, Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from federation.protocol.ids import UserID
from homeserver.services.presence.remote_users import RemotePeople
from homeserver.services.presence.states import RESTART, Device, Person, RemotePerson, Shown, State
from homeserver.services.streams.ephemeral_counter import EphemeralCounter
from homeserver.services.streams.latest_changes import LatestChanges
from storage.engine.database import Database, DatabaseUnavailable
from storage.engine.transaction import WriteTransaction
from storage.presence.presence import UNTOLD, PresenceRow, PresenceStore

MAX_TOLD: Final = 20_000
"""Of how many people the latest change is remembered."""
WRITE_INTERVAL: Final = 30.0
REMEMBERED: Final = 24 * 3600.0
"""For how many seconds before a restart it is known afterwards who had gone."""
STATES: Final[dict[str, State]] = {
    "online": "online",
    "unavailable": "unavailable",
    "offline": "offline",
}


class Roster:
    """The people, and when each was last told of."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        store: PresenceStore,
        remote: RemotePeople,
        counter: EphemeralCounter,
    ) -> None:
        self._clock = clock
        self._database = database
        self._store = store
        self._remote = remote
        self._counter = counter
        self.people: dict[UserID, Person] = {}
        """This server's own."""
        self._told: LatestChanges[UserID] = LatestChanges(MAX_TOLD, counter.position)
        self._unwritten: dict[UserID, Person] = {}
        self._writing = LoopingCall(lambda: Deferred.fromCoroutine(self.flush()))
        self._writing.clock = clock

    def find(self, user_id: UserID) -> Person | RemotePerson | None:
        """Somebody."""
        return self.people.get(user_id) or self._remote.get(user_id)

    def get_people(self) -> Sequence[Person | RemotePerson]:
        """Everybody."""
        return [*self.people.values(), *self._remote.values()]

    def get_changed(self, since: int | None) -> Collection[Person | RemotePerson]:
        """Whose presence was told anew since the position.

        None: everybody who is not offline; a position that reaches too far back: these, and who has
        lately become so.
        """
        if since == self._counter.position:
            return ()
        if since is not None and self._told.complete_from <= since <= self._counter.position:
            recent = map(self.find, self._told.since(since))
            return [person for person in recent if person is not None]
        return [
            person
            for person in self.get_people()
            if person.shown.state != "offline"
            or (since is not None and person.user_id in self._told)
        ]

    def note_told(self, person: Person | RemotePerson, shown: Shown) -> None:
        """The person is told to be there in another way from now on."""
        is_to_be_written = (shown.state, shown.status_msg) != (
            person.shown.state,
            person.shown.status_msg,
        )
        if isinstance(person, Person) and is_to_be_written:
            self._unwritten[person.user_id] = person
        person.shown = shown
        oldest = self._told.record(person.user_id, self._counter.next())
        if oldest is not None:
            self.forget_idle(oldest)

    def forget_idle(self, user_id: UserID) -> None:
        """Forget somebody who is offline and of whom nothing has to be told."""
        person = self.people.get(user_id)
        if person is None or person.devices or person.elsewhere or user_id in self._told:
            return
        if person.shown.state == "offline":
            del self.people[user_id]

    # what is written

    async def read(self, user_ids: Collection[UserID]) -> None:
        """Learn what is written of those of this server's users of whom that is not known."""
        people = [self.people[user_id] for user_id in user_ids if user_id in self.people]
        unread = [person for person in people if not person.is_read]
        if unread:
            rows = await self._store.get_states([person.user_id for person in unread])
            for person in unread:
                row = rows.get(person.user_id)
                if row is not None and not person.is_read:
                    take_written(person, row)
                person.is_read = True

    async def read_one(self, user_id: UserID) -> PresenceRow | None:
        """What is written of a user."""
        return (await self._store.get_states([user_id])).get(user_id)

    async def do_write_status(self, user_id: UserID, state: State, status_msg: str | None) -> None:
        """Write a status that its user sets now, and that is yet to be told."""
        row = PresenceRow(user_id, state, status_msg, int(self._clock.seconds() * 1000), UNTOLD)
        await self._database.write("set_presence_status", self._store.set_states, [row])

    async def start(self) -> Sequence[Person]:
        """Know who was there before the start, and who had lately gone; the former have the usual
        time to come back. Then write now and then. Returns those who were there."""
        self._writing.start(WRITE_INTERVAL, now=False)
        now = self._clock.seconds()
        since = int((now - REMEMBERED) * 1_000_000)
        gone = await self._store.get_gone(since, MAX_TOLD // 2)
        told: dict[UserID, int] = {}
        there: list[Person] = []
        for row in sorted([*await self._store.get_present(), *gone], key=lambda row: row.position):
            user_id = UserID(row.user_id)
            person = self.people.setdefault(user_id, Person(user_id))
            if person.is_read:
                continue
            take_written(person, row)
            told[user_id] = row.position if row.position != UNTOLD else self._counter.next()
            state = STATES[row.state]
            person.shown = Shown(state, state == "online", row.status_msg)
            if state != "offline":
                person.devices[RESTART] = Device(state, 0, now)
                there.append(person)
        complete_from = self._told.complete_from
        if len(gone) == MAX_TOLD // 2:  # there may be more, which were not read
            since = min(
                (row.position for row in gone if row.position != UNTOLD), default=complete_from
            )
        latest = {**told, **dict(self._told.items())}
        self._told = LatestChanges(MAX_TOLD, min(complete_from, since))
        for user_id, position in sorted(latest.items(), key=lambda each: each[1]):
            oldest = self._told.record(user_id, position)
            if oldest is not None:
                self.forget_idle(oldest)
        return there

    async def stop(self) -> None:
        """Write what waits, and no more."""
        if self._writing.running:
            self._writing.stop()
        await self.flush()

    async def flush(self) -> None:
        """Write how people are there now. What fails is written with the next change."""
        people, self._unwritten = self._unwritten, {}
        rows = [
            PresenceRow(
                person.user_id,
                person.shown.state,
                person.status_msg,
                None if person.last_active is None else int(person.last_active * 1000),
                self._told.get(person.user_id) or self._counter.position,
            )
            for person in people.values()
            if person.is_read and person.is_kept
        ]
        if not rows:
            return
        try:
            await self._database.write("set_presence_states", self._store.set_states, rows)
        except DatabaseUnavailable as error:
            self._log.warn("could not write who is there: {error}", error=str(error).strip())
        except Exception:
            self._log.failure("could not write who is there")

    def remove(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove what is written of a user."""
        self._store.remove_state(txn, user_id)


def take_written(person: Person, row: PresenceRow) -> None:
    """Let the person have what was written of them."""
    person.status_msg = row.status_msg
    if person.last_active is None and row.last_active_ts is not None:
        person.last_active = row.last_active_ts / 1000
    person.is_read = True

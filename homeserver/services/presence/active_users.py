"""Keeps the presence of local users who are, or recently were, online or unavailable. It is in
memory, and written to the database periodically, so that a restart does not lose it.

The module also keeps the position of the latest broadcast about a user, for at most
`MAX_BROADCASTS` users, local and remote. A local user who is offline and has no such position is
removed from memory.

`remote_users.py` caches the presence of remote users. Use this module only on the reactor thread.
"""

from collections.abc import Collection, Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from federation.protocol.ids import UserID
from homeserver.services.presence.remote_users import RemotePresenceCache
from homeserver.services.presence.states import (
    RESTART_DEVICE,
    DevicePresence,
    LocalPresence,
    PublishedPresence,
    RemotePresence,
    State,
)
from homeserver.services.streams.ephemeral_counter import EphemeralCounter
from homeserver.services.streams.latest_changes import LatestChanges
from storage.engine.database import Database, DatabaseUnavailable
from storage.engine.transaction import WriteTransaction
from storage.presence.presence import NOT_SENT, PresenceRow, PresenceStore

MAX_BROADCASTS: Final = 20_000
"""Users whose latest broadcast position is stored."""
WRITE_INTERVAL: Final = 30.0
"""Seconds."""
RESTORED_SECONDS: Final = 24 * 3600.0
"""A start restores users who went offline at most this long ago."""
STATES: Final[dict[str, State]] = {
    "online": "online",
    "unavailable": "unavailable",
    "offline": "offline",
}


class PresenceTable:
    """The presence of users, and the position of the latest broadcast about each."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: PresenceStore,
        remote: RemotePresenceCache,
        counter: EphemeralCounter,
    ) -> None:
        self._clock = clock
        self._database = database
        self._store = store
        self._remote = remote
        self._counter = counter
        self.local_users: dict[UserID, LocalPresence] = {}
        """Local users."""
        self._broadcasts: LatestChanges[UserID] = LatestChanges(
            capacity=MAX_BROADCASTS, complete_from=counter.position
        )
        """The latest broadcast about each user."""
        self._unsaved: dict[UserID, LocalPresence] = {}
        self._writing = LoopingCall(lambda: Deferred.fromCoroutine(self.flush()))
        self._writing.clock = clock

    def find(self, user_id: UserID) -> LocalPresence | RemotePresence | None:
        """Return a local or remote user's presence."""
        return self.local_users.get(user_id) or self._remote.get(user_id)

    def get_all(self) -> Sequence[LocalPresence | RemotePresence]:
        """Return the presence of all local and remote users in memory."""
        return [*self.local_users.values(), *self._remote.values()]

    def get_changed(self, since: int | None) -> Collection[LocalPresence | RemotePresence]:
        """Return the users whose presence was broadcast after `since`.

        If `since` is None: all users who are not offline. If it is too old: these, and those who
        recently went offline.
        """
        if since == self._counter.position:
            return ()
        if since is not None and self._broadcasts.complete_from <= since <= self._counter.position:
            recent = map(self.find, self._broadcasts.since(since))
            return [presence for presence in recent if presence is not None]
        return [
            presence
            for presence in self.get_all()
            if presence.published.state != "offline"
            or (since is not None and presence.user_id in self._broadcasts)
        ]

    def record_broadcast(
        self, presence: LocalPresence | RemotePresence, published: PublishedPresence
    ) -> None:
        """Record the presence that is broadcast now."""
        has_stored_change = (published.state, published.status_msg) != (
            presence.published.state,
            presence.published.status_msg,
        )
        if isinstance(presence, LocalPresence) and has_stored_change:
            self._unsaved[presence.user_id] = presence
        presence.published = published
        oldest = self._broadcasts.record(presence.user_id, self._counter.next())
        if oldest is not None:
            self.evict_idle(oldest)

    def evict_idle(self, user_id: UserID) -> None:
        """Remove a local user from memory who is offline and has no recent broadcast."""
        presence = self.local_users.get(user_id)
        if (
            presence is None
            or presence.devices
            or presence.other_nodes
            or user_id in self._broadcasts
        ):
            return
        if presence.published.state == "offline":
            del self.local_users[user_id]

    # stored presence

    async def load_stored(self, user_ids: Collection[UserID]) -> None:
        """Load the stored state of local users where it was not loaded yet."""
        presences = [
            self.local_users[user_id] for user_id in user_ids if user_id in self.local_users
        ]
        unread = [presence for presence in presences if not presence.is_loaded]
        if unread:
            rows = await self._store.get_states([presence.user_id for presence in unread])
            for presence in unread:
                row = rows.get(presence.user_id)
                if row is not None and not presence.is_loaded:
                    apply_stored(presence, row)
                presence.is_loaded = True

    async def get_stored(self, user_id: UserID) -> PresenceRow | None:
        """Return the stored state of a user."""
        return (await self._store.get_states([user_id])).get(user_id)

    async def do_write_status(self, user_id: UserID, state: State, status_msg: str | None) -> None:
        """Store a status that the user has just set and that is not broadcast yet."""
        row = PresenceRow(user_id, state, status_msg, int(self._clock.seconds() * 1000), NOT_SENT)
        await self._database.write("set_presence_status", self._store.set_states, [row])

    async def start(self) -> Sequence[LocalPresence]:
        """Restore the users who were present before the restart, with the usual grace time, and
        those who recently went offline. Start periodic writes. Return the present users."""
        self._writing.start(WRITE_INTERVAL, now=False)
        now = self._clock.seconds()
        since = int((now - RESTORED_SECONDS) * 1_000_000)
        offline = await self._store.get_offline(since, MAX_BROADCASTS // 2)
        broadcasts: dict[UserID, int] = {}
        online: list[LocalPresence] = []
        for row in sorted(
            [*await self._store.get_online(), *offline], key=lambda row: row.position
        ):
            user_id = UserID(row.user_id)
            presence = self.local_users.setdefault(user_id, LocalPresence(user_id))
            if presence.is_loaded:
                continue
            apply_stored(presence, row)
            broadcasts[user_id] = row.position if row.position != NOT_SENT else self._counter.next()
            state = STATES[row.state]
            presence.published = PublishedPresence(state, state == "online", row.status_msg)
            if state != "offline":
                presence.devices[RESTART_DEVICE] = DevicePresence(state, 0, now)
                online.append(presence)
        complete_from = self._broadcasts.complete_from
        if len(offline) == MAX_BROADCASTS // 2:  # there may be more, which were not read
            since = min(
                (row.position for row in offline if row.position != NOT_SENT), default=complete_from
            )
        latest = {**broadcasts, **dict(self._broadcasts.items())}
        self._broadcasts = LatestChanges(
            capacity=MAX_BROADCASTS, complete_from=min(complete_from, since)
        )
        for user_id, position in sorted(latest.items(), key=lambda each: each[1]):
            oldest = self._broadcasts.record(user_id, position)
            if oldest is not None:
                self.evict_idle(oldest)
        return online

    async def stop(self) -> None:
        """Write pending changes and stop the periodic writes."""
        if self._writing.running:
            self._writing.stop()
        await self.flush()

    async def flush(self) -> None:
        """Store changed presence. After a failure it is stored with the user's next change."""
        presences, self._unsaved = self._unsaved, {}
        rows = [
            PresenceRow(
                presence.user_id,
                presence.published.state,
                presence.status_msg,
                None if presence.last_active is None else int(presence.last_active * 1000),
                self._broadcasts.get(presence.user_id) or self._counter.position,
            )
            for presence in presences.values()
            if presence.is_loaded and presence.is_stored
        ]
        if not rows:
            return
        try:
            await self._database.write("set_presence_states", self._store.set_states, rows)
        except DatabaseUnavailable as error:
            self._log.warn("presence could not be stored: {error}", error=str(error).strip())
        except Exception:
            self._log.failure("presence could not be stored")

    def remove(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove the stored state of a user."""
        self._store.remove_state(txn, user_id)


def apply_stored(presence: LocalPresence, row: PresenceRow) -> None:
    """Apply the stored state of a user."""
    presence.status_msg = row.status_msg
    if presence.last_active is None and row.last_active_ts is not None:
        presence.last_active = row.last_active_ts / 1000
    presence.is_loaded = True

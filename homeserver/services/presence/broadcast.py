"""Broadcasts presence changes in batches, to waiting syncs and to subscribers. A batch wakes the
syncs of the changed users and of all users who share a room with one of them. Subscribers, such as
the sender of EDUs to remote servers, get the changes of local users.

After each batch there is a pause, in proportion to the number of syncs that it woke. So the cost of
presence is bounded, whatever the number of users. A change gets its ephemeral position when it is
broadcast. So a sync during the pause does not find the changes that wait for the next batch. Use
this module only on the reactor thread.
"""

from collections.abc import Callable, Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.ids import UserID
from federation.rooms.memberships import Memberships
from homeserver.cluster.notifier import Listener, Notifier
from homeserver.services.presence.active_users import PresenceTable
from homeserver.services.presence.remote_users import PresenceUpdate
from homeserver.services.presence.states import LocalPresence, PresenceTimes

WAKES_A_SECOND: Final = 200
"""The average number of readers that presence wakes in a second."""
RETRY_AFTER: Final = 10.0
"""Seconds between a database failure and the retry."""

Subscriber = Callable[[Sequence[PresenceUpdate]], None]
"""Called with changes of local users; may not raise or block."""


class PresenceBroadcaster:
    """Collects and broadcasts presence changes."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        table: PresenceTable,
        memberships: Memberships,
        notifier: Notifier,
        times: PresenceTimes,
    ) -> None:
        self._clock = clock
        self._table = table
        self._memberships = memberships
        self._notifier = notifier
        self._times = times
        self._pending: dict[UserID, None] = {}
        self._is_due = False
        self._not_before = 0.0
        self._watchers: dict[UserID, set[Listener]] = {}
        self._subscribers: tuple[Subscriber, ...] = ()

    def mark_changed(self, user_id: UserID) -> None:
        """Add a user whose presence may have changed to the next batch."""
        self._pending[user_id] = None
        if not self._is_due:
            self._is_due = True
            self._clock.callLater(max(0.0, self._not_before - self._clock.seconds()), self._begin)

    def watch(self, listener: Listener) -> None:
        """Wake the listener when its user sees a change, until `unwatch`."""
        self._watchers.setdefault(listener.user_id, set()).add(listener)

    def unwatch(self, listener: Listener) -> None:
        """Stop waking the listener."""
        listeners = self._watchers.get(listener.user_id)
        if listeners is not None:
            listeners.discard(listener)
            if not listeners:
                del self._watchers[listener.user_id]

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call the subscriber with all later changes of local users, in batches."""
        self._subscribers += (subscriber,)

    def _begin(self) -> None:
        Deferred.fromCoroutine(self._broadcast()).addErrback(
            lambda failure: self._log.failure("presence could not be broadcast", failure)
        )

    async def _broadcast(self) -> None:
        pending, self._pending = self._pending, {}
        now = self._clock.seconds()
        try:
            await self._table.load_stored(pending)
            changed = [user_id for user_id in pending if self._record(user_id)]
            if changed:
                self._call_subscribers(changed)
            users = await self._wake(changed) if self._watchers else 0
            self._not_before = now + users / WAKES_A_SECOND
        except Exception:
            self._pending = {**pending, **self._pending}
            self._not_before = now + RETRY_AFTER
            raise
        finally:
            self._is_due = False
            for user_id in list(self._pending):
                self.mark_changed(user_id)

    def _record(self, user_id: UserID) -> bool:
        """Record a user's presence. Return whether it changed."""
        presence = self._table.find(user_id)
        if presence is None:
            return False
        published = presence.current(self._clock.seconds(), self._times)
        if published == presence.published:
            return False
        self._table.record_broadcast(presence, published)
        return True

    def _call_subscribers(self, changed: Sequence[UserID]) -> None:
        presences = [
            self._table.local_users[user_id]
            for user_id in changed
            if user_id in self._table.local_users
        ]
        updates = [self._update_of(presence) for presence in presences]
        if updates:
            for subscriber in self._subscribers:
                subscriber(updates)

    def _update_of(self, presence: LocalPresence) -> PresenceUpdate:
        ago = None
        if presence.last_active is not None:
            ago = max(0, round((self._clock.seconds() - presence.last_active) * 1000))
        published = presence.published
        return PresenceUpdate(
            presence.user_id, published.state, ago, published.currently_active, published.status_msg
        )

    async def _wake(self, changed: Sequence[UserID]) -> int:
        """Wake the watchers who share a room with the changed users, and return their number."""
        watchers = self._watchers
        users: set[str] = set()
        for user_id in changed:
            if user_id in watchers:
                users.add(user_id)
            for nid, row in list((await self._memberships.of_user(user_id)).items()):
                if row.membership == "join":
                    users |= watchers.keys() & (await self._memberships.local_members(nid))
        listeners = [
            listener for user_id in users for listener in watchers.get(UserID(user_id), ())
        ]
        self._notifier.wake(listeners)
        return len(listeners)

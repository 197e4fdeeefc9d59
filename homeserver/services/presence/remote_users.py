"""Cache of the presence of remote users. Use this module only on the reactor thread."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import ServerName, UserID, domain_of
from homeserver.services.presence.states import MAX_STATUS, PublishedPresence, RemotePresence, State
from storage.cache import LRU

MAX_REMOTE: Final = 50_000
"""Capacity in users."""
LIFETIME: Final = 30 * 60.0
"""Seconds without an update after which a remote user counts as offline."""


class PresenceUpdate(msgspec.Struct, frozen=True):
    """A user's presence, as servers send it. spec: server-server-api#presence"""

    user_id: UserID
    state: State
    last_active_ago: int | None
    """Milliseconds."""
    currently_active: bool = False
    status_msg: str | None = None


class RemotePresenceCache:
    """Caches the presence of remote users, the least recently updated first."""

    def __init__(self, *, clock: IReactorTime, server_name: ServerName) -> None:
        """`server_name`: this server's own."""
        self._clock = clock
        self._server_name = server_name
        self._presences: LRU[UserID, RemotePresence] = LRU(max_entries=MAX_REMOTE)

    def get(self, user_id: UserID) -> RemotePresence | None:
        """Return a user's presence if it is cached."""
        return self._presences.peek(user_id)

    def values(self) -> Iterable[RemotePresence]:
        """Return all cached presence."""
        return self._presences.values()

    def receive(self, origin: ServerName, updates: Sequence[PresenceUpdate]) -> Sequence[UserID]:
        """Take updates of a server, and ignore those about users of other servers. Return the users
        whose presence changed."""
        now = self._clock.seconds()
        changed: list[UserID] = []
        for update in updates:
            if domain_of(update.user_id) != origin or origin == self._server_name:
                continue
            reported = PublishedPresence(
                update.state,
                update.currently_active and update.state == "online",
                None if update.status_msg is None else update.status_msg[:MAX_STATUS],
            )
            presence = self._presences.peek(update.user_id)
            if presence is None:
                presence = RemotePresence(update.user_id, reported, None, now)
            presence.reported, presence.reported_at = reported, now
            ago = update.last_active_ago
            presence.last_active = None if ago is None else now - max(ago, 0) / 1000
            self._presences.put(update.user_id, presence)
            if presence.reported != presence.published:
                changed.append(update.user_id)
        return changed

    def expire(self, limit: int) -> Sequence[UserID]:
        """Mark at most `limit` users without recent updates as offline, and return them."""
        now = self._clock.seconds()
        expired: list[UserID] = []
        while self._presences and len(expired) < limit:
            presence = next(iter(self._presences.values()))
            if now - presence.reported_at < LIFETIME:
                break
            presence.reported_at, presence.reported = (
                now,
                PublishedPresence("offline", False, presence.reported.status_msg),
            )
            expired.append(presence.user_id)
            if presence.published.state == "offline":
                self._presences.pop(presence.user_id)
            else:
                self._presences.put(presence.user_id, presence)
        return expired

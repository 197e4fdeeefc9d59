"""A cache of the presence of remote users, as their servers send it. For the reactor thread."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import ServerName, UserID, domain_of
from homeserver.services.presence.states import LONGEST_STATUS, RemotePerson, Shown, State
from storage.cache import LRU

MAX_REMOTE: Final = 50_000
"""Users in the cache."""
LIFETIME: Final = 30 * 60.0
"""Seconds after which somebody of whom their server says no more is taken to be offline."""


class PresenceUpdate(msgspec.Struct, frozen=True):
    """How somebody is there, as servers tell one another. spec: server-server-api#presence"""

    user_id: UserID
    state: State
    last_active_ago: int | None
    """Milliseconds."""
    currently_active: bool = False
    status_msg: str | None = None


class RemotePeople:
    """Remote users, those whose server has sent nothing about them for longest first."""

    def __init__(self, clock: IReactorTime, server_name: ServerName) -> None:
        """`server_name`: this server's own."""
        self._clock = clock
        self._server_name = server_name
        self._people: LRU[UserID, RemotePerson] = LRU(max_entries=MAX_REMOTE)

    def get(self, user_id: UserID) -> RemotePerson | None:
        """One of them."""
        return self._people.peek(user_id)

    def values(self) -> Iterable[RemotePerson]:
        """All of them."""
        return self._people.values()

    def receive(self, origin: ServerName, updates: Sequence[PresenceUpdate]) -> Sequence[UserID]:
        """What a server says of its users; what it says of others' is passed over. Returns who is
        there in another way."""
        now = self._clock.seconds()
        changed: list[UserID] = []
        for update in updates:
            if domain_of(update.user_id) != origin or origin == self._server_name:
                continue
            told = Shown(
                update.state,
                update.currently_active and update.state == "online",
                None if update.status_msg is None else update.status_msg[:LONGEST_STATUS],
            )
            person = self._people.peek(update.user_id)
            if person is None:
                person = RemotePerson(update.user_id, told, None, now)
            person.told, person.heard = told, now
            ago = update.last_active_ago
            person.last_active = None if ago is None else now - max(ago, 0) / 1000
            self._people.put(update.user_id, person)
            if person.told != person.shown:
                changed.append(update.user_id)
        return changed

    def expire(self, limit: int) -> Sequence[UserID]:
        """Take those to be offline, `limit` at most, of whom nothing was heard for long; who these
        are."""
        now = self._clock.seconds()
        expired: list[UserID] = []
        while self._people and len(expired) < limit:
            person = next(iter(self._people.values()))
            if now - person.heard < LIFETIME:
                break
            person.heard, person.told = now, Shown("offline", False, person.told.status_msg)
            expired.append(person.user_id)
            if person.shown.state == "offline":
                self._people.pop(person.user_id)
            else:
                self._people.put(person.user_id, person)
        return expired

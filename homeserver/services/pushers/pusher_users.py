"""The users with enabled pushers. Holds the IDs of all these users in memory, and caches their
pushers. Use this module only on the reactor thread.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set

from storage.cache import LRU
from storage.push.pushers import PusherRow, PusherStore


class PusherUsers:
    """The users with enabled pushers."""

    def __init__(self, *, store: PusherStore, capacity: int) -> None:
        """`capacity`: the number of users whose pushers are cached."""
        self._store = store
        self._users: set[str] = set()
        self._rows: LRU[str, Sequence[PusherRow]] = LRU(max_entries=capacity)

    @property
    def users(self) -> Set[str]:
        """All users with enabled pushers. The set changes: read it, do not store it."""
        return self._users

    async def load(self) -> None:
        """Clear the cache and load all users."""
        self._rows.clear()
        self._users = await self._store.get_users()

    async def refresh(self, user_ids: Collection[str]) -> Mapping[str, Sequence[PusherRow]]:
        """Read the pushers of these users again after a change, and return the enabled ones of
        each."""
        for user_id in user_ids:
            self._rows.pop(user_id)
        found = await self._store.get_active(user_ids)
        rows = {user_id: found.get(user_id, ()) for user_id in user_ids}
        for user_id, of_user in rows.items():
            if of_user:
                self._users.add(user_id)
                self._rows.put(user_id, of_user)
            else:
                self._users.discard(user_id)
        return rows

    async def get(self, user_ids: Iterable[str]) -> Mapping[str, Sequence[PusherRow]]:
        """Return the enabled pushers of these users. One query for those that are not cached."""
        wanted = tuple(user_ids)
        found = self._rows.get_many(wanted)
        missing = [user_id for user_id in wanted if user_id not in found]
        if missing:
            read = await self._store.get_active(missing)
            for user_id in missing:
                found[user_id] = rows = read.get(user_id, ())
                self._rows.put(user_id, rows)
        return found

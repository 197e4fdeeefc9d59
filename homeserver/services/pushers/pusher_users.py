"""Who has pushers: names in memory, the pushers themselves as they are needed. For the reactor
thread."""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set

from storage.cache import LRU
from storage.push.pushers import PusherRow, PusherStore


class Roster:
    """Users with pushers that are to be pushed to."""

    def __init__(self, store: PusherStore, *, capacity: int) -> None:
        """`capacity`: users whose pushers are cached."""
        self._store = store
        self._users: set[str] = set()
        self._rows: LRU[str, Sequence[PusherRow]] = LRU(max_entries=capacity)

    @property
    def users(self) -> Set[str]:
        """All of them. The set is the roster's own: read, don't keep."""
        return self._users

    async def load(self) -> None:
        """Begin anew."""
        self._rows.clear()
        self._users = await self._store.get_users()

    async def refresh(self, user_ids: Collection[str]) -> Mapping[str, Sequence[PusherRow]]:
        """The pushers of these users were changed; the enabled ones as they are now, of all of
        them."""
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
        """The enabled pushers of these users."""
        wanted = tuple(user_ids)
        found = self._rows.get_many(wanted)
        missing = [user_id for user_id in wanted if user_id not in found]
        if missing:
            read = await self._store.get_active(missing)
            for user_id in missing:
                found[user_id] = rows = read.get(user_id, ())
                self._rows.put(user_id, rows)
        return found

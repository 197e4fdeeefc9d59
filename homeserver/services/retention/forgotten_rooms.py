"""Deletes the messages of rooms that nobody of this server remembers any more, some time later."""

from collections.abc import Callable
from typing import Final

from homeserver.services.secret_text import SecretText
from storage.history_purges import HistoryPurgeStore

ROOMS_AT_ONCE: Final = 200


class ForgottenRooms:
    """The steps of the job."""

    def __init__(
        self, store: HistoryPurgeStore, secret_text: SecretText, now_ms: Callable[[], int], *, period_ms: int
    ) -> None:
        """`period_ms` after it was seen that nobody remembers a room, its purge begins."""
        self._store = store
        self._secret_text = secret_text
        self._now_ms = now_ms
        self._period_ms = period_ms
        self._upto = 0

    async def do_step(self, limit: int) -> int:
        """Look at so many more rooms; how many it were. After the last one, the purges begin whose time has come."""
        done = 0
        while done < limit:
            looked = await self._store.note_forgotten(self._upto, min(ROOMS_AT_ONCE, limit - done), self._now_ms())
            done += looked.count
            self._upto = looked.upto
            if looked.count == 0:
                self._upto = 0
                before = self._now_ms() - self._period_ms
                while await self._store.begin_forgotten(before, self._now_ms(), self._secret_text.purge_id()):
                    pass
                break
        return done

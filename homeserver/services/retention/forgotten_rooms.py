"""Deletes the messages of rooms that nobody of this server remembers any more, some time later."""

from typing import Final

from homeserver.services.retention.trusted_clock import BelievedTime
from homeserver.services.tokens.secret_tokens import SecretText
from storage.retention.history_purges import HistoryPurgeStore

ROOMS_AT_ONCE: Final = 200


class ForgottenRooms:
    """The steps of the job."""

    def __init__(
        self,
        store: HistoryPurgeStore,
        secret_text: SecretText,
        time: BelievedTime,
        *,
        period_ms: int,
    ) -> None:
        """`period_ms` after it was seen that nobody remembers a room, its purge begins."""
        self._store = store
        self._secret_text = secret_text
        self._time = time
        self._period_ms = period_ms
        self._upto = 0

    async def do_step(self, limit: int) -> int:
        """Look at so many more rooms; how many it were. After the last one, the purges begin whose
        time has come.

        Nothing is done while the clock is not believed.
        """
        now = await self._time.read()
        if now is None:
            return 0
        done = 0
        while done < limit:
            looked = await self._store.note_forgotten(
                self._upto, min(ROOMS_AT_ONCE, limit - done), now
            )
            done += looked.count
            self._upto = looked.upto
            if looked.count == 0:
                self._upto = 0
                while await self._store.begin_forgotten(
                    now - self._period_ms, now, self._secret_text.purge_id()
                ):
                    pass
                break
        return done

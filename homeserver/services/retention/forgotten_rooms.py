"""Purges the messages of rooms that all local users have forgotten, after a delay."""

from typing import Final

from homeserver.services.retention.trusted_clock import TrustedClock
from homeserver.services.tokens.secret_tokens import SecretGenerator
from storage.retention.history_purges import HistoryPurgeStore

ROOM_BATCH: Final = 200


class ForgottenRoomPurges:
    """Runs the steps of the job."""

    def __init__(
        self,
        *,
        store: HistoryPurgeStore,
        secret_text: SecretGenerator,
        time: TrustedClock,
        period_ms: int,
    ) -> None:
        """`period_ms`: the time between the detection of a forgotten room and its purge."""
        self._store = store
        self._secret_text = secret_text
        self._time = time
        self._period_ms = period_ms
        self._upto = 0

    async def do_step(self, limit: int) -> int:
        """Check up to `limit` rooms and return their number. After the last one, start the purges
        that are due.

        Does nothing while the clock is not trusted.
        """
        now = await self._time.read()
        if now is None:
            return 0
        done = 0
        while done < limit:
            checked = await self._store.record_forgotten(
                self._upto, min(ROOM_BATCH, limit - done), now
            )
            done += checked.count
            self._upto = checked.upto
            if checked.count == 0:
                self._upto = 0
                while await self._store.start_forgotten(
                    now - self._period_ms, now, self._secret_text.purge_id()
                ):
                    pass
                break
        return done

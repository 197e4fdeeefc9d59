"""Letters about what people have missed: when they are written.

Laws:
- A letter is written when something has waited unread for `delay`; what is in it is found then, so
  that what was read meanwhile is not.
- About one room letters come ever more seldom, up to one a day, until its reader is seen in the
  room again, or nothing has happened there for two days.
- A letter, and that it was written, are one write: no restart loses one or sends one twice.
- The sender is the server, by the name that its operator gave it: what an app calls itself is never
  the sender's name, and stands in the subject only where the operator says none.
- A letter that was not sent yet goes when something in it loses its content or is too old; the next
  one tells the rest.
- An event writes at most one row, when it is the first one that waits.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.protocol.ids import UserID
from homeserver.config.email import APP_NAME
from homeserver.services.email.outbox import Outbox
from homeserver.services.pages.languages import Languages
from homeserver.services.pushers.digest_texts import DigestTexts
from homeserver.services.pushers.missed_messages import Missed, MissedEvents
from homeserver.services.pushers.unsubscribe import Unsubscribing
from storage.cache import LRU
from storage.email.outbox import LetterOf
from storage.engine.database import Database, DatabaseUnavailable
from storage.engine.transaction import WriteTransaction
from storage.profiles.profiles import ProfileStore
from storage.push.pushers import EmailPause, PusherRow, PusherStore

GROWTH: Final = 6
LONGEST_PAUSE_MS: Final = 24 * 3600_000
FORGOTTEN_MS: Final = 48 * 3600_000
SHORTEST_PAUSE_MS: Final = 60_000
AT_ONCE: Final = 20
LONGEST_SLEEP: Final = 3600.0
"""Seconds after which the pushers are looked at in any case."""
RETRY_SECONDS: Final = 60.0
DUE_REMEMBERED: Final = 50_000


class _Data(msgspec.Struct):
    brand: str | None = None


class EmailDigests:
    """Writes letters. For the reactor thread."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        store: PusherStore,
        profiles: ProfileStore,
        missed: MissedEvents,
        texts: DigestTexts,
        unsubscribing: Unsubscribing,
        outbox: Outbox,
        languages: Languages,
        now_ms: Callable[[], int],
        *,
        app_name: str | None,
        delay_ms: int,
    ) -> None:
        """`app_name`: what the operator calls the service; None: as the app does in which the
        letters were switched on."""
        self._clock = clock
        self._database = database
        self._store = store
        self._profiles = profiles
        self._missed = missed
        self._texts = texts
        self._unsubscribing = unsubscribing
        self._outbox = outbox
        self._languages = languages
        self._now_ms = now_ms
        self._app_name = app_name
        self._delay_ms = delay_ms
        self._due: LRU[int, int] = LRU(max_entries=DUE_REMEMBERED)
        """When pushers are looked at, as far as it is known here."""
        self._noted: dict[int, int] = {}
        self._held: LRU[tuple[str, int], dict[int, int]] = LRU(max_entries=DUE_REMEMBERED)
        """By user and room until when no letter about the room goes out, by pusher; until the user
        is seen there."""
        self._timer: IDelayedCall | None = None
        self._is_working = False
        self._active = False

    async def note(self, pusher: PusherRow, room_nid: int) -> None:
        """There is something in the room that this pusher is to tell."""
        now = self._now_ms()
        known = self._due.peek(pusher.pusher_nid)
        if known is not None and known <= now + self._delay_ms:
            return
        earliest = now + self._delay_ms
        held = (self._held.peek((pusher.user_id, room_nid)) or {}).get(pusher.pusher_nid, 0)
        if known is not None and known <= held and held > earliest:
            # the room waits for longer than the pusher does: so each message to who does not read
            # costs nothing
            return
        pauses = await self._store.get_pauses(pusher.pusher_nid)
        due = await self._after_pause(UserID(pusher.user_id), room_nid, earliest, pauses)
        if due > earliest:
            place = (pusher.user_id, room_nid)
            self._held.put(place, {**(self._held.peek(place) or {}), pusher.pusher_nid: due})
        if known is None or due < known:
            self._noted[pusher.pusher_nid] = due
            self._due.put(pusher.pusher_nid, due)

    def note_reading(self, user_id: str, room_nid: int) -> None:
        """The user was seen in a room: it is told of as at first."""
        self._held.pop((user_id, room_nid))

    async def flush(self) -> None:
        """What was noted is durable when this returns."""
        noted, self._noted = self._noted, {}
        if noted:
            try:
                await self._store.set_due(noted)
            except BaseException:
                self._noted = noted | self._noted
                raise
            self._sleep_until(min(noted.values()))

    async def is_missed(self, pusher_nid: int, event_nids: Sequence[int]) -> bool:
        """Whether a letter that tells these events may still go out: its pusher is on, and its user
        has missed all of them."""
        row = await self._store.get_pusher(pusher_nid)
        if row is None:
            return False
        active = (await self._store.get_active([row.user_id])).get(row.user_id, ())
        is_on = any(each.pusher_nid == pusher_nid for each in active)
        return is_on and await self._missed.are_missed(UserID(row.user_id), event_nids)

    def start(self) -> None:
        """Write from now on, first what has become due meanwhile."""
        self._active = True
        self._due.clear()
        self._noted.clear()
        self._held.clear()
        self._sleep_until(0)

    def stop(self) -> None:
        """Write no more."""
        self._active = False
        self._cancel()

    def _sleep_until(self, ts: int) -> None:
        """Look then, unless that is to happen sooner."""
        seconds = min(max(0.0, ts / 1000 - self._clock.seconds()), LONGEST_SLEEP)
        if self._timer is not None and self._timer.active():
            if self._timer.getTime() <= self._clock.seconds() + seconds:
                return
            self._timer.cancel()
        if self._active:
            self._timer = self._clock.callLater(seconds, self._begin)

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _begin(self) -> None:
        if not self._is_working:
            self._is_working = True
            Deferred.fromCoroutine(self._work()).addErrback(self._fail).addBoth(self._rest)

    def _fail(self, failure: Failure) -> None:
        self.log.failure("letters about what people missed could not be written", failure)
        self._sleep_until(self._now_ms() + int(RETRY_SECONDS * 1000))

    def _rest(self, _: object) -> None:
        self._is_working = False

    async def _work(self) -> None:
        await self.flush()  # what could not be noted, as the database was away
        while self._active:
            rows = await self._store.get_due(self._now_ms(), AT_ONCE)
            for row in rows:
                if self._active:
                    await self._look_safely(row)
            if not rows:
                break
        next_ts = await self._store.get_next_due()
        self._sleep_until(
            next_ts if next_ts is not None else self._now_ms() + int(LONGEST_SLEEP * 1000)
        )

    async def _look_safely(self, row: PusherRow) -> None:
        """As `_look`; where that fails by a bug of ours, the next letter is tried in a day."""
        try:
            await self._look(row)
        except DatabaseUnavailable:
            raise
        except Exception:
            self.log.failure(
                "a letter about what {user} missed could not be written", user=row.user_id
            )
            later = self._now_ms() + LONGEST_PAUSE_MS
            await self._database.write(
                "put_off_letter",
                self._store.set_looked,
                row.pusher_nid,
                row.position,
                later,
                None,
                0,
            )
            self._due.put(row.pusher_nid, later)

    async def _look(self, row: PusherRow) -> None:
        """Write a letter if it is time for one, else note when it may be."""
        now, user_id = self._now_ms(), UserID(row.user_id)
        self._due.pop(row.pusher_nid)  # what comes from here on is noted anew
        missed = await self._missed.get(user_id, row.position)
        pauses = await self._store.get_pauses(row.pusher_nid)
        due = min(
            [await self._due_of(user_id, missed, at, pauses) for at in range(len(missed.rooms))],
            default=None,
        )
        if due is None or due > now:
            position = row.position if due is not None else missed.upto
            await self._write(row, position, due, None, None)
            return
        language = self._languages.choose(row.lang)
        app_name = self._app_name or msgspec.json.decode(row.data, type=_Data).brand or APP_NAME
        link = self._unsubscribing.link(row.pusher_nid)
        digest = await self._texts.write(
            user_id, missed, language, app_name, link, await self._zone_of(user_id)
        )
        message = self._outbox.letters.write_digest(
            language, digest, row.pushkey, self._clock.seconds()
        )
        letter: dict[int, EmailPause] = {}
        for room in missed.rooms:
            room_nid = room.membership.room_nid
            before = pauses.get(room_nid)
            first = max(self._delay_ms, SHORTEST_PAUSE_MS)
            if before is None or await self._missed.was_in_room_since(
                user_id, room_nid, before.sent_ts
            ):
                letter[room_nid] = EmailPause(now, first)
            else:
                letter[room_nid] = EmailPause(now, min(before.pause_ms * GROWTH, LONGEST_PAUSE_MS))
        told = [
            event.nid
            for room in missed.rooms
            for event in (*room.events, *room.edits.values())
            if event.nid > 0
        ]
        await self._write(row, missed.upto, None, letter, message, told)

    async def _write(
        self,
        row: PusherRow,
        position: int,
        due_ts: int | None,
        letter: Mapping[int, EmailPause] | None,
        message: bytes | None,
        told: Sequence[int] = (),
    ) -> None:
        def write(txn: WriteTransaction) -> None:
            forgotten = self._now_ms() - FORGOTTEN_MS
            if (
                self._store.set_looked(txn, row.pusher_nid, position, due_ts, letter, forgotten)
                and message is not None
            ):
                self._outbox.add_written(
                    txn, message, row.pushkey, LetterOf(row.pusher_nid, row.position, told)
                )

        await self._database.write("write_digest", write)
        noted = self._due.peek(row.pusher_nid)
        if noted is not None:  # an event came meanwhile; this write may have replaced its due time
            self._noted[row.pusher_nid] = noted
            await self.flush()
        if due_ts is not None:
            self._due.put(row.pusher_nid, due_ts if noted is None else min(due_ts, noted))

    async def _due_of(
        self, user_id: UserID, missed: Missed, at: int, pauses: Mapping[int, EmailPause]
    ) -> int:
        """When the room may be told of: once its reader had time to read, and not too soon after
        the last letter."""
        room, now = missed.rooms[at], self._now_ms()
        sent = room.waits_since
        # a time that lies ahead was made up
        due = sent + self._delay_ms if sent <= now else now
        return await self._after_pause(user_id, room.membership.room_nid, due, pauses)

    async def _after_pause(
        self, user_id: UserID, room_nid: int, due: int, pauses: Mapping[int, EmailPause]
    ) -> int:
        """Then, or later where a letter about the room went out lately and its reader was not seen
        there since."""
        pause = pauses.get(room_nid)
        if pause is None or pause.sent_ts + pause.pause_ms <= due:
            return due
        was_seen = await self._missed.was_in_room_since(user_id, room_nid, pause.sent_ts)
        return due if was_seen else pause.sent_ts + pause.pause_ms

    async def _zone_of(self, user_id: UserID) -> tzinfo:
        """The user's time zone, as their profile says it."""
        value = (await self._profiles.get_profiles([user_id])).get(user_id, {}).get("m.tz")
        try:
            return UTC if value is None else ZoneInfo(msgspec.json.decode(value, type=str))
        except (msgspec.MsgspecError, ZoneInfoNotFoundError, ValueError, OSError):
            return UTC

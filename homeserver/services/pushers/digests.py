"""Writes e-mails about missed messages: decides when one is due, and adds it to the outbox.

Laws:
- An e-mail is written when a message has been unread for the configured delay. Its content is
  computed at that time, so it leaves out what was read during the delay.
- The pauses between e-mails about one room grow to a day. A pause ends early if the user reads
  something in the room. The pauses then start again with the shortest one. The same happens
  after two days without an e-mail about the room.
- An e-mail that is to be sent and the state of its pusher are stored in one write: a restart
  neither loses an e-mail nor writes it again.
- The `From` header comes from the configuration, never from the pusher. The name of the app that
  set the pusher (`brand`) is in the subject only if the operator configured no `app_name`.
- An e-mail in the outbox is dropped if an event in it is read, redacted or purged before it is
  sent. The next e-mail contains the other events.
- A new event writes at most one row for each pusher: the time at which the next e-mail is due. It
  writes nothing if the e-mail is already due early enough.
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
from homeserver.services.pushers.missed_messages import MissedEvents, MissedMessages
from homeserver.services.pushers.unsubscribe import UnsubscribeLinks
from storage.cache import LRU
from storage.email.outbox import NotificationEmail
from storage.engine.database import Database, DatabaseUnavailable
from storage.engine.transaction import WriteTransaction
from storage.profiles.profiles import ProfileStore
from storage.push.pushers import EmailPause, PusherRow, PusherStore

PAUSE_GROWTH: Final = 6
MAX_PAUSE_MS: Final = 24 * 3600_000
PAUSE_RETENTION_MS: Final = 48 * 3600_000
MIN_PAUSE_MS: Final = 60_000
BATCH: Final = 20
MAX_SLEEP: Final = 3600.0
"""Seconds after which the pushers are examined in any case."""
RETRY_SECONDS: Final = 60.0
MAX_CACHED: Final = 50_000


class _Data(msgspec.Struct):
    brand: str | None = None


class EmailDigests:
    """Sends e-mails about missed messages. Use this class only on the reactor thread."""

    log = Logger()

    # More than ten: it runs all steps from the missed event to the e-mail; two are options.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: PusherStore,
        profiles: ProfileStore,
        missed: MissedEvents,
        texts: DigestTexts,
        unsubscribing: UnsubscribeLinks,
        outbox: Outbox,
        languages: Languages,
        now_ms: Callable[[], int],
        app_name: str | None,
        delay_ms: int,
    ) -> None:
        """`app_name`: the operator's name of the service; None: the brand of the app that set the
        pusher."""
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
        self._due: LRU[int, int] = LRU(max_entries=MAX_CACHED)
        """When each pusher is examined next, as far as this process knows."""
        self._pending: dict[int, int] = {}
        self._backed_off: LRU[tuple[str, int], dict[int, int]] = LRU(max_entries=MAX_CACHED)
        """By user and room, and by pusher: until when no e-mail about the room is sent. Removed
        when the user is seen there."""
        self._timer: IDelayedCall | None = None
        self._is_working = False
        self._active = False

    async def record(self, pusher: PusherRow, room_nid: int) -> None:
        """Record that an event in the room concerns this pusher."""
        now = self._now_ms()
        known = self._due.peek(pusher.pusher_nid)
        if known is not None and known <= now + self._delay_ms:
            return
        earliest = now + self._delay_ms
        backed_off_until = (self._backed_off.peek((pusher.user_id, room_nid)) or {}).get(
            pusher.pusher_nid, 0
        )
        if known is not None and known <= backed_off_until and backed_off_until > earliest:
            # the room backs off for longer than the pusher waits: further messages to an absent
            # user cost nothing
            return
        pauses = await self._store.get_pauses(pusher.pusher_nid)
        due = await self._after_pause(UserID(pusher.user_id), room_nid, earliest, pauses)
        if due > earliest:
            key = (pusher.user_id, room_nid)
            self._backed_off.put(
                key, {**(self._backed_off.peek(key) or {}), pusher.pusher_nid: due}
            )
        if known is None or due < known:
            self._pending[pusher.pusher_nid] = due
            self._due.put(pusher.pusher_nid, due)

    def record_read(self, user_id: str, room_nid: int) -> None:
        """Record that the user was seen in a room, which ends its back-off."""
        self._backed_off.pop((user_id, room_nid))

    async def flush(self) -> None:
        """Store what was recorded; it is durable when this returns."""
        pending, self._pending = self._pending, {}
        if pending:
            try:
                await self._store.set_due(pending)
            except BaseException:
                self._pending = pending | self._pending
                raise
            self._sleep_until(min(pending.values()))

    async def is_missed(self, pusher_nid: int, event_nids: Sequence[int]) -> bool:
        """Return whether an e-mail about these events may still be sent: its pusher is enabled, and
        the user has missed all of them."""
        row = await self._store.get_pusher(pusher_nid)
        if row is None:
            return False
        active = (await self._store.get_active([row.user_id])).get(row.user_id, ())
        is_on = any(each.pusher_nid == pusher_nid for each in active)
        return is_on and await self._missed.are_missed(UserID(row.user_id), event_nids)

    def start(self) -> None:
        """Start to send e-mails, beginning with what became due meanwhile."""
        self._active = True
        self._due.clear()
        self._pending.clear()
        self._backed_off.clear()
        self._sleep_until(0)

    def stop(self) -> None:
        """Stop sending e-mails."""
        self._active = False
        self._cancel()

    def _sleep_until(self, ts: int) -> None:
        """Examine the pushers at a time, unless that happens sooner."""
        seconds = min(max(0.0, ts / 1000 - self._clock.seconds()), MAX_SLEEP)
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
            Deferred.fromCoroutine(self._work()).addErrback(self._fail).addBoth(self._on_done)

    def _fail(self, failure: Failure) -> None:
        self.log.failure("e-mails about missed messages failed", failure)
        self._sleep_until(self._now_ms() + int(RETRY_SECONDS * 1000))

    def _on_done(self, _: object) -> None:
        self._is_working = False

    async def _work(self) -> None:
        await self.flush()  # what could not be stored while the database was unavailable
        while self._active:
            rows = await self._store.get_due(self._now_ms(), BATCH)
            for row in rows:
                if self._active:
                    await self._examine_safely(row)
            if not rows:
                break
        next_ts = await self._store.get_next_due()
        self._sleep_until(
            next_ts if next_ts is not None else self._now_ms() + int(MAX_SLEEP * 1000)
        )

    async def _examine_safely(self, row: PusherRow) -> None:
        """Examine a pusher as `_examine` does; after an unexpected error, try the next e-mail in a
        day."""
        try:
            await self._examine(row)
        except DatabaseUnavailable:
            raise
        except Exception:
            self.log.failure(
                "the e-mail about messages that {user} missed failed", user=row.user_id
            )
            retry_ts = self._now_ms() + MAX_PAUSE_MS
            await self._database.write(
                "postpone_digest",
                self._store.set_checked,
                row.pusher_nid,
                row.position,
                retry_ts,
                None,
                0,
            )
            self._due.put(row.pusher_nid, retry_ts)

    async def _examine(self, row: PusherRow) -> None:
        """Send an e-mail if one is due, else store when the next one may be."""
        now, user_id = self._now_ms(), UserID(row.user_id)
        self._due.pop(row.pusher_nid)  # events from here on set a new due time
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
            user_id, missed, language, app_name, link, await self._get_time_zone(user_id)
        )
        message = self._outbox.renderer.render_digest(
            language, digest, row.pushkey, self._clock.seconds()
        )
        sent_pauses: dict[int, EmailPause] = {}
        for room in missed.rooms:
            room_nid = room.membership.room_nid
            before = pauses.get(room_nid)
            first = max(self._delay_ms, MIN_PAUSE_MS)
            if before is None or await self._missed.was_in_room_since(
                user_id, room_nid, before.sent_ts
            ):
                sent_pauses[room_nid] = EmailPause(now, first)
            else:
                sent_pauses[room_nid] = EmailPause(
                    now, min(before.interval_ms * PAUSE_GROWTH, MAX_PAUSE_MS)
                )
        event_nids = [
            event.nid
            for room in missed.rooms
            for event in (*room.events, *room.edits.values())
            if event.nid > 0
        ]
        await self._write(row, missed.upto, None, sent_pauses, message, event_nids)

    async def _write(
        self,
        row: PusherRow,
        position: int,
        due_ts: int | None,
        sent: Mapping[int, EmailPause] | None,
        message: bytes | None,
        shown: Sequence[int] = (),
    ) -> None:
        def write(txn: WriteTransaction) -> None:
            expired = self._now_ms() - PAUSE_RETENTION_MS
            if (
                self._store.set_checked(txn, row.pusher_nid, position, due_ts, sent, expired)
                and message is not None
            ):
                self._outbox.add_rendered(
                    txn,
                    message,
                    row.pushkey,
                    NotificationEmail(row.pusher_nid, row.position, shown),
                )

        await self._database.write("write_digest", write)
        new_due = self._due.peek(row.pusher_nid)
        # an event may have come meanwhile, and this write may have replaced its due time
        if new_due is not None:
            self._pending[row.pusher_nid] = new_due
            await self.flush()
        if due_ts is not None:
            self._due.put(row.pusher_nid, due_ts if new_due is None else min(due_ts, new_due))

    async def _due_of(
        self, user_id: UserID, missed: MissedMessages, at: int, pauses: Mapping[int, EmailPause]
    ) -> int:
        """Return when the room may be in an e-mail: after the user had time to read, and not too
        soon after the last e-mail."""
        room, now = missed.rooms[at], self._now_ms()
        sent = room.waits_since
        # ignore a timestamp in the future
        due = sent + self._delay_ms if sent <= now else now
        return await self._after_pause(user_id, room.membership.room_nid, due, pauses)

    async def _after_pause(
        self, user_id: UserID, room_nid: int, due: int, pauses: Mapping[int, EmailPause]
    ) -> int:
        """Return `due`, or a later time if an e-mail about the room was sent lately and the user
        was not seen there since."""
        pause = pauses.get(room_nid)
        if pause is None or pause.sent_ts + pause.interval_ms <= due:
            return due
        was_seen = await self._missed.was_in_room_since(user_id, room_nid, pause.sent_ts)
        return due if was_seen else pause.sent_ts + pause.interval_ms

    async def _get_time_zone(self, user_id: UserID) -> tzinfo:
        """Return the time zone in the user's profile, else UTC."""
        value = (await self._profiles.get_profiles([user_id])).get(user_id, {}).get("m.tz")
        try:
            return UTC if value is None else ZoneInfo(msgspec.json.decode(value, type=str))
        except (msgspec.MsgspecError, ZoneInfoNotFoundError, ValueError, OSError):
            return UTC

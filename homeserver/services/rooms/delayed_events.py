"""Delayed events: the server sends them after a delay. Until then, the client can restart the
delay, cancel the event, or send it immediately. So the end of a call is sent even if the client
disappears.

Laws:
- An event is sent at most once: the write that sends it records the `delay_id` as the transaction
  ID. It is sent as soon as possible when its time has come, also after a restart.
- Authorization is checked when the event is sent. The rate limit `rc_message` applies when the
  event is scheduled: the end of a call must not be refused because the user sent messages.
- A client that knows the `delay_id` may manage the event, with or without an access token. If the
  event is already sent, a request to send it succeeds; if it is already cancelled, a request to
  cancel it succeeds. So repeated and concurrent requests are safe.

Proposal: MSC4140, the text of December 2025 that released clients use, and that of July 2026.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.protocol.errors import (
    Forbidden,
    InvalidParam,
    LimitExceeded,
    MatrixError,
    NotFound,
    RemoteError,
    TooLarge,
    UserDeactivated,
    UserSuspended,
)
from federation.protocol.ids import DeviceID, EventID, RoomID, UserID
from federation.rooms.events import RoomEvents
from federation.rooms.history.retention import RoomRetentionCache
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.rooms.reading import RoomReading
from homeserver.services.rooms.sending import (
    SERVER_ONLY_TYPES,
    RoomSending,
    check_timestamp,
    identify_request,
)
from homeserver.services.tokens.secret_tokens import SecretGenerator
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.rooms.delayed_events import DelayedEventRow, DelayedEventStore
from storage.rooms.sent_transactions import DELAYED, AlreadySent, SentTransaction, add_transaction

MAX_SCHEDULED: Final = 100
"""Per user."""
MAX_CONTENT_BYTES: Final = 65_536
MAX_NAME_BYTES: Final = 255
LEASE_MS: Final = 60_000
"""The time for sending an event, before another node tries."""
BATCH: Final = 50
WAIT_SECONDS: Final = 20.0
"""Seconds that a request waits while another request sends its event."""
RETRY_SECONDS: Final = (0.02, 0.05, 0.1, 0.2)
"""Seconds until it checks the outcome again; the last value repeats."""
OUTCOME_LIFETIME_MS: Final = 7 * 24 * 3_600_000
"""The time for which outcomes are stored."""
MAX_FINALISED: Final = 100


class DelayTooLong(MatrixError):
    """Fields: `org.matrix.msc4140.errcode`, `org.matrix.msc4140.max_delay`."""

    errcode, status, default_text = "M_UNKNOWN", 400, "The delay is longer than this server allows"

    def __init__(self, max_ms: int) -> None:
        fields: dict[str, object] = {
            "org.matrix.msc4140.errcode": "M_MAX_DELAY_EXCEEDED",
            "org.matrix.msc4140.max_delay": max_ms,
        }
        super().__init__(None, **fields)


class TooManyDelayedEvents(MatrixError):
    """Fields: `org.matrix.msc4140.errcode`."""

    errcode, status, default_text = (
        "M_UNKNOWN",
        400,
        "You have scheduled as many events as this server allows",
    )

    def __init__(self, retry_after_ms: int) -> None:
        """`retry_after_ms`: the time until the next event is sent."""
        fields: dict[str, object] = {"org.matrix.msc4140.errcode": "M_MAX_DELAYED_EVENTS_EXCEEDED"}
        super().__init__(None, **fields)
        self.retry_after_ms = retry_after_ms


class AlreadyFinalised(MatrixError):
    errcode, status, default_text = "M_UNKNOWN", 409, "The event has been sent or cancelled"


class DelayedEvents:
    """Schedules, manages and sends delayed events."""

    _log = Logger()

    # More than ten: it sends later what `RoomSending` sends now, with the same checks.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: DelayedEventStore,
        accounts: AccountStore,
        sending: RoomSending,
        reading: RoomReading,
        limiter: RateLimiter,
        secret_text: SecretGenerator,
        validity: AccountValidity,
        events: RoomEvents,
        retention: RoomRetentionCache | None,
        max_delay_ms: int | None,
    ) -> None:
        """`max_delay_ms`: the longest delay; None: delayed events are disabled."""
        self._clock = clock
        self._database = database
        self._store = store
        self._accounts = accounts
        self._sending = sending
        self._reading = reading
        self._limiter = limiter
        self._secret_text = secret_text
        self._validity = validity
        self._events = events
        self._retention = retention
        self._max_delay_ms = max_delay_ms
        self._timer: IDelayedCall | None = None
        self._is_running = False
        self._running: Deferred[int] | None = None

    # scheduling and managing

    async def do_schedule(
        self,
        caller: Requester,
        room_id: RoomID,
        type_: str,
        state_key: str | None,
        content: Mapping[str, Any],
        delay_ms: int,
        txn_id: str | None,
        origin_server_ts: int | None = None,
        sticky_ms: int | None = None,
    ) -> str:
        """Schedule an event, once per transaction ID; return its `delay_id`.

        Raises Forbidden, NotFound, InvalidParam, TooLarge, UserSuspended, ConsentNotGiven,
        DelayTooLong, TooManyDelayedEvents.
        """
        if self._max_delay_ms is None:
            raise Forbidden("Delayed events are disabled on this server")
        caller.check_may_write()
        if delay_ms <= 0:
            raise InvalidParam("A delay is a number of milliseconds above 0")
        if delay_ms > self._max_delay_ms:
            raise DelayTooLong(self._max_delay_ms)
        for name in (type_, state_key or ""):
            if len(name.encode()) > MAX_NAME_BYTES or "\0" in name:
                raise InvalidParam("The type and the state key of an event have at most 255 bytes")
        if type_ in SERVER_ONLY_TYPES:
            raise Forbidden(f"{type_} cannot be sent into an existing room")
        data = msgspec.json.encode(content)
        if len(data) > MAX_CONTENT_BYTES:
            raise TooLarge("The event is too large")
        await self._reading.check_joined(caller.user_id, room_id)
        now = self._now_ms()
        row = DelayedEventRow(
            delay_id=self._secret_text.delay_id(),
            user_id=caller.user_id,
            device_id=caller.device_id or "",
            appservice_id=caller.appservice_id,
            room_id=room_id,
            type=type_,
            state_key=state_key,
            content=data,
            origin_server_ts=check_timestamp(caller, origin_server_ts),
            delay_ms=delay_ms,
            running_since=now,
            send_ts=now + delay_ms,
            sticky_ms=sticky_ms,
        )
        request = (
            None if txn_id is None else identify_request(caller, f"delay/{room_id}/{type_}", txn_id)
        )

        def write(txn: WriteTransaction) -> None:
            if request is not None:
                add_transaction(txn, request, None, row.delay_id.encode(), now)
            scheduled, next_ts = self._store.count_scheduled(txn, row.user_id)
            if scheduled >= MAX_SCHEDULED:
                raise TooManyDelayedEvents(max(0, (next_ts or now) - now))
            self._store.add_event(txn, row)

        try:
            await self._database.write("schedule_delayed_event", write)
        except AlreadySent as earlier:
            return earlier.response.decode()
        self._wake_at(now + delay_ms)
        return row.delay_id

    async def do_restart(self, delay_id: str) -> None:
        """Restart the delay. Raises NotFound, LimitExceeded, AlreadyFinalised."""

        async def restart(row: DelayedEventRow) -> bool:
            send_ts = await self._database.write(
                "restart_delayed_event", self._store.set_restarted, row.delay_id, self._now_ms()
            )
            if send_ts is not None:
                self._wake_at(send_ts)
            return send_ts is not None

        await self._manage(delay_id, None, restart)

    async def do_cancel(self, delay_id: str) -> None:
        """Cancel the event; success if it is already cancelled. Raises NotFound, LimitExceeded,
        AlreadyFinalised."""

        async def cancel(row: DelayedEventRow) -> bool:
            return await self._database.write(
                "cancel_delayed_event", self._store.set_cancelled, row, self._now_ms()
            )

        await self._manage(delay_id, "cancel", cancel)

    async def do_send(self, delay_id: str) -> None:
        """Send the event now; success if it was already sent. Raises NotFound, LimitExceeded,
        AlreadyFinalised, and the errors of sending: then it stays scheduled."""

        async def send(row: DelayedEventRow) -> bool:
            now = self._now_ms()
            if not await self._database.write(
                "take_delayed_event_lease", self._store.take_lease, delay_id, now, now + LEASE_MS
            ):
                return False
            try:
                await self._send(row, "action")
            except (MatrixError, RemoteError):
                await self._database.write(
                    "end_delayed_event_lease", self._store.end_lease, delay_id
                )
                if row.send_ts is not None:
                    self._wake_at(row.send_ts)
                raise
            return True

        await self._manage(delay_id, "send", send)

    async def _manage(
        self, delay_id: str, outcome: str | None, act: Callable[[DelayedEventRow], Awaitable[bool]]
    ) -> None:
        """Run `act` on an event while it is scheduled and nobody is sending it. `act` returns
        whether that was still so. Succeed without it if the event already has the outcome. It
        counts against the limit of the event's owner.

        Raises NotFound, LimitExceeded, AlreadyFinalised.
        """
        row = await self._store.get_event(delay_id)
        if row is not None:
            self._limiter.check(Limit.DELAYED_EVENT, row.user_id)
        until, pauses = self._clock.seconds() + WAIT_SECONDS, iter(RETRY_SECONDS)
        while row is not None and row.finalised_ts is None:
            if row.leased_until <= self._now_ms():
                if await act(row):
                    return
            else:
                await deferLater(self._clock, next(pauses, RETRY_SECONDS[-1]))
            if self._clock.seconds() > until:
                raise LimitExceeded(
                    "The event is being sent", retry_after_ms=int(WAIT_SECONDS * 1000)
                )
            row = await self._store.get_event(delay_id)
        if row is None:
            raise NotFound("There is no such delayed event")
        if outcome is None or row.outcome != outcome:
            raise AlreadyFinalised

    # reading

    async def get_event(self, caller: Requester, delay_id: str) -> dict[str, Any]:
        """Return one of the caller's events. Raises NotFound."""
        row = await self._store.get_event(delay_id)
        if row is None or row.user_id != caller.user_id:
            raise NotFound("You have scheduled no such event")
        (row,) = await self._without_expired([row])
        form = _to_json(row)
        if row.finalised_ts is not None:
            finalised: dict[str, Any] = {"finalised_ts": row.finalised_ts}
            if row.event_id is not None:
                finalised["event_id"] = row.event_id
            if row.error is not None:
                finalised["error"] = msgspec.Raw(row.error)
            form |= {
                **finalised,
                "finalised": finalised,
            }  # COMPAT(matrix-js-sdk): it reads `finalised`
        return form

    async def get_scheduled(self, caller: Requester) -> list[dict[str, Any]]:
        """Return the caller's scheduled events, the next first."""
        return [_to_json(row) for row in await self._store.get_scheduled(caller.user_id)]

    async def get_finalised(self, caller: Requester) -> list[dict[str, Any]]:
        """Return the caller's latest events that were sent or cancelled, the latest first."""
        rows = await self._store.get_finalised(caller.user_id, MAX_FINALISED)
        return [_outcome_json(row) for row in await self._without_expired(rows)]

    async def _without_expired(self, rows: Sequence[DelayedEventRow]) -> list[DelayedEventRow]:
        """Return the rows, without the content of events that their room's retention has
        removed."""
        if self._retention is None:
            return list(rows)
        sent = await self._events.get_in_any_room(
            EventID(row.event_id) for row in rows if row.event_id is not None
        )
        expired = {
            event_id for event_id, stored in sent.items() if not await self._retention.shows(stored)
        }
        return [replace(row, content=b"{}") if row.event_id in expired else row for row in rows]

    # sending

    def start(self) -> None:
        """Send what is due, and from now on what becomes due."""
        self._is_running = True
        self._wake_at(self._now_ms())

    async def stop(self) -> None:
        """Stop sending; returns when no event is being sent."""
        self._is_running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running is not None:
            await self._running

    async def do_send_due(self, limit: int) -> int:
        """Send up to `limit` events that are due, including those that another node failed to
        finish. Return the number of attempts."""
        now = self._now_ms()
        rows: Sequence[DelayedEventRow] = ()
        if await self._store.has_due(now):
            rows = await self._database.write(
                "lease_due_delayed_events", self._store.lease_due, now, now + LEASE_MS, limit
            )
        for row in rows:
            try:
                await self._send(row, "delay")
            except MatrixError as error:
                data = msgspec.json.encode(error.body())
                await self._database.write(
                    "set_delayed_event_failed", self._store.set_failed, row, self._now_ms(), data
                )
            except Exception:
                self._log.failure(
                    "could not send the delayed event {id}, which will be tried again",
                    id=row.delay_id,
                )
        next_ts = await self._store.get_next_time()
        if next_ts is not None:
            self._wake_at(next_ts)
        return len(rows)

    async def do_delete_outcomes(self, limit: int) -> int:
        """Delete up to `limit` old outcomes; return their number."""
        return await self._store.remove_finalised(self._now_ms() - OUTCOME_LIFETIME_MS, limit)

    async def _send(self, row: DelayedEventRow, reason: str) -> None:
        """Send an event whose lease this node holds. Raises what sending raises."""
        account = (await self._accounts.get_accounts([row.user_id])).get(row.user_id)
        if account is None or account.deactivated_ts is not None:
            raise UserDeactivated
        if account.locked or account.suspended:
            raise UserSuspended
        self._validity.check(account)
        caller = Requester(
            UserID(row.user_id),
            DeviceID(row.device_id) if row.device_id else None,
            token_nid=0,
            is_guest=account.is_guest,
            is_admin=account.is_admin,
            is_shadow_banned=account.shadow_banned,
            appservice_id=row.appservice_id,
        )
        sent = SentTransaction(row.user_id, "", "delayed_event", DELAYED + row.delay_id)
        content: dict[str, Any] = msgspec.json.decode(row.content)
        room_id, ts = RoomID(row.room_id), row.origin_server_ts
        try:
            if row.state_key is None:
                response = await self._sending.do_send(
                    caller,
                    room_id,
                    row.type,
                    content,
                    row.delay_id,
                    ts,
                    sticky_ms=row.sticky_ms,
                    sent=sent,
                )
                event_id = str(msgspec.json.decode(response)["event_id"])
            else:
                event_id = await self._sending.do_set_state(
                    caller,
                    room_id,
                    row.type,
                    row.state_key,
                    content,
                    ts,
                    sticky_ms=row.sticky_ms,
                    sent=sent,
                )
        except AlreadySent as earlier:  # by a server that crashed before it recorded the outcome
            event_id = str(msgspec.json.decode(earlier.response)["event_id"])
        await self._database.write(
            "set_delayed_event_sent", self._store.set_sent, row, self._now_ms(), reason, event_id
        )

    # internal

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)

    def _wake_at(self, due_ms: int) -> None:
        """Wake at this time at the latest, to send what is due."""
        if not self._is_running:
            return
        due_at = due_ms / 1000
        if self._timer is not None:
            if self._timer.getTime() <= due_at:
                return
            self._timer.cancel()
        self._timer = self._clock.callLater(
            max(0.0, due_at - self._clock.seconds()), self._start_sending
        )

    def _start_sending(self) -> None:
        self._timer = None
        if self._running is not None:
            return  # when done it schedules the next wake-up
        self._running = Deferred.fromCoroutine(self.do_send_due(BATCH))
        self._running.addErrback(self._on_failure).addBoth(self._on_finished)

    def _on_failure(self, failure: Failure) -> int:
        self._log.failure("could not send delayed events, which will be tried again soon", failure)
        return 0

    def _on_finished(self, done: int) -> int:
        self._running = None
        return done


def _to_json(row: DelayedEventRow) -> dict[str, Any]:
    """Return an event in the form of both proposal texts, and of matrix-js-sdk."""
    form: dict[str, Any] = {
        "delay_id": row.delay_id,
        "room_id": row.room_id,
        "type": row.type,
        "delay": row.delay_ms,
        "delay_ms": row.delay_ms,
        "running_since": row.running_since,
        "scheduled_at": row.running_since,
        "delayed_since_ts": row.running_since,
        "content": msgspec.Raw(row.content),
    }
    if row.state_key is not None:
        form["state_key"] = row.state_key
    return form


def _outcome_json(row: DelayedEventRow) -> dict[str, Any]:
    form: dict[str, Any] = {
        "delayed_event": _to_json(row),
        "outcome": row.outcome,
        "reason": row.reason,
        "origin_server_ts": row.finalised_ts,
    }
    if row.event_id is not None:
        form["event_id"] = row.event_id
    if row.error is not None:
        form["error"] = msgspec.Raw(row.error)
    return form

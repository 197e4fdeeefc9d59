"""The outbox: a durable queue of e-mails to send.

Laws:
- An e-mail is queued in the write that causes it. It leaves the queue when the mail server has
  accepted it, when it is given up, or when it is withdrawn. So a restart loses none.
- A failed e-mail is retried with increasing delays, and given up after two days. A permanently
  rejected one is given up immediately.
- A digest of unread messages is sent only if all of them are still unread. Otherwise it is
  withdrawn, and a new one is written about those that are still unread.
- A node sends e-mails one after another, so a mail server that hangs blocks only one thread.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from homeserver.observe.metrics import MailMetrics
from homeserver.services.email.emails import EmailContent, EmailRenderer, address_of
from homeserver.services.email.smtp import DeliveryFailed, Relay
from homeserver.services.pages.languages import Language
from storage.email.outbox import EmailOutbox, NotificationEmail, QueuedEmail
from storage.engine.database import DatabaseUnavailable
from storage.engine.executors import Executor, run_in
from storage.engine.transaction import WriteTransaction

BATCH: Final = 10
FIRST_DELAY_MS: Final = 60_000
MAX_DELAY_MS: Final = 2 * 3600_000
LEASE_MS: Final = 10 * 60_000
"""The lease of the e-mails that a node has taken."""
RETRIED_MS: Final = 48 * 3600_000
"""Age at which an e-mail is given up."""
RETRY_SECONDS: Final = 60.0
MAX_ERROR_CHARS: Final = 300
MAX_SLEEP: Final = 3600.0
"""Maximum seconds between two checks of the queue: another node may have left e-mails in it."""


IsUnread = Callable[[int, Sequence[int]], Awaitable[bool]]
"""Whether the pusher with this number still has to be notified of all events with these numbers."""


class Outbox:
    """Queues and sends e-mails. Used only on the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        store: EmailOutbox,
        renderer: EmailRenderer,
        relay: Relay,
        executor: Executor,
        metrics: MailMetrics,
    ) -> None:
        self._clock = clock
        self._store = store
        self.renderer = renderer
        self._sender = address_of(renderer.sender)
        self._relay = relay
        self._executor = executor
        self._metrics = metrics
        self._timer: IDelayedCall | None = None
        self._working: Deferred[None] | None = None
        self._again = False
        self._stopped = False
        self._is_missed: IsUnread | None = None

    def use_unread_check(self, is_missed: IsUnread) -> None:
        """Set the check that runs before a digest is sent: a digest about events that are no longer
        unread is withdrawn."""
        self._is_missed = is_missed

    def add(
        self, txn: WriteTransaction, language: Language, content: EmailContent, recipient: str
    ) -> None:
        """Queue an e-mail in the caller's write. Raises ValueError if the recipient is not a valid
        address."""
        message = self.renderer.render(language, content, recipient, self._clock.seconds())
        self.add_rendered(txn, message, recipient, None)

    def add_if_valid(
        self, txn: WriteTransaction, language: Language, content: EmailContent, recipient: str
    ) -> bool:
        """Queue an e-mail as `add` does, but return False if the recipient, for example an address
        from an identity provider, is not a valid address."""
        try:
            self.add(txn, language, content, recipient)
        except ValueError:
            return False
        return True

    def add_rendered(
        self,
        txn: WriteTransaction,
        message: bytes,
        recipient: str,
        notification: NotificationEmail | None,
    ) -> None:
        """Queue a rendered e-mail in the caller's write. `notification`: the pusher and the events
        of a digest."""
        self._store.add_email(txn, recipient, message, self._now(), notification)
        txn.after_commit(self.wake)

    def wake(self) -> None:
        """Check the queue: there may be something to send."""
        if self._stopped:
            return
        if self._working is not None:
            self._again = True
            return
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._working = Deferred.fromCoroutine(self._work())
        self._working.addErrback(self._fail)
        self._working.addBoth(lambda _: self._finish())

    async def stop(self) -> None:
        """Finish the current e-mail and send no more."""
        self._stopped = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._working is not None:
            waiting: Deferred[None] = Deferred()
            self._working.addBoth(lambda _: waiting.callback(None))
            await waiting

    async def _work(self) -> None:
        rows: Sequence[QueuedEmail] = ()
        while not rows or len(rows) == BATCH:
            now = self._now()
            rows = await self._store.claim_due(now, now + LEASE_MS, BATCH)
            for row in rows:
                if self._is_stopped():
                    await self._store.set_due(row.email_nid, self._now())
                else:
                    await self._send(row)
            if not rows:
                break
        next_ts = await self._store.get_next_time()
        if not self._is_stopped():
            seconds = (
                MAX_SLEEP if next_ts is None else max(1.0, next_ts / 1000 - self._clock.seconds())
            )
            self._timer = self._clock.callLater(min(seconds, MAX_SLEEP), self.wake)

    def _is_stopped(self) -> bool:
        """Return whether `stop` was called. A method, so that the type checker expects the value to
        change while we wait."""
        return self._stopped

    async def _send(self, row: QueuedEmail) -> None:
        try:
            if not await self._is_still_due(row):
                return
            await run_in(
                self._executor,
                lambda: self._relay.deliver(self._sender, row.recipient, row.message),
            )
        except DeliveryFailed as error:
            await self._put_off(row, str(error), permanent=error.permanent)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # an unexpected error: it must not stop other e-mails
            self._log.failure("an e-mail could not be sent")
            await self._put_off(row, type(error).__name__, permanent=False)
        else:
            self._metrics.count("sent")
            await self._store.record_sent(row.email_nid, self._now())

    async def _is_still_due(self, row: QueuedEmail) -> bool:
        """Return whether an e-mail still has to be sent. Withdraw a digest that is out of date."""
        about = await self._store.get_notified_events(row.email_nid)
        if about is None:
            return False  # it was withdrawn since it was taken from the queue
        pusher_nid, event_nids = about
        if (
            pusher_nid is None
            or self._is_missed is None
            or await self._is_missed(pusher_nid, event_nids)
        ):
            return True
        await self._store.withdraw_email(row.email_nid)
        return False

    async def _put_off(self, row: QueuedEmail, error: str, *, permanent: bool) -> None:
        """Schedule a retry of a failed e-mail, or give it up."""
        if permanent or self._now() - row.created_ts > RETRIED_MS:
            self._metrics.count("dropped")
            self._log.error("an e-mail was given up: {error}", error=error)
            await self._store.give_up(row.email_nid, self._now(), error[:MAX_ERROR_CHARS])
            return
        delay = min(FIRST_DELAY_MS << min(row.attempts, 10), MAX_DELAY_MS)
        self._metrics.count("failed")
        self._log.warn(
            "an e-mail is retried in {seconds} s: {error}", seconds=delay // 1000, error=error
        )
        now = self._now()
        await self._store.postpone(row.email_nid, now + delay, now, error[:MAX_ERROR_CHARS])

    def _fail(self, failure: Failure) -> None:
        """Log a failure (the database is unavailable, or an unexpected error) and retry soon."""
        if failure.check(DatabaseUnavailable):
            self._log.warn("e-mails are sent later: {error}", error=failure.value)
        else:
            self._log.failure("e-mails could not be sent", failure)
        if not self._stopped:
            self._timer = self._clock.callLater(RETRY_SECONDS, self.wake)

    def _finish(self) -> None:
        self._working = None
        if self._again:
            self._again = False
            self.wake()

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

"""What happened, in order: the one sequence, and those who listen to it.

A change takes its position in the transaction that makes it; it is published on the reactor thread
after the commit, in order of position. Readers (sync, notifier, push, the sender to other servers,
application services, other nodes) subscribe here and import no writer.

Laws:
- All of this runs on the reactor thread.
- `current()` never goes back; whoever reads the database at `current()` sees all that is at or
  below it.
- Positions that became visible without a change published here (another process wrote them) are
  told to the watchers, before anything with a higher position is told to anyone.
"""

from collections.abc import Callable, Sequence
from enum import Enum, IntEnum
from operator import attrgetter, itemgetter

import msgspec
from twisted.logger import Logger


class Topic(Enum):
    """What kind of thing changed."""

    EVENT = "event"
    REDACTED = "redacted"
    """An event lost its content, or has it back; `detail` is its number."""
    PURGED = "purged"
    """Messages of a room lost their content for good, or regained it; `detail` is the
    `PurgedMessages`."""
    LIFETIME = "lifetime"
    """A room wants its messages to be kept for another time; `detail` is the `RoomLifetime`."""
    PLACED = "placed"
    """An event that was an outlier has found its place in the room; `detail` is its number."""
    RELATED = "related"
    """An event has one child more; `detail` is the id of the parent, which need not be here."""
    COMPLETENESS = "completeness"
    """A room was entered with a part of its state, or has all of it now; `detail` is the
    `PartialRoom`."""
    MEMBERSHIP = "membership"
    """Someone's membership of a room; `detail` is the `MembershipRow`."""
    ACCOUNT_DATA = "account_data"
    """`detail` is the type of the entry."""
    RECEIPT = "receipt"
    DEVICE = "device"
    PROFILE = "profile"
    TO_DEVICE = "to_device"
    """Messages to devices of the users; `detail` is the `NewMessages`."""
    DEVICES_GONE = "devices_gone"
    """Devices of the user went, and what is kept for them with them; `detail` is the
    `DevicesGone`."""
    KEY_COUNT = "key_count"
    """A device of the user, or of the users, has more or fewer one-time keys, or a fallback key was
    set or used; `detail` is `KeysLeft` or `KeysClaimed`, or None."""
    SIGNATURE = "signature"
    """The user signed keys of others, which they alone see."""
    ACCOUNT = "account"
    ERASURE = "erasure"
    """The user's account was erased."""
    STICKY = "sticky"
    """An event is sticky from now on; `detail` is the `StickyRow`."""
    THREAD_SUBSCRIPTION = "thread_subscription"
    """Someone follows a thread from now on, or no longer."""
    PUSHER = "pusher"
    """A user's pushers were set or removed."""
    OUTGOING = "outgoing"
    """Messages to devices wait for other servers."""

    __hash__ = object.__hash__
    """Each is itself alone. That of Enum is a function in Python, and topics are looked up with
    every change and request."""


class Stage(IntEnum):
    """When a subscriber hears of a commit: all of one stage before any of the next."""

    CACHE = 0
    """Caches, so that nobody reads an old value who was woken by the commit."""
    NOTIFY = 1
    """Everybody else."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """One durable change: where in the sequence, of what kind, whom it concerns."""

    position: int
    topic: Topic
    room_id: str | None = None
    user_id: str | None = None
    detail: object = None
    """What the writer has at hand (for EVENT: the `EventRow`); a reader on another node finds None
    and reads it."""
    user_ids: Sequence[str] = ()
    """Whom it concerns where they may be many, as those who get the keys of a room: one change
    costs every subscriber less than one for each."""


Subscriber = Callable[[Sequence[Change]], None]
"""Called on the reactor thread with the changes of one commit, in order; may not raise and may not
block."""

Watcher = Callable[[int, int], None]
"""Called with (after, upto): what is above `after`, up to and with `upto`, was written by another
process and can now be read."""

Explainer = Callable[[int, int], Sequence[Change] | None]
"""Called with (after, upto), what another process wrote: what changed by that; None where it is not
known."""
Teller = Callable[[int, int, Sequence[Change]], None]
"""Called with (after, upto, changes): what is above `after`, up to and with `upto`, was written by
this process, and that is what changed by it."""


_position = attrgetter("position")
_stage = itemgetter(0)


class Streams:
    """The head of the sequence, and its readers."""

    _log = Logger()

    def __init__(self, current: int = 0) -> None:
        self._current = current
        self._subscribers: tuple[tuple[Stage, Subscriber, frozenset[Topic]], ...] = ()
        """In the order in which they hear."""
        self._watchers: tuple[tuple[Stage, Watcher], ...] = ()
        self._tellers: tuple[Teller, ...] = ()
        self._explainer: Explainer | None = None
        self._hearers: dict[frozenset[Topic], tuple[Subscriber, ...]] = {}
        """Who hears of commits with just these topics, as far as there were some."""

    def current(self) -> int:
        """The highest position below which all is committed and published."""
        return self._current

    def subscribe(
        self, subscriber: Subscriber, *topics: Topic, stage: Stage = Stage.NOTIFY
    ) -> Callable[[], None]:
        """Call the subscriber after every later commit with a change of these topics (none: any),
        with all changes of the commit. Within a stage, the first to subscribe comes first.
        Returns a function that ends the subscription."""
        entry = (stage, subscriber, frozenset(topics or Topic))
        self._subscribers = tuple(sorted([*self._subscribers, entry], key=_stage))
        self._hearers = {}

        def unsubscribe() -> None:
            self._subscribers = tuple(other for other in self._subscribers if other is not entry)
            self._hearers = {}

        return unsubscribe

    def watch(self, watcher: Watcher, *, stage: Stage = Stage.NOTIFY) -> None:
        """Call the watcher when positions become visible that other processes wrote."""
        self._watchers = tuple(sorted([*self._watchers, (stage, watcher)], key=_stage))

    def ask(self, explainer: Explainer) -> None:
        """Who knows what other processes wrote."""
        self._explainer = explainer

    def told(self, after: int, upto: int) -> Sequence[Change] | None:
        """For watchers: what changed by what was written there, in order, with `EventNews` in the
        place of rows of events; None where that is not known, or not yet."""
        return None if self._explainer is None else self._explainer(after, upto)

    def tell(self, teller: Teller) -> None:
        """Hear of every commit of this process, also of one without changes, and which positions it
        took: to tell other processes."""
        self._tellers += (teller,)

    def publish(self, changes: Sequence[Change], head: int) -> None:
        """Tell the subscribers of a commit's changes; `head` is the highest position that the
        commit took."""
        ordered = sorted(changes, key=_position) if len(changes) > 1 else changes
        after, self._current = self._current, max(self._current, head)
        if after < self._current:
            for teller in self._tellers:
                try:
                    teller(after, head, ordered)
                except Exception:
                    self._log.failure("A teller of streams failed: {teller}", teller=teller)
        if not ordered:
            return
        topics = frozenset([change.topic for change in ordered])
        hearers = self._hearers.get(topics)
        if hearers is None:
            hearers = tuple(
                each for _, each, wanted in self._subscribers if not wanted.isdisjoint(topics)
            )
            self._hearers[topics] = hearers
        for subscriber in hearers:
            try:
                subscriber(ordered)
            except Exception:
                self._log.failure(
                    "A subscriber of streams failed: {subscriber}", subscriber=subscriber
                )

    def advance_to(self, position: int) -> None:
        """Others have written up to `position`, and all of it can be read."""
        after = self._current
        if position <= after:
            return
        self._current = position
        for _, watcher in self._watchers:
            try:
                watcher(after, position)
            except Exception:
                self._log.failure("A watcher of streams failed: {watcher}", watcher=watcher)

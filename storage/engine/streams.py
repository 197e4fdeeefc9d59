"""Publishes all durable changes to their subscribers, in the order of their positions.

A change takes its position in the write transaction that makes it. After the commit, the change is
published on the reactor thread. Readers (sync, notifier, push, the sender to other servers,
application services, other nodes) subscribe to `Streams`. So they need not import the modules that
make the changes.

Laws:
- The methods of `Streams` are called on the reactor thread, and call the subscribers there.
- `current()` never decreases. A read of the database at `current()` sees everything up to it.
- Subscribers are called for commits of this process. Watchers are called for positions that another
  process wrote: when these positions can be read, and before any higher position is published.
- Every subscriber and watcher names its `Stage`. All of one stage are called before any of the
  next, so the order of subscription does not matter. Therefore a subscriber uses only its own data
  and the data of objects that subscribe in earlier stages.
"""

from collections.abc import Callable, Sequence
from enum import Enum, IntEnum
from operator import attrgetter, itemgetter

import msgspec
from twisted.logger import Logger


class Topic(Enum):
    """The kind of a change."""

    EVENT = "event"
    REDACTED = "redacted"
    """The content of an event was removed or restored; `detail` is its number."""
    PURGED = "purged"
    """The content of messages of a room was purged, or fetched again; `detail` is the
    `PurgedMessages`."""
    RETENTION = "lifetime"
    """The retention policy of a room changed; `detail` is the `RoomRetention`."""
    OUTLIER_PLACED = "placed"
    """An outlier was added to the room's graph, or a partial-state resync changed an event;
    `detail` is its number."""
    RELATION = "related"
    """An event has a new child; `detail` is the ID of the parent, which need not be stored."""
    PARTIAL_STATE = "completeness"
    """A room was joined with partial state, or its state is complete now; `detail` is the
    `PartialRoom`."""
    MEMBERSHIP = "membership"
    """A membership of a room changed; `detail` is the `MembershipRow`."""
    ACCOUNT_DATA = "account_data"
    """`detail` is the type of the entry."""
    RECEIPT = "receipt"
    DEVICE = "device"
    PROFILE = "profile"
    TO_DEVICE = "to_device"
    """To-device messages for the users; `detail` is the `ToDeviceAdded`."""
    DEVICES_DELETED = "devices_gone"
    """Devices of the user were deleted with their queued messages; `detail` is the
    `DevicesDeleted`."""
    KEY_COUNT = "key_count"
    """The number of one-time keys changed, or a fallback key was set or used, for devices of the
    user or of the users; `detail` is `KeyCountsChanged` or `KeysClaimed`, or None."""
    SIGNATURE = "signature"
    """The user signed keys of other users. Only the signer sees that."""
    ACCOUNT = "account"
    ERASURE = "erasure"
    """The user's account was erased."""
    STICKY = "sticky"
    """An event became sticky; `detail` is the `StickyRow`."""
    THREAD_SUBSCRIPTION = "thread_subscription"
    """A user subscribed to a thread, or unsubscribed."""
    PUSHER = "pusher"
    """A user's pushers were set or removed."""
    OUTGOING_TO_DEVICE = "outgoing"
    """To-device messages were queued for other servers."""

    __hash__ = object.__hash__
    """Identity hash: the one of Enum is a Python function, and every change and request looks
    topics up."""


class Stage(IntEnum):
    """The order of subscribers after a commit: all of one stage come before any of the next."""

    CACHE = 0
    """Caches, so that a reader that the commit wakes never reads an old value."""
    NOTIFY = 1
    """Parts that wake waiting readers: the notifier of /sync, requests that wait for a room."""
    SEND = 2
    """Parts that begin work of their own: the sender to other servers, pushers, clean-ups."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """One durable change: its position, kind, and the room and users concerned."""

    position: int
    topic: Topic
    room_id: str | None = None
    user_id: str | None = None
    detail: object = None
    """Data that the writer has at hand (for EVENT: the `EventRow`). On another node it is None, and
    readers read the database."""
    user_ids: Sequence[str] = ()
    """The users concerned, if there may be many, such as the recipients of room keys. One change
    costs each subscriber less than one for each user."""


Subscriber = Callable[[Sequence[Change]], None]
"""Called on the reactor thread with the changes of one commit, in order. Must not raise or
block."""

Watcher = Callable[[int, int], None]
"""Called with (after, upto): positions above `after`, up to and including `upto`, were written by
another process and can be read now."""

RemoteChangeSource = Callable[[int, int], Sequence[Change] | None]
"""Called with (after, upto): returns the changes that another process made in this range, or None
if they are not known."""
CommitListener = Callable[[int, int, Sequence[Change]], None]
"""Called with (after, upto, changes): this process committed these changes at positions above
`after`, up to and including `upto`."""


_position = attrgetter("position")
_stage = itemgetter(0)


class Streams:
    """The latest published position, and the subscribers."""

    _log = Logger()

    def __init__(self, current: int = 0) -> None:
        self._current = current
        self._subscribers: tuple[tuple[Stage, Subscriber, frozenset[Topic]], ...] = ()
        """In the order in which they are called."""
        self._watchers: tuple[tuple[Stage, Watcher], ...] = ()
        self._commit_listeners: tuple[CommitListener, ...] = ()
        self._remote_changes: RemoteChangeSource | None = None
        self._by_topics: dict[frozenset[Topic], tuple[Subscriber, ...]] = {}
        """The subscribers to call for commits with exactly these topics, cached."""

    def current(self) -> int:
        """Return the highest position up to which everything is committed and published."""
        return self._current

    def subscribe(self, subscriber: Subscriber, *topics: Topic, stage: Stage) -> Callable[[], None]:
        """Call the subscriber after every later commit with a change of these topics (none: any),
        with all changes of the commit. Return a function that ends the subscription."""
        entry = (stage, subscriber, frozenset(topics or Topic))
        self._subscribers = tuple(sorted([*self._subscribers, entry], key=_stage))
        self._by_topics = {}

        def unsubscribe() -> None:
            self._subscribers = tuple(other for other in self._subscribers if other is not entry)
            self._by_topics = {}

        return unsubscribe

    def watch(self, watcher: Watcher, *, stage: Stage) -> None:
        """Call the watcher when positions written by other processes become visible."""
        self._watchers = tuple(sorted([*self._watchers, (stage, watcher)], key=_stage))

    def set_remote_change_source(self, source: RemoteChangeSource) -> None:
        """Set the source of changes made by other processes."""
        self._remote_changes = source

    def get_remote_changes(self, after: int, upto: int) -> Sequence[Change] | None:
        """For watchers: return the changes that another process made in this range, in order, with
        `EventSummary` instead of event rows. Return None if they are not known, or not yet."""
        return None if self._remote_changes is None else self._remote_changes(after, upto)

    def add_commit_listener(self, listener: CommitListener) -> None:
        """Call this function after every commit of this process, even one without changes, with the
        positions that it took. For notifying other processes."""
        self._commit_listeners += (listener,)

    def publish(self, changes: Sequence[Change], head: int) -> None:
        """Notify the subscribers of the changes of a commit. `head` is the highest position that
        the commit took."""
        ordered = sorted(changes, key=_position) if len(changes) > 1 else changes
        after, self._current = self._current, max(self._current, head)
        if after < self._current:
            for listener in self._commit_listeners:
                try:
                    listener(after, head, ordered)
                except Exception:
                    self._log.failure("A commit listener failed: {listener}", listener=listener)
        if not ordered:
            return
        topics = frozenset([change.topic for change in ordered])
        subscribers = self._by_topics.get(topics)
        if subscribers is None:
            subscribers = tuple(
                each for _, each, wanted in self._subscribers if not wanted.isdisjoint(topics)
            )
            self._by_topics[topics] = subscribers
        for subscriber in subscribers:
            try:
                subscriber(ordered)
            except Exception:
                self._log.failure("A subscriber failed: {subscriber}", subscriber=subscriber)

    def advance_to(self, position: int) -> None:
        """Notify the watchers that other processes wrote up to `position`, all of it readable."""
        after = self._current
        if position <= after:
            return
        self._current = position
        for _, watcher in self._watchers:
            try:
                watcher(after, position)
            except Exception:
                self._log.failure("A watcher failed: {watcher}", watcher=watcher)

"""Collects the changes of the stream that concern users with pushers, until `stream_reader.py`
processes the changes.

Laws:
- A node that does not hold the lease for pushes collects nothing: the next holder reads the changes
  from the database.
- For changes of pushers, only the user IDs are kept in memory; for changes of badges, each user ID
  with the position of the first change. So there are at most as many entries as users, however much
  happens.
- At most `MAX_CHANGES` other changes are kept in memory; further ones are read from the database.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from typing import Final

from federation.rooms.joins.out_of_room import is_out_of_room
from homeserver.services.push.unread_counts import COUNTED, READ_TYPES, REDACTION
from homeserver.services.pushers.badges import BadgeCounts
from homeserver.services.pushers.pusher_users import PusherUsers
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.events import EventRow
from storage.push.push_stream import FILTER_TYPES, MovedReceipt, PushedEvent
from storage.retention.purging import PurgedMessages
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.receipts import ReceiptRow

BADGE_MEMBERSHIPS: Final = frozenset({"join", "leave", "ban"})
"""Memberships that may change the badge. A join answers an invite, which counts, too."""
MAX_CHANGES: Final = 20_000
"""Changes in memory that are not processed yet; further ones are read from the database."""

PushChange = PushedEvent | MovedReceipt | MembershipRow


class PushStreamListener:
    """Subscribes to the stream and collects the changes. Use this class only on the reactor
    thread."""

    def __init__(
        self,
        *,
        streams: Streams,
        pusher_users: PusherUsers,
        badges: BadgeCounts,
        schedule: Callable[[], None],
    ) -> None:
        """`schedule` starts to process the changes soon."""
        self._streams = streams
        self._pusher_users = pusher_users
        self._badges = badges
        self._schedule = schedule
        self._is_active = False
        self._floor = 0
        self._changes: list[PushChange] = []
        self.in_database = 0
        """The changes up to here must be read from the database."""
        self.changed_users: set[str] = set()
        self.newly_set: set[str] = set()
        """Users in `changed_users` whose pushers were set while this process pushes."""
        self.refreshed: Set[str] = frozenset()
        """Users whose pushers are being read, so they may have some."""
        self.changed_badges: dict[str, int] = {}
        """Users whose badge may have changed without a message or receipt, because content was
        removed or a membership changed. Each with the position of the first such change."""
        streams.subscribe(
            self._on_changes,
            Topic.PUSHER,
            Topic.ACCOUNT,
            Topic.EVENT,
            Topic.REDACTED,
            Topic.RECEIPT,
            Topic.MEMBERSHIP,
            Topic.ACCOUNT_DATA,
            Topic.PURGED,
            Topic.PARTIAL_STATE,
            stage=Stage.SEND,
        )
        streams.watch(self._on_remote_write, stage=Stage.SEND)

    def begin(self, floor: int) -> None:
        """Start to collect changes. Earlier ones are in the database, and those up to `floor` were
        pushed."""
        self._is_active, self._floor = True, floor
        self.changed_badges.clear()
        self.drop_collected()

    def end(self) -> None:
        """Stop collecting changes."""
        self._is_active = False

    def has_changes(self, done: int) -> bool:
        """Return whether there are changes to process. The stream was processed up to `done`."""
        return bool(
            self.changed_users or self.changed_badges or done < self.in_database or self._changes
        )

    def take(self) -> Sequence[PushChange]:
        """Return the collected changes and clear the list."""
        changes, self._changes = self._changes, []
        return changes

    def take_changed(self) -> tuple[Set[str], Set[str]]:
        """Return the users whose pushers have changed and must be read, and those of them whose
        pushers were set."""
        self.refreshed, self.changed_users = self.changed_users, set()
        newly_set, self.newly_set = self.newly_set, set()
        return self.refreshed, newly_set

    def drop_collected(self) -> None:
        """Drop the collected changes; they are read from the database instead."""
        self._changes.clear()
        self.in_database = max(self._floor, self._streams.current())

    def mark_badges_changed(self, user_ids: Iterable[str], position: int) -> None:
        """Record that the badges of these users may have changed at a position."""
        for user_id in user_ids:
            self.changed_badges.setdefault(user_id, position)
        if self.changed_badges:
            self._schedule()

    def mark_counts_changed(self, user_ids: Iterable[str], position: int) -> None:
        """Record that the unread counts of these users may have changed in any room."""
        for user_id in user_ids:
            self._badges.invalidate_user(user_id)
            if self.may_have_pushers(user_id):
                self.mark_badges_changed([user_id], position)

    def may_have_pushers(self, user_id: str) -> bool:
        """Return whether the user has pushers, or may have set one."""
        return (
            user_id in self._pusher_users.users
            or user_id in self.changed_users
            or user_id in self.refreshed
        )

    def _may_any_user_have_pushers(self) -> bool:
        return bool(self._pusher_users.users or self.changed_users or self.refreshed)

    def _on_changes(self, changes: Sequence[Change]) -> None:
        if not self._is_active:
            return
        event_positions = {change.position for change in changes if change.topic is Topic.EVENT}
        for change in changes:
            row, count = change.detail, len(self._changes)
            if change.topic in (Topic.PUSHER, Topic.ACCOUNT) and change.user_id is not None:
                self.changed_users.add(change.user_id)
                if change.topic is Topic.PUSHER:
                    self.newly_set.add(change.user_id)
                self._schedule()
            elif isinstance(row, EventRow):
                if (
                    row.flags & COUNTED or row.type == REDACTION
                ) and self._may_any_user_have_pushers():
                    self._changes.append(
                        PushedEvent(
                            change.position,
                            row.event_nid,
                            row.room_nid,
                            row.type,
                            row.sender,
                            row.state_key,
                            row.flags,
                            row.thread_root,
                        )
                    )
            elif isinstance(row, ReceiptRow):
                if row.receipt_type in READ_TYPES and self.may_have_pushers(row.user_id):
                    self._changes.append(
                        MovedReceipt(
                            change.position,
                            row.room_nid,
                            row.user_id,
                            row.thread_id,
                            row.event_position,
                        )
                    )
            elif isinstance(row, MembershipRow):
                self._badges.invalidate_room_of_user(row.user_id, row.room_nid)
                has_moved = row.membership in BADGE_MEMBERSHIPS and not row.is_join_update
                if has_moved and self.may_have_pushers(row.user_id):
                    self.mark_badges_changed([row.user_id], change.position)
                if (
                    row.membership == "invite"
                    and is_out_of_room(row)
                    and self.may_have_pushers(row.user_id)
                ):
                    self._changes.append(row)
            elif isinstance(row, PurgedMessages | PartialRoom):
                # counted messages may disappear when a room's state becomes complete
                self.mark_badges_changed(
                    self._badges.invalidate_room(row.room_nid), change.position
                )
            elif change.topic is Topic.REDACTED:
                # a redaction by a backfilled event: its room is not known here
                if change.position not in event_positions:
                    self._badges.invalidate_all()
            elif (
                change.topic is Topic.ACCOUNT_DATA
                and change.user_id is not None
                and not change.room_id
            ):
                if change.detail in FILTER_TYPES:
                    self.mark_counts_changed([change.user_id], change.position)
            elif change.topic in (Topic.EVENT, Topic.RECEIPT, Topic.MEMBERSHIP):
                self.in_database = max(self.in_database, change.position)
                self._schedule()
            if len(self._changes) > count:
                self._schedule()
        if len(self._changes) > MAX_CHANGES:
            self.drop_collected()

    def _on_remote_write(self, _after: int, upto: int) -> None:
        """Handle a write of another node: read the changes from the database."""
        if self._is_active:
            self.in_database = max(self.in_database, upto)
            self._badges.invalidate_all()
            self._schedule()

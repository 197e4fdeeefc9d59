"""What of the stream concerns those who have pushers, from when it is heard until it is told.

Laws:
- Who does not have the lease hears nothing: what comes then is read from the database by whoever
  takes it next.
- What is heard of one user's pushers is kept as their name, and of a number that may be another, as
  its user and the first position that made it so: however much happens, they are as many as there
  are users.
- Of the rest so much is kept (`MOST_HEARD`); of more it is known only that the database has it.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from typing import Final

from federation.rooms.joins.out_of_room import is_outside
from homeserver.services.push.unread_counts import COUNTED, READ_TYPES, REDACTION
from homeserver.services.pushers.badges import Badges
from homeserver.services.pushers.pusher_users import Roster
from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventRow
from storage.push.push_stream import HIDING, NewEvent, NewReceipt
from storage.retention.purging import PurgedMessages
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.receipts import ReceiptRow

MOVED: Final = frozenset({"join", "leave", "ban"})
"""By coming an invite is answered, which counts too."""
MOST_HEARD: Final = 20_000
"""Of what was heard and not come to yet; the rest is read from the database."""

Heard = NewEvent | NewReceipt | MembershipRow


class Hearing:
    """Who listens. For the reactor thread."""

    def __init__(
        self, streams: Streams, roster: Roster, badges: Badges, schedule: Callable[[], None]
    ) -> None:
        """`schedule` lets it be told soon."""
        self._streams = streams
        self._roster = roster
        self._badges = badges
        self._schedule = schedule
        self._listens = False
        self._floor = 0
        self._heard: list[Heard] = []
        self.in_database = 0
        """Up to here memory does not have the stream."""
        self.changed_users: set[str] = set()
        self.set_now: set[str] = set()
        """Those of them whose pushers were set while this process pushes."""
        self.refreshed: Set[str] = frozenset()
        """Users whose pushers are being read: they may come to have some."""
        self.renumbered: dict[str, int] = {}
        """Users whose number may be another, though nobody wrote or read: something was taken away,
        or they came into a room or left one. With the position from which on that stands in the
        stream."""
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
            Topic.COMPLETENESS,
        )
        streams.watch(self._on_remote_write)

    def begin(self, floor: int) -> None:
        """Hear from now on: what came up to now is in the database. Up to `floor` it is told."""
        self._listens, self._floor = True, floor
        self.renumbered.clear()
        self.forget()

    def end(self) -> None:
        """Hear nothing more."""
        self._listens = False

    def has_news(self, done: int) -> bool:
        """Whether there is something to tell; up to `done` the stream is told."""
        return bool(self.changed_users or self.renumbered or done < self.in_database or self._heard)

    def take(self) -> Sequence[Heard]:
        """What was heard; it is told now."""
        heard, self._heard = self._heard, []
        return heard

    def take_changed(self) -> tuple[Set[str], Set[str]]:
        """Users whose pushers are read now, as they have changed; and those of them whose pushers
        were set."""
        self.refreshed, self.changed_users = self.changed_users, set()
        set_now, self.set_now = self.set_now, set()
        return self.refreshed, set_now

    def forget(self) -> None:
        """Let it be read from the database instead."""
        self._heard.clear()
        self.in_database = max(self._floor, self._streams.current())

    def renumber(self, user_ids: Iterable[str], position: int) -> None:
        """Their number may be another, by what stands there."""
        for user_id in user_ids:
            self.renumbered.setdefault(user_id, position)
        if self.renumbered:
            self._schedule()

    def renumber_everywhere(self, user_ids: Iterable[str], position: int) -> None:
        """What they have not read may be more or less in any room."""
        for user_id in user_ids:
            self._badges.forget(user_id)
            if self.may_have_pushers(user_id):
                self.renumber([user_id], position)

    def may_have_pushers(self, user_id: str) -> bool:
        """Whether the user has pushers, or may have set one."""
        return (
            user_id in self._roster.users
            or user_id in self.changed_users
            or user_id in self.refreshed
        )

    def _may_anybody_have_pushers(self) -> bool:
        return bool(self._roster.users or self.changed_users or self.refreshed)

    def _on_changes(self, changes: Sequence[Change]) -> None:
        if not self._listens:
            return
        news = {change.position for change in changes if change.topic is Topic.EVENT}
        for change in changes:
            row, heard = change.detail, len(self._heard)
            if change.topic in (Topic.PUSHER, Topic.ACCOUNT) and change.user_id is not None:
                self.changed_users.add(change.user_id)
                if change.topic is Topic.PUSHER:
                    self.set_now.add(change.user_id)
                self._schedule()
            elif isinstance(row, EventRow):
                if (
                    row.flags & COUNTED or row.type == REDACTION
                ) and self._may_anybody_have_pushers():
                    self._heard.append(
                        NewEvent(
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
                    self._heard.append(
                        NewReceipt(
                            change.position,
                            row.room_nid,
                            row.user_id,
                            row.thread_id,
                            row.event_position,
                        )
                    )
            elif isinstance(row, MembershipRow):
                self._badges.touch(row.user_id, row.room_nid)
                has_moved = row.membership in MOVED and not row.is_further_join
                if has_moved and self.may_have_pushers(row.user_id):
                    self.renumber([row.user_id], change.position)
                if (
                    row.membership == "invite"
                    and is_outside(row)
                    and self.may_have_pushers(row.user_id)
                ):
                    self._heard.append(row)
            elif isinstance(row, PurgedMessages | PartialRoom):
                # with all of its state a room may lose messages that were counted
                self.renumber(self._badges.touch_room(row.room_nid), change.position)
            elif change.topic is Topic.REDACTED:
                if (
                    change.position not in news
                ):  # by what was read back from the past: in which room is not known here
                    self._badges.doubt_all()
            elif (
                change.topic is Topic.ACCOUNT_DATA
                and change.user_id is not None
                and not change.room_id
            ):
                if change.detail in HIDING:
                    self.renumber_everywhere([change.user_id], change.position)
            elif change.topic in (Topic.EVENT, Topic.RECEIPT, Topic.MEMBERSHIP):
                self.in_database = max(self.in_database, change.position)
                self._schedule()
            if len(self._heard) > heard:
                self._schedule()
        if len(self._heard) > MOST_HEARD:
            self.forget()

    def _on_remote_write(self, _after: int, upto: int) -> None:
        """Another node wrote."""
        if self._listens:
            self.in_database = max(self.in_database, upto)
            self._badges.doubt_all()
            self._schedule()

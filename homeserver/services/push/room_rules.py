"""A cache of the members of a room whose push rules differ from the predefined ones there, in
classes of equal rules.

Most users' rules have the same effect as the predefined ones in most rooms. Only the others are
cached, so an event is evaluated once for each class and not for each member. Kept current by the
stream: changes of rules and memberships are applied when the room's next event comes. For the
reactor thread.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from federation.protocol.ids import RoomID, UserID
from federation.rooms.memberships import Memberships
from homeserver.services.push.rule_sets import RuleCompiler, RuleSet
from homeserver.services.push.user_rules import UserRuleCache, UserRules, concerns_rules
from storage.cache import LRU
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.push.push_rule_history import ALL, PushRuleHistoryStore
from storage.rooms.memberships import MembershipRow

CLASSIFIED_AT_ONCE: Final = 500
"""Members of a newly loaded room that are classified in one turn of the reactor, each in some
hundredths of a millisecond.
"""
CHANGES_KEPT: Final = 5000
"""The number of changes of rules and memberships that are kept; a room that missed more is loaded
again.
"""


class RuleClass(NamedTuple):
    """The effect of some members' rules in a room."""

    rules: RuleSet
    attention: int
    """The push action of ordinary messages of the room, which needs no row."""


class RoomClasses(msgspec.Struct):
    """The members of one room whose rules differ from the predefined ones there."""

    heard: int
    """The number of this process's changes that are applied."""
    position: int = 0
    """The position up to which writes of other processes are applied."""
    of_user: dict[UserID, RuleClass] = msgspec.field(default_factory=dict)
    members: dict[RuleClass, set[UserID]] = msgspec.field(default_factory=dict)

    def move(self, user_id: UserID, into: RuleClass | None) -> None:
        """Move a user to a class; None: remove the user from all classes."""
        before = self.of_user.pop(user_id, None)
        if before is not None:
            self.members[before].discard(user_id)
            if not self.members[before]:
                del self.members[before]
        if into is not None:
            self.of_user[user_id] = into
            self.members.setdefault(into, set()).add(user_id)


class _Happened(NamedTuple):
    number: int
    user_id: str
    room_nid: int | None
    """The room of a change of membership; None for a change of the user's rules."""


class RoomRuleClasses:
    """Rule classes by room.

    No `StreamCache`: a change of one user moves that user to another class on the next read.
    """

    def __init__(
        self,
        *,
        clock: IReactorTime,
        store: PushRuleHistoryStore,
        memberships: Memberships,
        rules: UserRuleCache,
        compiler: RuleCompiler,
        streams: Streams,
        capacity: int,
    ) -> None:
        """`capacity`: the number of cached rooms."""
        self._clock = clock
        self._store = store
        self._memberships = memberships
        self._rules = rules
        self._compiler = compiler
        self._rooms: LRU[int, RoomClasses] = LRU(max_entries=capacity)
        self._happened: deque[_Happened] = deque(maxlen=CHANGES_KEPT)
        self._last = 0
        self._written_by_others = streams.current()
        streams.subscribe(self._on_changes, Topic.MEMBERSHIP, Topic.ACCOUNT_DATA, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    async def of_room(self, room_nid: int, room_id: RoomID) -> RoomClasses:
        """Return the current classes of a room. No query for a cached room whose members and their
        rules have not changed, and one read if another process has written.

        The result is the cache's own object: read it before any `await`.
        """
        while True:
            last, written = self._last, self._written_by_others
            known = self._rooms.get(room_nid)
            if known is None or (self._happened and known.heard < self._happened[0].number - 1):
                users = dict.fromkeys(await self._store.get_members_with_rules(room_nid), True)
                room = RoomClasses(last)
            else:
                room = known
                users = await self._changed(room, room_nid)
                if room.position < written:
                    users.update(await self._store.get_changed_members(room_nid, room.position))
            rules = await self._rules.of_users(
                UserID(user) for user, is_joined in users.items() if is_joined
            )
            for at, user in enumerate(map(UserID, users), 1):
                room.move(user, self.classify(rules[user], room_id) if user in rules else None)
                if at % CLASSIFIED_AT_ONCE == 0 and room is not known:  # not shared yet
                    await deferLater(self._clock, 0)
            room.heard, room.position = last, written
            self._rooms.put(room_nid, room)
            if (last, written) == (self._last, self._written_by_others):
                return room

    def classify(self, rules: UserRules, room_id: RoomID) -> RuleClass | None:
        """Return the class of these rules in a room; None if they have the effect of the predefined
        ones."""
        narrowed = self._compiler.narrow(rules.rule_set, room_id)
        attention = rules.attention.get_current_level(room_id.lower())
        if narrowed is self._compiler.default and attention == ALL:
            return None
        return RuleClass(narrowed, attention)

    async def _changed(self, room: RoomClasses, room_nid: int) -> dict[str, bool]:
        """Return the users who changed through this process, and whether each is joined."""
        users: set[str] = set()
        for happened in reversed(self._happened):
            if happened.number <= room.heard:
                break
            if happened.room_nid is None or happened.room_nid == room_nid:
                users.add(happened.user_id)
        members = await self._memberships.local_members(room_nid) if users else frozenset[str]()
        return {user: user in members for user in users}

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if isinstance(row, MembershipRow):
                if row.is_local:
                    self._record(row.user_id, row.room_nid)
            elif change.topic is Topic.MEMBERSHIP:
                self._on_remote_write(0, change.position)
            elif concerns_rules(change):
                self._record(change.user_id or "", None)

    def _record(self, user_id: str, room_nid: int | None) -> None:
        self._last += 1
        self._happened.append(_Happened(self._last, user_id, room_nid))

    def _on_remote_write(self, _after: int, upto: int) -> None:
        """Handle a write of another node: its changes are read when the room's next event comes."""
        self._written_by_others = max(self._written_by_others, upto)

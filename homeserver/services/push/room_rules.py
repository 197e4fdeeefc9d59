"""Caches, for each room, the members with other push rules than the predefined ones. Members with
equal rules form a class.

A member is cached only if their rules have another effect in this room than the predefined rules,
which is rare. For all other members the push flags of an event apply. So an event is evaluated once
for each class, not for each member (exceptions: `event_push_actions.py`). The stream reports
changes of rules and memberships. The cache applies them when the room's next event arrives. Use
this module only on the reactor thread.
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

USERS_PER_TURN: Final = 500
"""Members of a newly loaded room that are classified in one turn of the reactor, each in some
hundredths of a millisecond.
"""
MAX_CHANGES: Final = 5000
"""The number of cached changes of rules and memberships; a room that missed more is loaded again.
"""


class RuleClass(NamedTuple):
    """The effect of some members' rules in a room."""

    rules: RuleSet
    level: int
    """The push action of ordinary messages of the room, which needs no row."""


class RoomClasses(msgspec.Struct):
    """The members of one room whose rules differ from the predefined ones there."""

    applied: int
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


class _RuleChange(NamedTuple):
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
        self._changes: deque[_RuleChange] = deque(maxlen=MAX_CHANGES)
        self._last = 0
        self._remote_position = streams.current()
        streams.subscribe(self._on_changes, Topic.MEMBERSHIP, Topic.ACCOUNT_DATA, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    async def of_room(self, room_nid: int, room_id: RoomID) -> RoomClasses:
        """Return the current classes of a room. No query for a cached room whose members and their
        rules have not changed, and one read if another process has written.

        The result is the cache's own object: read it before any `await`.
        """
        while True:
            last, remote_position = self._last, self._remote_position
            known = self._rooms.get(room_nid)
            if known is None or (self._changes and known.applied < self._changes[0].number - 1):
                users = dict.fromkeys(await self._store.get_members_with_rules(room_nid), True)
                room = RoomClasses(last)
            else:
                room = known
                users = await self._changed(room, room_nid)
                if room.position < remote_position:
                    users.update(await self._store.get_changed_members(room_nid, room.position))
            rules = await self._rules.of_users(
                UserID(user) for user, is_joined in users.items() if is_joined
            )
            for at, user in enumerate(map(UserID, users), 1):
                room.move(user, self.classify(rules[user], room_id) if user in rules else None)
                if at % USERS_PER_TURN == 0 and room is not known:  # not shared yet
                    await deferLater(self._clock, 0)
            room.applied, room.position = last, remote_position
            self._rooms.put(room_nid, room)
            if (last, remote_position) == (self._last, self._remote_position):
                return room

    def classify(self, rules: UserRules, room_id: RoomID) -> RuleClass | None:
        """Return the class of these rules in a room; None if they have the effect of the predefined
        ones."""
        room_set = self._compiler.restrict_to_room(rules.rule_set, room_id)
        level = rules.history.get_current_level(room_id.lower())
        if room_set is self._compiler.default and level == ALL:
            return None
        return RuleClass(room_set, level)

    async def _changed(self, room: RoomClasses, room_nid: int) -> dict[str, bool]:
        """Return the users who changed through this process, and whether each is joined."""
        users: set[str] = set()
        for change in reversed(self._changes):
            if change.number <= room.applied:
                break
            if change.room_nid is None or change.room_nid == room_nid:
                users.add(change.user_id)
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
        self._changes.append(_RuleChange(self._last, user_id, room_nid))

    def _on_remote_write(self, _after: int, upto: int) -> None:
        """Handle a write of another node: its changes are read when the room's next event comes."""
        self._remote_position = max(self._remote_position, upto)

"""Computes the push actions of a new event for this server's users, once, when it arrives. Unread
counts are built on them.

Laws:
- The predefined rules are evaluated once for all users, and the result is stored as flags of the
  event.
- A user gets a push action row only if their actions differ from what the flags and the user's
  notification level give. Examples are mentioned users and users with rules of their own.
- Users with equal rules in the room form a class (`room_rules.py`), and the rules of a class are
  evaluated once. The rules of a single user are evaluated only in three cases: the event mentions
  the user or changes their membership; the rules look at display names; or the rules look at thread
  subscriptions (MSC4306), and the user subscribes to the event's thread.
- Nobody is notified of their own events. Events of ignored users are left out when counts are read.

spec: client-server-api#server-behaviour-13, client-server-api#push-rules
"""

from collections.abc import Collection, Mapping, Set
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from federation.peers.identity import ServerIdentity
from federation.protocol.events import Event
from federation.protocol.ids import UserID
from federation.rooms.build import Classification, RoomBeforeEvent
from federation.rooms.event_threads import find_thread_root
from federation.rooms.events import RoomEvents
from federation.rooms.memberships import Memberships
from homeserver.services.push.actions import Actions
from homeserver.services.push.event_properties import EvaluatedEvent
from homeserver.services.push.room_rules import RoomClasses, RoomRuleClasses, RuleClass
from homeserver.services.push.rule_sets import RuleCompiler, mentioned_users
from homeserver.services.push.user_rules import UserRuleCache
from storage.events.events import EventFlag
from storage.push.event_push_actions import HIGHLIGHTED, NOTIFIES, get_default_outcome
from storage.push.push_rule_history import ALL
from storage.rooms.memberships import MembershipStore
from storage.rooms.thread_subscriptions import ThreadSubscriptionStore

CLASSES_PER_TURN: Final = 1000
"""Classes of rules that are evaluated in one turn of the reactor, each in some microseconds."""


class PushActionClassifier:
    """Computes push actions. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        identity: ServerIdentity,
        compiler: RuleCompiler,
        rules: UserRuleCache,
        room_rules: RoomRuleClasses,
        memberships: Memberships,
        membership_store: MembershipStore,
        events: RoomEvents,
        threads: ThreadSubscriptionStore,
    ) -> None:
        self._clock = clock
        self._identity = identity
        self._default = RuleClass(compiler.default, ALL)
        self._rules = rules
        self._room_rules = room_rules
        self._memberships = memberships
        self._membership_store = membership_store
        self._events = events
        self._threads = threads

    async def classify(self, event: Event, before: RoomBeforeEvent) -> Classification:
        """Return the push actions of the event for this server's users. No query for an ordinary
        message in a cached room."""
        evaluated = EvaluatedEvent.of_event(event, before.member_count, before.levels)
        flags = _flags(self._default.rules.find(evaluated))
        individually = await self._mentioned_members(event, before)
        individually |= {
            user
            for user, joined in before.changed_members.items()
            if joined and self._identity.is_local(user)
        }
        room = RoomClasses(0)
        subscribers: Set[str] = frozenset()
        if before.room_nid:
            room = await self._room_rules.of_room(before.room_nid, event.room_id)
            if any(each.rules.uses_threads for each in room.members):
                thread = evaluated.thread_root = await find_thread_root(
                    self._events, before.room_nid, event
                )
                if thread is not None:
                    subscribers = evaluated.subscribers = await self._threads.get_subscribers(
                        event.room_id, thread
                    )
                room = await self._room_rules.of_room(before.room_nid, event.room_id)
        outcomes: dict[str, int] = {}
        classes: Collection[tuple[RuleClass, Set[UserID]]] = room.members.items()
        if len(classes) > CLASSES_PER_TURN:  # they may change while this waits
            classes = [(each, frozenset(members)) for each, members in classes]
        for at, (each, members) in enumerate(classes, 1):
            if at % CLASSES_PER_TURN == 0 and at < len(classes):
                await deferLater(self._clock, 0)
            if subscribers and each.rules.uses_threads:
                individually |= members & subscribers
            if each.rules.uses_display_names:
                individually |= members
                continue
            outcome = _outcome(each.rules.find(evaluated))
            if outcome != get_default_outcome(flags, each.level):
                outcomes.update(dict.fromkeys(members, outcome))
        for user, joined in before.changed_members.items():
            if not joined:
                outcomes.pop(user, None)
                individually.discard(user)
        if (
            event.membership == "invite"
            and event.state_key is not None
            and self._identity.is_local(event.state_key)
        ):
            individually.add(UserID(event.state_key))
        individually.discard(event.sender)
        if individually:
            of_user = {user: room.of_user[user] for user in individually if user in room.of_user}
            await self._evaluate_individually(
                event, before, evaluated, flags, individually, of_user, outcomes
            )
        outcomes.pop(event.sender, None)
        thread_root = (
            await find_thread_root(self._events, before.room_nid, event)
            if flags or outcomes
            else None
        )
        return Classification(flags, outcomes, thread_root)

    async def _evaluate_individually(
        self,
        event: Event,
        before: RoomBeforeEvent,
        evaluated: EvaluatedEvent,
        flags: int,
        users: Collection[UserID],
        of_user: Mapping[UserID, RuleClass],
        outcomes: dict[str, int],
    ) -> None:
        """Evaluate the rules of each of these users separately."""
        new = [user for user in users if user not in of_user]
        rules = await self._rules.of_users(new)
        classes = {user: self._room_rules.classify(rules[user], event.room_id) for user in new}
        names = await self._display_names(
            before.room_nid, [user for user in users if _uses_display_names(of_user, classes, user)]
        )
        for user in users:
            each = of_user.get(user) or classes.get(user) or self._default
            outcome = _outcome(each.rules.find(evaluated, user, names.get(user)))
            if outcome == get_default_outcome(flags, each.level):
                outcomes.pop(user, None)
            else:
                outcomes[user] = outcome

    async def _mentioned_members(self, event: Event, before: RoomBeforeEvent) -> set[UserID]:
        """Return the local users who are mentioned by the event and are in the room."""
        mentioned = {user for user in mentioned_users(event) if self._identity.is_local(user)}
        if not mentioned:
            return mentioned
        members = (
            await self._memberships.local_members(before.room_nid)
            if before.room_nid
            else frozenset[str]()
        )
        return {user for user in mentioned if before.changed_members.get(user, user in members)}

    async def _display_names(
        self, room_nid: int, users: Collection[UserID]
    ) -> Mapping[str, str | None]:
        if not users:
            return {}
        rows = await self._membership_store.get_memberships(room_nid, users)
        return {user: row.display_name for user, row in rows.items()}


def _uses_display_names(
    of_user: Mapping[UserID, RuleClass], classes: Mapping[UserID, RuleClass | None], user: UserID
) -> bool:
    each = of_user.get(user) or classes.get(user)
    return each is not None and each.rules.uses_display_names


def _flags(actions: Actions) -> int:
    return (EventFlag.NOTIFIES if actions.notify else 0) | (
        EventFlag.HIGHLIGHTS if actions.highlight else 0
    )


def _outcome(actions: Actions) -> int:
    return (NOTIFIES if actions.notify else 0) | (HIGHLIGHTED if actions.highlight else 0)

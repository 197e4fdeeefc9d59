"""Evaluates the current push rules of users on an event, to decide which pushes and e-mails to
send.

Unread counts do not use this: they count the push actions that were computed when the event arrived
(`event_push_actions.py`).

spec: client-server-api#push-rules
"""

from collections.abc import Collection, Mapping, Sequence, Set

from federation.protocol.ids import UserID
from federation.protocol.power_levels import PowerLevels
from federation.rooms.engine import RoomEngine
from federation.rooms.events import StoredEvent
from federation.rooms.history.past_memberships import PastMemberships
from federation.rooms.history.retention import RoomRetentionCache
from federation.rooms.snapshot import CREATE, POWER_LEVELS
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.account_data.invite_permissions import InvitePermissions
from homeserver.services.push.actions import Actions
from homeserver.services.push.event_properties import EvaluatedEvent
from homeserver.services.push.rule_sets import RuleSet, mentioned_users
from homeserver.services.push.user_rules import UserRuleCache
from storage.rooms.memberships import MembershipRow, MembershipStore
from storage.rooms.out_of_room_memberships import OUT_OF_ROOM
from storage.rooms.thread_subscriptions import ThreadSubscriptionStore


class PushDecisions:
    """Evaluates push rules of users. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        engine: RoomEngine,
        memberships: MembershipStore,
        past_memberships: PastMemberships,
        rules: UserRuleCache,
        ignored: IgnoredUsers,
        permissions: InvitePermissions,
        threads: ThreadSubscriptionStore,
        lifetimes: RoomRetentionCache | None,
    ) -> None:
        self._engine = engine
        self._memberships = memberships
        self._past_memberships = past_memberships
        self._rules = rules
        self._ignored = ignored
        self._permissions = permissions
        self._threads = threads
        self._lifetimes = lifetimes

    async def get_actions(
        self, stored: StoredEvent, user_ids: Collection[UserID]
    ) -> Mapping[UserID, Actions]:
        """Return the actions of an event for each of these local users; users who are not notified
        are missing.

        A user is not notified of:
        - their own events, and those of users whom they ignore;
        - redacted events, and events that are not new (backfilled, not accepted, or older than the
          room's retention period);
        - events of rooms that they are not in now, or were not in when the event arrived. An
          invited user is notified of the invite, even into a room that this server is not in
          (`OutOfRoomMemberships.find_event`), unless they accept no invites of its sender.

        Costs at most five queries, besides those for rules that are not cached
        (`UserRuleCache.of_users`). If ignored users and the room are cached, it is only the query
        for the memberships of users who may be notified: users who have muted the room cost
        nothing. A rule set is evaluated once for all users who have it, unless the event mentions
        them. The room's members and power levels are the current ones.
        """
        event = stored.event
        if not await self._is_new(stored):
            return {}
        rules = await self._rules.of_users([user for user in user_ids if user != event.sender])
        if not rules:
            return {}
        evaluated = await self.prepare(stored)
        mentioned = mentioned_users(event)
        subscribers: Set[str] = frozenset()
        if stored.thread_root is not None and any(
            own.rule_set.uses_threads for own in rules.values()
        ):
            subscribers = await self._threads.get_subscribers(event.room_id, stored.thread_root)
            evaluated.thread_root, evaluated.subscribers = stored.thread_root, subscribers
        by_rule_set: dict[RuleSet, Actions] = {}
        individually: set[UserID] = set()
        candidates: list[UserID] = []
        for user, own in rules.items():
            rule_set = own.rule_set
            if (
                user in mentioned
                or rule_set.uses_display_names
                or (user in subscribers and rule_set.uses_threads)
            ):
                individually.add(user)
            else:
                if rule_set not in by_rule_set:
                    by_rule_set[rule_set] = rule_set.find(evaluated)
                if not by_rule_set[rule_set].notify:
                    continue
            candidates.append(user)
        if not candidates:
            return {}
        rows = await self._memberships.get_memberships(stored.room_nid, candidates)
        members = {
            user: rows[user]
            for user in candidates
            if user in rows and await self._may_notify_member(stored, rows[user])
        }
        ignored = await self._ignored.of_users(members)
        found: dict[UserID, Actions] = {}
        for user, row in members.items():
            if event.sender in ignored[user]:
                continue
            rule_set = rules[user].rule_set
            actions = (
                rule_set.find(evaluated, user, row.display_name)
                if user in individually
                else by_rule_set[rule_set]
            )
            if actions.notify:
                found[user] = actions
        return found

    async def find_mailed(
        self, row: MembershipRow, events: Sequence[StoredEvent]
    ) -> Sequence[StoredEvent]:
        """Return those events of one room that e-mails to a member include, by the conditions of
        `get_actions`. Costs the queries of one event, and an evaluation for each event."""
        user = UserID(row.user_id)
        rule_set = (await self._rules.of_user(user)).rule_set
        room_data: tuple[int, PowerLevels | None] | None = None
        subscribed_roots: Set[str] = frozenset()
        found: list[StoredEvent] = []
        for stored in events:
            if stored.event.sender == user or not await self.may_notify(stored, row):
                continue
            if room_data is None:
                room_data = await self._load_room_data(stored)
                if rule_set.uses_threads:
                    subscribed_roots = await self._threads.get_subscribed_roots(
                        user, stored.event.room_id
                    )
            evaluated = EvaluatedEvent.of_event(stored.event, *room_data)
            if rule_set.uses_threads:
                evaluated.thread_root = stored.thread_root
                evaluated.subscribers = (user,) if stored.thread_root in subscribed_roots else ()
            if rule_set.find(evaluated, user, row.display_name).mails:
                found.append(stored)
        return found

    async def may_notify(self, stored: StoredEvent, row: MembershipRow) -> bool:
        """Return whether a user with this membership of the room may still be notified of an event,
        whatever their rules say. Used when a push is sent later than it was decided. No query if
        the room and the user's ignored users are cached."""
        if stored.event.sender in await self._ignored.of_user(UserID(row.user_id)):
            return False
        return await self._is_new(stored) and await self._may_notify_member(stored, row)

    async def prepare(self, stored: StoredEvent) -> EvaluatedEvent:
        """Return the event with the data that rules need of its room. No query for a room that is
        cached or that this server is not in."""
        return EvaluatedEvent.of_event(stored.event, *await self._load_room_data(stored))

    async def _load_room_data(self, stored: StoredEvent) -> tuple[int, PowerLevels | None]:
        """Return the number of members of the event's room, and its power levels."""
        if stored.nid == OUT_OF_ROOM:
            return 0, None
        snapshot = await self._engine.find_snapshot(stored.event.room_id)
        if snapshot is None:
            return 0, None
        state = await snapshot.state.load([CREATE, POWER_LEVELS])
        levels = None
        if CREATE in state:
            power = state.get(POWER_LEVELS)
            levels = PowerLevels.of(
                snapshot.version, None if power is None else power.event, state[CREATE].event
            )
        return snapshot.head.joined_count, levels

    async def _may_notify_member(self, stored: StoredEvent, row: MembershipRow) -> bool:
        """Return whether a user with this current membership may be notified of the event."""
        position = stored.position
        assert position is not None
        if row.membership == "join":
            return (
                row.position <= position
                or await self._past_memberships.get_joined_since(row) <= position
            )
        return (
            row.membership == "invite"
            and stored.event.state_key == row.user_id
            and row.position == position
            and not await self._permissions.hides(row)
        )

    async def _is_new(self, stored: StoredEvent) -> bool:
        if stored.position is None or stored.redacted_by is not None or not stored.in_timeline:
            return False
        return self._lifetimes is None or await self._lifetimes.shows(stored)

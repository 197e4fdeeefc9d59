"""What users are to be told of an event, by their push rules as they are now: for who sends pushes.

Counts do not ask here: theirs is decided when the event arrives (`event_push_actions.py`).

spec: client-server-api#push-rules
"""

from collections.abc import Collection, Mapping, Sequence, Set

from federation.protocol.ids import UserID
from federation.protocol.power_levels import PowerLevels
from federation.rooms.engine import RoomEngine
from federation.rooms.events import StoredEvent
from federation.rooms.history.past_memberships import PastMemberships
from federation.rooms.history.retention import Lifetimes
from federation.rooms.snapshot import CREATE, POWER_LEVELS
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.account_data.invite_permissions import InvitePermissions
from homeserver.services.push.actions import Actions
from homeserver.services.push.event_properties import Occasion
from homeserver.services.push.rule_sets import RuleSet, named_users
from homeserver.services.push.user_rules import OwnRules
from storage.rooms.memberships import MembershipRow, MembershipStore
from storage.rooms.out_of_room_memberships import OUTSIDE
from storage.rooms.thread_subscriptions import ThreadSubscriptionStore


class PushDecisions:
    """Decides. For the reactor thread."""

    def __init__(
        self,
        engine: RoomEngine,
        memberships: MembershipStore,
        past: PastMemberships,
        rules: OwnRules,
        ignored: IgnoredUsers,
        permissions: InvitePermissions,
        threads: ThreadSubscriptionStore,
        lifetimes: Lifetimes | None,
    ) -> None:
        self._engine = engine
        self._memberships = memberships
        self._past = past
        self._rules = rules
        self._ignored = ignored
        self._permissions = permissions
        self._threads = threads
        self._lifetimes = lifetimes

    async def get_actions(
        self, stored: StoredEvent, user_ids: Collection[UserID]
    ) -> Mapping[UserID, Actions]:
        """What the event is to do for each of these local users; whom it tells nothing is missing
        from the answer.

        Nobody is told of their own events, of those of users whom they ignore, of redacted ones, of
        what is no news (what was fetched from the past, not accepted, or older than the room keeps
        it), nor of rooms that they are not in now or were not in then; whom the event itself
        invites is told of it, also into a room that this server is not in
        (`OutsideMemberships.find_event`), unless they want no invites of its sender.

        Costs at most five queries, besides those for rules that are not in memory
        (`OwnRules.of_users`), and none of them where ignored users and the room are in memory, too,
        but that for the memberships of those who may be told: who has muted the room costs nothing.
        A set of rules is asked once for all users who have it, unless the event names them. The
        room's members and power levels are those of now.
        """
        event = stored.event
        if not await self._is_news(stored):
            return {}
        rules = await self._rules.of_users([user for user in user_ids if user != event.sender])
        if not rules:
            return {}
        occasion = await self.occasion_of(stored)
        named = named_users(event)
        followers: Set[str] = frozenset()
        if stored.thread_root is not None and any(
            own.rule_set.asks_for_threads for own in rules.values()
        ):
            followers = await self._threads.get_followers(event.room_id, stored.thread_root)
            occasion.thread_root, occasion.followers = stored.thread_root, followers
        of_sets: dict[RuleSet, Actions] = {}
        singly: set[UserID] = set()
        asked: list[UserID] = []
        for user, own in rules.items():
            rule_set = own.rule_set
            if (
                user in named
                or rule_set.asks_for_names
                or (user in followers and rule_set.asks_for_threads)
            ):
                singly.add(user)
            else:
                if rule_set not in of_sets:
                    of_sets[rule_set] = rule_set.find(occasion)
                if not of_sets[rule_set].notify:
                    continue
            asked.append(user)
        if not asked:
            return {}
        rows = await self._memberships.get_memberships(stored.room_nid, asked)
        members = {
            user: rows[user]
            for user in asked
            if user in rows and await self._concerns(stored, rows[user])
        }
        ignored = await self._ignored.of_users(members)
        found: dict[UserID, Actions] = {}
        for user, row in members.items():
            if event.sender in ignored[user]:
                continue
            rule_set = rules[user].rule_set
            actions = (
                rule_set.find(occasion, user, row.display_name)
                if user in singly
                else of_sets[rule_set]
            )
            if actions.notify:
                found[user] = actions
        return found

    async def find_mailed(
        self, row: MembershipRow, events: Sequence[StoredEvent]
    ) -> Sequence[StoredEvent]:
        """Those of the events of one room of which one of its members is to be told by letters too,
        as `get_actions` has it: at the cost of one event, and an evaluation for each."""
        user = UserID(row.user_id)
        rule_set = (await self._rules.of_user(user)).rule_set
        surroundings: tuple[int, PowerLevels | None] | None = None
        followed: Set[str] = frozenset()
        found: list[StoredEvent] = []
        for stored in events:
            if stored.event.sender == user or not await self.concerns(stored, row):
                continue
            if surroundings is None:
                surroundings = await self._surroundings_of(stored)
                if rule_set.asks_for_threads:
                    followed = await self._threads.get_followed(user, stored.event.room_id)
            occasion = Occasion.of_event(stored.event, *surroundings)
            if rule_set.asks_for_threads:
                occasion.thread_root = stored.thread_root
                occasion.followers = (user,) if stored.thread_root in followed else ()
            if rule_set.find(occasion, user, row.display_name).mails:
                found.append(stored)
        return found

    async def concerns(self, stored: StoredEvent, row: MembershipRow) -> bool:
        """Whether an event may be told to somebody with this membership of its room, whatever their
        rules say: for who tells it later than it was decided. No query where the room and whom they
        ignore are in memory."""
        if stored.event.sender in await self._ignored.of_user(UserID(row.user_id)):
            return False
        return await self._is_news(stored) and await self._concerns(stored, row)

    async def occasion_of(self, stored: StoredEvent) -> Occasion:
        """The event as rules look at it, in its room of now; no query for a room that is in memory,
        or that this server is not in."""
        return Occasion.of_event(stored.event, *await self._surroundings_of(stored))

    async def _surroundings_of(self, stored: StoredEvent) -> tuple[int, PowerLevels | None]:
        """How many are in the event's room, and what they may do there."""
        if stored.nid == OUTSIDE:
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

    async def _concerns(self, stored: StoredEvent, row: MembershipRow) -> bool:
        """Whether the event may be told to a user with this membership of now."""
        position = stored.position
        assert position is not None
        if row.membership == "join":
            return row.position <= position or await self._past.joined_since(row) <= position
        return (
            row.membership == "invite"
            and stored.event.state_key == row.user_id
            and row.position == position
            and not await self._permissions.hides(row)
        )

    async def _is_news(self, stored: StoredEvent) -> bool:
        if stored.position is None or stored.redacted_by is not None or not stored.in_timeline:
            return False
        return self._lifetimes is None or await self._lifetimes.shows(stored)

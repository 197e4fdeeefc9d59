"""What users are to be told of an event, by their push rules as they are now: for who sends pushes.

Counts do not ask here: theirs is decided when the event arrives (`outcomes.py`).

spec: client-server-api#push-rules
"""

from collections.abc import Collection, Mapping

from federation.protocol.ids import UserID
from federation.protocol.power_levels import PowerLevels
from federation.rooms.engine import RoomEngine
from federation.rooms.past_memberships import PastMemberships
from federation.rooms.room_events import StoredEvent
from federation.rooms.snapshots import CREATE, POWER_LEVELS
from homeserver.services.ignored_users import IgnoredUsers
from homeserver.services.invite_permissions import InvitePermissions
from homeserver.services.push.actions import Actions
from homeserver.services.push.occasion import Occasion
from homeserver.services.push.own_rules import OwnRules
from homeserver.services.push.rule_sets import RuleSet, named_users
from storage.memberships import MembershipRow, MembershipStore


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
    ) -> None:
        self._engine = engine
        self._memberships = memberships
        self._past = past
        self._rules = rules
        self._ignored = ignored
        self._permissions = permissions

    async def get_actions(self, stored: StoredEvent, user_ids: Collection[UserID]) -> Mapping[UserID, Actions]:
        """What the event is to do for each of these local users; whom it tells nothing is missing from the answer.

        Nobody is told of their own events, of those of users whom they ignore, of redacted ones, of what is no news (what was
        fetched from the past, or not accepted), nor of rooms that they are not in now or were not in then; whom the event
        itself invites is told of it, also into a room that this server is not in (`OutsideMemberships.find_event`), unless they
        want no invites of its sender.

        Costs at most five queries whatever the number of users, and none of them where rules, ignored users and the room are
        in memory but that for the memberships. A set of rules is asked once for all users who have it, unless the event
        names them. The room's members and power levels are those of now.
        """
        event = stored.event
        if stored.position is None or stored.redacted_by is not None or not stored.in_timeline:
            return {}
        members = await self._members_then(stored, [user for user in user_ids if user != event.sender])
        ignored = await self._ignored.of_users(members)
        told = [user for user in members if event.sender not in ignored[user]]
        if not told:
            return {}
        rules = await self._rules.of_users(told)
        occasion = await self.occasion_of(stored)
        named = named_users(event)
        found: dict[UserID, Actions] = {}
        of_sets: dict[RuleSet, Actions] = {}
        for user in told:
            rule_set = rules[user].rule_set
            if user in named or rule_set.asks_for_names:
                actions = rule_set.find(occasion, user, members[user].display_name)
            elif rule_set in of_sets:
                actions = of_sets[rule_set]
            else:
                actions = of_sets[rule_set] = rule_set.find(occasion)
            if actions.notify:
                found[user] = actions
        return found

    async def occasion_of(self, stored: StoredEvent) -> Occasion:
        """The event as rules look at it, in its room of now; no query for a room that is in memory."""
        snapshot = await self._engine.find_snapshot(stored.event.room_id)
        if snapshot is None:
            return Occasion.of_event(stored.event, 0, None)
        state = await snapshot.state.load([CREATE, POWER_LEVELS])
        levels = None
        if CREATE in state:
            power = state.get(POWER_LEVELS)
            levels = PowerLevels.of(snapshot.version, None if power is None else power.event, state[CREATE].event)
        return Occasion.of_event(stored.event, snapshot.head.joined_count, levels)

    async def _members_then(self, stored: StoredEvent, user_ids: Collection[UserID]) -> Mapping[UserID, MembershipRow]:
        """Those of the users whom the event may be told to, with their memberships of now."""
        position = stored.position
        assert position is not None
        rows = await self._memberships.get_memberships(stored.room_nid, user_ids)
        found: dict[UserID, MembershipRow] = {}
        for user in user_ids:
            row = rows.get(user)
            if row is None:
                continue
            if row.membership == "join":
                if row.position <= position or await self._past.joined_since(row) <= position:
                    found[user] = row
            elif (
                row.membership == "invite"
                and stored.event.state_key == user
                and row.position == position
                and not await self._permissions.hides(row)
            ):
                found[user] = row
        return found

"""Coming into rooms and leaving them; inviting, removing and banning others.

spec: client-server-api#room-membership
"""

from collections.abc import Sequence
from typing import Any, Final

from federation.identity import ServerIdentity
from federation.protocol.errors import BadState, Forbidden, GuestAccessForbidden, NotFound
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomAlias, RoomID, UserID
from federation.protocol.power_levels import PowerLevels
from federation.rooms.drafts import Draft
from federation.rooms.engine import RoomEngine
from federation.rooms.memberships import Memberships
from federation.rooms.snapshots import POWER_LEVELS, RoomSnapshot
from homeserver.http.endpoint import Limit, Requester
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.profiles import Profiles
from storage.aliases import AliasStore
from storage.memberships import MembershipStore
from storage.rooms import RoomStore

JOIN_RULES: Final = StateKey("m.room.join_rules", "")
GUEST_ACCESS: Final = StateKey("m.room.guest_access", "")
RESTRICTED: Final = frozenset({"restricted", "knock_restricted"})
MAX_ALLOWED_ROOMS: Final = 50
"""How many rooms of a restricted join rule are looked at."""

Names = tuple[str | None, str | None]


class RoomMemberships:
    """Changes memberships for this server's users."""

    def __init__(
        self,
        engine: RoomEngine,
        memberships: Memberships,
        membership_store: MembershipStore,
        rooms: RoomStore,
        aliases: AliasStore,
        profiles: Profiles,
        limiter: RateLimiter,
        identity: ServerIdentity,
    ) -> None:
        self._engine = engine
        self._memberships = memberships
        self._membership_store = membership_store
        self._rooms = rooms
        self._aliases = aliases
        self._profiles = profiles
        self._limiter = limiter
        self._identity = identity

    async def resolve(self, room_id_or_alias: str) -> RoomID:
        """The room that an id or an alias stands for. Raises NotFound."""
        if not room_id_or_alias.startswith("#"):
            return RoomID(room_id_or_alias)
        alias = RoomAlias(room_id_or_alias)
        row = (await self._aliases.get_aliases([alias])).get(alias)
        if row is None:
            raise NotFound(f"The alias {alias} does not point to a room")
        return RoomID((await self._rooms.get_rooms_by_nid([row.room_nid]))[row.room_nid].room_id)

    async def do_join(self, caller: Requester, room_id: RoomID, reason: str | None, more: dict[str, Any]) -> RoomID:
        """Join a room. `more` is further content of the membership event. Raises NotFound, Forbidden."""
        snapshot = await self._engine.get_snapshot(room_id)
        present = (await self._memberships.of_user(caller.user_id)).get(snapshot.room.room_nid)
        if present is not None and present.membership == "join":
            return room_id
        if caller.rate_limited:
            self._limiter.check(Limit.JOIN_ROOM, room_id)
        if caller.is_guest:
            await self._check_guests_may_join(snapshot)
        content = await self._content("join", caller.user_id, reason, more)
        invited = present is not None and present.membership == "invite"
        if not invited:
            content |= await self._authorise_restricted_join(snapshot, caller.user_id)
        await self._send(caller, room_id, caller.user_id, content)
        return room_id

    async def check_may_join(self, caller: Requester, room_id: RoomID) -> None:
        """For a join that is sent as a state event: what authorization does not ask. Raises LimitExceeded, Forbidden."""
        snapshot = await self._engine.get_snapshot(room_id)
        present = (await self._memberships.of_user(caller.user_id)).get(snapshot.room.room_nid)
        if present is not None and present.membership == "join":
            return
        if caller.rate_limited:
            self._limiter.check(Limit.JOIN, caller.user_id)
            self._limiter.check(Limit.JOIN_ROOM, room_id)
        if caller.is_guest:
            await self._check_guests_may_join(snapshot)

    async def do_knock(self, caller: Requester, room_id: RoomID, reason: str | None) -> RoomID:
        """Ask to be let in. Raises NotFound, Forbidden."""
        await self._send(caller, room_id, caller.user_id, await self._content("knock", caller.user_id, reason, {}))
        return room_id

    async def do_leave(self, caller: Requester, room_id: RoomID, reason: str | None) -> None:
        """Leave a room, decline an invite, take a knock back. Nothing happens to who has left already."""
        snapshot = await self._engine.get_snapshot(room_id)
        present = (await self._memberships.of_user(caller.user_id)).get(snapshot.room.room_nid)
        if present is None:
            raise Forbidden("You are not in this room")
        if present.membership == "leave":
            return
        await self._send(caller, room_id, caller.user_id, await self._content("leave", None, reason, {}))

    async def do_forget(self, caller: Requester, room_id: RoomID) -> None:
        """Take a room that one has left out of one's history. Raises BadState while one is in it."""
        room = await self._rooms.get_room(room_id)
        present = None if room is None else (await self._memberships.of_user(caller.user_id)).get(room.room_nid)
        if present is None:
            raise NotFound("You have no history with this room")
        if present.membership in ("join", "invite", "knock"):
            raise BadState("Leave the room before you forget it")
        await self._membership_store.set_forgotten(present.room_nid, caller.user_id)

    async def do_invite(self, caller: Requester, room_id: RoomID, target: UserID, reason: str | None) -> None:
        """Invite someone. Raises NotFound, Forbidden."""
        if not self._identity.is_local(target):
            raise Forbidden(f"{target} is of another server, and this server does not federate")
        await self._engine.get_snapshot(room_id)
        if caller.rate_limited:
            self._limiter.check(Limit.INVITE_ROOM, room_id)
            self._limiter.check(Limit.INVITE_USER, target)
            self._limiter.check(Limit.INVITE, caller.user_id)
        await self._send(caller, room_id, target, await self._content("invite", target, reason, {}))

    async def do_kick(self, caller: Requester, room_id: RoomID, target: UserID, reason: str | None) -> None:
        """Remove someone, their invite or their knock. Raises NotFound, Forbidden."""
        await self._check_membership(room_id, target, {"join", "invite", "knock"}, "is not in the room")
        await self._send(caller, room_id, target, await self._content("leave", None, reason, {}))

    async def do_ban(self, caller: Requester, room_id: RoomID, target: UserID, reason: str | None) -> None:
        """Ban someone. Raises NotFound, Forbidden."""
        await self._send(caller, room_id, target, await self._content("ban", None, reason, {}))

    async def do_unban(self, caller: Requester, room_id: RoomID, target: UserID, reason: str | None) -> None:
        """Lift a ban. Raises NotFound, Forbidden; BadState for who is not banned."""
        await self._check_membership(room_id, target, {"ban"}, "is not banned")
        await self._send(caller, room_id, target, await self._content("leave", None, reason, {}))

    async def leave_all(self, user_id: UserID) -> None:
        """Leave every room, decline every invite, take back every knock."""
        rows = [
            row
            for row in (await self._memberships.of_user(user_id)).values()
            if row.membership in ("join", "invite", "knock")
        ]
        rooms = await self._rooms.get_rooms_by_nid(row.room_nid for row in rows)
        for row in rows:
            draft = Draft("m.room.member", user_id, {"membership": "leave"}, user_id)
            await self._engine.send(RoomID(rooms[row.room_nid].room_id), [draft])

    async def get_joined_rooms(self, user_id: UserID) -> Sequence[RoomID]:
        """The rooms that the user is in."""
        rows = (await self._memberships.of_user(user_id)).values()
        joined = [row.room_nid for row in rows if row.membership == "join"]
        rooms = await self._rooms.get_rooms_by_nid(joined)
        return [RoomID(rooms[nid].room_id) for nid in joined]

    async def _send(self, caller: Requester, room_id: RoomID, target: UserID, content: dict[str, Any]) -> None:
        draft = Draft("m.room.member", caller.user_id, content, target, unless_same=True)
        await self._engine.send(room_id, [draft])

    async def _content(
        self, membership: str, shown: UserID | None, reason: str | None, more: dict[str, Any]
    ) -> dict[str, Any]:
        """Content of a membership event; `shown` is whose name and avatar go into it."""
        names: Names | None = None
        if shown is not None and self._identity.is_local(shown):
            names = (await self._profiles.get_names([shown])).get(shown)
        content = {**more, **member_content(membership, names)}
        if reason is not None:
            content["reason"] = reason
        return content

    async def _check_membership(self, room_id: RoomID, target: UserID, expected: set[str], otherwise: str) -> None:
        snapshot = await self._engine.get_snapshot(room_id)
        present = await snapshot.state.get(StateKey("m.room.member", target))
        if present is None or present.event.membership not in expected:
            raise BadState(f"{target} {otherwise}") if expected == {"ban"} else Forbidden(f"{target} {otherwise}")

    async def _check_guests_may_join(self, snapshot: RoomSnapshot) -> None:
        access = await snapshot.state.get(GUEST_ACCESS)
        if access is None or access.event.content.get("guest_access") != "can_join":
            raise GuestAccessForbidden("This room does not take guests")

    async def _authorise_restricted_join(self, snapshot: RoomSnapshot, user_id: UserID) -> dict[str, str]:
        """For a room that members of other rooms may join: who of this server vouches for the user.

        spec: client-server-api#restricted-rooms
        """
        rules = await snapshot.state.get(JOIN_RULES)
        if (
            rules is None
            or not snapshot.version.restricted_joins
            or rules.event.content.get("join_rule") not in RESTRICTED
        ):
            return {}
        if not await self._is_in_allowed_room(rules.event.content.get("allow"), user_id):
            return {}
        levels = await snapshot.state.get(POWER_LEVELS)
        create = await snapshot.create_event()
        power = PowerLevels.of(snapshot.version, None if levels is None else levels.event, create)
        for member in sorted(await self._memberships.local_members(snapshot.room.room_nid)):
            if power.user_level(UserID(member)) >= power.invite:
                return {"join_authorised_via_users_server": member}
        return {}

    async def _is_in_allowed_room(self, allow: object, user_id: UserID) -> bool:
        conditions = allow[:MAX_ALLOWED_ROOMS] if isinstance(allow, list) else []
        allowed = [
            condition["room_id"]
            for condition in conditions
            if isinstance(condition, dict)
            and condition.get("type") == "m.room_membership"
            and isinstance(condition.get("room_id"), str)
        ]
        rooms = await self._rooms.get_rooms(allowed)
        own = await self._memberships.of_user(user_id)
        return any((row := own.get(room.room_nid)) is not None and row.membership == "join" for room in rooms.values())


def member_content(membership: str, names: Names | None) -> dict[str, Any]:
    """Content of a membership event that shows a person's name and avatar."""
    content: dict[str, Any] = {"membership": membership}
    display_name, avatar_url = names or (None, None)
    if display_name is not None:
        content["displayname"] = display_name
    if avatar_url is not None:
        content["avatar_url"] = avatar_url
    return content

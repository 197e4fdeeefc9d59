"""Changes of membership: join, knock, leave, forget, invite, kick, ban, unban.

spec: client-server-api#room-membership
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from twisted.logger import Logger

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import (
    BadState,
    Forbidden,
    MatrixError,
    NotFound,
    OtherServerFailed,
    RemoteError,
)
from federation.protocol.events import StateKey
from federation.protocol.ids import EventID, RoomAlias, RoomID, UserID, domain_of, parse_user_id
from federation.rooms.engine import RoomEngine
from federation.rooms.event_drafts import Check, Draft
from federation.rooms.joins.restricted_joins import RestrictedJoins
from federation.rooms.membership_checks import check_still
from federation.rooms.membership_templates import AUTHORISER
from federation.rooms.memberships import Memberships
from federation.rooms.server_in_room import ServerInRoom
from federation.rooms.snapshot import RoomSnapshot
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.directory.shadow_ban import HiddenRoomChanges
from homeserver.services.profiles.profiles import Profiles
from homeserver.services.rooms.guest_access import GuestAccess
from homeserver.services.rooms.invite_policy import InvitePolicy
from homeserver.services.rooms.remote_rooms import RemoteRooms
from homeserver.services.rooms.upgrade_settings import PersonalSettingsCopier
from storage.rooms.memberships import MembershipStore
from storage.rooms.rooms import RoomStore

CURRENT_MEMBERSHIPS: Final = frozenset({"join", "invite", "knock"})
BANNED: Final = frozenset({"ban"})
MAX_SERVERS: Final = 20
"""The maximum number of servers that are used of those in a request."""

NameAndAvatar = tuple[str | None, str | None]


class StillInRoom(MatrixError):
    """spec: client-server-api#post_matrixclientv3roomsroomidforget"""

    errcode, status, default_text = "M_UNKNOWN", 400, "Leave the room before you forget it"


class NotBanned(BadState):
    """The status that the endpoint has. spec:
    client-server-api#post_matrixclientv3roomsroomidunban"""

    status = 403


class RoomMemberships:
    """Changes memberships for this server's users."""

    _log = Logger()

    # More than ten: every rule of joins and invites is a part of its own.
    def __init__(
        self,
        *,
        engine: RoomEngine,
        memberships: Memberships,
        membership_store: MembershipStore,
        rooms: RoomStore,
        hidden_changes: HiddenRoomChanges,
        profiles: Profiles,
        limiter: RateLimiter,
        identity: ServerIdentity,
        guest_access: GuestAccess,
        restricted_joins: RestrictedJoins,
        personal_settings: PersonalSettingsCopier,
        invite_policy: InvitePolicy,
        server_in_room: ServerInRoom,
        remote_rooms: RemoteRooms,
        profile_on_invite: bool,
    ) -> None:
        """`profile_on_invite`: an invite carries the name and avatar of the invited user."""
        self._engine = engine
        self._memberships = memberships
        self._membership_store = membership_store
        self._rooms = rooms
        self._hidden_changes = hidden_changes
        self._profiles = profiles
        self._limiter = limiter
        self._identity = identity
        self._guests = guest_access
        self._restricted_joins = restricted_joins
        self._personal_settings = personal_settings
        self._invites = invite_policy
        self._server_in_room = server_in_room
        self._remote_rooms = remote_rooms
        self._profile_on_invite = profile_on_invite

    async def resolve(
        self, caller: Requester | None, room_id_or_alias: str, servers: Sequence[str] | None
    ) -> tuple[RoomID, Sequence[str]]:
        """Return the room of an ID or alias, and servers that may be in it. Raises NotFound,
        OtherServerFailed."""
        servers = (servers or ())[:MAX_SERVERS]
        if not room_id_or_alias.startswith("#"):
            return RoomID(room_id_or_alias), servers
        alias = RoomAlias(room_id_or_alias)
        if not self._identity.is_local(alias):
            room_id, found = await self._remote_rooms.resolve(alias)
            return room_id, [*servers, domain_of(alias), *found]
        row = (await self._hidden_changes.get_aliases(caller, [alias])).get(alias)
        if row is None:
            raise NotFound(f"The alias {alias} does not point to a room")
        return RoomID(
            (await self._rooms.get_rooms_by_nid([row.room_nid]))[row.room_nid].room_id
        ), servers

    async def do_join(
        self,
        caller: Requester,
        room_id: RoomID,
        reason: str | None,
        signed: Mapping[str, Any] | None = None,
        servers: Sequence[str] = (),
    ) -> RoomID:
        """Join a room. `signed` proves that the user owns an address that was invited; `servers`
        may be in the room.

        Raises NotFound, Forbidden, LimitExceeded, UnsupportedRoomVersion, OtherServerFailed,
        StateIncomplete.
        """
        snapshot = await self._server_in_room.find(room_id)
        if snapshot is None or await self._find_membership(caller.user_id, snapshot) != "join":
            content = await self._content("join", caller.user_id, _visible_reason(caller, reason))
            with self.counting_join(caller, room_id):
                snapshot = await self._join(caller, room_id, snapshot, content, signed, servers)
        await self._personal_settings.do_copy(caller.user_id, snapshot)
        return room_id

    def counting_join(self, caller: Requester, room_id: RoomID) -> AbstractContextManager[None]:
        """Count a join against the limit of its room, unless it is refused: otherwise refused
        requests could keep others out. Raises LimitExceeded."""
        return (
            self._limiter.count_unless_failed(Limit.JOIN_ROOM, room_id)
            if caller.rate_limited
            else nullcontext()
        )

    async def _join(
        self,
        caller: Requester,
        room_id: RoomID,
        snapshot: RoomSnapshot | None,
        content: dict[str, Any],
        signed: Mapping[str, Any] | None,
        servers: Sequence[str],
    ) -> RoomSnapshot:
        """Join a room, local or remote: the snapshot is None if this server is not in it."""
        if snapshot is None:
            if await self._remote_rooms.do_join(caller, room_id, content, servers):
                return await self._engine.get_snapshot(room_id)
            snapshot = await self._engine.get_snapshot(room_id)
        current = await self._find_membership(caller.user_id, snapshot)
        if current != "join" and not await self._join_partial(
            caller, snapshot, current, content, signed, servers
        ):
            snapshot = await self._engine.get_complete(room_id)
            await self._join_local(caller, snapshot, current, content, signed, servers)
        return snapshot

    async def _join_partial(
        self,
        caller: Requester,
        snapshot: RoomSnapshot,
        current: str | None,
        content: dict[str, Any],
        signed: Mapping[str, Any] | None,
        servers: Sequence[str],
    ) -> bool:
        """Join a room whose state is partial here through a server that has all of it. False: the
        caller has to decide by the full state.

        So it does if no server lets the user in: the refusing server may be wrong, or none may be
        available.
        """
        if snapshot.head.partial_join is None or signed is not None:
            return False
        await self._check_joining(caller, snapshot, current)
        try:
            await self._remote_rooms.do_join_authorised(caller, snapshot.room_id, content, servers)
        except (NotFound, Forbidden, OtherServerFailed):
            return False
        return True

    async def _join_local(
        self,
        caller: Requester,
        snapshot: RoomSnapshot,
        current: str | None,
        content: dict[str, Any],
        signed: Mapping[str, Any] | None,
        servers: Sequence[str],
    ) -> None:
        """Join a room that this server is in."""
        content = content | await self._check_joining(caller, snapshot, current)
        if (
            current != "invite"
            and AUTHORISER not in content
            and signed is None
            and await self._restricted_joins.allows_join(snapshot, caller.user_id)
        ):
            await self._remote_rooms.do_join_authorised(caller, snapshot.room_id, content, servers)
            return
        drafts = [Draft("m.room.member", caller.user_id, content, caller.user_id, unless_same=True)]
        if signed is not None and current != "invite":
            drafts.insert(0, await self._redeem_invite(caller.user_id, snapshot, signed))
        await self._engine.send(snapshot.room_id, drafts)

    async def check_member_state(
        self, caller: Requester, room_id: RoomID, target: str, content: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Check a membership change that is sent as a state event, and return the content to send.

        This adds the checks of the membership endpoints to event authorization. A member whose ID
        is invalid, let in by another server, can be removed or banned but nothing else. Raises
        InvalidParam, NotFound, Forbidden, InviteBlocked, LimitExceeded.
        """
        checked = {name: value for name, value in content.items() if name != AUTHORISER}
        snapshot = await self._engine.get_snapshot(room_id)
        if not await self._server_in_room.is_in(snapshot):
            raise NotFound(
                "This server is not in the room: use the endpoints for joining, knocking and"
                " leaving"
            )
        is_removal = checked.get("membership") in ("leave", "ban")
        if not (is_removal and await self._find_membership(UserID(target), snapshot) is not None):
            parse_user_id(target)
        if target == caller.user_id:
            await self._profiles.check_name_in_room(caller, checked.get("displayname"))
        match checked.get("membership"):
            case "join" if target != caller.user_id:
                raise Forbidden("You cannot make others join")
            case "join":
                current = await self._find_membership(caller.user_id, snapshot)
                if current != "join":
                    snapshot = await self._engine.get_complete(room_id)
                    if caller.rate_limited:
                        self._limiter.check(Limit.JOIN, caller.user_id)
                    checked |= await self._check_joining(caller, snapshot, current)
            case "invite":
                await self._check_inviting(caller, room_id, UserID(target))
        return checked

    async def is_join(
        self, caller: Requester, room_id: RoomID, target: str, content: Mapping[str, Any]
    ) -> bool:
        """Whether a state event that changes a membership brings its sender into the room."""
        if target != caller.user_id or content.get("membership") != "join":
            return False
        return (
            await self._find_membership(caller.user_id, await self._engine.get_snapshot(room_id))
            != "join"
        )

    async def find_visible_change(
        self, user_id: UserID, room_id: RoomID, content: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Return the content that others may see when a shadow-banned user changes their own
        membership by a state event; None: nothing is sent."""
        membership = content.get("membership")
        if membership == "leave":
            return {"membership": "leave"}
        snapshot = await self._engine.find_snapshot(room_id)
        if membership not in ("join", "knock") or snapshot is None:
            return None
        if await self._find_membership(user_id, snapshot) in ("join", membership):
            return None
        return await self._content(membership, user_id, None)

    async def complete_join(self, user_id: UserID, room_id: RoomID) -> None:
        """Complete a join by a state event: copy personal settings from the room it replaces."""
        await self._personal_settings.do_copy(user_id, await self._engine.get_snapshot(room_id))

    async def do_knock(
        self, caller: Requester, room_id: RoomID, reason: str | None, servers: Sequence[str] = ()
    ) -> RoomID:
        """Knock on a room. `servers` may be in the room. Raises NotFound, Forbidden,
        OtherServerFailed."""
        content = await self._content("knock", caller.user_id, _visible_reason(caller, reason))
        if await self._server_in_room.find(room_id) is None:
            await self._remote_rooms.do_knock(caller, room_id, content, servers)
        else:
            await self._send(caller, room_id, caller.user_id, content)
        return room_id

    async def do_leave(self, caller: Requester, room_id: RoomID, reason: str | None) -> None:
        """Leave a room, reject an invite or retract a knock. Has no effect if the user has already
        left."""
        content = await self._content("leave", None, _visible_reason(caller, reason))
        snapshot = await self._server_in_room.find(room_id)
        if snapshot is None:
            await self._remote_rooms.do_leave(caller.user_id, room_id, content)
            return
        current = await self._find_membership(caller.user_id, snapshot)
        if current is None:
            raise Forbidden("You are not in this room")
        if current == "leave":
            return
        await self._send(caller, room_id, caller.user_id, content)

    async def do_forget(self, caller: Requester, room_id: RoomID) -> None:
        """Forget a room that the user has left. Raises NotFound, StillInRoom."""
        room = await self._rooms.get_room(room_id)
        current = (
            None
            if room is None
            else (await self._memberships.of_user(caller.user_id)).get(room.room_nid)
        )
        if current is None:
            raise NotFound("You have no history with this room")
        if current.membership in CURRENT_MEMBERSHIPS:
            raise StillInRoom
        await self._membership_store.set_forgotten(current.room_nid, caller.user_id)

    async def do_invite(
        self, caller: Requester, room_id: RoomID, target: UserID, reason: str | None
    ) -> None:
        """Invite a user. Raises NotFound, Forbidden, InviteBlocked, UnsupportedRoomVersion,
        OtherServerFailed."""
        await self._check_inviting(caller, room_id, target)
        profile_user = target if self._profile_on_invite else None
        content = await self._content("invite", profile_user, reason)
        if self._identity.is_local(target) or caller.is_shadow_banned:
            await self._send_about(caller, room_id, target, content)
        else:
            await self.do_invite_remote(caller, room_id, target, content)

    def needs_remote_server(self, target: str, content: Mapping[str, Any]) -> bool:
        """Whether this membership change is made together with the target's server."""
        return content.get("membership") == "invite" and not self._identity.is_local(target)

    async def do_invite_remote(
        self, caller: Requester, room_id: RoomID, target: UserID, content: Mapping[str, Any]
    ) -> EventID:
        """Invite a user of another server, which signs the invite; return the event ID. The caller
        has checked that the invite is allowed."""
        return await self._remote_rooms.do_invite(caller, room_id, target, content)

    async def do_kick(
        self, caller: Requester, room_id: RoomID, target: UserID, reason: str | None
    ) -> None:
        """Kick a member, or revoke an invite or a knock. Raises Forbidden."""
        snapshot = await self._check_joined(caller, room_id)
        refusal = Forbidden(f"{target} is not in the room")
        if not await self._has(snapshot, target, CURRENT_MEMBERSHIPS):
            raise refusal
        await self._set_left(caller, room_id, target, reason, CURRENT_MEMBERSHIPS, refusal)

    async def do_ban(
        self, caller: Requester, room_id: RoomID, target: UserID, reason: str | None
    ) -> None:
        """Ban a user. Raises Forbidden."""
        await self._check_joined(caller, room_id)
        await self._send_about(caller, room_id, target, await self._content("ban", None, reason))

    async def do_unban(
        self, caller: Requester, room_id: RoomID, target: UserID, reason: str | None
    ) -> None:
        """Lift a ban. Raises Forbidden, NotBanned."""
        snapshot = await self._check_joined(caller, room_id)
        refusal = NotBanned(f"{target} is not banned")
        if not await self._has(snapshot, target, BANNED):
            raise refusal
        await self._set_left(caller, room_id, target, reason, BANNED, refusal)

    async def _set_left(
        self,
        caller: Requester,
        room_id: RoomID,
        target: UserID,
        reason: str | None,
        expected: frozenset[str],
        refusal: MatrixError,
    ) -> None:
        """Set a user's membership to leave if it is still one of those expected, despite concurrent
        changes."""
        check = check_still(self._engine, room_id, target, expected, lambda: refusal)
        content = await self._content("leave", None, reason)
        await self._send_about(caller, room_id, target, content, check)

    async def leave_all_rooms(self, user_id: UserID) -> bool:
        """Leave every room, reject every invite, retract every knock, and forget all rooms: the
        account is being deactivated.

        False if a room could not be left for now; the others are left all the same.
        """
        rows = [
            row
            for row in (await self._memberships.of_user(user_id)).values()
            if row.membership in CURRENT_MEMBERSHIPS
        ]
        rooms = await self._rooms.get_rooms_by_nid(row.room_nid for row in rows)
        for row in rows:
            room_id, content = RoomID(rooms[row.room_nid].room_id), {"membership": "leave"}
            try:
                if await self._server_in_room.find(room_id) is None:
                    await self._remote_rooms.do_leave(user_id, room_id, content)
                else:
                    await self._engine.send(
                        room_id, [Draft("m.room.member", user_id, content, user_id)]
                    )
            except (MatrixError, RemoteError) as error:
                self._log.info(
                    "{user} could not leave {room}: {error}",
                    user=user_id,
                    room=room_id,
                    error=str(error),
                )
        now = (await self._memberships.of_user(user_id)).values()
        if any(row.membership in CURRENT_MEMBERSHIPS for row in now):
            return False
        if not all(row.forgotten for row in now):
            await self._membership_store.set_all_forgotten(user_id)
        return True

    async def get_joined_rooms(self, user_id: UserID) -> Sequence[RoomID]:
        """Return the rooms that the user is joined to."""
        rows = (await self._memberships.of_user(user_id)).values()
        joined = [row.room_nid for row in rows if row.membership == "join"]
        rooms = await self._rooms.get_rooms_by_nid(joined)
        return [RoomID(rooms[nid].room_id) for nid in joined]

    async def _send_about(
        self,
        caller: Requester,
        room_id: RoomID,
        target: UserID,
        content: dict[str, Any],
        check: Check | None = None,
    ) -> None:
        """Send a membership event about another user. For a shadow-banned account it is only
        checked: refused is what others would be refused."""
        if caller.is_shadow_banned:
            draft = Draft(
                "m.room.member", caller.user_id, content, target, check=check, unless_same=True
            )
            await self._engine.check(room_id, [draft])
        else:
            await self._send(caller, room_id, target, content, check)

    async def _send(
        self,
        caller: Requester,
        room_id: RoomID,
        target: UserID,
        content: dict[str, Any],
        check: Check | None = None,
    ) -> None:
        draft = Draft(
            "m.room.member", caller.user_id, content, target, check=check, unless_same=True
        )
        await self._engine.send(room_id, [draft])

    async def _find_membership(self, user_id: UserID, snapshot: RoomSnapshot) -> str | None:
        row = (await self._memberships.of_user(user_id)).get(snapshot.room.room_nid)
        return None if row is None else row.membership

    async def _check_joining(
        self, caller: Requester, snapshot: RoomSnapshot, current: str | None
    ) -> dict[str, str]:
        """Check the conditions for joining besides authorization; return additions to the event's
        content."""
        if caller.is_guest:
            await self._guests.check_may_join(snapshot)
        if current == "invite":
            return {}
        authoriser = await self._restricted_joins.find_authoriser(snapshot, caller.user_id)
        return {} if authoriser is None else {AUTHORISER: authoriser}

    async def _check_inviting(self, caller: Requester, room_id: RoomID, target: UserID) -> None:
        await self._check_joined(caller, room_id)
        if caller.rate_limited:
            self._limiter.check(Limit.INVITE_ROOM, room_id)
            self._limiter.check(Limit.INVITE_USER, target)
            self._limiter.check(Limit.INVITE, caller.user_id)
        await self.check_may_invite(caller, [target])

    async def check_may_invite(self, caller: Requester, targets: Iterable[UserID]) -> None:
        """Check that the caller may invite these users. Raises Forbidden, NotFound,
        InviteBlocked."""
        self._invites.check_may_invite(caller)
        local: list[UserID] = []
        remote: list[UserID] = []
        for target in targets:
            (local if self._identity.is_local(target) else remote).append(target)
        self._remote_rooms.check_inviting(remote)
        await self._invites.check_local_invites(caller.user_id, local)

    async def _redeem_invite(
        self, user_id: UserID, snapshot: RoomSnapshot, signed: Mapping[str, Any]
    ) -> Draft:
        """Return an invite for a user who proved to own an invited third-party address, in the name
        of the sender of the third-party invite. Authorization checks the proof. spec:
        client-server-api#third-party-invites"""
        token = signed.get("token")
        invitation = None
        if isinstance(token, str):
            invitation = await snapshot.state.get(StateKey("m.room.third_party_invite", token))
        if invitation is None or not self._identity.is_local(invitation.event.sender):
            raise Forbidden("The invite to this address does not exist or is no longer valid")
        name = invitation.event.content.get("display_name")
        proof = {
            "display_name": name if isinstance(name, str) else "",
            "signed": dict(signed),
        }
        content = {**await self._content("invite", user_id, None), "third_party_invite": proof}
        return Draft("m.room.member", invitation.event.sender, content, user_id)

    async def _content(
        self, membership: str, profile_user: UserID | None, reason: str | None
    ) -> dict[str, Any]:
        """Return the content of a membership event, with the name and avatar of the user
        `profile_user`."""
        names: NameAndAvatar | None = None
        if profile_user is not None and self._identity.is_local(profile_user):
            names = (await self._profiles.get_names([profile_user])).get(profile_user)
        content = member_content(membership, names)
        if reason is not None:
            content["reason"] = reason
        return content

    async def _check_joined(self, caller: Requester, room_id: RoomID) -> RoomSnapshot:
        """Return the room if the caller is joined to it. Others cannot learn whether it exists or
        who is a member. Raises Forbidden."""
        snapshot = await self._engine.find_snapshot(room_id)
        if snapshot is None or await self._find_membership(caller.user_id, snapshot) != "join":
            raise Forbidden("You are not in this room")
        return snapshot

    async def _has(self, snapshot: RoomSnapshot, target: UserID, expected: frozenset[str]) -> bool:
        """Whether the user has one of these memberships in the room."""
        key = StateKey("m.room.member", target)
        current = await snapshot.state.get(key)
        if current is None:
            current = await (await self._engine.get_complete(snapshot.room_id)).state.get(key)
        return current is not None and current.event.membership in expected


def _visible_reason(caller: Requester, reason: str | None) -> str | None:
    """Return the reason as others may see it."""
    return None if caller.is_shadow_banned else reason


def member_content(membership: str, names: NameAndAvatar | None) -> dict[str, Any]:
    """Return the content of a membership event with a user's name and avatar."""
    content: dict[str, Any] = {"membership": membership}
    display_name, avatar_url = names or (None, None)
    if display_name is not None:
        content["displayname"] = display_name
    if avatar_url is not None:
        content["avatar_url"] = avatar_url
    return content

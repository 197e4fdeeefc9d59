"""Coming into rooms and leaving them; inviting, removing and banning others.

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
from federation.rooms.drafts import Check, Draft
from federation.rooms.engine import RoomEngine
from federation.rooms.joins.restricted_joins import RestrictedJoins
from federation.rooms.membership_checks import check_still
from federation.rooms.membership_templates import AUTHORISER
from federation.rooms.memberships import Memberships
from federation.rooms.server_in_room import Residence
from federation.rooms.snapshot import RoomSnapshot
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.directory.shadow_ban import UnshownRooms
from homeserver.services.profiles.profiles import Profiles
from homeserver.services.rooms.guest_access import GuestAccess
from homeserver.services.rooms.invite_policy import InvitePolicy
from homeserver.services.rooms.remote_rooms import RoomsElsewhere
from homeserver.services.rooms.upgrade_settings import PersonalSettings
from storage.rooms.memberships import MembershipStore
from storage.rooms.rooms import RoomStore

PRESENT: Final = frozenset({"join", "invite", "knock"})
BANNED: Final = frozenset({"ban"})
MAX_SERVERS: Final = 20
"""How many of the servers that a client names are asked."""

Names = tuple[str | None, str | None]


class StillInRoom(MatrixError):
    """spec: client-server-api#post_matrixclientv3roomsroomidforget"""

    errcode, status, default_text = "M_UNKNOWN", 400, "Leave the room before you forget it"


class NotBanned(BadState):
    """The status is what the endpoint has. spec:
    client-server-api#post_matrixclientv3roomsroomidunban"""

    status = 403


class RoomMemberships:
    """Changes memberships for this server's users."""

    _log = Logger()

    def __init__(
        self,
        engine: RoomEngine,
        memberships: Memberships,
        membership_store: MembershipStore,
        rooms: RoomStore,
        unshown: UnshownRooms,
        profiles: Profiles,
        limiter: RateLimiter,
        identity: ServerIdentity,
        guests: GuestAccess,
        restricted: RestrictedJoins,
        personal_settings: PersonalSettings,
        invites: InvitePolicy,
        residence: Residence,
        elsewhere: RoomsElsewhere,
        *,
        profile_on_invite: bool,
    ) -> None:
        """`profile_on_invite`: an invite carries the name and avatar of who is invited."""
        self._engine = engine
        self._memberships = memberships
        self._membership_store = membership_store
        self._rooms = rooms
        self._unshown = unshown
        self._profiles = profiles
        self._limiter = limiter
        self._identity = identity
        self._guests = guests
        self._restricted = restricted
        self._personal_settings = personal_settings
        self._invites = invites
        self._residence = residence
        self._elsewhere = elsewhere
        self._profile_on_invite = profile_on_invite

    async def resolve(
        self, caller: Requester | None, room_id_or_alias: str, servers: Sequence[str] | None
    ) -> tuple[RoomID, Sequence[str]]:
        """The room that an id or an alias stands for, and servers that may be in it. Raises
        NotFound, OtherServerFailed."""
        servers = (servers or ())[:MAX_SERVERS]
        if not room_id_or_alias.startswith("#"):
            return RoomID(room_id_or_alias), servers
        alias = RoomAlias(room_id_or_alias)
        if not self._identity.is_local(alias):
            room_id, told = await self._elsewhere.resolve(alias)
            return room_id, [*servers, domain_of(alias), *told]
        row = (await self._unshown.get_aliases(caller, [alias])).get(alias)
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
        """Join a room. `signed` proves that the user has an address that was invited; `servers` may
        be in the room.

        Raises NotFound, Forbidden, LimitExceeded, UnsupportedRoomVersion, OtherServerFailed,
        StateIncomplete.
        """
        snapshot = await self._residence.find(room_id)
        if snapshot is None or await self._present(caller.user_id, snapshot) != "join":
            content = await self._content("join", caller.user_id, _told(caller, reason))
            with self.counting_join(caller, room_id):
                snapshot = await self._come_in(caller, room_id, snapshot, content, signed, servers)
        await self._personal_settings.do_copy(caller.user_id, snapshot)
        return room_id

    def counting_join(self, caller: Requester, room_id: RoomID) -> AbstractContextManager[None]:
        """Count a join among those of its room, unless it is refused: else anybody could keep
        others out. Raises LimitExceeded."""
        return (
            self._limiter.counting(Limit.JOIN_ROOM, room_id)
            if caller.rate_limited
            else nullcontext()
        )

    async def _come_in(
        self,
        caller: Requester,
        room_id: RoomID,
        snapshot: RoomSnapshot | None,
        content: dict[str, Any],
        signed: Mapping[str, Any] | None,
        servers: Sequence[str],
    ) -> RoomSnapshot:
        """Join a room, wherever it is: the snapshot is None where this server is not in it."""
        if snapshot is None:
            if await self._elsewhere.do_join(caller, room_id, content, servers):
                return await self._engine.get_snapshot(room_id)
            snapshot = await self._engine.get_snapshot(room_id)
        present = await self._present(caller.user_id, snapshot)
        if present != "join" and not await self._enter_in_part(
            caller, snapshot, present, content, signed, servers
        ):
            snapshot = await self._engine.get_whole(room_id)
            await self._enter(caller, snapshot, present, content, signed, servers)
        return snapshot

    async def _enter_in_part(
        self,
        caller: Requester,
        snapshot: RoomSnapshot,
        present: str | None,
        content: dict[str, Any],
        signed: Mapping[str, Any] | None,
        servers: Sequence[str],
    ) -> bool:
        """Join a room of whose state a part is lacking here, by the word of a server that has all
        of it; False: the state decides.

        It does where no server lets the user in: whoever says no may be wrong, or away.
        """
        if snapshot.head.partial_join is None or signed is not None:
            return False
        await self._check_joining(caller, snapshot, present)
        try:
            await self._elsewhere.do_join_vouched_for(caller, snapshot.room_id, content, servers)
        except (NotFound, Forbidden, OtherServerFailed):
            return False
        return True

    async def _enter(
        self,
        caller: Requester,
        snapshot: RoomSnapshot,
        present: str | None,
        content: dict[str, Any],
        signed: Mapping[str, Any] | None,
        servers: Sequence[str],
    ) -> None:
        """Join a room that this server is in."""
        content = content | await self._check_joining(caller, snapshot, present)
        if (
            present != "invite"
            and AUTHORISER not in content
            and signed is None
            and await self._restricted.lets_in(snapshot, caller.user_id)
        ):
            await self._elsewhere.do_join_vouched_for(caller, snapshot.room_id, content, servers)
            return
        drafts = [Draft("m.room.member", caller.user_id, content, caller.user_id, unless_same=True)]
        if signed is not None and present != "invite":
            drafts.insert(0, await self._redeem_invite(caller.user_id, snapshot, signed))
        await self._engine.send(snapshot.room_id, drafts)

    async def check_member_state(
        self, caller: Requester, room_id: RoomID, target: str, content: Mapping[str, Any]
    ) -> dict[str, Any]:
        """For a change of membership that is sent as a state event: its content as it may be sent.

        What authorization does not ask is checked as for the endpoints that are made for it. A
        member that another server let in under what is no user id can be put out, and nothing else.
        Raises InvalidParam, NotFound, Forbidden, InviteBlocked, LimitExceeded.
        """
        checked = {name: value for name, value in content.items() if name != AUTHORISER}
        snapshot = await self._engine.get_snapshot(room_id)
        if not await self._residence.is_in(snapshot):
            raise NotFound(
                "This server is not in the room: what concerns other servers has endpoints of its own"
            )
        is_put_out = checked.get("membership") in ("leave", "ban")
        if not (is_put_out and await self._present(UserID(target), snapshot) is not None):
            parse_user_id(target)
        if target == caller.user_id:
            await self._profiles.check_name_in_room(caller, checked.get("displayname"))
        match checked.get("membership"):
            case "join" if target != caller.user_id:
                raise Forbidden("You cannot make others join")
            case "join":
                present = await self._present(caller.user_id, snapshot)
                if present != "join":
                    snapshot = await self._engine.get_whole(room_id)
                    if caller.rate_limited:
                        self._limiter.check(Limit.JOIN, caller.user_id)
                    checked |= await self._check_joining(caller, snapshot, present)
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
            await self._present(caller.user_id, await self._engine.get_snapshot(room_id)) != "join"
        )

    async def find_quiet_change(
        self, user_id: UserID, room_id: RoomID, content: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """What others may see of it when a shadow-banned account changes its own membership by a
        state event; None: nothing."""
        membership = content.get("membership")
        if membership == "leave":
            return {"membership": "leave"}
        snapshot = await self._engine.find_snapshot(room_id)
        if membership not in ("join", "knock") or snapshot is None:
            return None
        if await self._present(user_id, snapshot) in ("join", membership):
            return None
        return await self._content(membership, user_id, None)

    async def settle(self, user_id: UserID, room_id: RoomID) -> None:
        """The user has come into a room by a state event: what comes with a join."""
        await self._personal_settings.do_copy(user_id, await self._engine.get_snapshot(room_id))

    async def do_knock(
        self, caller: Requester, room_id: RoomID, reason: str | None, servers: Sequence[str] = ()
    ) -> RoomID:
        """Ask to be let in. `servers` may be in the room. Raises NotFound, Forbidden,
        OtherServerFailed."""
        content = await self._content("knock", caller.user_id, _told(caller, reason))
        if await self._residence.find(room_id) is None:
            await self._elsewhere.do_knock(caller, room_id, content, servers)
        else:
            await self._send(caller, room_id, caller.user_id, content)
        return room_id

    async def do_leave(self, caller: Requester, room_id: RoomID, reason: str | None) -> None:
        """Leave a room, decline an invite, take a knock back. Nothing happens to who has left
        already."""
        content = await self._content("leave", None, _told(caller, reason))
        snapshot = await self._residence.find(room_id)
        if snapshot is None:
            await self._elsewhere.do_leave(caller.user_id, room_id, content)
            return
        present = await self._present(caller.user_id, snapshot)
        if present is None:
            raise Forbidden("You are not in this room")
        if present == "leave":
            return
        await self._send(caller, room_id, caller.user_id, content)

    async def do_forget(self, caller: Requester, room_id: RoomID) -> None:
        """Take a room that one has left out of one's history. Raises NotFound, StillInRoom."""
        room = await self._rooms.get_room(room_id)
        present = (
            None
            if room is None
            else (await self._memberships.of_user(caller.user_id)).get(room.room_nid)
        )
        if present is None:
            raise NotFound("You have no history with this room")
        if present.membership in PRESENT:
            raise StillInRoom
        await self._membership_store.set_forgotten(present.room_nid, caller.user_id)

    async def do_invite(
        self, caller: Requester, room_id: RoomID, target: UserID, reason: str | None
    ) -> None:
        """Invite someone. Raises NotFound, Forbidden, InviteBlocked, UnsupportedRoomVersion,
        OtherServerFailed."""
        await self._check_inviting(caller, room_id, target)
        shown = target if self._profile_on_invite else None
        content = await self._content("invite", shown, reason)
        if self._identity.is_local(target) or caller.is_shadow_banned:
            await self._send_about(caller, room_id, target, content)
        else:
            await self.do_invite_elsewhere(caller, room_id, target, content)

    def needs_another_server(self, target: str, content: Mapping[str, Any]) -> bool:
        """Whether such a change of membership is made together with the server of whom it is
        about."""
        return content.get("membership") == "invite" and not self._identity.is_local(target)

    async def do_invite_elsewhere(
        self, caller: Requester, room_id: RoomID, target: UserID, content: Mapping[str, Any]
    ) -> EventID:
        """Invite a user of another server, which signs the invite; what may be was checked. The
        invite's id."""
        return await self._elsewhere.do_invite(caller, room_id, target, content)

    async def do_kick(
        self, caller: Requester, room_id: RoomID, target: UserID, reason: str | None
    ) -> None:
        """Remove someone, their invite or their knock. Raises Forbidden."""
        snapshot = await self._check_joined(caller, room_id)
        refusal = Forbidden(f"{target} is not in the room")
        if not await self._has(snapshot, target, PRESENT):
            raise refusal
        await self._put_out(caller, room_id, target, reason, PRESENT, refusal)

    async def do_ban(
        self, caller: Requester, room_id: RoomID, target: UserID, reason: str | None
    ) -> None:
        """Ban someone. Raises Forbidden."""
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
        await self._put_out(caller, room_id, target, reason, BANNED, refusal)

    async def _put_out(
        self,
        caller: Requester,
        room_id: RoomID,
        target: UserID,
        reason: str | None,
        expected: frozenset[str],
        refusal: MatrixError,
    ) -> None:
        """Let somebody have left who is one of what is expected, also when others do something with
        them at the same moment."""
        check = check_still(self._engine, room_id, target, expected, lambda: refusal)
        content = await self._content("leave", None, reason)
        await self._send_about(caller, room_id, target, content, check)

    async def leave_all(self, user_id: UserID) -> bool:
        """Leave every room, decline every invite, take back every knock; and forget all rooms, as
        nobody will come back.

        False where a room could not be left for now: that keeps the user in none of the others.
        """
        rows = [
            row
            for row in (await self._memberships.of_user(user_id)).values()
            if row.membership in PRESENT
        ]
        rooms = await self._rooms.get_rooms_by_nid(row.room_nid for row in rows)
        for row in rows:
            room_id, content = RoomID(rooms[row.room_nid].room_id), {"membership": "leave"}
            try:
                if await self._residence.find(room_id) is None:
                    await self._elsewhere.do_leave(user_id, room_id, content)
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
        if any(row.membership in PRESENT for row in now):
            return False
        if not all(row.forgotten for row in now):
            await self._membership_store.set_all_forgotten(user_id)
        return True

    async def get_joined_rooms(self, user_id: UserID) -> Sequence[RoomID]:
        """The rooms that the user is in."""
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
        """What somebody does with another. Of a shadow-banned account it goes nowhere; refused is
        what others would be refused."""
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

    async def _present(self, user_id: UserID, snapshot: RoomSnapshot) -> str | None:
        row = (await self._memberships.of_user(user_id)).get(snapshot.room.room_nid)
        return None if row is None else row.membership

    async def _check_joining(
        self, caller: Requester, snapshot: RoomSnapshot, present: str | None
    ) -> dict[str, str]:
        """What joining needs besides authorization; what it adds to the content of the event."""
        if caller.is_guest:
            await self._guests.check_may_join(snapshot)
        if present == "invite":
            return {}
        authoriser = await self._restricted.find_authoriser(snapshot, caller.user_id)
        return {} if authoriser is None else {AUTHORISER: authoriser}

    async def _check_inviting(self, caller: Requester, room_id: RoomID, target: UserID) -> None:
        await self._check_joined(caller, room_id)
        if caller.rate_limited:
            self._limiter.check(Limit.INVITE_ROOM, room_id)
            self._limiter.check(Limit.INVITE_USER, target)
            self._limiter.check(Limit.INVITE, caller.user_id)
        await self.check_inviting(caller, [target])

    async def check_inviting(self, caller: Requester, targets: Iterable[UserID]) -> None:
        """Whether the caller may invite, and these may be invited. Raises Forbidden, NotFound,
        InviteBlocked."""
        self._invites.check_may_invite(caller)
        here: list[UserID] = []
        elsewhere: list[UserID] = []
        for target in targets:
            (here if self._identity.is_local(target) else elsewhere).append(target)
        self._elsewhere.check_inviting(elsewhere)
        await self._invites.check_invited_here(caller.user_id, here)

    async def _redeem_invite(
        self, user_id: UserID, snapshot: RoomSnapshot, signed: Mapping[str, Any]
    ) -> Draft:
        """The invite that an address was promised, for the user who has proved that it is theirs:
        sent in the name of who promised it. Authorization checks the proof. spec:
        client-server-api#third-party-invites"""
        token = signed.get("token")
        promise = None
        if isinstance(token, str):
            promise = await snapshot.state.get(StateKey("m.room.third_party_invite", token))
        if promise is None or not self._identity.is_local(promise.event.sender):
            raise Forbidden("The invite to this address is not, or no longer, open")
        shown = promise.event.content.get("display_name")
        proof = {"display_name": shown if isinstance(shown, str) else "", "signed": dict(signed)}
        content = {**await self._content("invite", user_id, None), "third_party_invite": proof}
        return Draft("m.room.member", promise.event.sender, content, user_id)

    async def _content(
        self, membership: str, shown: UserID | None, reason: str | None
    ) -> dict[str, Any]:
        """Content of a membership event; `shown` is whose name and avatar go into it."""
        names: Names | None = None
        if shown is not None and self._identity.is_local(shown):
            names = (await self._profiles.get_names([shown])).get(shown)
        content = member_content(membership, names)
        if reason is not None:
            content["reason"] = reason
        return content

    async def _check_joined(self, caller: Requester, room_id: RoomID) -> RoomSnapshot:
        """The room, for who is in it: nobody else learns who is, or whether it exists. Raises
        Forbidden."""
        snapshot = await self._engine.find_snapshot(room_id)
        if snapshot is None or await self._present(caller.user_id, snapshot) != "join":
            raise Forbidden("You are not in this room")
        return snapshot

    async def _has(self, snapshot: RoomSnapshot, target: UserID, expected: frozenset[str]) -> bool:
        """Whether the user has one of these memberships of the room."""
        key = StateKey("m.room.member", target)
        present = await snapshot.state.get(key)
        if present is None:
            present = await (await self._engine.get_whole(snapshot.room_id)).state.get(key)
        return present is not None and present.event.membership in expected


def _told(caller: Requester, reason: str | None) -> str | None:
    """What others hear of a reason."""
    return None if caller.is_shadow_banned else reason


def member_content(membership: str, names: Names | None) -> dict[str, Any]:
    """Content of a membership event that shows a person's name and avatar."""
    content: dict[str, Any] = {"membership": membership}
    display_name, avatar_url = names or (None, None)
    if display_name is not None:
        content["displayname"] = display_name
    if avatar_url is not None:
        content["avatar_url"] = avatar_url
    return content

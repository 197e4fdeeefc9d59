"""Creates rooms: makes the events of a new room from the request, and writes them in one
transaction. Only the invites to remote users follow later, because those users' servers have to
sign them.

spec: client-server-api#post_matrixclientv3createroom
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from federation.peers.identity import ServerIdentity
from federation.protocol.auth_rules import AuthError
from federation.protocol.errors import (
    BadJson,
    Forbidden,
    InvalidParam,
    InvalidRoomState,
    RoomInUse,
    UnsupportedRoomVersion,
)
from federation.protocol.ids import RoomAlias, RoomID, UserID, parse_room_alias, parse_user_id
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from federation.rooms.engine import RoomEngine
from federation.rooms.event_drafts import Draft
from federation.rooms.joins.planned_invites import PlannedInviteSender
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.directory.room_directory import AliasNamespaces
from homeserver.services.directory.shadow_ban import HiddenRoomChanges
from homeserver.services.profiles.profiles import Profiles
from homeserver.services.rooms.membership import NameAndAvatar, RoomMemberships, member_content
from homeserver.services.tokens.secret_tokens import SecretGenerator
from storage.directory.aliases import AliasRow, AliasTaken, add_alias
from storage.engine.transaction import WriteTransaction
from storage.rooms.pending_invites import add_pending_invites
from storage.rooms.rooms import RoomRow, set_public

MAX_INITIAL_STATE: Final = 200
MAX_INVITES: Final = 100
TOMBSTONE: Final = "m.room.tombstone"
TOMBSTONE_LEVEL: Final = 150
"""If creators stand above all levels, other users may send a tombstone only if they are given more
than the level for state."""

Preset = Literal["private_chat", "public_chat", "trusted_private_chat"]


class InitialStateEvent(msgspec.Struct, frozen=True):
    """A state event of the new room."""

    type: str
    content: dict[str, Any]
    state_key: str = ""


class CreateRoomRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of the request; null counts as absent."""

    visibility: Literal["public", "private"] | None = None
    room_alias_name: str | None = None
    name: str | None = None
    topic: str | None = None
    invite: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_INVITES)] | None = None
    invite_3pid: tuple[dict[str, Any], ...] | None = None
    room_version: str | None = None
    creation_content: dict[str, Any] | None = None
    initial_state: (
        Annotated[tuple[InitialStateEvent, ...], msgspec.Meta(max_length=MAX_INITIAL_STATE)] | None
    ) = None
    preset: Preset | None = None
    is_direct: bool | None = None
    power_level_content_override: dict[str, Any] | None = None


class _PresetState(msgspec.Struct, frozen=True):
    join_rule: str
    guest_access: str


_PRESETS: Final[Mapping[Preset, _PresetState]] = {
    "private_chat": _PresetState("invite", "can_join"),
    "trusted_private_chat": _PresetState("invite", "can_join"),
    "public_chat": _PresetState("public", "forbidden"),
}


class RoomCreation:
    """Makes rooms for this server's users."""

    # More than ten: the last six are options and the rules of application services.
    def __init__(
        self,
        *,
        engine: RoomEngine,
        hidden_changes: HiddenRoomChanges,
        profiles: Profiles,
        memberships: RoomMemberships,
        planned_invites: PlannedInviteSender,
        limiter: RateLimiter,
        identity: ServerIdentity,
        secret_text: SecretGenerator,
        now_ms: Callable[[], int],
        default_version: RoomVersion,
        encrypted_presets: frozenset[str],
        default_levels: Mapping[str, object],
        profile_on_invite: bool,
        federates_by_default: bool,
        namespaces: AliasNamespaces,
    ) -> None:
        """`encrypted_presets`: rooms of these presets are encrypted from the start.
        `default_levels`: changes to the default power levels, by preset. `profile_on_invite`:
        invites carry names and avatars. `federates_by_default`: the value of `m.federate` if the
        request has none; a room with an invited user of another server always federates."""
        self._engine = engine
        self._hidden_changes = hidden_changes
        self._namespaces = namespaces
        self._profiles = profiles
        self._memberships = memberships
        self._planned_invites = planned_invites
        self._limiter = limiter
        self._identity = identity
        self._secret_text = secret_text
        self._now_ms = now_ms
        self._default_version = default_version
        self._encrypted_presets = encrypted_presets
        self._default_levels = default_levels
        self._profile_on_invite = profile_on_invite
        self._federates_by_default = federates_by_default

    async def do_create(self, caller: Requester, request: CreateRoomRequest) -> RoomID:
        """Create the room and return its ID. Raises InvalidParam, RoomInUse,
        UnsupportedRoomVersion, InvalidRoomState, Forbidden, NotFound, InviteBlocked."""
        version = self._find_version(request)
        invites = [parse_user_id(user_id) for user_id in dict.fromkeys(request.invite or ())]
        if request.invite_3pid:
            raise InvalidParam(
                "This server does not invite by e-mail address or phone number;"
                " ask the person for their user ID"
            )
        alias = await self._check_alias(caller, request)
        if caller.user_id in invites:
            raise InvalidParam("You cannot invite yourself")
        is_closed = (request.creation_content or {}).get("m.federate") is False
        if is_closed and not all(self._identity.is_local(user) for user in invites):
            raise Forbidden("This room is only for users of this server")
        if invites:
            if caller.rate_limited:
                self._limiter.check(Limit.INVITE, caller.user_id, cost=len(invites))
            await self._memberships.check_may_invite(caller, invites)
        is_hidden = caller.is_shadow_banned
        moves_alias = (
            is_hidden and alias is not None and await self._hidden_changes.is_removed(caller, alias)
        )
        if is_hidden:
            invites = []
        drafts = await self._make_drafts(caller.user_id, version, request, invites, alias)
        now = self._now_ms()
        remote_users = [user_id for user_id in invites if not self._identity.is_local(user_id)]
        invite_sender = self._planned_invites
        plan = (
            invite_sender.plan(caller.user_id, remote_users, _invite_content(request, None))
            if remote_users
            else None
        )

        def write_room_data(txn: WriteTransaction, room: RoomRow) -> None:
            if moves_alias and alias is not None:
                self._hidden_changes.move_alias_in(txn, caller.user_id, alias, room.room_nid)
            elif alias is not None:
                add_alias(txn, AliasRow(alias, room.room_nid, caller.user_id, now))
            if request.visibility == "public" and is_hidden:
                self._hidden_changes.list_in(txn, caller.user_id, room.room_nid, True)
            elif request.visibility == "public":
                set_public(txn, room.room_nid, True)
            if plan is not None:
                add_pending_invites(txn, room.room_nid, plan.invites, plan.lease_ends)

        room_id = None
        if not version.room_id_is_create_hash:
            room_id = RoomID(f"!{self._secret_text.room_localpart()}:{self._identity.server_name}")
        try:
            snapshot, _ = await self._engine.create(version, room_id, drafts, write_room_data)
        except AliasTaken:
            raise RoomInUse(f"The alias {alias} is taken") from None
        except AuthError as error:
            raise InvalidRoomState(
                f"The parameters of the room contradict each other: {error.text}"
            ) from None
        if plan is not None:
            await invite_sender.do_send(snapshot.room, plan)
        return snapshot.room_id

    def _find_version(self, request: CreateRoomRequest) -> RoomVersion:
        if request.room_version is None:
            return self._default_version
        version = ROOM_VERSIONS.get(request.room_version)
        if version is None:
            raise UnsupportedRoomVersion(
                f"This server does not know room version {request.room_version!r}"
            )
        return version

    async def _check_alias(self, caller: Requester, request: CreateRoomRequest) -> RoomAlias | None:
        if request.room_alias_name is None:
            return None
        if (
            not request.room_alias_name
            or ":" in request.room_alias_name
            or request.room_alias_name.startswith("#")
        ):
            raise InvalidParam("room_alias_name is the part between # and : in the alias")
        alias = parse_room_alias(f"#{request.room_alias_name}:{self._identity.server_name}")
        self._namespaces.check_alias(caller, alias)
        if await self._hidden_changes.get_aliases(caller, [alias]):
            raise RoomInUse(f"The alias {alias} is taken")
        return alias

    async def _make_drafts(
        self,
        creator: UserID,
        version: RoomVersion,
        request: CreateRoomRequest,
        invites: Sequence[UserID],
        alias: RoomAlias | None,
    ) -> list[Draft]:
        """Return the events in the order that the specification gives."""
        preset = request.preset or (
            "public_chat" if request.visibility == "public" else "private_chat"
        )
        trusted = invites if preset == "trusted_private_chat" else ()
        invited_with_profile = (
            [user for user in invites if self._identity.is_local(user)]
            if self._profile_on_invite
            else []
        )
        names = await self._profiles.get_names([creator, *invited_with_profile])
        by_default = self._default_levels.get(preset)
        overrides = [
            by_default if isinstance(by_default, Mapping) else {},
            request.power_level_content_override or {},
        ]
        creation = _create_content(creator, version, request, trusted)
        if not self._federates_by_default and all(
            self._identity.is_local(user) for user in invites
        ):
            creation.setdefault("m.federate", False)
        drafts = [
            Draft("m.room.create", creator, creation, ""),
            Draft("m.room.member", creator, member_content("join", names.get(creator)), creator),
            Draft(
                "m.room.power_levels",
                creator,
                _power_levels(creator, version, preset, trusted, overrides),
                "",
            ),
        ]
        if alias is not None:
            drafts.append(Draft("m.room.canonical_alias", creator, {"alias": alias}, ""))
        explicit = {(state.type, state.state_key) for state in request.initial_state or ()}
        by_preset: dict[str, dict[str, Any]] = {
            "m.room.join_rules": {"join_rule": _PRESETS[preset].join_rule},
            "m.room.history_visibility": {"history_visibility": "shared"},
            "m.room.guest_access": {"guest_access": _PRESETS[preset].guest_access},
        }
        if preset in self._encrypted_presets:
            by_preset["m.room.encryption"] = {"algorithm": "m.megolm.v1.aes-sha2"}
        drafts += [
            Draft(type, creator, content, "")
            for type, content in by_preset.items()
            if (type, "") not in explicit
        ]
        overwritten = {
            *(["m.room.name"] if request.name is not None else []),
            *(["m.room.topic"] if request.topic is not None else []),
        }
        for state in request.initial_state or ():
            if state.type in ("m.room.create", "m.room.member"):
                raise InvalidParam(f"initial_state cannot hold {state.type}")
            if not (state.type in overwritten and state.state_key == ""):
                drafts.append(Draft(state.type, creator, state.content, state.state_key))
        if request.name is not None:
            drafts.append(Draft("m.room.name", creator, {"name": request.name}, ""))
        if request.topic is not None:
            drafts.append(Draft("m.room.topic", creator, _topic_content(request.topic), ""))
        for user_id in invites:
            if not self._identity.is_local(user_id):
                continue  # sent later, as its server has to sign an invite into an existing room
            drafts.append(
                Draft(
                    "m.room.member", creator, _invite_content(request, names.get(user_id)), user_id
                )
            )
        return drafts


def _invite_content(request: CreateRoomRequest, names: NameAndAvatar | None) -> dict[str, Any]:
    content = member_content("invite", names)
    if request.is_direct:
        content["is_direct"] = True
    return content


def _create_content(
    creator: UserID, version: RoomVersion, request: CreateRoomRequest, trusted: Sequence[UserID]
) -> dict[str, Any]:
    content = dict(request.creation_content or {})
    content["room_version"] = version.identifier
    content.pop("creator", None)
    if not version.creator_is_sender:
        content["creator"] = creator
    if version.creators_privileged and trusted:
        requested = content.get("additional_creators", [])
        if not isinstance(requested, list):
            raise BadJson("creation_content.additional_creators has to be a list of user ids")
        content["additional_creators"] = list(dict.fromkeys([*requested, *trusted]))
    return content


def _power_levels(
    creator: UserID,
    version: RoomVersion,
    preset: Preset,
    trusted: Sequence[UserID],
    overrides: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    users = {} if version.creators_privileged else dict.fromkeys([creator, *trusted], 100)
    content: dict[str, Any] = {
        "users": users,
        "users_default": 0,
        "events": {
            "m.room.name": 50,
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.power_levels": 100,
            "m.room.history_visibility": 100,
            "m.room.encryption": 100,
            "m.room.server_acl": 100,
        },
        "events_default": 0,
        "state_default": 50,
        "ban": 50,
        "kick": 50,
        "redact": 50,
        "invite": 50 if preset == "public_chat" else 0,
    }
    if not version.creators_privileged:
        content["events"][TOMBSTONE] = 100
    for override in overrides:
        content |= override
    events, state_default = content["events"], content["state_default"]
    if version.creators_privileged and isinstance(events, dict) and isinstance(state_default, int):
        # clients override all of `events` to set one entry; only an override that names the
        # tombstone may set its level as low as that of other state
        content["events"] = {TOMBSTONE: max(TOMBSTONE_LEVEL, state_default + 1), **events}
    return content


def _topic_content(topic: str) -> dict[str, Any]:
    # spec: client-server-api#mroomtopic
    return {"topic": topic, "m.topic": {"m.text": [{"body": topic, "mimetype": "text/plain"}]}}

"""Upgrades a room: a new room of another version replaces it, with everything that can be copied.

Laws:
- The new room with its state, the tombstone of the old one, aliases and the directory listing are
  one write.
- Changes to other rooms (links of spaces), and data that is too large for that write (many bans),
  follow in later writes. A repeated request repeats these later writes, and returns the room that
  exists or that the first request is creating.
- An upgrade by a shadow-banned account creates the new room, and changes nothing that other users
  see. In the view of this account alone, the aliases and the directory listing belong to the new
  room. A repeated request of the account returns the existing room, too.

spec: client-server-api#room-upgrades
"""

from collections.abc import Sequence
from typing import Any, Final

from twisted.logger import Logger

from federation.peers.identity import ServerIdentity
from federation.protocol.auth_rules import AuthError
from federation.protocol.errors import (
    Forbidden,
    InvalidRoomState,
    MatrixError,
    RemoteError,
    UnsupportedRoomVersion,
)
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, UserID, parse_user_id
from federation.protocol.power_levels import PowerLevels
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from federation.protocol.space_hierarchy import CHILD, PARENT, is_link
from federation.rooms.engine import RoomEngine
from federation.rooms.event_drafts import Draft
from federation.rooms.events import RoomEvents
from federation.rooms.room_replacement import RoomReplacement
from federation.rooms.snapshot import POWER_LEVELS, RoomSnapshot
from homeserver.api.requester import Requester
from homeserver.services.directory.shadow_ban import HiddenRoomChanges
from homeserver.services.profiles.profiles import Profiles
from homeserver.services.rooms.membership import member_content
from homeserver.services.rooms.reading import RoomReading
from homeserver.services.rooms.upgrade_events import (
    COPIED_STATE,
    COPIED_TYPES,
    TOMBSTONE,
    copied_content,
    create_content,
    get_predecessor,
    muted_power_levels,
    new_power_levels,
    split_aliases,
)
from homeserver.services.rooms.upgrade_settings import PersonalSettingsCopier
from homeserver.services.tokens.secret_tokens import SecretGenerator
from storage.directory.aliases import move_aliases
from storage.engine.transaction import WriteTransaction
from storage.rooms.memberships import MembershipStore
from storage.rooms.rooms import RoomRow, RoomStore, move_directory_listing
from storage.rooms.spaces import SpaceStore

MAX_ENTRIES_PER_TYPE: Final = 2000
BANS_PER_WRITE: Final = 200
"""The bans in the first write, and in each later one."""
MAX_PARENTS: Final = 50
MAX_CHILDREN: Final = 1000

_CANONICAL_ALIAS: Final = StateKey("m.room.canonical_alias", "")


class RoomUpgrade:
    """Replaces rooms by rooms of another version."""

    # More than ten: an upgrade carries over state, memberships, aliases and settings.
    def __init__(
        self,
        *,
        engine: RoomEngine,
        events: RoomEvents,
        replacements: RoomReplacement,
        rooms: RoomStore,
        membership_store: MembershipStore,
        hidden_changes: HiddenRoomChanges,
        spaces: SpaceStore,
        reading: RoomReading,
        profiles: Profiles,
        personal_settings: PersonalSettingsCopier,
        identity: ServerIdentity,
        secret_text: SecretGenerator,
    ) -> None:
        self._engine = engine
        self._events = events
        self._replacements = replacements
        self._rooms = rooms
        self._membership_store = membership_store
        self._hidden_changes = hidden_changes
        self._spaces = spaces
        self._reading = reading
        self._profiles = profiles
        self._personal_settings = personal_settings
        self._identity = identity
        self._secret_text = secret_text
        self._log = Logger()

    async def do_upgrade(
        self,
        caller: Requester,
        room_id: RoomID,
        new_version: str,
        additional_creators: Sequence[str],
    ) -> RoomID:
        """Replace a room; return the ID of the new one. Raises UnsupportedRoomVersion,
        InvalidParam, Forbidden, InvalidRoomState."""
        version = ROOM_VERSIONS.get(new_version)
        if version is None:
            raise UnsupportedRoomVersion(
                f"This server does not know room version {new_version[:40]!r}"
            )
        old = await self._reading.check_joined(caller.user_id, room_id)
        if not (await _levels(old)).can_send(caller.user_id, TOMBSTONE, is_state=True):
            raise Forbidden("You may not upgrade this room")
        old = await self._engine.get_complete(room_id)
        creators = (
            [parse_user_id(user_id) for user_id in additional_creators]
            if version.creators_privileged
            else []
        )
        if caller.is_shadow_banned:
            hidden = await self._engine.in_turn(
                room_id, lambda: self._find_or_make_hidden(caller, old, version, creators)
            )
            await self._personal_settings.do_copy(caller.user_id, hidden)
            return hidden.room_id
        new = await self._replace(caller, room_id, version, creators)
        await self._copy_remaining_bans(caller.user_id, old, new)
        await self._move_links(caller.user_id, old, new)
        await self._personal_settings.do_copy(caller.user_id, new)
        return new.room_id

    async def _find_earlier(
        self, user_id: UserID, old: RoomSnapshot, version: RoomVersion
    ) -> RoomSnapshot | None:
        """Return the room that an earlier request with the same parameters has made."""
        tombstone = await old.state.get(StateKey(TOMBSTONE, ""))
        new_id = None if tombstone is None else tombstone.event.content.get("replacement_room")
        new = await self._engine.find_snapshot(RoomID(new_id)) if isinstance(new_id, str) else None
        if new is None or new.version is not version:
            return None
        create = await new.create_event()
        return new if create.sender == user_id and get_predecessor(create) == old.room_id else None

    async def _replace(
        self, caller: Requester, old_id: RoomID, version: RoomVersion, creators: Sequence[UserID]
    ) -> RoomSnapshot:
        async def drafts(old: RoomSnapshot) -> list[Draft]:
            return await self._first_events(caller, old, version, creators)

        async def final_events(old: RoomSnapshot, new_id: RoomID) -> list[Draft]:
            return await self._last_events(caller, old, new_id)

        async def find_earlier(old: RoomSnapshot) -> RoomSnapshot | None:
            return await self._find_earlier(caller.user_id, old, version)

        def move(txn: WriteTransaction, old: RoomRow, new: RoomRow) -> None:
            move_aliases(txn, old.room_nid, new.room_nid)
            move_directory_listing(txn, old.room_nid, new.room_nid)

        try:
            return await self._replacements.replace(
                old_id, version, self._new_id(version), drafts, final_events, move, find_earlier
            )
        except AuthError as error:
            raise InvalidRoomState(f"The room cannot be replaced as it is: {error.text}") from None

    async def _find_or_make_hidden(
        self, caller: Requester, old: RoomSnapshot, version: RoomVersion, creators: Sequence[UserID]
    ) -> RoomSnapshot:
        hidden = await self._find_hidden(caller.user_id, old, version)
        return (
            hidden
            if hidden is not None
            else await self._make_hidden(caller, old, version, creators)
        )

    async def _find_hidden(
        self, user_id: UserID, old: RoomSnapshot, version: RoomVersion
    ) -> RoomSnapshot | None:
        """Return the room that an earlier request of a shadow-banned account has made."""
        room_nid = await self._hidden_changes.find_successor(user_id, old.room.room_nid)
        if room_nid is None:
            return None
        room = (await self._rooms.get_rooms_by_nid([room_nid])).get(room_nid)
        new = None if room is None else await self._engine.find_snapshot(RoomID(room.room_id))
        return new if new is not None and new.version is version else None

    async def _make_hidden(
        self, caller: Requester, old: RoomSnapshot, version: RoomVersion, creators: Sequence[UserID]
    ) -> RoomSnapshot:
        """Create only the new room, for a shadow-banned account: others do not notice. The old
        room, aliases and links change only in that account's view."""
        drafts = await self._first_events(caller, old, version, creators)
        aliases = await self._moved_aliases(caller, old)
        is_listed = await self._hidden_changes.is_listed(caller, old.room.room_nid)

        def move(txn: WriteTransaction, new: RoomRow) -> None:
            self._hidden_changes.replace_in(
                txn, caller.user_id, old.room.room_nid, new.room_nid, aliases, is_listed=is_listed
            )

        try:
            new, _ = await self._engine.create(version, self._new_id(version), drafts, move)
        except AuthError as error:
            raise InvalidRoomState(f"The room cannot be replaced as it is: {error.text}") from None
        return new

    def _new_id(self, version: RoomVersion) -> RoomID | None:
        """Return the ID of the new room; None if the create event defines it."""
        if version.room_id_is_create_hash:
            return None
        return RoomID(f"!{self._secret_text.room_localpart()}:{self._identity.server_name}")

    async def _first_events(
        self, caller: Requester, old: RoomSnapshot, version: RoomVersion, creators: Sequence[UserID]
    ) -> list[Draft]:
        """Return the first events of the new room. The power levels come last: before them the
        creator may send anything."""
        user_id = caller.user_id
        names = (await self._profiles.get_names([user_id])).get(user_id)
        create = await old.create_event()
        last_event = old.head.extremities[0][1] if old.head.extremities else None
        levels = new_power_levels(await _levels(old), version, user_id, creators)
        aliases = await self._moved_aliases(caller, old)
        canonical, _ = split_aliases(await _content(old, _CANONICAL_ALIAS), aliases)
        return [
            Draft(
                "m.room.create",
                user_id,
                create_content(create, version, user_id, last_event, creators),
                "",
            ),
            Draft("m.room.member", user_id, member_content("join", names), user_id),
            *await self._copied(user_id, old, version),
            *([Draft("m.room.canonical_alias", user_id, canonical, "")] if canonical else []),
            *(await self._bans(user_id, old))[:BANS_PER_WRITE],
            Draft("m.room.power_levels", user_id, levels, ""),
        ]

    async def _last_events(
        self, caller: Requester, old: RoomSnapshot, new_id: RoomID
    ) -> list[Draft]:
        """Return the last events of the old room. All but the tombstone are sent only if the user
        may."""
        user_id = caller.user_id
        content = {"body": "This room has been replaced", "replacement_room": new_id}
        drafts = [Draft(TOMBSTONE, user_id, content, "")]
        canonical = await _content(old, _CANONICAL_ALIAS)
        moved, left = split_aliases(canonical, await self._moved_aliases(caller, old))
        if moved:
            drafts.append(Draft("m.room.canonical_alias", user_id, left, ""))
        levels = muted_power_levels(await _levels(old))
        return [*drafts, Draft("m.room.power_levels", user_id, levels, "", unless_same=True)]

    async def _copied(
        self, user_id: UserID, old: RoomSnapshot, version: RoomVersion
    ) -> list[Draft]:
        nids = [
            nid
            for type in COPIED_TYPES
            for nid in list((await old.state.load_nids(type)).values())[:MAX_ENTRIES_PER_TYPE]
        ]
        found = await self._events.get_events(nids)
        events = [
            *(await old.state.load(COPIED_STATE)).values(),
            *(found[nid] for nid in nids if nid in found),
        ]
        return [
            Draft(stored.event.type, user_id, content, stored.event.state_key)
            for stored in events
            if (content := copied_content(version, stored.event)) is not None
            and (stored.event.type not in (CHILD, PARENT) or is_link(content))
        ]

    async def _bans(self, user_id: UserID, old: RoomSnapshot) -> list[Draft]:
        rows = await self._membership_store.get_members(old.room.room_nid, "ban")
        events = await self._events.get_events(row.event_nid for row in rows)
        drafts = []
        for row in rows:
            content: dict[str, Any] = {"membership": "ban"}
            reason = (
                events[row.event_nid].event.content.get("reason")
                if row.event_nid in events
                else None
            )
            if isinstance(reason, str):
                content["reason"] = reason
            drafts.append(Draft("m.room.member", user_id, content, row.user_id, unless_same=True))
        return drafts

    async def _moved_aliases(self, caller: Requester, old: RoomSnapshot) -> list[str]:
        return await self._hidden_changes.get_aliases_of_room(caller, old.room.room_nid)

    async def _copy_remaining_bans(
        self, user_id: UserID, old: RoomSnapshot, new: RoomSnapshot
    ) -> None:
        """Copy the bans that did not fit into the first write, except for users who have a
        membership in the new room."""
        drafts = (await self._bans(user_id, old))[BANS_PER_WRITE:]
        for start in range(0, len(drafts), BANS_PER_WRITE):
            part = drafts[start : start + BANS_PER_WRITE]
            known = await self._membership_store.get_memberships(
                new.room.room_nid,
                [draft.state_key for draft in part if draft.state_key is not None],
            )
            await self._send_if_allowed(
                new.room_id, [draft for draft in part if draft.state_key not in known]
            )

    async def _move_links(self, user_id: UserID, old: RoomSnapshot, new: RoomSnapshot) -> None:
        """Replace the old room by the new one in spaces that have it as a child and in rooms that
        have it as a parent."""
        parents = (await self._spaces.get_parents(old.room_id))[:MAX_PARENTS]
        await self._relink(user_id, CHILD, parents, old.room_id, new.room_id)
        children = (await self._spaces.get_children([old.room.room_nid])).get(old.room.room_nid, ())
        rooms = await self._rooms.get_rooms(child.child_id for child in children[:MAX_CHILDREN])
        await self._relink(
            user_id, PARENT, [room.room_nid for room in rooms.values()], old.room_id, new.room_id
        )

    async def _relink(
        self, user_id: UserID, type: str, room_nids: Sequence[int], old_id: RoomID, new_id: RoomID
    ) -> None:
        rooms = await self._rooms.get_rooms_by_nid(room_nids)
        for room_nid in room_nids:
            room_id = RoomID(rooms[room_nid].room_id)
            if room_id in (old_id, new_id):
                continue
            snapshot = await self._engine.get_snapshot(room_id)
            link = await snapshot.state.get(StateKey(type, old_id))
            if (
                link is None
                or not is_link(link.event.content)
                or await self._reading.find_membership(user_id, snapshot) != "join"
                or not (await _levels(snapshot)).can_send(user_id, type, is_state=True)
            ):
                continue
            content = {**link.event.content, "via": [self._identity.server_name]}
            moved = {new_id: content, old_id: {}}
            await self._send_if_allowed(
                room_id,
                [Draft(type, user_id, each, key, unless_same=True) for key, each in moved.items()],
            )

    async def _send_if_allowed(self, room_id: RoomID, drafts: Sequence[Draft]) -> None:
        if not drafts:
            return
        try:
            await self._engine.send(room_id, drafts)
        except (MatrixError, RemoteError) as error:
            self._log.info(
                "an upgrade could not change {room_id}: {error}",
                room_id=room_id,
                error=str(error),
            )


async def _levels(room: RoomSnapshot) -> PowerLevels:
    levels = await room.state.get(POWER_LEVELS)
    return PowerLevels.of(
        room.version, None if levels is None else levels.event, await room.create_event()
    )


async def _content(room: RoomSnapshot, key: StateKey) -> dict[str, Any]:
    stored = await room.state.get(key)
    return {} if stored is None else dict(stored.event.content)

"""Finding rooms: aliases, and the directory of public rooms.

spec: client-server-api#room-aliases, client-server-api#published-room-directory
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import Forbidden, InvalidParam, MatrixError, MissingToken, NotFound
from federation.protocol.ids import RoomAlias, RoomID, ServerName, UserID, could_be_found
from federation.protocol.power_levels import PowerLevels
from federation.remote.directory import RoomDirectoryQuery
from federation.rooms.engine import RoomEngine
from federation.rooms.room_servers import RoomServers, sort_by_join
from federation.rooms.serving.summaries import describe_room
from federation.rooms.snapshot import POWER_LEVELS, RoomSnapshot
from homeserver.api.requester import Requester
from homeserver.services.directory.remote_directory import RemoteDirectory
from homeserver.services.directory.shadow_ban import HiddenRoomChanges
from storage.directory.aliases import AliasRow, AliasStore, AliasTaken
from storage.rooms.rooms import RoomStore
from storage.rooms.summaries import RoomSummaryStore

MAX_PAGE: Final = 500
DEFAULT_PAGE: Final = 100
MAX_TERM: Final = 256
MAX_SERVERS: Final = 20
"""Servers that are returned with an alias."""
_SINCE: Final = re.compile(r"([du])([0-9]{1,18})_([0-9]{1,18})", re.ASCII)
"""d: down the list from a room; u: up from it."""


class AliasExists(MatrixError):
    """The alias exists. spec: client-server-api#put_matrixclientv3directoryroomroomalias"""

    errcode, status, default_text = "M_UNKNOWN", 409, "This alias already exists"


class AliasNamespaces(Protocol):
    """The alias namespaces of application services."""

    def check_alias(self, caller: Requester, alias: RoomAlias) -> bool:
        """Check that namespaces let the caller add or remove the alias. Return True if they give
        the caller full control. Raises `Exclusive`."""
        ...


class RoomAccessChecks(Protocol):
    """The part of the room reading service that the directory uses."""

    async def find_membership(self, user_id: UserID, snapshot: RoomSnapshot) -> str | None:
        """Return the user's membership of the room."""
        ...

    async def check_may_read(self, user_id: UserID, room_id: RoomID) -> RoomSnapshot:
        """Return the room if the user may see its present state; raises Forbidden, NotFound."""
        ...

    async def check_joined(self, user_id: UserID, room_id: RoomID) -> RoomSnapshot:
        """Return the room if the user is joined to it; raises Forbidden, NotFound."""
        ...


class RoomDirectory:
    """Aliases and the public directory of this server."""

    # More than ten: the last five are options and the rules of application services.
    def __init__(
        self,
        *,
        engine: RoomEngine,
        rooms: RoomStore,
        aliases: AliasStore,
        summaries: RoomSummaryStore,
        reading: RoomAccessChecks,
        servers: RoomServers,
        remote: RemoteDirectory,
        hidden_changes: HiddenRoomChanges,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
        readable_without_account: bool,
        readable_by_servers: bool,
        enabled: bool,
        only_members_add_aliases: bool,
        namespaces: AliasNamespaces,
    ) -> None:
        """`enabled`: False returns an empty directory. `readable_by_servers`: whether other servers
        may read it."""
        self._namespaces = namespaces
        self._readable_by_servers = readable_by_servers
        self._servers = servers
        self._remote = remote
        self._hidden_changes = hidden_changes
        self._only_members_add_aliases = only_members_add_aliases
        self._readable_without_account = readable_without_account
        self._is_enabled = enabled
        self._engine = engine
        self._rooms = rooms
        self._aliases = aliases
        self._summaries = summaries
        self._reading = reading
        self._identity = identity
        self._now_ms = now_ms

    async def get_alias(
        self, caller: Requester | None, alias: RoomAlias
    ) -> tuple[RoomID, Sequence[ServerName]]:
        """Return the room of an alias, and servers in it. Raises NotFound, Forbidden,
        OtherServerFailed."""
        if not self._identity.is_local(alias):
            return await self._remote.get_alias(alias)
        return await self._find(caller, alias)

    async def get_local_alias(self, alias: RoomAlias) -> tuple[RoomID, Sequence[ServerName]]:
        """Return the room of a local alias, and the servers that are in it for the longest time,
        this one first. Raises NotFound."""
        return await self._find(None, alias)

    async def _find(
        self, caller: Requester | None, alias: RoomAlias
    ) -> tuple[RoomID, Sequence[ServerName]]:
        row = (await self._hidden_changes.get_aliases(caller, [alias])).get(alias)
        if row is None:
            raise NotFound(f"The alias {alias} does not point to a room")
        room = (await self._rooms.get_rooms_by_nid([row.room_nid]))[row.room_nid]
        others = await self._servers.in_room(room.room_nid)
        return RoomID(room.room_id), [
            self._identity.server_name,
            *sort_by_join(others)[: MAX_SERVERS - 1],
        ]

    async def do_add_alias(self, caller: Requester, alias: RoomAlias, room_id: RoomID) -> None:
        """Add a local alias to a room. Raises InvalidParam, Forbidden, Exclusive, AliasExists."""
        if not self._identity.is_local(alias):
            raise InvalidParam(f"{alias} is not an alias of this server")
        self._namespaces.check_alias(caller, alias)
        if self._only_members_add_aliases and not caller.is_admin:
            snapshot = await self._reading.check_joined(caller.user_id, room_id)
        else:
            snapshot = await self._engine.get_snapshot(room_id)
        if caller.is_shadow_banned and await self._hidden_changes.is_removed(caller, alias):
            await self._hidden_changes.do_move_alias(caller.user_id, alias, snapshot.room.room_nid)
            return
        row = AliasRow(alias, snapshot.room.room_nid, caller.user_id, self._now_ms())
        try:
            await self._aliases.add_alias(row)
        except AliasTaken:
            raise AliasExists(f"The alias {alias} already exists") from None
        await self._hidden_changes.do_remove_alias(caller, alias)

    async def do_remove_alias(self, caller: Requester, alias: RoomAlias) -> None:
        """Remove an alias: allowed for its creator, administrators, and users who may change the
        room's canonical alias. Raises NotFound, Forbidden, Exclusive."""
        row = (await self._hidden_changes.get_aliases(caller, [alias])).get(alias)
        if row is None:
            raise NotFound(f"The alias {alias} does not exist")
        controls = not caller.is_admin and self._namespaces.check_alias(caller, alias)
        if row.creator != caller.user_id and not caller.is_admin and not controls:
            room = (await self._rooms.get_rooms_by_nid([row.room_nid]))[row.room_nid]
            snapshot = await self._engine.get_snapshot(RoomID(room.room_id))
            if not await self._may_set_state(snapshot, caller, "m.room.canonical_alias"):
                raise Forbidden(
                    "You may remove only aliases that you created, or of rooms whose aliases you "
                    "may change"
                )
        if caller.is_shadow_banned and row.creator != caller.user_id:  # others would notice
            await self._hidden_changes.do_move_alias(caller.user_id, alias, None)
            return
        await self._aliases.remove_alias(alias)
        await self._hidden_changes.do_remove_alias(caller, alias)

    async def get_aliases_of_room(self, caller: Requester, room_id: RoomID) -> list[str]:
        """Return the local aliases of a room that the caller may read. Raises NotFound,
        Forbidden."""
        snapshot = await self._reading.check_may_read(caller.user_id, room_id)
        return await self._hidden_changes.get_aliases_of_room(caller, snapshot.room.room_nid)

    async def get_visibility(self, caller: Requester | None, room_id: RoomID) -> str:
        """Return `public` if the room is listed in the directory, else `private`. Raises
        NotFound."""
        snapshot = await self._engine.get_snapshot(room_id)
        return (
            "public"
            if await self._hidden_changes.is_listed(caller, snapshot.room.room_nid)
            else "private"
        )

    async def do_set_visibility(self, caller: Requester, room_id: RoomID, visibility: str) -> None:
        """Add a room to the directory or remove it: allowed for users who may change its aliases.
        Raises NotFound, Forbidden."""
        snapshot = await self._engine.get_snapshot(room_id)
        if not caller.is_admin and not await self._may_set_state(
            snapshot, caller, "m.room.canonical_alias"
        ):
            raise Forbidden("You may not change whether this room is listed")
        if caller.is_shadow_banned:  # others would see the change
            await self._hidden_changes.do_list(
                caller.user_id, snapshot.room.room_nid, visibility == "public"
            )
            return
        await self._rooms.set_public(snapshot.room.room_nid, visibility == "public")

    async def get_public_rooms(
        self,
        caller: Requester | None,
        *,
        limit: int | None,
        since: str | None,
        term: str | None,
        room_types: Sequence[str | None] | None,
        server: ServerName | None,
    ) -> dict[str, Any]:
        """Return a page of the directory, the largest rooms first. Raises MissingToken,
        InvalidParam, NotFound."""
        if caller is None and not self._readable_without_account:
            raise MissingToken("The directory of this server requires an account")
        if not self._is_enabled:
            return {"chunk": [], "total_room_count_estimate": 0}
        if term is not None and len(term) > MAX_TERM:
            raise InvalidParam(f"The search term may have at most {MAX_TERM} characters")
        if server is not None and server != self._identity.server_name:
            if caller is None:
                raise MissingToken("The directories of other servers require an account")
            if not could_be_found(server):
                raise InvalidParam(f"server: {server!r} cannot be a server name")
            page = DEFAULT_PAGE if limit is None else max(1, min(limit, MAX_PAGE))
            types = None if room_types is None else tuple(room_types)
            return await self._remote.get_public_rooms(
                server, RoomDirectoryQuery(page, since, term, types)
            )
        return await self._page(limit, since, term, room_types, caller, only_federating=False)

    async def get_public_rooms_for_server(self, query: RoomDirectoryQuery) -> dict[str, Any]:
        """Return a page of the directory for another server. Raises Forbidden, InvalidParam."""
        if not self._readable_by_servers:
            raise Forbidden("Other servers may not read the directory of this server")
        if query.third_party_instance_id is not None:
            if query.include_all_networks:
                raise InvalidParam(
                    "third_party_instance_id and include_all_networks exclude each other"
                )
            return {"chunk": [], "total_room_count_estimate": 0}
        if not self._is_enabled:
            return {"chunk": [], "total_room_count_estimate": 0}
        if query.term is not None and len(query.term) > MAX_TERM:
            raise InvalidParam(f"The search term may have at most {MAX_TERM} characters")
        # a limit of 0 means the maximum
        return await self._page(
            query.limit or MAX_PAGE,
            query.since,
            query.term,
            query.room_types,
            None,
            only_federating=True,
        )

    async def _page(
        self,
        limit: int | None,
        since: str | None,
        term: str | None,
        room_types: Sequence[str | None] | None,
        caller: Requester | None,
        *,
        only_federating: bool,
    ) -> dict[str, Any]:
        made_by = caller.user_id if caller is not None and caller.is_shadow_banned else None
        page = DEFAULT_PAGE if limit is None else max(1, min(limit, MAX_PAGE))
        cursor = _parse_since(since) if since else None
        rows = await self._summaries.get_public_rooms(
            term=term,
            room_types=room_types,
            before=cursor.room if cursor is not None and not cursor.backwards else None,
            after=cursor.room if cursor is not None and cursor.backwards else None,
            limit=page + 1,
            only_federating=only_federating,
            made_by=made_by,
        )
        more = len(rows) > page
        backwards = cursor is not None and cursor.backwards
        rows = rows[-page:] if backwards else rows[:page]
        response: dict[str, Any] = {
            "chunk": [describe_room(row) for row in rows],
            "total_room_count_estimate": await self._summaries.count_public_rooms(made_by),
        }
        if rows and (more or backwards):
            response["next_batch"] = f"d{rows[-1].joined_count}_{rows[-1].room_nid}"
        if rows and (more if backwards else cursor is not None):
            response["prev_batch"] = f"u{rows[0].joined_count}_{rows[0].room_nid}"
        return response

    async def _may_set_state(self, snapshot: RoomSnapshot, caller: Requester, type: str) -> bool:
        own = await self._reading.find_membership(caller.user_id, snapshot)
        if own != "join":
            return False
        levels = await snapshot.state.get(POWER_LEVELS)
        power = PowerLevels.of(
            snapshot.version,
            None if levels is None else levels.event,
            await snapshot.create_event(),
        )
        return power.can_send(caller.user_id, type, is_state=True)


class _Cursor(msgspec.Struct, frozen=True):
    """A place in the directory next to a room, and the direction to continue."""

    room: tuple[int, int]
    """The room's number of joined members, and its number."""
    backwards: bool


def _parse_since(since: str) -> _Cursor:
    match = _SINCE.fullmatch(since)
    if match is None:
        raise InvalidParam("The token is not one that the directory returned")
    return _Cursor((int(match[2]), int(match[3])), match[1] == "u")

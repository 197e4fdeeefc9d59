"""Queries other servers for profiles, aliases, public rooms and space hierarchies.

spec: server-server-api#querying-for-information, server-server-api#published-room-directory
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from federation.peers.client import FederationClient, make_path
from federation.protocol.errors import BadJson, RemoteError
from federation.protocol.ids import (
    RoomAlias,
    RoomID,
    ServerName,
    UserID,
    is_room_id,
    is_server_name,
)
from federation.protocol.space_hierarchy import RemoteHierarchy, parse_hierarchy

MAX_ALIAS_SERVERS: Final = 50
"""Servers accepted from the response to an alias query."""
MAX_PAGE_ROOMS: Final = 1000
"""Rooms on one page of a directory."""


class RoomDirectoryQuery(msgspec.Struct, frozen=True):
    """A search in a room directory. It is hashable, because responses are cached by it."""

    limit: int
    since: str | None = None
    term: str | None = None
    room_types: tuple[str | None, ...] | None = None
    include_all_networks: bool = False
    third_party_instance_id: str | None = None

    @property
    def is_filtered(self) -> bool:
        """Whether it needs a POST."""
        return self.term is not None or self.room_types is not None


class RemoteDirectoryClient:
    """Sends directory queries to other servers."""

    def __init__(self, requests: FederationClient) -> None:
        self._requests = requests

    async def get_profile(
        self, server: ServerName, user_id: UserID, field: str | None
    ) -> Mapping[str, Any]:
        """Return the profile of a user, or one field.

        Raises RemoteError, Forbidden (the policy).
        """
        query = [("user_id", str(user_id))]
        if field is not None:
            query.append(("field", field))
        return await self._requests.get(
            server, "/_matrix/federation/v1/query/profile", query, seconds=10, max_bytes=1 << 17
        )

    async def get_alias(
        self, server: ServerName, alias: RoomAlias
    ) -> tuple[RoomID, Sequence[ServerName]]:
        """Return the room of an alias, and servers in it.

        Raises RemoteError, Forbidden (the policy).
        """
        answer = await self._requests.get(
            server,
            "/_matrix/federation/v1/query/directory",
            [("room_alias", str(alias))],
            seconds=20,
            max_bytes=1 << 20,
        )
        room_id, named = answer.get("room_id"), answer.get("servers")
        if not isinstance(room_id, str) or not is_room_id(room_id):
            raise RemoteError(server, "the answer names no room", retryable=False)
        servers = [
            ServerName(name)
            for name in (named if isinstance(named, list) else ())
            if isinstance(name, str)
        ]
        return RoomID(room_id), [name for name in servers if is_server_name(name)][
            :MAX_ALIAS_SERVERS
        ]

    async def get_hierarchy(
        self, server: ServerName, room_id: RoomID, *, suggested_only: bool
    ) -> RemoteHierarchy:
        """Return a room of a space with its children.

        Raises RemoteError, Forbidden (the policy).
        """
        answer = await self._requests.get(
            server,
            make_path("/_matrix/federation/v1/hierarchy/{}", room_id),
            [("suggested_only", "true" if suggested_only else "false")],
            seconds=20,
            max_bytes=5 << 20,
        )
        try:
            return parse_hierarchy(room_id, answer)
        except BadJson as error:
            raise RemoteError(server, error.text, retryable=False) from error

    async def get_public_rooms(
        self, server: ServerName, query: RoomDirectoryQuery
    ) -> dict[str, Any]:
        """Return a page of the directory. Rooms without an ID are left out.

        Raises RemoteError, Forbidden (the policy).
        """
        body: dict[str, Any] = {"limit": query.limit}
        if query.since is not None:
            body["since"] = query.since
        if query.include_all_networks:
            body["include_all_networks"] = True
        if query.third_party_instance_id is not None:
            body["third_party_instance_id"] = query.third_party_instance_id
        path = "/_matrix/federation/v1/publicRooms"
        if query.is_filtered:
            wanted: dict[str, Any] = {}
            if query.term is not None:
                wanted["generic_search_term"] = query.term
            if query.room_types is not None:
                wanted["room_types"] = list(query.room_types)
            answer = await self._requests.post(server, path, {**body, "filter": wanted})
        else:
            answer = await self._requests.get(
                server,
                path,
                [(name, "true" if value is True else str(value)) for name, value in body.items()],
            )
        chunk = answer.get("chunk") if isinstance(answer, dict) else None
        if not isinstance(chunk, list):
            raise RemoteError(server, "the answer is no page of a directory", retryable=False)
        page: dict[str, Any] = {
            "chunk": [room for room in chunk if _is_room(room)][:MAX_PAGE_ROOMS]
        }
        for name in ("next_batch", "prev_batch"):
            if isinstance(answer.get(name), str):
                page[name] = answer[name]
        if isinstance(answer.get("total_room_count_estimate"), int):
            page["total_room_count_estimate"] = answer["total_room_count_estimate"]
        return page


def _is_room(room: object) -> bool:
    return (
        isinstance(room, dict)
        and isinstance(room.get("room_id"), str)
        and is_room_id(room["room_id"])
    )

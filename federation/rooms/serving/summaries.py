"""Decides who may see the summary of a room: its members, users who are invited or have knocked,
users who may join it, knock on it or read it, and the servers of all these users.

A summary contains the join rule, the history visibility, and the rooms whose members may join. The
other data for the decision, mainly memberships, is read in one batch for many rooms.

spec: client-server-api#get_matrixclientv1roomsroomidhierarchy,
client-server-api#get_matrixclientv1room_summaryroomidoralias,
server-server-api#get_matrixfederationv1hierarchyroomid
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from federation.protocol.ids import RoomID, ServerName, UserID
from federation.protocol.join_rules import lets_members_in, takes_knocks
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.rooms.memberships import Memberships
from storage.rooms.memberships import MembershipStore
from storage.rooms.rooms import RoomStore
from storage.rooms.summaries import SummaryRow

WORLD_READABLE: Final = "world_readable"
PRESENT: Final = frozenset({"join", "invite", "knock"})
_OPTIONAL: Final = ("name", "topic", "canonical_alias", "avatar_url", "room_type", "encryption")


class SummaryVisibility:
    """Decides who may see summaries of rooms."""

    def __init__(
        self, *, memberships: Memberships, membership_store: MembershipStore, rooms: RoomStore
    ) -> None:
        self._memberships = memberships
        self._membership_store = membership_store
        self._rooms = rooms

    async def find_visible_to_user(
        self, user_id: UserID | None, rows: Collection[SummaryRow]
    ) -> set[int]:
        """Return the numbers of the rooms that a local user, or a guest without an account, may
        see."""
        own = {} if user_id is None else await self._memberships.of_user(user_id)
        visible: set[int] = set()
        restricted: list[SummaryRow] = []
        for row in rows:
            membership = own.get(row.room_nid)
            if (
                membership is not None and membership.membership in PRESENT
            ) or row.history_visibility == WORLD_READABLE:
                visible.add(row.room_nid)
            elif membership is not None and membership.membership == "ban":
                continue
            elif _is_open(row):
                visible.add(row.room_nid)
            elif user_id is not None and allowed_rooms(row):
                restricted.append(row)
        allowed = {name for row in restricted for name in row.allowed_rooms}
        joined = (
            await self.find_joined(user_id, allowed)
            if user_id is not None and allowed
            else frozenset()
        )
        visible.update(
            row.room_nid for row in restricted if not joined.isdisjoint(row.allowed_rooms)
        )
        return visible

    async def find_visible_to_server(
        self, server: ServerName, rows: Collection[SummaryRow]
    ) -> set[int]:
        """Return the numbers of the rooms that users of another server could peek into or join."""
        open_rooms = {
            row.room_nid
            for row in rows
            if row.federates and (row.history_visibility == WORLD_READABLE or _is_open(row))
        }
        others = [row for row in rows if row.federates and row.room_nid not in open_rooms]
        if not others:
            return open_rooms
        allowed = await self._rooms.get_rooms(
            {name for row in others for name in allowed_rooms(row)}
        )
        nids = {row.room_nid for row in others} | {room.room_nid for room in allowed.values()}
        present = await self._membership_store.get_memberships_of_server(nids, server)
        joined = {
            room_id for room_id, room in allowed.items() if "join" in present.get(room.room_nid, ())
        }
        return open_rooms | {
            row.room_nid
            for row in others
            if row.room_nid in present or not joined.isdisjoint(allowed_rooms(row))
        }

    async def is_remote_room_visible(
        self, user_id: UserID | None, summary: Mapping[str, Any]
    ) -> bool:
        """Return whether a local user may see a room's summary from another server.

        This server is not in the room.
        """
        if summary.get(WORLD_READABLE) is True:
            return True
        join_rule = summary.get("join_rule")
        if join_rule in (None, "public", "knock", "knock_restricted"):
            return True
        allowed = summary.get("allowed_room_ids") or ()
        return (
            join_rule == "restricted"
            and user_id is not None
            and bool(await self.find_joined(user_id, allowed))
        )

    async def find_joined(self, user_id: UserID, room_ids: Collection[str]) -> frozenset[str]:
        """Return the rooms that the user is in."""
        rooms = await self._rooms.get_rooms(room_ids)
        own = await self._memberships.of_user(user_id)
        return frozenset(
            room_id
            for room_id, room in rooms.items()
            if (row := own.get(room.room_nid)) is not None and row.membership == "join"
        )


def allowed_rooms(row: SummaryRow) -> list[RoomID]:
    """Return the rooms whose members may join, if the room version has such join rules."""
    if not lets_members_in(ROOM_VERSIONS[row.version], row.join_rule):
        return []
    return [RoomID(name) for name in row.allowed_rooms]


def describe_room(row: SummaryRow) -> dict[str, Any]:
    """Return a room as directories show it.

    spec: client-server-api#get_matrixclientv3publicrooms_response-200_publishedroomschunk
    """
    room: dict[str, Any] = {
        "room_id": row.room_id,
        "num_joined_members": row.joined_count,
        "world_readable": row.history_visibility == WORLD_READABLE,
        "guest_can_join": row.guest_access == "can_join",
        "join_rule": row.join_rule or "invite",
        "room_version": row.version,
    }
    return room | {name: value for name in _OPTIONAL if (value := getattr(row, name)) is not None}


def summarise_room(row: SummaryRow) -> dict[str, Any]:
    """Return a room's summary: its directory entry and the rooms whose members may join."""
    allowed = allowed_rooms(row)
    return describe_room(row) | ({"allowed_room_ids": allowed} if allowed else {})


def _is_open(row: SummaryRow) -> bool:
    """Return whether anyone may join or knock."""
    return row.join_rule == "public" or takes_knocks(ROOM_VERSIONS[row.version], row.join_rule)

"""The summary of a room, which clients show to users before they join it.

spec: client-server-api#get_matrixclientv1room_summaryroomidoralias
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from federation.protocol.errors import InvalidParam, NotFound
from federation.protocol.ids import ServerName, UserID, is_room_alias, is_room_id
from federation.rooms.memberships import Memberships
from federation.rooms.serving.spaces import RemoteSpaces, Spaces
from federation.rooms.serving.summaries import SummaryVisibility, summarise_room
from homeserver.api.requester import Requester
from homeserver.services.rooms.membership import RoomMemberships

_UNSTABLE_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "encryption": ("im.nheko.summary.encryption",),
    "room_version": ("im.nheko.summary.room_version", "im.nheko.summary.version"),
}
"""Unstable names that clients still read."""


class RoomPreviews:
    """Returns summaries of rooms."""

    def __init__(
        self,
        *,
        room_memberships: RoomMemberships,
        memberships: Memberships,
        spaces: Spaces,
        previews: SummaryVisibility,
        remote: RemoteSpaces,
    ) -> None:
        self._room_memberships = room_memberships
        self._memberships = memberships
        self._spaces = spaces
        self._previews = previews
        self._remote = remote

    async def get_summary(
        self, caller: Requester | None, room_id_or_alias: str, via: Sequence[ServerName]
    ) -> dict[str, Any]:
        """Return a room's summary, with the caller's membership.

        Without an account, only rooms are visible that anybody may join, knock on or read. Raises
        InvalidParam, and NotFound whether the room exists or not.
        """
        if not is_room_id(room_id_or_alias) and not is_room_alias(room_id_or_alias):
            raise InvalidParam("This is neither a room ID nor a room alias")
        room_id, servers = await self._room_memberships.resolve(caller, room_id_or_alias, via)
        user_id = None if caller is None else caller.user_id
        known = (await self._spaces.load([room_id])).get(room_id)
        summary: dict[str, Any] | None = None
        if known is None or not known.has_local_members:
            response = (
                await self._remote.get_hierarchies(
                    {room_id: [ServerName(each) for each in servers]}, suggested_only=False
                )
            ).get(room_id)
            if response is not None and await self._previews.is_remote_room_visible(
                user_id, response.room.summary
            ):
                summary = dict(response.room.summary)
        if (
            summary is None
            and known is not None
            and await self._previews.find_visible_to_user(user_id, [known.row])
        ):
            summary = summarise_room(known.row)
        if summary is None:
            raise NotFound("There is no such room, or you may not know of it")
        for name, unstable_names in _UNSTABLE_NAMES.items():
            if name in summary:
                summary |= dict.fromkeys(unstable_names, summary[name])
        if user_id is not None:
            summary["membership"] = await self._membership(
                user_id, None if known is None else known.row.room_nid
            )
        return summary

    async def _membership(self, user_id: UserID, room_nid: int | None) -> str:
        row = None if room_nid is None else (await self._memberships.of_user(user_id)).get(room_nid)
        return "leave" if row is None else row.membership

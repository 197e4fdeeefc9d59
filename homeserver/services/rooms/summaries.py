"""What somebody may learn of a room before joining it: its summary.

spec: client-server-api#get_matrixclientv1room_summaryroomidoralias
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from federation.protocol.errors import InvalidParam, NotFound
from federation.protocol.ids import ServerName, UserID, is_room_alias, is_room_id
from federation.rooms.memberships import Memberships
from federation.rooms.serving.spaces import RemoteSpaces, Spaces
from federation.rooms.serving.summaries import Previews, summarise_room
from homeserver.api.requester import Requester
from homeserver.services.rooms.membership import RoomMemberships

_OLDER_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "encryption": ("im.nheko.summary.encryption",),
    "room_version": ("im.nheko.summary.room_version", "im.nheko.summary.version"),
}
"""What clients look for that know the summary by its unstable name."""


class RoomPreviews:
    """Shows summaries of rooms."""

    def __init__(
        self,
        room_memberships: RoomMemberships,
        memberships: Memberships,
        spaces: Spaces,
        previews: Previews,
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
        """A room's summary, with the caller's membership of it.

        Raises InvalidParam, and NotFound whether the room exists or not. Somebody without an
        account is told of rooms that anybody may join, ask to join, or read.
        """
        if not is_room_id(room_id_or_alias) and not is_room_alias(room_id_or_alias):
            raise InvalidParam("This is neither a room id nor a room alias")
        room_id, servers = await self._room_memberships.resolve(caller, room_id_or_alias, via)
        user_id = None if caller is None else caller.user_id
        known = (await self._spaces.load([room_id])).get(room_id)
        summary: dict[str, Any] | None = None
        if known is None or not known.is_ours:
            answer = (
                await self._remote.get_hierarchies(
                    {room_id: [ServerName(each) for each in servers]}, suggested_only=False
                )
            ).get(room_id)
            if answer is not None and await self._previews.is_told_of(user_id, answer.room.summary):
                summary = dict(answer.room.summary)
        if (
            summary is None
            and known is not None
            and await self._previews.visible_to_user(user_id, [known.row])
        ):
            summary = summarise_room(known.row)
        if summary is None:
            raise NotFound("There is no such room, or you may not know of it")
        for name, older_names in _OLDER_NAMES.items():
            if name in summary:
                summary |= dict.fromkeys(older_names, summary[name])
        if user_id is not None:
            summary["membership"] = await self._membership(
                user_id, None if known is None else known.row.room_nid
            )
        return summary

    async def _membership(self, user_id: UserID, room_nid: int | None) -> str:
        row = None if room_nid is None else (await self._memberships.of_user(user_id)).get(room_nid)
        return "leave" if row is None else row.membership

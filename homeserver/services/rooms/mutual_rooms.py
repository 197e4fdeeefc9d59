"""Rooms that two users are both joined to.

spec: client-server-api#mutual-rooms
"""

from typing import Any, Final

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import is_compliant_user_id
from homeserver.api.requester import Requester
from storage.rooms.memberships import MembershipStore
from storage.rooms.rooms import RoomStore

PAGE_SIZE: Final = 200
_MAX_TOKEN_LENGTH: Final = 18


class MutualRooms:
    """Finds rooms that users share."""

    def __init__(self, *, membership_store: MembershipStore, rooms: RoomStore) -> None:
        self._membership_store = membership_store
        self._rooms = rooms

    async def get_page(self, caller: Requester, user_id: str, from_: str | None) -> dict[str, Any]:
        """Return the rooms that the caller and the other user are joined to, those known to this
        server for longest first.

        Raises InvalidParam. Empty for a user who does not exist.
        """
        if not is_compliant_user_id(user_id):
            raise InvalidParam("user_id is not a valid user ID")
        if user_id == caller.user_id:
            raise InvalidParam("You have all rooms in common with yourself")
        after = 0 if from_ is None else _parse_token(from_)
        shared = await self._membership_store.get_shared_rooms(caller.user_id, [user_id])
        nids = sorted(shared.get(user_id, ()))
        remaining = [nid for nid in nids if nid > after]
        page = remaining[:PAGE_SIZE]
        rooms = await self._rooms.get_rooms_by_nid(page)
        response: dict[str, Any] = {
            "joined": [rooms[nid].room_id for nid in page],
            "count": len(nids),
        }
        if len(remaining) > PAGE_SIZE:
            # `next_batch_token` is read by clients that use the unstable path
            response["next_batch"] = response["next_batch_token"] = str(page[-1])
        return response


def _parse_token(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > _MAX_TOKEN_LENGTH:
        raise InvalidParam("from is not a token that this endpoint gave out")
    return int(text)

"""Access to profiles. By default everyone may read them; the operator may require an account or a
common room.

spec: client-server-api#get_matrixclientv3profileuserid (403: the server does not let the caller
look it up)
"""

from federation.protocol.errors import Forbidden, MissingToken
from federation.protocol.ids import UserID
from homeserver.api.requester import Requester
from storage.rooms.memberships import MembershipStore


class ProfileAccess:
    """Checks the operator's requirements."""

    def __init__(
        self, *, memberships: MembershipStore, account_needed: bool, room_needed: bool
    ) -> None:
        """`room_needed`: both users have to be in a common room; this implies `account_needed`."""
        self._memberships = memberships
        self._account_needed = account_needed or room_needed
        self._room_needed = room_needed

    async def check_may_see(self, caller: Requester | None, user_id: UserID) -> None:
        """Raise MissingToken or Forbidden if the caller may not see the profile."""
        if caller is None:
            if self._account_needed:
                raise MissingToken("Profiles on this server are visible only with an account")
            return
        if not self._room_needed or caller.user_id == user_id or caller.is_admin:
            return
        if not await self._memberships.get_shared_rooms(caller.user_id, [user_id]):
            raise Forbidden("You may see only profiles of users with whom you share a room")

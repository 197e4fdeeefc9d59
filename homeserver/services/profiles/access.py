"""Who may see whose profile. By default everyone; the operator may ask for an account, or for a
room in common.

spec: client-server-api#get_matrixclientv3profileuserid (403: the server does not let the caller
look it up)
"""

from federation.protocol.errors import Forbidden, MissingToken
from federation.protocol.ids import UserID
from homeserver.api.requester import Requester
from storage.rooms.memberships import MembershipStore


class ProfileAccess:
    """Checks what the operator asks of those who look at profiles."""

    def __init__(
        self, memberships: MembershipStore, *, account_needed: bool, room_needed: bool
    ) -> None:
        """`room_needed`, a room that both are in, needs an account too."""
        self._memberships = memberships
        self._account_needed = account_needed or room_needed
        self._room_needed = room_needed

    async def check_may_see(self, caller: Requester | None, user_id: UserID) -> None:
        """Raises MissingToken, Forbidden."""
        if caller is None:
            if self._account_needed:
                raise MissingToken("Profiles on this server are for people with an account")
            return
        if not self._room_needed or caller.user_id == user_id or caller.is_admin:
            return
        if not await self._memberships.get_shared_rooms(caller.user_id, [user_id]):
            raise Forbidden("You may see the profiles only of those with whom you share a room")

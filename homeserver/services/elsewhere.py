"""What services need of other servers.

The parts that speak with others are made from the room engine, and services from both: this is filled once all of them
are there, before the first request comes in (`homeserver/assembly/federated_rooms.py`).
"""

from collections.abc import Mapping

from federation.policy import Policy
from federation.protocol.ids import UserID
from federation.rooms.invitations import Invitations
from federation.rooms.leaving import Leaving
from federation.rooms.outside import OutsideMemberships
from federation.rooms.planned_invites import PlannedInvites
from federation.rooms.remote_memberships import RemoteMemberships
from homeserver.services.remote_directory import RemoteDirectory


class Elsewhere:
    """Other servers, as services see them."""

    memberships: RemoteMemberships
    leaving: Leaving
    invitations: Invitations
    planned_invites: PlannedInvites
    outside: OutsideMemberships
    directory: RemoteDirectory
    policy: Policy

    async def get_profile(self, user_id: UserID, field: str | None) -> Mapping[str, object]:
        """The profile of another server's user. Raises NotFound, Forbidden, OtherServerFailed."""
        return await self.directory.get_profile(user_id, field)

"""What services need of other servers.

The parts that speak with others are made from the room engine, and services from both: this is
filled once all of them are there, before the first request comes in
(`homeserver/wiring/federated_rooms.py`).
"""

from collections.abc import Mapping

from federation.peers.policy import Policy
from federation.protocol.ids import UserID
from federation.rooms.joins.invites import Invitations
from federation.rooms.joins.out_of_room import OutsideMemberships
from federation.rooms.joins.planned_invites import PlannedInvites
from federation.rooms.joins.remote_joins import RemoteMemberships
from federation.rooms.joins.remote_leaves import Leaving
from homeserver.services.directory.remote_directory import RemoteDirectory


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

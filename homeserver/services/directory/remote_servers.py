"""The federation parts that services use.

These parts are built from the room engine, and services from both. The attributes are set when all
parts exist, before the first request (`homeserver/wiring/federated_rooms.py`).
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
    """Access to other servers for services."""

    memberships: RemoteMemberships
    leaving: Leaving
    invitations: Invitations
    planned_invites: PlannedInvites
    outside: OutsideMemberships
    directory: RemoteDirectory
    policy: Policy

    async def get_profile(self, user_id: UserID, field: str | None) -> Mapping[str, object]:
        """Return the profile of a remote user. Raises NotFound, Forbidden, OtherServerFailed."""
        return await self.directory.get_profile(user_id, field)

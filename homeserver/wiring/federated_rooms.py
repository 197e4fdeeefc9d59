"""Wires memberships across servers: local users in remote rooms, remote users in local rooms. Also
wires queries for profiles, aliases and public rooms, to and from other servers."""

from collections.abc import Mapping, Sequence

from federation.endpoints.queries import QueryHandlers
from federation.protocol.errors import Forbidden
from federation.protocol.ids import UserID
from federation.remote.directory import RemoteDirectoryClient
from federation.remote.membership import MembershipClient
from federation.rooms.build import Classify
from federation.rooms.joins.invites import Invitations
from federation.rooms.joins.make_send import MembershipHandshakes
from federation.rooms.joins.planned_invites import PlannedInviteSender
from federation.rooms.joins.remote_joins import RemoteJoins
from federation.rooms.joins.remote_leaves import RemoteLeaves
from federation.rooms.joins.send_join_response import JoinResponses
from federation.rooms.membership_templates import TemplateRequests
from federation.rooms.server_fallback import ServerFallback
from federation.sender.sender import FederationSender
from homeserver.api.limits import Limit
from homeserver.cluster.jobs import Job
from homeserver.services.directory.remote_directory import RemoteDirectory
from homeserver.services.directory.room_directory import RoomDirectory
from homeserver.services.profiles.profiles import Profiles
from homeserver.services.rooms.invite_policy import InvitePolicy
from homeserver.services.rooms.remote_rooms import RemoteRooms
from homeserver.wiring.federation import FederationParts
from homeserver.wiring.federation_peers import FederationPeerParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from storage.events.events import EventStore
from storage.federation.pending_leaves import PendingLeaveStore
from storage.rooms.pending_invites import PendingInviteStore
from storage.rooms.served_states import ServedStateReader
from storage.rooms.summaries import RoomSummaryStore


async def refuse_profile(_user_id: UserID, _field: str | None) -> Mapping[str, object]:
    """Refuse profile queries of other servers.

    spec: server-server-api#get_matrixfederationv1queryprofile
    """
    raise Forbidden("This server does not answer profile queries of other servers")


class FederatedRoomParts:
    """The join, knock, invite and leave handshakes, in both directions. Public attributes are for
    the router."""

    def __init__(
        self,
        *,
        base: Foundation,
        peers: FederationPeerParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        federation: FederationParts,
        sender: FederationSender,
        invite_policy: InvitePolicy,
        classify: Classify,
    ) -> None:
        clock, database, limiter = base.clock, base.database, base.limiter
        identity, get_signers, now_ms = base.identity, peers.keyring.get_signers, base.now_ms
        engine, server_in_room = room_engine.engine, room_engine.server_in_room
        remote = MembershipClient(
            requests=peers.requests, states=federation.state_slots, clock=clock
        )
        join_responses = JoinResponses(
            store=EventStore(database),
            states=ServedStateReader(database=database, trees=rooms.trees, chains=rooms.chains),
            servers=rooms.servers,
            summaries=RoomSummaryStore(database),
            identity=identity,
        )
        self.handshakes = MembershipHandshakes(
            events=rooms.events,
            server_in_room=server_in_room,
            receiver=federation.receiver,
            restricted=room_engine.restricted,
            join_responses=join_responses,
            get_signers=get_signers,
            check_join=lambda room_id: limiter.check_without_counting(Limit.JOIN_ROOM, room_id),
            count_join=lambda room_id: limiter.count(Limit.JOIN_ROOM, room_id),
            identity=identity,
            now_ms=now_ms,
        )
        self.invitations = Invitations(
            remote=remote,
            engine=engine,
            events=rooms.events,
            server_in_room=server_in_room,
            receiver=federation.receiver,
            out_of_room=rooms.out_of_room,
            invite_policy=invite_policy,
            reachability=sender,
            services=federation.check_services,
            get_keys=peers.keyring.get_keys,
            classify=classify,
            identity=identity,
            clock=clock,
            now_ms=now_ms,
        )
        handshake = TemplateRequests(remote=remote, identity=identity, now_ms=now_ms)
        candidates = ServerFallback(policy=peers.policy, own=identity.server_name)
        pending_leaves = PendingLeaveStore(database)
        self.remote_memberships = RemoteJoins(
            remote=remote,
            handshake=handshake,
            candidates=candidates,
            server_in_room=server_in_room,
            rooms=rooms.store,
            importer=federation.join_importer,
            receiver=federation.receiver,
            imports=federation.imports,
            out_of_room=rooms.out_of_room,
            services=federation.check_services,
            pending_leaves=pending_leaves,
            identity=identity,
            now_ms=now_ms,
            use_partial_state=base.config.federation.federation.partial_state_joins,
        )
        self.leaving = RemoteLeaves(
            remote=remote,
            handshake=handshake,
            candidates=candidates,
            server_in_room=server_in_room,
            rooms=rooms.store,
            out_of_room=rooms.out_of_room,
            store=pending_leaves,
            engine=engine,
            identity=identity,
            now_ms=now_ms,
        )
        self.planned_invites = PlannedInviteSender(
            store=PendingInviteStore(database),
            rooms=rooms.store,
            engine=engine,
            invitations=self.invitations,
            invite_policy=invite_policy,
            clock=clock,
            now_ms=now_ms,
        )
        self.directory = RemoteDirectory(
            requests=RemoteDirectoryClient(peers.requests), policy=peers.policy, clock=clock
        )
        self.remote_rooms = RemoteRooms(
            remote_memberships=self.remote_memberships,
            leaving=self.leaving,
            invitations=self.invitations,
            directory=self.directory,
            policy=peers.policy,
            out_of_room=rooms.out_of_room,
            rooms=rooms.store,
            memberships=rooms.memberships,
            servers=rooms.servers,
            limiter=limiter,
        )

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (
            Job("send_pending_leaves", self.leaving.do_send_pending, 60.0),
            Job("send_pending_invites", self.planned_invites.do_resume, 60.0),
        )

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.handshakes, self.invitations)


def make_query_handlers(
    profiles: Profiles, directory: RoomDirectory, *, answers_profile_queries: bool
) -> QueryHandlers:
    """Return the handlers of other servers' queries about our users and rooms.

    `answers_profile_queries`: whether other servers may read profiles."""
    return QueryHandlers(
        profiles.get_for_server if answers_profile_queries else refuse_profile,
        directory.get_local_alias,
        directory.get_public_rooms_for_server,
    )

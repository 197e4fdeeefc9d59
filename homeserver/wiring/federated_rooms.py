"""Wires memberships across servers: local users in remote rooms, remote users in local rooms. Also
wires the servers' queries about users and rooms."""

from collections.abc import Mapping, Sequence

from twisted.internet.interfaces import IReactorTime

from federation.endpoints.queries import QueryAnswers
from federation.protocol.errors import Forbidden
from federation.protocol.ids import UserID
from federation.remote.directory import DirectoryRequests
from federation.remote.membership import MembershipRequests
from federation.rooms.joins.invites import Invitations
from federation.rooms.joins.make_send import Handshakes
from federation.rooms.joins.planned_invites import PlannedInvites
from federation.rooms.joins.remote_joins import RemoteMemberships
from federation.rooms.joins.remote_leaves import Leaving
from federation.rooms.joins.send_join_response import JoinAnswers
from federation.rooms.membership_templates import Handshake
from federation.rooms.server_fallback import Candidates
from federation.sender.sender import Sender
from homeserver.api.limits import Limit
from homeserver.cluster.jobs import Job
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.directory.remote_directory import RemoteDirectory
from homeserver.wiring.federation import FederationParts
from homeserver.wiring.rooms import RoomParts
from storage.engine.database import Database
from storage.events.events import EventStore
from storage.federation.pending_leaves import UntoldLeaveStore
from storage.rooms.planned_invites import PlannedInviteStore
from storage.rooms.served_states import ToldStates
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
        clock: IReactorTime,
        database: Database,
        limiter: RateLimiter,
        rooms: RoomParts,
        federation: FederationParts,
        sender: Sender,
        *,
        tells_profiles: bool,
    ) -> None:
        identity, get_signers = federation.identity, federation.keyring.get_signers
        remote = MembershipRequests(federation.requests, federation.long_states, clock)
        answers = JoinAnswers(
            EventStore(database),
            ToldStates(database, rooms.trees, rooms.chains),
            rooms.servers,
            RoomSummaryStore(database),
            identity,
        )
        self.handshakes = Handshakes(
            rooms.events,
            rooms.residence,
            federation.receiver,
            rooms.restricted,
            answers,
            get_signers,
            lambda room_id: limiter.check_only(Limit.JOIN_ROOM, room_id),
            lambda room_id: limiter.count(Limit.JOIN_ROOM, room_id),
            identity,
            rooms.now_ms,
        )
        self.invitations = Invitations(
            remote,
            rooms.engine,
            rooms.events,
            rooms.residence,
            federation.receiver,
            rooms.outside,
            rooms.invite_policy,
            sender,
            federation.questions,
            federation.keyring.get_keys,
            rooms.classify,
            identity,
            clock,
            rooms.now_ms,
        )
        self.query_answers = QueryAnswers(
            rooms.profiles.get_for_others if tells_profiles else refuse_profile,
            rooms.directory.get_own_alias,
            rooms.directory.get_public_rooms_for_others,
        )
        handshake = Handshake(remote, identity, rooms.now_ms)
        candidates = Candidates(federation.policy, identity.server_name)
        untold = UntoldLeaveStore(database)
        memberships = RemoteMemberships(
            remote,
            handshake,
            candidates,
            rooms.residence,
            rooms.store,
            federation.adoptions,
            federation.receiver,
            federation.imports,
            rooms.outside,
            federation.questions,
            untold,
            identity,
            rooms.now_ms,
            in_part=federation.joins_in_part,
        )
        self.leaving = Leaving(
            remote,
            handshake,
            candidates,
            rooms.residence,
            rooms.store,
            rooms.outside,
            untold,
            rooms.engine,
            identity,
            rooms.now_ms,
        )
        rooms.elsewhere.memberships = memberships
        rooms.elsewhere.leaving = self.leaving
        self.planned_invites = PlannedInvites(
            PlannedInviteStore(database),
            rooms.store,
            rooms.engine,
            self.invitations,
            rooms.invite_policy,
            clock,
            rooms.now_ms,
        )
        rooms.elsewhere.invitations = self.invitations
        rooms.elsewhere.planned_invites = self.planned_invites
        rooms.elsewhere.outside = rooms.outside
        rooms.elsewhere.policy = federation.policy
        rooms.elsewhere.directory = RemoteDirectory(
            DirectoryRequests(federation.requests), federation.policy, clock
        )

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (
            Job("tell_leaves", self.leaving.do_tell, 60.0),
            Job("send_planned_invites", self.planned_invites.do_resume, 60.0),
        )

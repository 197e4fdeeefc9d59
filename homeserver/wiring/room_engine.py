"""Wires the room engine, and the checks whether users and servers may be in a room."""

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from federation.remote.policy_servers import PolicyServerClient
from federation.rooms.build import Classify
from federation.rooms.engine import RoomEngine
from federation.rooms.joins.restricted_joins import RestrictedJoins
from federation.rooms.policy_servers import PolicyServers
from federation.rooms.server_acl_checks import ServerACLChecks
from federation.rooms.server_in_room import ServerInRoom
from federation.rooms.sticky_rechecks import StickyRechecks
from homeserver.wiring.federation_peers import FederationPeerParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from storage.federation.policy_server_verdicts import PolicyVerdictStore
from storage.rooms.sticky_events import StickyEventStore


class RoomEngineParts:
    """The engine, which adds every event to its room."""

    log = Logger()

    def __init__(
        self,
        *,
        base: Foundation,
        peers: FederationPeerParts,
        rooms: RoomDataParts,
        classify: Classify,
    ) -> None:
        database, streams = base.database, base.database.streams
        self.policy_servers = PolicyServers(
            remote=PolicyServerClient(peers.requests),
            servers=rooms.servers,
            policy=peers.policy,
            identity=base.identity,
            verdicts=PolicyVerdictStore(database=database),
            now_ms=base.now_ms,
        )
        self.engine = RoomEngine(
            database=database,
            rooms=rooms.store,
            events=rooms.events,
            servers=rooms.servers,
            trees=rooms.trees,
            writer=rooms.writer,
            identity=base.identity,
            now_ms=base.now_ms,
            classify=classify,
            partial=rooms.partial,
            capacity=base.sizes.rooms,
            get_policy_signature=self.policy_servers.add_signature,
        )
        self.access = ServerACLChecks(
            engine=self.engine,
            rooms=rooms.store,
            memberships=rooms.memberships,
            servers=rooms.servers,
        )
        self.server_in_room = ServerInRoom(
            engine=self.engine, memberships=rooms.memberships, access=self.access
        )
        self.restricted = RestrictedJoins(memberships=rooms.memberships, rooms=rooms.store)
        self.sticky_rechecks = StickyRechecks(
            store=StickyEventStore(database),
            rooms=rooms.store,
            engine=self.engine,
            events=rooms.events,
            streams=streams,
            now_ms=base.now_ms,
        )

    def start(self) -> None:
        """Load the senders whose soft-failed sticky events wait for their join."""
        Deferred.fromCoroutine(self.sticky_rechecks.start()).addErrback(
            lambda failure: self.log.failure(
                "cannot load the soft-failed sticky events to recheck", failure
            )
        )

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.access,)

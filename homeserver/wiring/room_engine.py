"""Wires the room engine and what checks that people and servers may be in a room."""

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from federation.remote.policy_servers import PolicyServerClient
from federation.rooms.build import Classify
from federation.rooms.engine import RoomEngine
from federation.rooms.joins.restricted_joins import RestrictedJoins
from federation.rooms.policy_servers import PolicyServers
from federation.rooms.server_access import ServerAccess
from federation.rooms.server_in_room import ServerInRoom
from federation.rooms.sticky_checks import StickyChecks
from homeserver.wiring.federation_peers import EdgeParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from storage.federation.policy_server_verdicts import PolicyVerdictStore
from storage.rooms.sticky_events import StickyEventStore


class RoomEngineParts:
    """The engine, through which every event of this server gets into its room."""

    log = Logger()

    def __init__(
        self, base: Foundation, edge: EdgeParts, rooms: RoomDataParts, classify: Classify
    ) -> None:
        database, streams = base.database, base.database.streams
        self.policy_servers = PolicyServers(
            PolicyServerClient(edge.requests),
            rooms.servers,
            edge.policy,
            base.identity,
            PolicyVerdictStore(database),
            base.now_ms,
        )
        self.engine = RoomEngine(
            database,
            rooms.store,
            rooms.events,
            rooms.servers,
            rooms.trees,
            rooms.writer,
            base.identity,
            base.now_ms,
            classify,
            rooms.partial,
            capacity=base.sizes.rooms,
            vouch=self.policy_servers.add_signature,
        )
        self.access = ServerAccess(self.engine, rooms.store, rooms.memberships, rooms.servers)
        self.residence = ServerInRoom(self.engine, rooms.memberships, self.access)
        self.restricted = RestrictedJoins(rooms.memberships, rooms.store)
        self.sticky_checks = StickyChecks(
            StickyEventStore(database), rooms.store, self.engine, rooms.events, streams, base.now_ms
        )

    def start(self) -> None:
        """Load the senders whose soft-failed sticky events wait for their join."""
        Deferred.fromCoroutine(self.sticky_checks.start()).addErrback(
            lambda failure: self.log.failure(
                "cannot load the soft-failed sticky events to recheck", failure
            )
        )

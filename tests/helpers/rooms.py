"""The room engine on a test database, and rooms created with it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.task import Clock

from federation.peers.identity import ServerIdentity
from federation.protocol.event_signing import missing_signers, required_signers
from federation.protocol.events import Event
from federation.protocol.ids import EventID, KeyID, RoomID, ServerName, UserID
from federation.protocol.room_versions import DEFAULT_ROOM_VERSION, RoomVersion
from federation.protocol.signing import SigningKey
from federation.rooms.build import Classification, RoomBeforeEvent
from federation.rooms.engine import RoomEngine
from federation.rooms.event_drafts import Draft
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.history.membership_periods import MembershipPeriods
from federation.rooms.joins.join_import import JoinImporter
from federation.rooms.memberships import Memberships
from federation.rooms.partial_rooms import PartialRooms
from federation.rooms.receive.check_sources import CheckServices
from federation.rooms.receive.content_restore import ContentRestorer
from federation.rooms.receive.outliers import Outliers
from federation.rooms.receive.persist import EventPersister
from federation.rooms.receive.receiver import Receiver
from federation.rooms.receive.state_imports import StateImports
from federation.rooms.receive.unverified_events import UnverifiedStateEvents
from federation.rooms.rejoins import UnacknowledgedLeaves
from federation.rooms.resolve import StateResolver
from federation.rooms.room_servers import RoomServers
from federation.rooms.server_acl_checks import ServerACLChecks
from federation.rooms.state_effects import StoredEffects
from federation.rooms.timelines import Timelines
from federation.rooms.visibility import Visibility
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.events.auth_chains import AuthChainStore
from storage.events.events import EventFlag, EventStore
from storage.events.timelines import TimelineStore
from storage.partial_state.unverified_events import UnverifiedEventStore, UnverifiedEventWriter
from storage.persist.room_writer import RoomWriter
from storage.rooms.memberships import MembershipStore
from storage.rooms.partial_rooms import PartialRoomStore
from storage.rooms.room_servers import RoomServerStore
from storage.rooms.rooms import RoomRow, RoomStore
from storage.state.state_tree import StateTreeStore

SERVER = ServerName("a.test")
ALICE = UserID("@alice:a.test")
BOB = UserID("@bob:a.test")


async def classify(event: Event, _around: RoomBeforeEvent) -> Classification:
    """Count every message as unread."""
    return Classification(flags=EventFlag.NOTIFIES if event.type == "m.room.message" else 0)


def write_nothing_else(_txn: WriteTransaction, _room: RoomRow) -> None:
    """Write nothing besides the events of a new room."""


@dataclass
class RoomParts:
    """All room components on one database. A second instance on the same database is another
    node."""

    database: Database
    now: list[int] = field(default_factory=lambda: [1_700_000_000_000])
    server: ServerName = SERVER
    keys: dict[ServerName, Mapping[KeyID, bytes]] = field(default_factory=dict)
    """The public keys of all servers. Servers that know each other share this object."""
    writer_class: type[RoomWriter] = RoomWriter

    def __post_init__(self) -> None:
        database, streams = self.database, self.database.streams
        self.identity = ServerIdentity(
            self.server, SigningKey("key", self.server.encode().ljust(32)[:32])
        )
        self.keys[self.server] = {self.identity.key.key_id: self.identity.key.public_key}
        self.rooms = RoomStore(database=database)
        self.events = RoomEvents(
            store=EventStore(database), rooms=self.rooms, streams=streams, capacity=1000
        )
        self.trees = StateTreeStore(database=database)
        self.memberships = Memberships(
            store=MembershipStore(database), streams=streams, capacity=1000
        )
        self.servers = RoomServers(
            store=RoomServerStore(database),
            memberships=self.memberships,
            streams=streams,
            capacity=1000,
        )
        self.timelines = Timelines(store=TimelineStore(database), streams=streams, capacity=1000)
        self.stays = MembershipPeriods(
            timelines=self.timelines, events=self.events, store=TimelineStore(database)
        )
        self.visibility = Visibility(
            trees=self.trees, events=self.events, membership_periods=self.stays
        )
        self.chains = chains = AuthChainStore(database=database)
        writer = self.writer_class(trees=self.trees, chains=chains)
        self.engine = RoomEngine(
            database=database,
            rooms=self.rooms,
            events=self.events,
            servers=self.servers,
            trees=self.trees,
            writer=writer,
            identity=self.identity,
            now_ms=self.tick,
            classify=classify,
            partial=PartialRooms(store=PartialRoomStore(database), streams=streams, clock=Clock()),
            capacity=100,
        )
        store = EventStore(database)
        self.resolver = StateResolver(
            database=database, trees=self.trees, chains=chains, events=self.events
        )
        self.placements = EventPersister(
            database=database,
            engine=self.engine,
            events=self.events,
            resolver=self.resolver,
            writer=writer,
            identity=self.identity,
            classify=classify,
            now_ms=self.tick,
        )
        questions = CheckServices(
            self.events,
            self.resolver,
            self.get_signers,
            self.approve,
            self.judge,
            self.prepare,
            self.lacks_keys,
            self.find_true,
        )
        late = ContentRestorer(
            database=database,
            engine=self.engine,
            events=self.events,
            identity=self.identity,
            now_ms=self.tick,
        )
        outliers = Outliers(
            database=database,
            events=self.events,
            store=store,
            persister=self.placements,
            writer=writer,
            services=questions,
            content_restorer=late,
            now_ms=self.tick,
        )
        access = ServerACLChecks(
            engine=self.engine, rooms=self.rooms, memberships=self.memberships, servers=self.servers
        )
        self.clock = Clock()
        self.unproved = UnverifiedStateEvents(
            database=database,
            store=UnverifiedEventStore(database),
            writer=UnverifiedEventWriter(self.trees),
            engine=self.engine,
            rooms=self.rooms,
            events=self.events,
            outliers=outliers,
            resolver=self.resolver,
            identity=self.identity,
            clock=self.clock,
        )
        self.receiver = Receiver(
            engine=self.engine,
            events=self.events,
            store=store,
            resolver=self.resolver,
            persister=self.placements,
            outliers=outliers,
            services=questions,
            access=access,
            unverified=self.unproved,
            content_restorer=late,
        )
        self.adoptions = JoinImporter(
            database=database,
            engine=self.engine,
            rooms=self.rooms,
            events=self.events,
            trees=self.trees,
            memberships=MembershipStore(database),
            imports=StateImports(outliers=outliers, store=store, clock=self.clock),
            effects=StoredEffects(store=store, identity=self.identity),
            resolver=self.resolver,
            unacknowledged_leaves=UnacknowledgedLeaves(
                events=self.events, resolver=self.resolver, identity=self.identity
            ),
            partial=PartialRoomStore(database),
            writer=writer,
            identity=self.identity,
            services=questions,
            now_ms=self.tick,
            first_attempt=self.unproved.schedule_first_attempt,
        )

    async def auth_chain(self, event: Event) -> list[Mapping[str, Any]]:
        """Return the PDUs of an event's auth chain."""
        chain: dict[EventID, Event] = {}
        waiting = list(event.auth_events)
        while waiting:
            found = await self.events.get_in_any_room(waiting)
            chain.update((name, stored.event) for name, stored in found.items())
            waiting = [
                name
                for stored in found.values()
                for name in stored.event.auth_events
                if name not in chain
            ]
        return [other.pdu for other in chain.values()]

    async def get_signers(self, event: Event) -> Collection[ServerName]:
        """Return the servers whose signatures verify. Implements a keyring with all keys."""
        return required_signers(event) - missing_signers(event, self.keys)

    async def find_true(
        self, _room_nid: int, _events: Sequence[Event], _origin: ServerName | None
    ) -> list[Event]:
        """Return nothing: there are no other servers to ask."""
        return []

    def lacks_keys(self, event: Event) -> bool:
        """Whether the keys of a required signer are unknown."""
        return not required_signers(event) <= self.keys.keys()

    async def prepare(self, events: Iterable[Event]) -> None:
        """Do nothing: all keys are known."""

    async def approve(self, room_nid: int, event: Event, named: Event | None) -> bool:
        """Reject events that contain the word "spam", as a policy server would."""
        return named is None or "spam" not in str(event.content.get("body"))

    async def judge(
        self,
        room_nid: int,
        events: Collection[Event],
        named: Event | None,
        let_in: Collection[EventID],
    ) -> Mapping[EventID, bool]:
        """Return no verdicts in advance."""
        return {}

    def tick(self) -> int:
        """Return the time, one millisecond later in each call."""
        self.now[0] += 1
        return self.now[0]

    async def create(
        self,
        creator: UserID = ALICE,
        *,
        version: RoomVersion = DEFAULT_ROOM_VERSION,
        join_rule: str = "public",
    ) -> RoomID:
        """Create a room with its creator as member."""
        content: dict[str, Any] = {"room_version": version.identifier}
        if not version.creator_is_sender:
            content["creator"] = creator
        levels: dict[str, Any] = {} if version.creators_privileged else {"users": {creator: 100}}
        drafts = [
            Draft("m.room.create", creator, content, ""),
            Draft("m.room.member", creator, {"membership": "join"}, creator),
            Draft("m.room.power_levels", creator, levels, ""),
            Draft("m.room.join_rules", creator, {"join_rule": join_rule}, ""),
        ]
        room_id = (
            None if version.room_id_is_create_hash else RoomID(f"!{self.tick()}:{self.server}")
        )
        snapshot, _ = await self.engine.create(version, room_id, drafts, write_nothing_else)
        return snapshot.room_id

    async def send(
        self,
        room_id: RoomID,
        sender: UserID,
        content: Mapping[str, Any] | str,
        type: str = "m.room.message",
        state_key: str | None = None,
        **more: Any,
    ) -> StoredEvent:
        """Send one event. A string is the body of a message."""
        body = {"msgtype": "m.text", "body": content} if isinstance(content, str) else content
        return (await self.engine.send(room_id, [Draft(type, sender, body, state_key, **more)]))[0]

    async def member(
        self, room_id: RoomID, sender: UserID, membership: str, target: UserID | None = None
    ) -> StoredEvent:
        """Change the membership of the target, by default the sender's own."""
        return await self.send(
            room_id, sender, {"membership": membership}, "m.room.member", target or sender
        )

    async def redact(self, room_id: RoomID, sender: UserID, target: EventID) -> StoredEvent:
        """Redact an event."""
        return await self.send(
            room_id, sender, {"redacts": target}, "m.room.redaction", redacts=target
        )

    async def bodies(self, room_id: RoomID) -> Sequence[str]:
        """Return the bodies of the messages in stream order."""
        room = (await self.engine.get_snapshot(room_id)).room
        stretch = (await self.timelines.get_latest({room.room_nid: (0, 2**53)}, 1000))[
            room.room_nid
        ]
        events = await self.events.get_events(arrival.event_nid for arrival in stretch.arrivals)
        ordered = [events[arrival.event_nid].event for arrival in stretch.arrivals]
        return [
            event.content.get("body", "") for event in ordered if event.type == "m.room.message"
        ]

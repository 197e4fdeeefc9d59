"""Servers that share a room. Each has its own database; a test transfers events between them
itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from federation.protocol.event_auth import auth_keys
from federation.protocol.event_signing import build_event
from federation.protocol.events import Event, StateKey, compute_reference_hash, parse_event
from federation.protocol.ids import EventID, RoomID, ServerName, UserID
from federation.protocol.room_versions import ROOM_VERSIONS, EventFormat, RoomVersion
from federation.protocol.signing import encode_base64
from federation.rooms.events import StoredEvent
from federation.rooms.receipt_checks import Verdict
from federation.rooms.receive.batch import Outcome
from storage.engine.database import Database
from tests.helpers.rooms import RoomParts


class Peer(RoomParts):
    """One server of the room."""

    @property
    def user(self) -> UserID:
        """A user of this server."""
        return UserID(f"@user:{self.server}")

    async def take(self, room_id: RoomID, *events: Event, **options: Any) -> list[Outcome]:
        """Receive events."""
        return await self.receiver.receive(room_id, [event.pdu for event in events], **options)

    async def verdict(self, room_id: RoomID, event: Event, **options: Any) -> Verdict | None:
        """Receive one event."""
        return (await self.take(room_id, event, **options))[0].verdict

    async def find(self, room_id: RoomID, event: Event | EventID) -> StoredEvent | None:
        """Return a stored event with its metadata."""
        room = (await self.engine.get_snapshot(room_id)).room
        return await self.events.get_event(
            room.room_nid, event.event_id if isinstance(event, Event) else event
        )

    async def state(self, room_id: RoomID) -> Mapping[StateKey, EventID]:
        """Return the current state."""
        stored = await (await self.engine.get_snapshot(room_id)).state.load_all()
        return {key: event.event.event_id for key, event in stored.items()}

    async def extremities(self, room_id: RoomID) -> set[str]:
        """Return the IDs of the forward extremities."""
        return {
            event_id for _, event_id in (await self.engine.get_snapshot(room_id)).head.extremities
        }

    async def shown(self, room_id: RoomID) -> list[EventID]:
        """Return the events that a client has received since the start."""
        room = (await self.engine.get_snapshot(room_id)).room
        stretch = (await self.timelines.get_latest({room.room_nid: (0, 2**53)}, 1000))[
            room.room_nid
        ]
        events = await self.events.get_events(arrival.event_nid for arrival in stretch.arrivals)
        return [events[arrival.event_nid].event.event_id for arrival in stretch.arrivals]

    async def build(
        self,
        version: RoomVersion,
        room_id: RoomID,
        prev: Sequence[Event],
        state: Mapping[StateKey, Event],
        sender: UserID,
        type: str,
        content: Mapping[str, Any],
        state_key: str | None = None,
        *,
        auth: Sequence[Event] | None = None,
        redacts: EventID | None = None,
        depth: int | None = None,
        server: ServerName | None = None,
    ) -> Event:
        """Build and sign an event without storing it. It need not be allowed."""
        if auth is None:
            keys = sorted(auth_keys(version, type, sender, state_key, content))
            auth = [state[key] for key in keys if key in state]
        names: dict[str, Any] = {}
        if version.event_format is EventFormat.V1:
            names = {
                "event_id": EventID(f"$made{self.tick()}:{self.server}"),
                "reference_hashes": {
                    event.event_id: encode_base64(compute_reference_hash(version, event.pdu))
                    for event in (*auth, *prev)
                },
            }
        return build_event(
            version,
            server or self.server,
            self.identity.key,
            room_id=room_id,
            type=type,
            sender=sender,
            content=content,
            state_key=state_key,
            redacts=redacts,
            origin_server_ts=self.tick(),
            prev_events=[event.event_id for event in prev],
            auth_events=[event.event_id for event in auth],
            depth=depth
            if depth is not None
            else 1 + max((event.depth for event in prev), default=0),
            **names,
        )

    async def fork(
        self,
        room_id: RoomID,
        prev: Event,
        type: str,
        content: Mapping[str, Any],
        state_key: str | None = None,
        **more: Any,
    ) -> Event:
        """Build an event of this server's user after `prev`, in the state after that."""
        snapshot = await self.engine.get_snapshot(room_id)
        stored = await self.find(room_id, prev)
        assert stored is not None
        whole = await self.engine.view(stored.room_nid, stored.state_root).load_all()
        state = {key: event.event for key, event in whole.items()}
        sender = more.pop("sender", self.user)
        return await self.build(
            snapshot.version, room_id, [prev], state, sender, type, content, state_key, **more
        )


async def join(resident: Peer, newcomer: Peer, version: RoomVersion, room_id: RoomID) -> Event:
    """Join a user of another server through a resident server. Both servers store the join."""
    snapshot = await resident.engine.get_snapshot(room_id)
    stored = await snapshot.state.load_all()
    state = {key: event.event for key, event in stored.items()}
    nids = [nid for nid, _ in snapshot.head.extremities]
    prev = [event.event for event in (await resident.events.get_events(nids)).values()]
    event = await newcomer.build(
        version,
        room_id,
        prev,
        state,
        newcomer.user,
        "m.room.member",
        {"membership": "join"},
        newcomer.user,
    )
    chain = await resident.auth_chain(event)
    await newcomer.adoptions.import_join(
        version, room_id, [other.pdu for other in state.values()], chain, event.pdu
    )
    await resident.take(room_id, event)
    return event


def servers(databases: Sequence[Database]) -> list[Peer]:
    """Create servers that know each other's keys and share a clock."""
    now, keys = [1_700_000_000_000], {}  # type: ignore[var-annotated]
    return [
        Peer(database, now, ServerName(f"{name}.test"), keys)
        for name, database in zip("abcdef", databases, strict=False)
    ]


def copy(version: RoomVersion, pdu: Mapping[str, Any], **changes: Any) -> Event:
    """Return an event with changed fields and the old signatures."""
    return parse_event(version, {**pdu, **changes})


async def shared_room(
    peers: Sequence[Peer], version: RoomVersion = ROOM_VERSIONS["11"]
) -> tuple[RoomID, Event]:
    """Create a public room with users of all servers. Return its ID and its last event."""
    first = peers[0]
    room_id = await first.create(first.user, version=version)
    last: Event | None = None
    for index, peer in enumerate(peers[1:], 1):
        last = await join(first, peer, version, room_id)
        for other in peers[1:index]:
            await other.take(room_id, last)
    assert last is not None
    return room_id, last

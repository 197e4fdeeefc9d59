"""Rooms shared by complete servers of a `Network`, and events that a test sends between them
itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred

from federation.peers.response_splitter import BYTES_PER_TURN
from federation.protocol.event_auth import auth_keys
from federation.protocol.event_signing import build_event
from federation.protocol.events import Event, StateKey, compute_reference_hash
from federation.protocol.ids import EventID, RoomID, ServerName, UserID
from federation.protocol.room_versions import ROOM_VERSIONS, EventFormat, RoomVersion
from federation.protocol.signing import encode_base64
from federation.rooms.events import StoredEvent
from federation.rooms.snapshot import RoomSnapshot
from tests.helpers.network import Network
from tests.helpers.room_actions import V3, ok
from tests.helpers.server import TestServer, User

NORTH, SOUTH, EAST = "north.example", "south.example", "east.example"


class _Numbers:
    """A counter for unique IDs and timestamps of events that tests build."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Restart the counter for a new network, so that a test does not depend on earlier tests in
        the process."""
        self._count = count(1)

    def __next__(self) -> int:
        return next(self._count)


NUMBERS = _Numbers()


def create_room(creator: User, version: str = "11", **options: Any) -> RoomID:
    """Create a public room."""
    body = {"preset": "public_chat", "room_version": version, **options}
    answer = creator.post("/_matrix/client/v3/createRoom", body)
    assert answer.status == 200, answer.body
    return RoomID(answer.json["room_id"])


def texts(user: User, room_id: RoomID, **query: Any) -> list[str]:
    """Return the texts that a user sees in a room, newest first, over all pages."""
    found: list[str] = []
    path = f"/_matrix/client/v3/rooms/{room_id}/messages?dir=b&limit={query.get('limit', 100)}"
    from_ = ""
    for _ in range(100):
        answer = user.get(path + from_)
        assert answer.status == 200, answer.body
        events = answer.json["chunk"]
        found += [
            event["content"].get("body", "")
            for event in events
            if event["type"] == "m.room.message"
        ]
        if "end" not in answer.json:
            return found
        from_ = f"&from={answer.json['end']}"
    raise AssertionError("pagination does not end")


class Side:
    """A server with access to its internals."""

    def __init__(self, server: TestServer) -> None:
        self.server = server
        self.edge = server.app.peers
        self.federation = server.app.federation
        self.room_engine = server.app.room_engine
        self.rooms = server.app.rooms
        self.name = ServerName(server.config.server_name)

    async def room(self, room_id: RoomID) -> RoomSnapshot:
        """Return the current snapshot of the room."""
        return await self.room_engine.engine.get_snapshot(room_id)

    async def find(self, room_id: RoomID, event_id: EventID) -> StoredEvent | None:
        """Return a stored event with its metadata."""
        return await self.rooms.events.get_event((await self.room(room_id)).room.room_nid, event_id)

    async def pdu(self, room_id: RoomID, event_id: EventID) -> dict[str, Any]:
        """Return the PDU of a stored event."""
        stored = await self.find(room_id, event_id)
        assert stored is not None
        return dict(stored.event.pdu)

    async def state(self, room_id: RoomID) -> Mapping[StateKey, EventID]:
        """Return the current state."""
        stored = await (await self.room(room_id)).state.load_all()
        return {key: event.event.event_id for key, event in stored.items()}

    async def extremities(self, room_id: RoomID) -> set[str]:
        """Return the IDs of the forward extremities."""
        return {event_id for _, event_id in (await self.room(room_id)).head.extremities}

    async def last(self, room_id: RoomID) -> list[Event]:
        """Return the forward extremities as events."""
        nids = [nid for nid, _ in (await self.room(room_id)).head.extremities]
        return [stored.event for stored in (await self.rooms.events.get_events(nids)).values()]

    async def push(
        self, to: str, pdus: Sequence[Any], edus: Sequence[Any] = (), txn_id: str | None = None
    ) -> Any:
        """Send a transaction; return the response. Raises RefusedByRemote."""
        path = f"/_matrix/federation/v1/send/{txn_id or f'by-hand-{next(NUMBERS)}'}"
        body = {"origin": self.name, "origin_server_ts": 1, "pdus": list(pdus), "edus": list(edus)}
        pushing = Deferred.fromCoroutine(self.edge.requests.put(ServerName(to), path, body))
        if len(repr(body)) > BYTES_PER_TURN:  # the body is read in pieces
            self.server.clock.advance(0)
        return await pushing

    async def build(
        self,
        version: RoomVersion,
        room_id: RoomID,
        prev: Sequence[Event | EventID],
        state: Mapping[StateKey, Event],
        sender: UserID,
        type: str,
        content: Mapping[str, Any],
        state_key: str | None = None,
        *,
        depth: int | None = None,
        auth: Sequence[EventID] | None = None,
        ts: int | None = None,
        sticky_ms: int | None = None,
    ) -> Event:
        """Build and sign an event without storing it. It need not be allowed."""
        keys = sorted(auth_keys(version, type, sender, state_key, content))
        cited = [state[key] for key in keys if key in state]
        names: dict[str, Any] = {}
        if version.event_format is EventFormat.V1:
            events = [*cited, *(event for event in prev if isinstance(event, Event))]
            names = {
                "event_id": EventID(f"$made{next(NUMBERS)}:{self.name}"),
                "reference_hashes": {
                    event.event_id: encode_base64(compute_reference_hash(version, event.pdu))
                    for event in events
                },
            }
        depths = [event.depth for event in prev if isinstance(event, Event)]
        return build_event(
            version,
            self.name,
            self.federation.identity.key,
            room_id=room_id,
            type=type,
            sender=sender,
            content=content,
            state_key=state_key,
            sticky_ms=sticky_ms,
            origin_server_ts=ts
            if ts is not None
            else int(self.server.clock.seconds() * 1000) + next(NUMBERS),
            prev_events=[event.event_id if isinstance(event, Event) else event for event in prev],
            auth_events=[event.event_id for event in cited] if auth is None else list(auth),
            depth=depth if depth is not None else 1 + max(depths, default=0),
            **names,
        )

    async def build_next(
        self,
        room_id: RoomID,
        sender: UserID,
        type: str,
        content: Mapping[str, Any],
        state_key: str | None = None,
        prev: Sequence[Event | EventID] | None = None,
        **more: Any,
    ) -> Event:
        """Build an event on the current state of this server's room. `prev` replaces its
        `prev_events`."""
        snapshot = await self.room(room_id)
        state = {key: stored.event for key, stored in (await snapshot.state.load_all()).items()}
        if prev is None:
            prev = await self.last(room_id)
        return await self.build(
            snapshot.version, room_id, prev, state, sender, type, content, state_key, **more
        )


async def adopt(resident: Side, newcomer: Side, user_id: UserID, room_id: RoomID) -> Event:
    """Join a user of another server through a resident server, as the join handshake does."""
    snapshot = await resident.room(room_id)
    version = ROOM_VERSIONS[snapshot.room.version]
    state = {key: stored.event for key, stored in (await snapshot.state.load_all()).items()}
    prev = await resident.last(room_id)
    join = await newcomer.build(
        version, room_id, prev, state, user_id, "m.room.member", {"membership": "join"}, user_id
    )
    chain: dict[EventID, Event] = {}
    waiting = [name for event in (*state.values(), join) for name in event.auth_events]
    while waiting:
        found = await resident.rooms.events.get_in_any_room(set(waiting))
        chain.update((name, stored.event) for name, stored in found.items())
        waiting = [
            name
            for stored in found.values()
            for name in stored.event.auth_events
            if name not in chain
        ]
    await newcomer.federation.join_importer.import_join(
        version,
        room_id,
        [event.pdu for event in state.values()],
        [event.pdu for event in chain.values()],
        join.pdu,
    )
    await newcomer.push(resident.name, [join.pdu])
    assert await resident.find(room_id, join.event_id) is not None
    return join


@dataclass
class Shared:
    """A room shared by two servers."""

    network: Network
    north: Side
    south: Side
    alice: User
    bob: User
    room_id: RoomID

    async def pdu(self, event_id: EventID) -> dict[str, Any]:
        """Return the PDU of an event that the north stores."""
        return await self.north.pdu(self.room_id, event_id)

    async def by_bob(self, text: str) -> Event:
        """Build a message of Bob that no server has yet."""
        content = {"msgtype": "m.text", "body": text}
        return await self.south.build_next(
            self.room_id, self.bob.user_id, "m.room.message", content
        )


async def shared(
    network: Network, version: str = "11", config: Mapping[str, str] | None = None, **options: Any
) -> Shared:
    """Create a room of Alice in the north and Bob in the south, with the network open."""
    config = config or {}
    north = Side(network.add(NORTH, config.get(NORTH, "")))
    south = Side(network.add(SOUTH, config.get(SOUTH, "")))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(alice, version, **options)
    await adopt(north, south, bob.user_id, room_id)
    return Shared(network, north, south, alice, bob, room_id)


def two_users(network: Network) -> tuple[User, User]:
    """Return Alice in the north and Bob in the south."""
    return network.add(NORTH).register("alice"), network.add(SOUTH).register("bob")


def join_through_north(network: Network, user: User, room_id: str) -> None:
    """Join a room through the northern server, and let all requests complete."""
    ok(user.post(f"{V3}/join/{room_id}?via={NORTH}"))
    network.settle()

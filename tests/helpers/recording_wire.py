"""A wire that records all requests, and members of other servers that need no network.

room_id = alice.post("/_matrix/client/v3/createRoom", {"preset": "public_chat"}).json["room_id"]
await share(room_id, north, bob)      # bob of the south joins through the north
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.errors import RemoteError
from federation.protocol.ids import ServerName
from storage.engine.transaction import WriteTransaction
from storage.persist.state_effects import StateEffect
from storage.rooms.memberships import NewMembership
from tests.helpers.server import TestServer

SEND = "/_matrix/federation/v1/send/"


class RecordingWire:
    """Records all requests. Accepts every transaction, and answers other requests as configured."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, WireRequest]] = []
        self.answers: dict[str, Callable[[str, Any], Mapping[str, Any]]] = {}
        """Functions of the destination and the body that return responses, by the start of the
        path."""
        self.down: set[str] = set()
        """The servers that are unreachable."""
        self.busy: dict[str, int] = {}
        """The servers that answer with a rate limit, and its `retry_after` in seconds."""

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireResponse:
        self.requests.append((destination, request))
        if destination in self.down:
            raise RemoteError(destination, "the server is down", retryable=True)
        if destination in self.busy:
            return WireResponse(429, {"retry-after": f"{self.busy[destination]}"}, b"{}")
        for path, answer in self.answers.items():
            if request.uri.startswith(path):
                body = msgspec.json.decode(request.body) if request.body else None
                return WireResponse(200, {}, msgspec.json.encode(answer(destination, body)))
        if request.uri.startswith(SEND):
            return WireResponse(200, {}, b'{"pdus":{}}')
        return WireResponse(404, {}, b'{"errcode":"M_UNRECOGNIZED","error":"not here"}')

    def transactions(self, destination: str) -> list[tuple[str, dict[str, Any]]]:
        """Return (ID, body) of all transactions sent to a server, including failed ones."""
        return [
            (request.uri.removeprefix(SEND), msgspec.json.decode(request.body))
            for server, request in self.requests
            if server == destination and request.uri.startswith(SEND)
        ]

    def texts(self, destination: str) -> list[str]:
        """Return the texts of the messages sent to a server."""
        return [
            pdu["content"]["body"]
            for _, body in self.transactions(destination)
            for pdu in body["pdus"]
            if pdu["type"] == "m.room.message"
        ]

    def edus(self, destination: str, edu_type: str) -> list[dict[str, Any]]:
        """Return the contents of the EDUs of this type sent to a server."""
        return [
            edu["content"]
            for _, body in self.transactions(destination)
            for edu in body["edus"]
            if edu["edu_type"] == edu_type
        ]


async def pretend_member(
    server: TestServer, room_id: str, user_id: str, membership: str = "join"
) -> None:
    """Write the membership of another server's user into the tables."""
    room = await server.app.rooms.store.get_room(room_id)
    assert room is not None
    member = NewMembership(user_id, membership, user_id, False, None, None)

    def write(txn: WriteTransaction) -> None:
        server.app.rooms.writer.apply_early_effects(txn, room, [(1, StateEffect(member))])

    await server.app.database.write("test", write)

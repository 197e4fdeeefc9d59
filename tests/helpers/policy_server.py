"""A policy server that replaces a server of the network."""

from collections.abc import Mapping
from typing import Any

import msgspec

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.errors import RemoteError
from federation.protocol.events import encode_reference, parse_event
from federation.protocol.ids import ServerName
from federation.protocol.policy_server import KEY_ID
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.protocol.signing import SigningKey, add_signature, encode_base64
from tests.helpers.federated_rooms import SOUTH

KEY = SigningKey("policy_server", b"p" * 32)
SIGN = "/_matrix/policy/v1/sign"


class PolicyServer:
    """A policy server that signs all events except spam."""

    def __init__(self, version: str, name: str = SOUTH) -> None:
        self.version = version
        self.name = name
        self.key = KEY
        self.path = SIGN
        self.is_away = False
        self.left: int | None = None
        """The number of events that it checks before it answers M_LIMIT_EXCEEDED. None: no
        limit."""
        self.wait_ms = 1_000
        """The `retry_after_ms` of these errors."""
        self.refusals = 0
        self.asked: list[dict[str, Any]] = []

    def answer(self, destination: ServerName, request: WireRequest) -> WireResponse | None:
        """Answer a request instead of the server (see `Network.liars`)."""
        if request.uri != self.path:
            return None
        assert destination == self.name
        pdu = msgspec.json.decode(request.body)
        if self.left == 0:
            self.refusals += 1
            refusal = {
                "errcode": "M_LIMIT_EXCEEDED",
                "error": "Not so fast",
                "retry_after_ms": self.wait_ms,
            }
            return WireResponse(429, {}, msgspec.json.encode(refusal))
        self.asked.append(pdu)
        if self.is_away:
            raise RemoteError(destination, "away", retryable=True)
        if self.left is not None:
            self.left -= 1
        if "spam" in str(pdu["content"]):
            refusal = {"errcode": "ORG.EXAMPLE_SPAM", "error": "No spam, please"}
            return WireResponse(400, {}, msgspec.json.encode(refusal))
        return WireResponse(200, {}, msgspec.json.encode({self.name: {KEY_ID: self.sign(pdu)}}))

    def answer_late(self, request: WireRequest, answer: WireResponse) -> WireResponse:
        """Replace the server's own response (see `Network.forge`)."""
        return self.answer(ServerName(self.name), request) or answer

    def sign(self, pdu: Mapping[str, Any]) -> str:
        """Return the policy server's signature of an event."""
        version = ROOM_VERSIONS[self.version]
        return self.key.sign(encode_reference(version, parse_event(version, pdu).pdu))

    def vouch(self, pdu: Mapping[str, Any]) -> dict[str, Any]:
        """Return the event with the policy server's signature."""
        return add_signature(pdu, self.name, KEY_ID, self.sign(pdu))


def named(key: SigningKey = KEY, via: str = SOUTH) -> dict[str, Any]:
    return {"via": via, "public_keys": {"ed25519": encode_base64(key.public_key)}}


def message_path(room_id: str, txn_id: str = "m") -> str:
    return f"/_matrix/client/v3/rooms/{room_id}/send/m.room.message/{txn_id}"

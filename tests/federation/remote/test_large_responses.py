"""Responses of other servers are parsed in chunks, with turns of other work in between; memory
holds the bytes and little more."""

from collections.abc import Sequence

import msgspec
import pytest
from twisted.internet.defer import Deferred

from federation.peers.response_splitter import PARSED_BYTES_PER_TURN
from federation.peers.wire import WireResponse
from federation.rooms.receipt_checks import ReceivedPdu, Verdict
from federation.rooms.receive.batch import Outcome
from federation.rooms.receive.outliers import Outliers
from tests.helpers.federated_rooms import shared
from tests.helpers.network import Network


@pytest.mark.parametrize(("count", "length", "chunks"), [(1200, 700, 3), (100, 60_000, 6)])
async def test_a_large_state_is_parsed_in_chunks(
    network: Network, monkeypatch: pytest.MonkeyPatch, count: int, length: int, chunks: int
) -> None:
    room = await shared(network)
    read: list[int] = []

    pdus = [
        msgspec.Raw(msgspec.json.encode({"a": "x" * length, "depth": number}))
        for number in range(count)
    ]
    longest = len(bytes(pdus[-1]))

    async def add(_: Outliers, _room: object, candidates: Sequence[ReceivedPdu]) -> list[Outcome]:
        read.append(len(candidates) * longest)
        return [Outcome(None, Verdict.DROP) for _ in candidates]

    federation = room.north.federation
    monkeypatch.setattr(Outliers, "add", add)
    keeping = Deferred.fromCoroutine(
        federation.imports.store((await room.north.room(room.room_id)).room, pdus)
    )
    network.settle()
    outcomes = await keeping

    assert len(outcomes) == count
    assert len(read) == chunks
    assert max(read) <= 1 << 20


async def test_the_reactor_runs_while_a_page_is_parsed(network: Network) -> None:
    room = await shared(network)
    body = msgspec.json.encode({"events": [{"a": ["x"] * 10_000}] * 100})
    network.interceptors.append(
        lambda _, request: WireResponse(200, {}, body) if "get_missing" in request.uri else None
    )
    remote = room.north.federation.remote_events
    turns: list[int] = []

    def turn() -> None:
        turns.append(1)
        if not asking.called:
            network.clock.callLater(0, turn)

    asking = Deferred.fromCoroutine(
        remote.get_missing_events(room.south.name, room.room_id, earliest=[], latest=[], limit=100)
    )
    turn()
    network.settle()

    assert len(await asking) == 100
    assert len(turns) > len(body) / PARSED_BYTES_PER_TURN

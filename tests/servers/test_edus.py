"""EDUs reach the handler of their type, unless the room's ACL forbids it."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from federation.protocol.errors import Forbidden
from federation.protocol.ids import ServerName
from federation.receiver.edus import EduReceivers
from storage.engine.database import DatabaseUnavailable
from tests.helpers.federated import adopt, create_room, shared
from tests.helpers.network import Network
from tests.helpers.room_actions import set_state

NORTH, SOUTH = ServerName("north.example"), ServerName("south.example")


class Taken:
    """A handler that records EDUs, and fails on request."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.contents: list[Mapping[str, Any]] = []
        self._fault = fault

    async def receive(self, origin: ServerName, content: Mapping[str, Any]) -> None:
        assert origin == NORTH
        self.contents.append(content)
        if self._fault is not None:
            raise self._fault


def edu(edu_type: str, **content: Any) -> dict[str, Any]:
    return {"edu_type": edu_type, "content": content}


async def each(*edus: object) -> AsyncIterator[object]:
    for one in edus:
        yield one


@pytest.mark.parametrize("fault", [Forbidden("not you"), RuntimeError("a bug")])
async def test_a_failing_handler_does_not_affect_others(network: Network, fault: Exception) -> None:
    failing, working = Taken(fault), Taken()
    edus = EduReceivers(
        access=network.add(SOUTH).app.room_engine.access,
        handlers={"org.example.failing": failing.receive, "org.example.working": working.receive},
    )

    await edus.receive(
        NORTH, each(edu("org.example.failing"), edu("org.example.working", number=1))
    )

    assert len(failing.contents) == 1
    assert working.contents == [{"number": 1}]


async def test_an_edu_that_could_not_be_stored_is_not_acknowledged(network: Network) -> None:
    edus = EduReceivers(
        access=network.add(SOUTH).app.room_engine.access,
        handlers={"org.example.failing": Taken(DatabaseUnavailable("gone")).receive},
    )

    with pytest.raises(DatabaseUnavailable):
        await edus.receive(NORTH, each(edu("org.example.failing")))


async def test_malformed_and_unknown_edus_are_ignored(network: Network) -> None:
    taken = Taken()
    edus = EduReceivers(
        access=network.add(SOUTH).app.room_engine.access,
        handlers={"org.example.known": taken.receive},
    )

    malformed: list[object] = [
        None,
        1,
        "x",
        [],
        {},
        {"edu_type": 1, "content": {}},
        {"edu_type": "org.example.known"},
    ]
    await edus.receive(
        NORTH, each(*malformed, edu("org.example.other"), edu("org.example.known", number=1))
    )

    assert taken.contents == [{"number": 1}]


async def test_room_acls_are_applied(network: Network) -> None:
    room = await shared(network)
    open_to_all, closed, elsewhere = room.room_id, create_room(room.bob), create_room(room.bob)
    await adopt(room.south, room.north, room.alice.user_id, closed)
    set_state(room.bob, closed, "m.room.server_acl", {"allow": ["*"], "deny": ["NORTH.example"]})
    typing, receipts = Taken(), Taken()
    edus = EduReceivers(
        access=room.south.room_engine.access,
        handlers={"m.typing": typing.receive, "m.receipt": receipts.receive},
    )

    rooms = (closed, elsewhere, open_to_all, f"!unknown:{NORTH}", "!\0")
    await edus.receive(
        NORTH,
        each(
            *(edu("m.typing", room_id=room_id, typing=True) for room_id in rooms),
            edu("m.receipt", **{room_id: {"m.read": {}} for room_id in rooms}),
        ),
    )

    assert typing.contents == [{"room_id": open_to_all, "typing": True}]
    assert receipts.contents == [{open_to_all: {"m.read": {}}}]

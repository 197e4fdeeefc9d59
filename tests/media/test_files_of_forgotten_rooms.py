"""Files of rooms that all local users have forgotten, while remote users are still members."""

import pytest

from tests.helpers.federated_rooms import NORTH, shared
from tests.helpers.media_files import upload_file
from tests.helpers.network import Network
from tests.helpers.retention import DAY
from tests.helpers.room_actions import leave, membership, ok, put_event

CONFIGURATION = "media_deletion: {grace_period: 1h}\nforgotten_room_retention_period: 1d\n"


@pytest.mark.parametrize("others_stay", [True, False])
async def test_files_of_forgotten_rooms_stay_for_remote_members(
    network: Network, others_stay: bool
) -> None:
    """Their messages show them; who forgets a room has not taken back what they said in it."""
    room = await shared(network, "12", {NORTH: CONFIGURATION})
    network.start_sending()
    north, file = room.north.server, upload_file(room.alice, b"a letter")
    ok(
        put_event(
            room.alice,
            room.room_id,
            "m.room.message",
            {"msgtype": "m.file", "body": "f", "url": f"mxc://{file}"},
        )
    )
    network.settle()
    network.clock.advance(5)
    network.settle()
    if not others_stay:
        leave(room.bob, room.room_id)
        network.settle()
    leave(room.alice, room.room_id)
    ok(membership(room.alice, room.room_id, "forget"))
    network.settle()
    forgotten, upkeep = north.app.retention.forgotten_rooms, north.app.media.maintenance
    assert forgotten is not None
    for _ in range(16):
        network.clock.advance(DAY / 8)
        network.settle()
        north.run(forgotten.do_step(100))
        while north.run(north.app.retention.purges.do_step(100)):
            pass
        while north.run(upkeep.references.do_track(1000)):
            pass
        north.run(upkeep.removal.do_remove_unreferenced(1000))
    deleted = [each.reason for each in north.run(upkeep.removal.get_deletions(None, 10))]
    assert deleted == ([] if others_stay else ["unreferenced"])

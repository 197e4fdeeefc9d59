"""Keys of servers that have no time to tell them (429): they are asked when they say, and notaries
meanwhile.

spec: client-server-api#rate-limiting
"""

from federation.peers.keyring import Notary
from storage.engine.database import Database
from tests.servers.test_keyring import NORTH, NOTARY, A, N, World, by_notary, document, make


async def test_a_server_that_says_when_to_come_again_is_not_asked_before(
    sqlite_database: Database,
) -> None:
    """After an hour at the latest."""
    world = World()
    keyring = make(world, sqlite_database)
    world.says[NORTH] = document(NORTH, A)
    for wait, most in ((60, 60), (86_400, 3600)):
        world.busy[NORTH] = wait
        asked = len(world.log)
        for _ in range(most):
            await keyring.get_keys_of_caller(NORTH, [A.key_id], world.now, "a")
            await keyring.get_keys(NORTH, [A.key_id], world.now)
            await keyring.renew(NORTH)
            world.now += 1000
        assert len(world.log) == asked + 1
    del world.busy[NORTH]
    assert await keyring.get_keys(NORTH, [A.key_id], world.now) == {A.key_id: A.public_key}


async def test_a_notary_helps_while_the_server_wants_to_be_left_alone(
    sqlite_database: Database,
) -> None:
    """And is left alone itself, where it says so."""
    world = World()
    keyring = make(world, sqlite_database, Notary(NOTARY, {N.key_id: N.public_key}))
    world.says[NORTH] = document(NORTH, A)
    world.busy = {NORTH: 600, NOTARY: 60}
    for _ in range(60):
        assert await keyring.get_keys(NORTH, [A.key_id], world.now) == {}
        world.now += 1000
    assert (world.count(NORTH), world.count(NOTARY)) == (1, 1)
    del world.busy[NOTARY]
    world.notary_says = [by_notary(document(NORTH, A))]
    for _ in range(400):
        await keyring.get_keys_of_caller(NORTH, [A.key_id], world.now, "a")
        world.now += 1000
    assert await keyring.get_keys(NORTH, [A.key_id], world.now) == {A.key_id: A.public_key}
    assert (world.count(NORTH), world.count(NOTARY)) == (1, 2)

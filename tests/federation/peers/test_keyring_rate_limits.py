"""Servers that answer key requests with 429: they are contacted again at the time that they name,
and notaries are asked meanwhile.

spec: client-server-api#rate-limiting
"""

from federation.peers.keyring import Notary
from storage.engine.database import Database
from tests.federation.peers.test_keyring import (
    NORTH,
    NOTARY,
    A,
    N,
    World,
    by_notary,
    document,
    make,
)


async def test_retry_after_is_respected(
    sqlite_database: Database,
) -> None:
    """Up to one hour."""
    world = World()
    keyring = make(world, sqlite_database)
    world.says[NORTH] = document(NORTH, A)
    for wait, most in ((60, 60), (86_400, 3600)):
        world.busy[NORTH] = wait
        asked = len(world.log)
        for _ in range(most):
            await keyring.get_keys_of_unauthenticated(NORTH, [A.key_id], world.now, "a")
            await keyring.get_keys(NORTH, [A.key_id], world.now)
            await keyring.renew(NORTH)
            world.now += 1000
        assert len(world.log) == asked + 1
    del world.busy[NORTH]
    assert await keyring.get_keys(NORTH, [A.key_id], world.now) == {A.key_id: A.public_key}


async def test_a_notary_is_queried_while_the_server_rate_limits_us(
    sqlite_database: Database,
) -> None:
    """The notary is left alone too if it answers 429."""
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
        await keyring.get_keys_of_unauthenticated(NORTH, [A.key_id], world.now, "a")
        world.now += 1000
    assert await keyring.get_keys(NORTH, [A.key_id], world.now) == {A.key_id: A.public_key}
    assert (world.count(NORTH), world.count(NOTARY)) == (1, 2)

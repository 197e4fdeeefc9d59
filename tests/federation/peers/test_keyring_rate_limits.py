"""Servers that answer key requests with 429: they are contacted again at the time that they name,
and notaries are asked meanwhile.

spec: client-server-api#rate-limiting
"""

from federation.peers.keyring import Notary
from storage.engine.database import Database
from tests.helpers.key_servers import (
    NORTH,
    NOTARY,
    A,
    KeyServers,
    N,
    key_document,
    make_keyring,
    sign_as_notary,
)


async def test_retry_after_is_respected(
    sqlite_database: Database,
) -> None:
    """Up to one hour."""
    servers = KeyServers()
    keyring = make_keyring(servers, sqlite_database)
    servers.documents[NORTH] = key_document(NORTH, A)
    for wait, most in ((60, 60), (86_400, 3600)):
        servers.rate_limited[NORTH] = wait
        asked = len(servers.log)
        for _ in range(most):
            await keyring.get_keys_of_unauthenticated(NORTH, [A.key_id], servers.now, "a")
            await keyring.get_keys(NORTH, [A.key_id], servers.now)
            await keyring.renew(NORTH)
            servers.now += 1000
        assert len(servers.log) == asked + 1
    del servers.rate_limited[NORTH]
    assert await keyring.get_keys(NORTH, [A.key_id], servers.now) == {A.key_id: A.public_key}


async def test_a_notary_is_queried_while_the_server_rate_limits_us(
    sqlite_database: Database,
) -> None:
    """The notary is left alone too if it answers 429."""
    servers = KeyServers()
    keyring = make_keyring(servers, sqlite_database, Notary(NOTARY, {N.key_id: N.public_key}))
    servers.documents[NORTH] = key_document(NORTH, A)
    servers.rate_limited = {NORTH: 600, NOTARY: 60}
    for _ in range(60):
        assert await keyring.get_keys(NORTH, [A.key_id], servers.now) == {}
        servers.now += 1000
    assert (servers.count(NORTH), servers.count(NOTARY)) == (1, 1)
    del servers.rate_limited[NOTARY]
    servers.notary_documents = [sign_as_notary(key_document(NORTH, A))]
    for _ in range(400):
        await keyring.get_keys_of_unauthenticated(NORTH, [A.key_id], servers.now, "a")
        servers.now += 1000
    assert await keyring.get_keys(NORTH, [A.key_id], servers.now) == {A.key_id: A.public_key}
    assert (servers.count(NORTH), servers.count(NOTARY)) == (1, 2)

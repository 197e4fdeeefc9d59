"""Encryption for suspended users. spec: client-server-api#account-suspension"""

from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from tests.helpers.server import TestServer

V3 = "/_matrix/client/v3"


async def test_a_suspended_user_can_verify_devices_and_back_up_keys(
    sqlite_database: Database, server: TestServer
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    store = AccountStore(sqlite_database)
    await sqlite_database.write("set_flags", store.set_flags, bob.user_id, suspended=True)

    definition = {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {}}
    version = bob.post(f"{V3}/room_keys/version", definition).json["version"]
    assert bob.put(f"{V3}/room_keys/keys?version={version}", {"rooms": {}}).status == 200
    assert bob.delete(f"{V3}/room_keys/version/{version}").status == 200
    wanted = {"one_time_keys": {bob.user_id: {bob.device_id: "signed_curve25519"}}}
    assert bob.post(f"{V3}/keys/claim", wanted).status == 200
    own: object = {"messages": {bob.user_id: {"*": {}}}}
    assert bob.put(f"{V3}/sendToDevice/m.key.verification.request/1", own).status == 200
    theirs: object = {"messages": {alice.user_id: {"*": {}}}}
    assert (
        bob.put(f"{V3}/sendToDevice/m.key.verification.request/2", theirs).errcode
        == "M_USER_SUSPENDED"
    )

"""Signatures made by devices, and when they are deleted."""

from typing import Any

import pytest

from storage.engine.database import Database, Transaction
from tests.helpers.encrypted_rooms import ENCRYPTION_EVENT
from tests.helpers.keys import V3, cross_signing_key, identity_keys, query, sync, upload
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User


def test_removing_a_device_removes_its_signatures(server: TestServer) -> None:
    """A client signs the master key with its device key. Each former device would leave a signature
    that nobody can check."""
    alice, bob = server.register("alice"), server.register("bob")
    body = {"preset": "public_chat", "initial_state": [ENCRYPTION_EVENT]}
    room_id = alice.post(f"{V3}/createRoom", body).json["room_id"]
    assert bob.post(f"{V3}/join/{room_id}").status == 200
    login = password_auth(alice.user_id)
    second = User(server, server.post(f"{V3}/login", login).json)
    signers = [identity_keys(user, seed) for seed, user in enumerate((alice, second), 1)]
    for user, (_, device) in zip((alice, second), signers, strict=True):
        upload(user, device_keys=device)
    _, master_json = cross_signing_key(alice, "master", 3)
    assert alice.post(f"{V3}/keys/device_signing/upload", {"master_key": master_json}).status == 200
    public = next(iter(master_json["keys"].values()))
    for user, (key, _) in zip((alice, second), signers, strict=True):
        signed = {alice.user_id: {public: key.sign(master_json, alice)}}
        assert user.post(f"{V3}/keys/signatures/upload", signed).json == {"failures": {}}
    stays, goes = (key.key_id for key, _ in signers)
    assert query(bob, alice)["master_keys"][alice.user_id]["signatures"][alice.user_id].keys() == {
        stays,
        goes,
    }
    since = sync(bob)["next_batch"]
    assert second.post(f"{V3}/logout").status == 200
    assert query(bob, alice)["master_keys"][alice.user_id]["signatures"][alice.user_id].keys() == {
        stays
    }
    assert sync(bob, since)["device_lists"]["changed"] == [alice.user_id]


def signatures(shown: dict[str, Any]) -> dict[str, str]:
    """Return the signatures of the owner."""
    ((_, made),) = shown["signatures"].items()
    return dict(made)


@pytest.mark.parametrize(
    "change", ["other keys", "other words", "a number for true", "other signatures"]
)
def test_signatures_by_replaced_device_keys_are_removed(server: TestServer, change: str) -> None:
    """A signature that comes with the new keys is not hidden by an old one, which nobody could
    check."""
    alice, bob = server.register("alice"), server.register("bob")
    old_key, old = identity_keys(alice, 1)
    bare = {
        **{name: value for name, value in old.items() if name != "signatures"},
        "org.example.words": True,
    }
    old = old_key.sign(bare, alice)
    upload(alice, device_keys=old)
    master, master_json = cross_signing_key(alice, "master", 2)
    self_signing, self_json = cross_signing_key(alice, "self_signing", 3, by=master)
    keys = {"master_key": master_json, "self_signing_key": self_json}
    assert alice.post(f"{V3}/keys/device_signing/upload", keys).status == 200
    by_self = self_signing.sign(bare, alice)
    signed = {alice.device_id: by_self, master.public: old_key.sign(master_json, alice)}
    assert alice.post(f"{V3}/keys/signatures/upload", {alice.user_id: signed}).json == {
        "failures": {}
    }
    since = sync(alice)["next_batch"]

    new = {
        "other keys": identity_keys(alice, 4)[1],
        "other words": old_key.sign({**bare, "dehydrated": False}, alice),
        "a number for true": old_key.sign({**bare, "org.example.words": 1}, alice),
        "other signatures": {**old, "signatures": {alice.user_id: {"ed25519:OTHER": "x"}}},
    }[change]
    for with_signature in (False, True):
        upload(alice, device_keys=self_signing.sign(new, alice) if with_signature else new)
        shown = query(bob, alice)
        device = signatures(shown["device_keys"][alice.user_id][alice.device_id])
        if change == "other signatures":
            assert device[self_signing.key_id] == signatures(by_self)[self_signing.key_id]
            assert device["ed25519:OTHER"] == "x"
        elif with_signature:
            assert device == signatures(self_signing.sign(new, alice))
        else:
            assert device == signatures(new)
        by_device = shown["master_keys"][alice.user_id].get("signatures", {}).get(alice.user_id, {})
        assert (old_key.key_id in by_device) == (change != "other keys")
    assert sync(alice, since)["device_lists"]["changed"] == [alice.user_id]


@pytest.mark.parametrize("replaced", ["the device that is signed", "the key that signs"])
def test_keys_replaced_during_signing_get_no_signature(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, replaced: str
) -> None:
    """Signatures that were checked against the old keys are not stored for the new ones."""
    alice = server.register("alice")
    _, device = identity_keys(alice, 1)
    upload(alice, device_keys=device)
    master, master_json = cross_signing_key(alice, "master", 2)
    self_signing, self_json = cross_signing_key(alice, "self_signing", 3, by=master)
    keys = {"master_key": master_json, "self_signing_key": self_json}
    assert alice.post(f"{V3}/keys/device_signing/upload", keys).status == 200
    signed = {alice.user_id: {alice.device_id: self_signing.sign(device, alice)}}
    write = Database.write

    async def meanwhile(self: Database, name: str, *args: Any) -> Any:
        if name == "add_key_signatures":
            monkeypatch.undo()
            if replaced == "the device that is signed":
                upload(alice, device_keys=identity_keys(alice, 4)[1])
            else:
                _, other_json = cross_signing_key(alice, "self_signing", 5, by=master)
                auth = password_auth(alice.user_id)
                body = {"self_signing_key": other_json, "auth": auth}
                assert alice.post(f"{V3}/keys/device_signing/upload", body).status == 200
        return await write(self, name, *args)

    monkeypatch.setattr(Database, "write", meanwhile)
    answer = alice.post(f"{V3}/keys/signatures/upload", signed)
    assert Database.write is write, "the write was reached"
    assert answer.json["failures"].keys() == {alice.user_id}, answer.body
    shown = query(alice, alice)["device_keys"][alice.user_id][alice.device_id]
    assert self_signing.key_id not in shown["signatures"][alice.user_id]


@pytest.mark.parametrize("is_first", [True, False])
def test_no_key_has_the_name_of_a_device_that_signs_in_meanwhile(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    """spec: client-server-api#key-and-signature-security"""
    alice = server.register("alice")
    proof = password_auth(alice.user_id)
    if not is_first:
        _, former = cross_signing_key(alice, "master", 1)
        assert alice.post(f"{V3}/keys/device_signing/upload", {"master_key": former}).status == 200
    master, master_json = cross_signing_key(alice, "master", 2)
    write = Database.write

    async def meanwhile(self: Database, name: str, *args: Any) -> Any:
        if name == ("set_cross_signing_keys" if is_first else "replace_cross_signing_keys"):
            monkeypatch.undo()
            assert server.post(f"{V3}/login", {**proof, "device_id": master.public}).status == 200
        return await write(self, name, *args)

    monkeypatch.setattr(Database, "write", meanwhile)
    answer = alice.post(
        f"{V3}/keys/device_signing/upload", {"master_key": master_json, "auth": proof}
    )
    assert Database.write is write, "the write was reached"
    assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
    shown = query(alice, alice).get("master_keys", {})
    assert master_json not in shown.values()
    assert bool(shown) != is_first


def test_deactivation_deletes_keys_and_signatures(server: TestServer) -> None:
    """The users that somebody has verified reveal whom they know."""
    alice, bob = server.register("alice"), server.register("bob")
    body = {"preset": "public_chat", "initial_state": [ENCRYPTION_EVENT]}
    room_id = alice.post(f"{V3}/createRoom", body).json["room_id"]
    assert bob.post(f"{V3}/join/{room_id}").status == 200
    for user, seed in ((alice, 1), (bob, 4)):
        master, master_json = cross_signing_key(user, "master", seed)
        _, signing_json = cross_signing_key(user, "user_signing", seed + 1, by=master)
        keys = {"master_key": master_json, "user_signing_key": signing_json}
        assert user.post(f"{V3}/keys/device_signing/upload", keys).status == 200
    signers = {
        user: cross_signing_key(user, "user_signing", seed)[0]
        for user, seed in ((alice, 2), (bob, 5))
    }
    masters = {
        user: cross_signing_key(user, "master", seed) for user, seed in ((alice, 1), (bob, 4))
    }
    for user, other in ((alice, bob), (bob, alice)):
        theirs, their_json = masters[other]
        signed = {other.user_id: {theirs.public: signers[user].sign(their_json, user)}}
        assert user.post(f"{V3}/keys/signatures/upload", signed).json == {"failures": {}}
    since = sync(bob)["next_batch"]

    proof = password_auth(alice.user_id)
    assert alice.post(f"{V3}/account/deactivate", {"auth": proof}).status == 200
    shown = query(bob, alice, bob)
    assert shown["device_keys"] == {alice.user_id: {}, bob.user_id: {}}
    assert shown["master_keys"].keys() == {bob.user_id}
    assert alice.user_id in sync(bob, since)["device_lists"]["left"]

    def read(txn: Transaction) -> list[Any]:
        return txn.query("SELECT signer_user_id, target_user_id FROM key_signatures")

    assert server.run(server.app.database.read("test", read)) == [(bob.user_id, alice.user_id)]

"""A device whose client lost its keys and uploads new ones in the same session.

spec: client-server-api#one-time-and-fallback-keys
"""

import json

from homeserver.services.encryption.one_time_key_counts import COMMON_ALGORITHM
from tests.helpers.keys import V3, claim, identity_keys, one_time_keys, query, sync, upload
from tests.helpers.server import User

FALLBACK = {"signed_curve25519:fallback": {"key": "fallback", "fallback": True}}


def test_new_identity_keys_delete_the_keys_signed_with_the_old_ones(alice: User, bob: User) -> None:
    """A user who claimed one of these could not start an Olm session."""
    identity = identity_keys(alice, 1)[1]
    upload(
        alice,
        device_keys=identity,
        one_time_keys=one_time_keys("a", "b", "c"),
        fallback_keys=FALLBACK,
    )
    assert claim(bob, alice) is not None

    new = identity_keys(alice, 2)[1]
    assert upload(alice, device_keys=new) == {COMMON_ALGORITHM: 0}
    answer = sync(alice)
    assert answer["device_one_time_keys_count"] == {COMMON_ALGORITHM: 0}
    assert answer["device_unused_fallback_key_types"] == []
    assert claim(bob, alice) is None
    assert query(bob, alice)["device_keys"][alice.user_id][alice.device_id]["keys"] == new["keys"]


def test_new_keys_may_reuse_ids_of_the_old_ones(alice: User, bob: User) -> None:
    """Clients number their keys, and start to count again."""
    old = {"signed_curve25519:AAAAAQ": {"key": "old"}, "signed_curve25519:AAAAAg": {"key": "older"}}
    upload(alice, device_keys=identity_keys(alice, 1)[1], one_time_keys=old, fallback_keys=FALLBACK)
    assert claim(bob, alice) == {"signed_curve25519:AAAAAQ": {"key": "old"}}
    new = {"signed_curve25519:AAAAAQ": {"key": "new"}, "signed_curve25519:AAAAAg": {"key": "newer"}}
    fallback = {"signed_curve25519:fallback": {"key": "another", "fallback": True}}
    left = upload(
        alice, device_keys=identity_keys(alice, 2)[1], one_time_keys=new, fallback_keys=fallback
    )
    assert left == {COMMON_ALGORITHM: 2}
    claimed = [claim(bob, alice) for _ in range(3)]
    assert claimed == [{name: key} for name, key in (new | fallback).items()]
    assert sync(alice)["device_one_time_keys_count"] == {COMMON_ALGORITHM: 0}


def test_other_metadata_or_signatures_of_the_same_keys_delete_nothing(
    alice: User, bob: User
) -> None:
    _, identity = identity_keys(alice)
    upload(
        alice, device_keys=identity, one_time_keys=one_time_keys("a", "b"), fallback_keys=FALLBACK
    )
    left = upload(alice, device_keys={**identity, "algorithms": ["another"], "signatures": {}})
    assert left == {COMMON_ALGORITHM: 2}
    assert [list(claim(bob, alice)) for _ in range(3)] == [
        [f"signed_curve25519:{n}"] for n in ("a", "b", "fallback")
    ]


def test_an_error_tells_the_client_which_key_it_has_lost(alice: User) -> None:
    """matrix-rust-sdk parses this text from the start to both keys."""
    upload(alice, one_time_keys=one_time_keys("a", "b"))
    answer = alice.post(
        f"{V3}/keys/upload", {"one_time_keys": {"signed_curve25519:b": {"key": "other"}}}
    )
    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    before, after = answer.json["error"].split(";")
    words, old = before.split(" Old key:")
    assert words == "One time key signed_curve25519:b already exists."
    assert json.loads(old) == {"key": "b", "signatures": {}}
    assert json.loads(after.strip().removeprefix("new key:")) == {"key": "other"}

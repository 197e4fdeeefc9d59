"""Dehydrated devices: the request that creates one, and its keys."""

from typing import Any

from tests.helpers.keys import PersonalKey
from tests.helpers.server import User

UNSTABLE = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
PATHS = ("/_matrix/client/v1/dehydrated_device", UNSTABLE)
PATH = PATHS[0]
DEVICE_ID = "a/b+Curve25519IdentityKeyInBase64"
DEVICE_DATA = {"algorithm": "m.dehydration.v2", "device_pickle": "secret", "nonce": "n"}


def dehydrated_device_keys(user: User, device_id: str, seed: int = 7) -> dict[str, Any]:
    """Return the signed keys of a dehydrated device."""
    key = PersonalKey(seed, device_id)
    content = {
        "user_id": user.user_id,
        "device_id": device_id,
        "dehydrated": True,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": {f"curve25519:{device_id}": device_id, key.key_id: key.public},
    }
    return key.sign(content, user)


def dehydrated_device(user: User, device_id: str = DEVICE_ID) -> dict[str, Any]:
    """Return the request body that creates a dehydrated device."""
    return {
        "device_id": device_id,
        "device_data": DEVICE_DATA,
        "initial_device_display_name": "Dehydrated",
        "device_keys": dehydrated_device_keys(user, device_id),
        "one_time_keys": {"signed_curve25519:a": {"key": "a", "signatures": {}}},
        "fallback_keys": {"signed_curve25519:f": {"key": "f", "fallback": True, "signatures": {}}},
    }


def put_dehydrated_device(user: User, device_id: str = DEVICE_ID, path: str = PATH) -> None:
    """Create a dehydrated device."""
    answer = user.put(path, dehydrated_device(user, device_id))
    assert (answer.status, answer.json) == (200, {"device_id": device_id}), answer.body

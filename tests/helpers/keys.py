"""Device keys and cross-signing keys as clients make them, and key requests of clients."""

from typing import Any, Protocol

from canonicaljson import encode_canonical_json

from federation.protocol.ids import KeyID
from federation.protocol.signing import SigningKey, add_signature, encode_base64
from tests.helpers.server import User

V3 = "/_matrix/client/v3"


class Owner(Protocol):
    """The owner of a key: a user and a device."""

    @property
    def user_id(self) -> str: ...

    @property
    def device_id(self) -> str: ...


class PersonalKey:
    """A device key or a cross-signing key, named after its device or itself."""

    def __init__(self, seed: int, name: str | None = None) -> None:
        self._key = SigningKey("unnamed", bytes([seed]) * 32)
        self.public = encode_base64(self._key.public_key)
        self.key_id = KeyID(f"ed25519:{name or self.public}")

    def sign(self, content: dict[str, Any], user: Owner) -> dict[str, Any]:
        signed = {
            key: value for key, value in content.items() if key not in ("signatures", "unsigned")
        }
        return add_signature(
            content, user.user_id, self.key_id, self._key.sign(encode_canonical_json(signed))
        )


def identity_keys(user: Owner, seed: int = 1) -> tuple[PersonalKey, dict[str, Any]]:
    key = PersonalKey(seed, user.device_id)
    keys = {
        "user_id": user.user_id,
        "device_id": user.device_id,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {
            f"curve25519:{user.device_id}": encode_base64(bytes(32)),
            key.key_id: key.public,
        },
    }
    return key, key.sign(keys, user)


def cross_signing_key(
    user: Owner, usage: str, seed: int, by: PersonalKey | None = None
) -> tuple[PersonalKey, dict[str, Any]]:
    key = PersonalKey(seed)
    content: dict[str, Any] = {
        "user_id": user.user_id,
        "usage": [usage],
        "keys": {key.key_id: key.public},
    }
    return key, content if by is None else by.sign(content, user)


def one_time_keys(*names: str) -> dict[str, Any]:
    return {f"signed_curve25519:{name}": {"key": name, "signatures": {}} for name in names}


def upload(user: User, **body: Any) -> Any:
    answer = user.post(f"{V3}/keys/upload", body)
    assert answer.status == 200, answer.body
    return answer.json["one_time_key_counts"]


def query(user: User, *others: User) -> Any:
    answer = user.post(f"{V3}/keys/query", {"device_keys": {other.user_id: [] for other in others}})
    assert answer.status == 200, answer.body
    return answer.json


def claim(user: User, other: User) -> Any:
    request = {other.user_id: {other.device_id: "signed_curve25519"}}
    answer = user.post(f"{V3}/keys/claim", {"one_time_keys": request})
    assert answer.status == 200, answer.body
    return answer.json["one_time_keys"].get(other.user_id, {}).get(other.device_id)


def sync(user: User, since: str | None = None) -> Any:
    answer = user.get(f"{V3}/sync" + (f"?since={since}" if since else ""))
    assert answer.status == 200, answer.body
    return answer.json

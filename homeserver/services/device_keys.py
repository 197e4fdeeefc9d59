"""Keys of devices: publishing them, asking for those of others, claiming one-time keys.

Laws:
- A one-time key is given out once.
- Keys are stored and given back as canonical JSON, so that signatures on them stay valid; what the server adds stands in
  `unsigned`, and signatures that came later beside the ones that came with the keys.
- Of signatures a reader sees those of the key's owner and their own.

spec: client-server-api#end-to-end-encryption
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec

from federation.identity import ServerIdentity
from federation.own_devices import MOST_USERS, present_key, visible_signatures, with_signatures
from federation.protocol.canonical_json import encode_canonical
from federation.protocol.endpoint import Requester
from federation.protocol.errors import BadJson, InvalidParam
from federation.protocol.ids import UserID, parse_user_id
from storage.cross_signing import CrossSigningStore, KeySignature
from storage.database import Database
from storage.device_keys import DeviceKeysRow, DeviceKeyStore, KeyCounts, KeyExists, KeyWish, select_counts
from storage.streams import Change, Topic
from storage.transaction import WriteTransaction

MOST_ONE_TIME_KEYS: Final = 1000
"""Of a device, in one upload and in all."""
LONGEST_NAME: Final = 255

Key = str | dict[str, Any]


class IdentityKeys(msgspec.Struct, frozen=True):
    """spec: client-server-api#post_matrixclientv3keysupload_request_devicekeys"""

    user_id: str
    device_id: str
    algorithms: list[str]
    keys: dict[str, str]
    signatures: dict[str, dict[str, str]]


class KeyUpload(msgspec.Struct, frozen=True):
    """The body of /keys/upload. `device_keys` is read twice: its form is checked, and it is kept as it came."""

    device_keys: dict[str, Any] | None = None
    one_time_keys: Annotated[dict[str, Key], msgspec.Meta(max_length=MOST_ONE_TIME_KEYS)] = {}
    fallback_keys: Annotated[dict[str, Key], msgspec.Meta(max_length=100)] = {}
    unstable_fallback_keys: Annotated[dict[str, Key], msgspec.Meta(max_length=100)] = msgspec.field(
        name="org.matrix.msc2732.fallback_keys", default_factory=dict
    )


class DeviceKeys:
    """Publishes, finds and claims keys."""

    def __init__(
        self,
        database: Database,
        keys: DeviceKeyStore,
        cross_signing: CrossSigningStore,
        identity: ServerIdentity,
        *,
        capacity: int,
    ) -> None:
        """`capacity`: of how many users' devices the counts are kept in memory."""
        self._capacity = capacity
        self._counts: OrderedDict[str, dict[str, KeyCounts]] = OrderedDict()
        self._counts_heard = 0
        database.streams.subscribe(self._hear)
        database.streams.watch(self._heed_others)
        self._database = database
        self._keys = keys
        self._cross_signing = cross_signing
        self._identity = identity

    async def do_upload(self, caller: Requester, upload: KeyUpload) -> Mapping[str, int]:
        """Publish keys of the caller's device; how many one-time keys it has by algorithm. Raises InvalidParam, BadJson."""
        if caller.device_id is None:
            raise InvalidParam("This session has no device to publish keys for")
        user_id, device_id = caller.user_id, caller.device_id
        identity = None if upload.device_keys is None else _check_identity(upload.device_keys, user_id, device_id)
        one_time = _named(upload.one_time_keys)
        fallback = _named({**upload.unstable_fallback_keys, **upload.fallback_keys})
        if len({algorithm for algorithm, _ in fallback}) != len(fallback):
            raise InvalidParam("A device has one fallback key an algorithm")

        def write(txn: WriteTransaction) -> KeyCounts:
            if identity is not None:
                self._keys.set_device_keys(txn, user_id, device_id, identity)
            if one_time:
                self._keys.add_one_time_keys(txn, user_id, device_id, one_time)
            if fallback:
                self._keys.set_fallback_keys(txn, user_id, device_id, fallback)
            counts = select_counts(txn, user_id, device_id)
            if sum(counts.one_time.values()) > MOST_ONE_TIME_KEYS:
                raise InvalidParam(f"A device has at most {MOST_ONE_TIME_KEYS} one-time keys")
            return counts

        if identity is None and not one_time and not fallback:
            return (await self._keys.get_counts(user_id, device_id)).one_time
        try:
            counts = await self._database.write("upload_keys", write)
        except KeyExists as error:
            raise InvalidParam(f"The device has another key named {error}") from None
        return counts.one_time

    async def get_counts(self, user_id: str, device_id: str) -> KeyCounts:
        """What a device has left: on the path of every /sync, so from memory."""
        known = self._counts.get(user_id, {}).get(device_id)
        if known is not None:
            self._counts.move_to_end(user_id)
            return known
        while True:
            heard = self._counts_heard
            counts = await self._keys.get_counts(user_id, device_id)
            if heard == self._counts_heard:
                break
        self._counts.setdefault(user_id, {})[device_id] = counts
        if len(self._counts) > self._capacity:
            self._counts.popitem(last=False)
        return counts

    async def get_keys(self, caller: UserID, wanted: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Keys of devices and of cross-signing. `wanted`: devices by user, none for all of them. Raises InvalidParam."""
        if len(wanted) > MOST_USERS:
            raise InvalidParam(f"A query has at most {MOST_USERS} users")
        for user_id in wanted:
            parse_user_id(user_id)
        local = [user_id for user_id in wanted if self._identity.is_local(user_id)]
        devices = await self._keys.get_device_keys(local)
        cross_signing = await self._cross_signing.get_keys(local)
        signatures = await self._cross_signing.get_signatures(local)
        answer: dict[str, Any] = {"failures": self._failures(wanted), "device_keys": {}}
        for user_id in local:
            visible = visible_signatures(signatures.get(user_id, ()), {user_id, caller})
            answer["device_keys"][user_id] = {
                row.device_id: _present_device(row, visible.get(row.device_id, ()))
                for row in devices.get(user_id, ())
                if not wanted[user_id] or row.device_id in wanted[user_id]
            }
            for usage, key in cross_signing.get(user_id, {}).items():
                if usage != "user_signing" or user_id == caller:
                    keys = answer.setdefault(f"{usage}_keys", {})
                    keys[user_id] = present_key(key, visible.get(key.public_key, ()))
        return answer

    async def do_claim(self, wanted: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
        """One-time keys (or fallback keys) for conversations with devices. `wanted`: algorithm by user and device.

        Raises InvalidParam.
        """
        for user_id in wanted:
            parse_user_id(user_id)
        wishes = [
            KeyWish(user_id, device_id, algorithm)
            for user_id, devices in wanted.items()
            if self._identity.is_local(user_id)
            for device_id, algorithm in devices.items()
        ]
        if len(wishes) > MOST_USERS:
            raise InvalidParam(f"At most {MOST_USERS} keys can be claimed at once")
        claimed = await self._keys.do_claim(wishes) if wishes else {}
        answer: dict[str, dict[str, dict[str, msgspec.Raw]]] = {}
        for wish, key in claimed.items():
            devices = answer.setdefault(wish.user_id, {})
            devices[wish.device_id] = {f"{wish.algorithm}:{key.key_id}": msgspec.Raw(key.content)}
        return {"one_time_keys": answer, "failures": self._failures(wanted)}

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic in (Topic.KEY_COUNT, Topic.DEVICE) and change.user_id is not None:
                self._counts_heard += 1
                self._counts.pop(change.user_id, None)

    def _heed_others(self, _after: int, _upto: int) -> None:
        """Another node may have given keys out."""
        self._counts_heard += 1
        self._counts.clear()

    def _failures(self, user_ids: Mapping[str, object]) -> dict[str, dict[str, str]]:
        """Servers that were not asked: this one does not federate yet."""
        servers = {user_id.partition(":")[2] for user_id in user_ids if not self._identity.is_local(user_id)}
        return {server: {"error": "This server does not federate"} for server in sorted(servers)}


def _check_identity(keys: dict[str, Any], user_id: str, device_id: str) -> bytes:
    try:
        identity = msgspec.convert(keys, IdentityKeys)
    except msgspec.ValidationError as error:
        raise BadJson(f"device_keys: {error}") from None
    if identity.user_id != user_id or identity.device_id != device_id:
        raise InvalidParam("device_keys are for another user or device than yours")
    return encode_canonical({key: value for key, value in keys.items() if key != "unsigned"})


def _named(keys: Mapping[str, Key]) -> dict[tuple[str, str], bytes]:
    named: dict[tuple[str, str], bytes] = {}
    for name, key in keys.items():
        algorithm, colon, key_id = name.partition(":")
        if not colon or not algorithm or not key_id or len(name) > LONGEST_NAME or "\0" in name:
            raise InvalidParam(f"{name[:LONGEST_NAME]!r} is not the name of a key: ALGORITHM:ID")
        named[algorithm, key_id] = encode_canonical(key)
    return named


def _present_device(row: DeviceKeysRow, signatures: Sequence[KeySignature]) -> msgspec.Raw:
    keys = bytes(with_signatures(row.keys, signatures))
    unsigned = {} if row.display_name is None else {"device_display_name": row.display_name}
    return msgspec.Raw(keys[:-1] + b',"unsigned":' + msgspec.json.encode(unsigned) + b"}")

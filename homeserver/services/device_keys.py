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

from federation.own_devices import present_key, visible_signatures, with_signatures
from federation.protocol.canonical_json import encode_canonical
from federation.protocol.device_keys import is_key_name, parse_identity_keys
from federation.protocol.endpoint import Requester
from federation.protocol.errors import InvalidParam
from federation.protocol.ids import UserID
from storage.cross_signing import CrossSigningStore, KeySignature
from storage.database import Database
from storage.device_keys import DeviceKeysRow, DeviceKeyStore, KeyCounts, KeyExists, select_counts
from storage.streams import Change, Topic
from storage.transaction import WriteTransaction

MOST_ONE_TIME_KEYS: Final = 1000
"""Of a device, in one upload and in all."""
LONGEST_NAME: Final = 255

Key = str | dict[str, Any]


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

    async def do_upload(self, caller: Requester, upload: KeyUpload) -> Mapping[str, int]:
        """Publish keys of the caller's device; how many one-time keys it has by algorithm. Raises InvalidParam, BadJson."""
        if caller.device_id is None:
            raise InvalidParam("This session has no device to publish keys for")
        user_id, device_id = caller.user_id, caller.device_id
        identity = None if upload.device_keys is None else parse_identity_keys(upload.device_keys, user_id, device_id)
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
        """Keys of our users' devices and of cross-signing. `wanted`: devices by user, none for all of them."""
        devices = await self._keys.get_device_keys(wanted)
        return await present_keys(self._cross_signing, caller, wanted, devices)

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic in (Topic.KEY_COUNT, Topic.DEVICE) and change.user_id is not None:
                self._counts_heard += 1
                self._counts.pop(change.user_id, None)

    def _heed_others(self, _after: int, _upto: int) -> None:
        """Another node may have given keys out."""
        self._counts_heard += 1
        self._counts.clear()


async def present_keys(
    cross_signing: CrossSigningStore,
    caller: UserID,
    wanted: Mapping[str, Sequence[str]],
    devices: Mapping[str, Sequence[DeviceKeysRow]],
) -> dict[str, Any]:
    """What a reader sees of users' keys: of their devices, and by usage their keys of cross-signing."""
    keys = await cross_signing.get_keys(wanted)
    signatures = await cross_signing.get_signatures(wanted)
    answer: dict[str, Any] = {"device_keys": {}}
    for user_id in wanted:
        visible = visible_signatures(signatures.get(user_id, ()), {user_id, caller})
        answer["device_keys"][user_id] = {
            row.device_id: _present_device(row, visible.get(row.device_id, ()))
            for row in devices.get(user_id, ())
            if not wanted[user_id] or row.device_id in wanted[user_id]
        }
        for usage, key in keys.get(user_id, {}).items():
            if usage != "user_signing" or user_id == caller:
                answer.setdefault(f"{usage}_keys", {})[user_id] = present_key(key, visible.get(key.public_key, ()))
    return answer


def _named(keys: Mapping[str, Key]) -> dict[tuple[str, str], bytes]:
    named: dict[tuple[str, str], bytes] = {}
    for name, key in keys.items():
        algorithm, _, key_id = name.partition(":")
        if not is_key_name(name):
            raise InvalidParam(f"{name[:LONGEST_NAME]!r} is not the name of a key: ALGORITHM:ID")
        named[algorithm, key_id] = encode_canonical(key)
    return named


def _present_device(row: DeviceKeysRow, signatures: Sequence[KeySignature]) -> msgspec.Raw:
    keys = bytes(with_signatures(row.keys, signatures))
    unsigned = {} if row.display_name is None else {"device_display_name": row.display_name}
    return msgspec.Raw(keys[:-1] + b',"unsigned":' + msgspec.json.encode(unsigned) + b"}")

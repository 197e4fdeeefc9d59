"""Serves the device lists and keys of our users to other servers.

Laws:
- Other servers see only the signatures made by the owner of the keys.
- The rate at which one server can claim one-time keys is limited, so that it cannot use up the keys
  that others need.
- Display names of devices are not sent to other servers.
- The `stream_id` of a device list is read before the list. A change between the two reads is
  announced once more than needed, but never lost.

spec: server-server-api#device-management, server-server-api#end-to-end-encryption
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from canonicaljson import encode_canonical_json
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from federation.devices.published_keys import PublishedKeyCache
from federation.peers.identity import ServerIdentity
from federation.protocol.canonical_json import encode_canonical
from federation.protocol.errors import InvalidParam, NotFound
from federation.protocol.ids import ServerName, UserID
from storage.devices.device_list_log import DeviceListLog
from storage.encryption.cross_signing import CrossSigningKey, KeySignature
from storage.encryption.device_keys import DeviceKeyStore

MAX_USERS: Final = 5000
"""Users in one query, or keys in one claim, of another server."""
USERS_PER_TURN: Final = 200
"""Users whose keys are encoded between two turns of the reactor."""


class LocalDevices:
    """Serves device lists and keys of our users, and describes their changes. Use this class
    only on the reactor thread."""

    def __init__(
        self,
        *,
        keys: DeviceKeyStore,
        published: PublishedKeyCache,
        log: DeviceListLog,
        identity: ServerIdentity,
        clock: IReactorTime,
        now_ms: Callable[[], int],
        check_claims: Callable[[ServerName], None],
        count_claims: Callable[[ServerName, int], None],
    ) -> None:
        """`check_claims` raises LimitExceeded if a server has recently claimed too many keys.
        `count_claims` counts the keys of a claim."""
        self._keys = keys
        self._published = published
        self._clock = clock
        self._now_ms = now_ms
        self._log = log
        self._identity = identity
        self._check_claims = check_claims
        self._count_claims = count_claims

    async def get_list(self, user_id: UserID) -> dict[str, Any]:
        """Return all devices of one of our users, with the latest stream ID. Raises NotFound.

        spec: server-server-api#get_matrixfederationv1userdevicesuserid
        """
        if not self._identity.is_local(user_id):
            raise NotFound("This server does not have that user")
        # the ID first: a change in between is then sent once more, and not lost
        stream_id = await self._log.get_stream_id(user_id)
        keys = await self._read([user_id], at_least=stream_id)
        answer: dict[str, Any] = {
            "user_id": user_id,
            "stream_id": stream_id,
            "devices": [
                {"device_id": device_id, "keys": content}
                for device_id, content in keys.devices.get(user_id, {}).items()
            ],
        }
        for usage in ("master", "self_signing"):
            if user_id in keys.cross_signing[usage]:
                answer[f"{usage}_key"] = keys.cross_signing[usage][user_id]
        return answer

    async def get_keys(self, wanted: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Return device keys of our users: of the given devices, or of all. Raises InvalidParam.

        Users of other servers are left out.

        spec: server-server-api#post_matrixfederationv1userkeysquery
        """
        if len(wanted) > MAX_USERS:
            raise InvalidParam(f"A query has at most {MAX_USERS} users")
        # as sets: a query may name very many devices
        local = {
            user_id: frozenset(devices)
            for user_id, devices in wanted.items()
            if self._identity.is_local(user_id)
        }
        users = list(local)
        found: dict[str, dict[str, msgspec.Raw]] = {}
        master: dict[str, msgspec.Raw] = {}
        self_signing: dict[str, msgspec.Raw] = {}
        for start in range(0, len(users), USERS_PER_TURN):
            if start:
                await deferLater(self._clock, 0)
            keys = await self._read(users[start : start + USERS_PER_TURN])
            for user_id, devices in keys.devices.items():
                named = local[user_id]
                found[user_id] = {
                    each: content for each, content in devices.items() if not named or each in named
                }
            master |= keys.cross_signing["master"]
            self_signing |= keys.cross_signing["self_signing"]
        return {"device_keys": found, "master_keys": master, "self_signing_keys": self_signing}

    async def do_claim_for_server(
        self, origin: ServerName, wanted: Mapping[str, Mapping[str, str]]
    ) -> dict[str, dict[str, msgspec.Raw]]:
        """Claim keys as `do_claim`, for another server. Raises InvalidParam, LimitExceeded.

        A server below its rate limit may claim as many keys as one request takes, and then waits
        longer.

        spec: server-server-api#post_matrixfederationv1userkeysclaim
        """
        if sum(map(len, wanted.values())) > MAX_USERS:
            raise InvalidParam(f"At most {MAX_USERS} keys can be claimed at once")
        self._check_claims(origin)
        self._count_claims(origin, max(1, sum(map(len, wanted.values()))))
        return await self.do_claim(
            {
                user_id: devices
                for user_id, devices in wanted.items()
                if self._identity.is_local(user_id)
            }
        )

    async def do_claim(
        self, wanted: Mapping[str, Mapping[str, str]]
    ) -> dict[str, dict[str, msgspec.Raw]]:
        """Claim one-time keys (or fallback keys) of our users. Return them by user and device.

        Each one-time key is returned once.
        """
        requests = [
            (user_id, device_id, algorithm)
            for user_id, devices in wanted.items()
            for device_id, algorithm in devices.items()
            # no device ID holds NUL, and PostgreSQL would read it as another ID, which the same
            # claim may name too: both would get the same key
            if "\0" not in device_id
        ]
        claimed = await self._keys.claim_in_chunks(requests, self._now_ms())
        begin: dict[str, bytes] = {}
        answer: dict[str, dict[str, msgspec.Raw]] = {}
        for (user_id, device_id, algorithm), key in zip(requests, claimed, strict=True):
            if key is None:
                continue
            if algorithm not in begin:
                begin[algorithm] = b"{%b:" % msgspec.json.encode(algorithm)[:-1]
            # spliced as it is stored, `"ID":CONTENT`
            named = msgspec.Raw(b"%b%b}" % (begin[algorithm], key[1:]))
            if user_id in answer:
                answer[user_id][device_id] = named
            else:
                answer[user_id] = {device_id: named}
        return answer

    async def get_updates(self, user_id: str, since: int) -> list[bytes]:
        """Return the EDUs about a user's device list changes since a position.

        If there are none, return those about the latest change, so that a server that missed it
        requests the list. Of several changes of one device only the last is included. The
        `prev_id`s form a chain for a server that received all earlier ones.
        """
        changes = await self._log.get_changes(user_id, since)
        keys = await self._read([user_id], at_least=changes[-1].stream_id if changes else 0)
        latest = {change.device_id: change.stream_id for change in changes}
        of_devices = [change for change in changes if change.device_id is not None]
        edus: list[bytes] = []
        prev_id = of_devices[0].prev_id if of_devices else 0
        for change in of_devices:
            if latest[change.device_id] != change.stream_id or change.device_id is None:
                continue
            content: dict[str, Any] = {
                "user_id": user_id,
                "device_id": change.device_id,
                "stream_id": change.stream_id,
                "prev_id": [prev_id] if prev_id else [],
            }
            published = keys.devices.get(user_id, {}).get(change.device_id)
            if published is None:
                content["deleted"] = True
            else:
                content["keys"] = published
            edus.append(encode_edu("m.device_list_update", content))
            prev_id = change.stream_id
        if None in latest:
            content = {"user_id": user_id}
            for usage in ("master", "self_signing"):
                if user_id in keys.cross_signing[usage]:
                    content[f"{usage}_key"] = keys.cross_signing[usage][user_id]
            edus.append(encode_edu("m.signing_key_update", content))
        return edus

    async def _read(self, user_ids: Sequence[str], *, at_least: int = 0) -> "_Published":
        stored = await self._published.get_published(user_ids, at_least=at_least)
        published = _Published()
        for user_id in user_ids:
            visible = group_signatures_by_target(stored.signatures.get(user_id, ()))
            published.devices[user_id] = {
                row.device_id: add_signatures(row.keys, visible.get(row.device_id, ()))
                for row in stored.devices.get(user_id, ())
            }
            for usage, key in stored.cross_signing.get(user_id, {}).items():
                if usage in published.cross_signing:
                    published.cross_signing[usage][user_id] = encode_key(
                        key, visible.get(key.public_key, ())
                    )
        return published


class _Published:
    """The published keys of users."""

    def __init__(self) -> None:
        self.devices: dict[str, dict[str, msgspec.Raw]] = {}
        self.cross_signing: dict[str, dict[str, msgspec.Raw]] = {"master": {}, "self_signing": {}}


def encode_edu(edu_type: str, content: Mapping[str, Any]) -> bytes:
    """Encode an EDU as canonical JSON. `Raw` values in it are canonical already."""
    return b'{"content":%b,"edu_type":%b}' % (encode_canonical(content), encode_canonical(edu_type))


def group_signatures_by_target(signatures: Iterable[KeySignature]) -> dict[str, list[KeySignature]]:
    """Group signatures on the keys of a user by the signed key."""
    found: dict[str, list[KeySignature]] = {}
    for signature in signatures:
        found.setdefault(signature.target_key, []).append(signature)
    return found


def encode_key(key: CrossSigningKey, signatures: Sequence[KeySignature]) -> msgspec.Raw:
    """Encode a cross-signing key with the signatures that came later."""
    return add_signatures(key.content, signatures)


def add_signatures(content: bytes, signatures: Sequence[KeySignature]) -> msgspec.Raw:
    """Add signatures to keys in canonical JSON. The result is canonical too."""
    if not signatures:
        return msgspec.Raw(content)
    keys: dict[str, Any] = msgspec.json.decode(content)
    present = keys.get("signatures")
    merged = (
        {user: dict(by_key) for user, by_key in present.items()}
        if isinstance(present, dict)
        else {}
    )
    for signature in signatures:
        merged.setdefault(signature.signer_user_id, {})[signature.signer_key_id] = (
            signature.signature
        )
    return msgspec.Raw(encode_canonical_json({**keys, "signatures": merged}))

"""Fallback keys, which are given out when a device has no one-time key left.

A device has at most one fallback key for each algorithm. It can be given out any number of times.
It counts as used after the first time, so that the device publishes another one.

spec: client-server-api#one-time-and-fallback-keys
"""

from collections.abc import Mapping, Sequence

import msgspec

from storage.encryption.one_time_keys import KeyName, KeyRequest
from storage.engine.transaction import WriteTransaction


def set_fallback_keys(
    txn: WriteTransaction, user_id: str, device_id: str, keys: Mapping[KeyName, bytes]
) -> None:
    """Publish new fallback keys of a device. They count as unused."""
    for (algorithm, key_id), content in keys.items():
        txn.execute_later(
            "INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, content, used)"
            " VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT (user_id, device_id, algorithm)"
            " DO UPDATE SET used = 0, key_id = excluded.key_id, content = excluded.content",
            (user_id, device_id, algorithm, key_id, content),
        )


def claim_fallback_keys(
    txn: WriteTransaction, requests: Sequence[KeyRequest]
) -> tuple[dict[KeyRequest, bytes], list[KeyRequest]]:
    """Return the fallback key of each of these devices that has one: `"ID":CONTENT` in JSON. Also
    return the requests whose key was unused until now. One query."""
    claimed: dict[KeyRequest, bytes] = {}
    unused: list[KeyRequest] = []
    for user_id, device_id, algorithm, key_id, content, used in txn.query_with(
        "requests",
        ("user_id", "device_id", "algorithm"),
        requests,
        "SELECT f.user_id, f.device_id, f.algorithm, f.key_id, f.content, f.used FROM requests AS w"
        " JOIN fallback_keys AS f"
        " ON f.user_id = w.user_id AND f.device_id = w.device_id AND f.algorithm = w.algorithm",
    ):
        request = (user_id, device_id, algorithm)
        claimed[request] = b"%b:%b" % (msgspec.json.encode(key_id), content)
        if not used:
            unused.append(request)
    if unused:
        txn.execute_many(
            "UPDATE fallback_keys SET used = 1 WHERE user_id = ? AND device_id = ?"
            " AND algorithm = ?",
            unused,
        )
    return claimed, unused


def mark_all_fallback_keys_used(txn: WriteTransaction) -> None:
    """Mark the fallback keys of all devices as used, so that the devices publish new ones."""
    txn.execute("UPDATE fallback_keys SET used = 1")


def remove_fallback_keys(txn: WriteTransaction, user_id: str, device_id: str) -> None:
    """Remove the fallback keys of a device."""
    txn.execute_later(
        "DELETE FROM fallback_keys WHERE user_id = ? AND device_id = ?", (user_id, device_id)
    )

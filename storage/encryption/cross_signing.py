"""Cross-signing keys, and the signatures that users make on their devices and on each other's
keys."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from storage.devices.devices import announce_device_list
from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction


class CrossSigningKey(msgspec.Struct, frozen=True):
    """A cross-signing key. `content` is the uploaded canonical JSON."""

    user_id: str
    usage: str
    """master, self_signing or user_signing."""
    public_key: str
    content: bytes


class KeySignature(msgspec.Struct, frozen=True):
    """A signature on a device or a cross-signing key."""

    target_user_id: str
    target_key: str
    """A device ID, or the public key."""
    signer_user_id: str
    signer_key_id: str
    signature: str


_SIGNATURE = "target_user_id, target_key, signer_user_id, signer_key_id, signature"


class CrossSigningStore:
    """Stores cross-signing keys and signatures."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_signed_since(self, signer: str, since: int, upto: int) -> set[str]:
        """Return the users whose keys `signer` signed after `since`, up to `upto`; one query."""
        return await self._database.read_quickly(
            "get_users_signed_since", _select_signed, signer, since, upto
        )

    def set_keys(
        self,
        txn: WriteTransaction,
        present: Mapping[str, CrossSigningKey],
        keys: Sequence[CrossSigningKey],
    ) -> bool:
        """Set keys of one local user whose current keys are `present`. Return False if they have
        changed.

        Replacing a key removes the signatures made with it, and its owner's signatures on it.
        Signatures by other users stay: they are still signatures on that key.
        """
        user_id = keys[0].user_id
        if select_keys(txn, (user_id,)).get(user_id, {}) != present:
            return False
        put_cross_signing_keys(txn, user_id, (), keys)
        for key in keys:
            old = present.get(key.usage)
            if old is not None and old.public_key != key.public_key:
                _remove_signatures(txn, old)
        is_public = any(key.usage != "user_signing" for key in keys)
        announce_device_list(txn, user_id, [None] if is_public else [])
        return True

    def add_signatures(self, txn: WriteTransaction, signatures: Sequence[KeySignature]) -> None:
        """Add signatures of one local user. A new signature replaces the signer's earlier one.

        Signatures on the user's own keys are visible to everyone who knows the user's devices.
        Signatures on other users' keys are visible to the signer only.
        """
        signer = signatures[0].signer_user_id
        targets = {each.target_user_id for each in signatures}
        present = select_own_signatures(txn, [signer] if signer in targets else [])
        if targets != {signer}:
            present |= select_signed_by(txn, signer)
        known = {
            (each.target_user_id, each.target_key, each.signer_key_id): each.signature
            for of_user in present.values()
            for each in of_user
        }
        new = [
            each
            for each in signatures
            if known.get((each.target_user_id, each.target_key, each.signer_key_id))
            != each.signature
        ]
        if not new:
            return
        txn.execute_many(
            "INSERT INTO key_signatures (target_user_id, target_key, signer_user_id, signer_key_id,"
            " signature)"
            " VALUES (?, ?, ?, ?, ?) ON CONFLICT (target_user_id, target_key, signer_user_id,"
            " signer_key_id)"
            " DO UPDATE SET signature = excluded.signature",
            [
                (
                    each.target_user_id,
                    each.target_key,
                    each.signer_user_id,
                    each.signer_key_id,
                    each.signature,
                )
                for each in new
            ],
        )
        own = {each.target_key for each in new if each.target_user_id == signer}
        if own:
            public = {
                key.public_key for key in select_keys(txn, (signer,)).get(signer, {}).values()
            }
            announce_device_list(
                txn,
                signer,
                list(dict.fromkeys(None if key in public else key for key in sorted(own))),
            )
        others = sorted({each.target_user_id for each in new} - {signer})
        if others:
            position = txn.next_position()
            txn.execute_many(
                "INSERT INTO user_signature_positions (signer_user_id, target_user_id, position)"
                " VALUES (?, ?, ?)"
                " ON CONFLICT (signer_user_id, target_user_id)"
                " DO UPDATE SET position = excluded.position",
                [(signer, target, position) for target in others],
            )
            txn.announce(Change(position, Topic.SIGNATURE, user_id=signer))

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove the keys of one local user and the signatures they made, which reveal contacts.
        Signatures by other users stay."""
        deleted = txn.execute("DELETE FROM cross_signing_keys WHERE user_id = ?", (user_id,))
        deleted += txn.execute("DELETE FROM key_signatures WHERE signer_user_id = ?", (user_id,))
        txn.execute("DELETE FROM user_signature_positions WHERE signer_user_id = ?", (user_id,))
        if deleted:
            announce_device_list(txn, user_id)
            txn.announce(Change(txn.next_position(), Topic.SIGNATURE, user_id=user_id))


def put_cross_signing_keys(
    txn: WriteTransaction, user_id: str, usages: Sequence[str], keys: Sequence[CrossSigningKey]
) -> bool:
    """Set keys of one user, and remove keys with the given usages that are not among them. Return
    whether anything changed. Announces nothing.

    Signatures by other users stay in every case: what another server changes about its users' keys
    must not undo what local users have verified.
    """
    present = select_keys(txn, (user_id,)).get(user_id, {})
    new = {key.usage: key for key in keys}
    for usage in {*usages, *new}:
        old, key = present.get(usage), new.get(usage)
        if old == key:
            continue
        if key is None:
            txn.execute(
                "DELETE FROM cross_signing_keys WHERE user_id = ? AND usage = ?", (user_id, usage)
            )
            continue
        txn.execute(
            "INSERT INTO cross_signing_keys (user_id, usage, public_key, content)"
            " VALUES (?, ?, ?, ?)"
            " ON CONFLICT (user_id, usage) DO UPDATE SET public_key = excluded.public_key,"
            " content = excluded.content",
            (user_id, usage, key.public_key, key.content),
        )
    return any(present.get(usage) != new.get(usage) for usage in {*usages, *new})


def _remove_signatures(txn: WriteTransaction, old: CrossSigningKey) -> None:
    """Remove the owner's signatures on a replaced key, and all signatures made with it."""
    user_id = old.user_id
    txn.execute(
        "DELETE FROM key_signatures WHERE target_user_id = ? AND target_key = ?"
        " AND signer_user_id = ?",
        (user_id, old.public_key, user_id),
    )
    if txn.execute(
        "DELETE FROM key_signatures WHERE signer_user_id = ? AND signer_key_id = ?",
        (user_id, f"ed25519:{old.public_key}"),
    ):
        position = txn.next_position()
        txn.execute(
            "UPDATE user_signature_positions SET position = ? WHERE signer_user_id = ?",
            (position, user_id),
        )
        txn.announce(Change(position, Topic.SIGNATURE, user_id=user_id))


def has_cross_signing_key(txn: Transaction, user_id: str, public_key: str) -> bool:
    """Return whether this is one of the user's public keys."""
    sql = "SELECT 1 FROM cross_signing_keys WHERE user_id = ? AND public_key = ?"
    return txn.query_one(sql, (user_id, public_key)) is not None


def select_keys(txn: Transaction, user_ids: Iterable[str]) -> dict[str, dict[str, CrossSigningKey]]:
    """Return cross-signing keys by user and usage; one query."""
    rows = txn.query_in(
        "SELECT user_id, usage, public_key, content FROM cross_signing_keys"
        " WHERE user_id IN {keys}",
        user_ids,
    )
    found: dict[str, dict[str, CrossSigningKey]] = {}
    for row in rows:
        found.setdefault(row[0], {})[row[1]] = CrossSigningKey(*row)
    return found


def select_own_signatures(
    txn: Transaction, user_ids: Iterable[str]
) -> dict[str, list[KeySignature]]:
    """Return the users' own signatures on their keys, by user; one query."""
    return _by_target(
        txn.query_in(
            f"SELECT {_SIGNATURE} FROM key_signatures"
            f" WHERE target_user_id IN {{keys}} AND signer_user_id = target_user_id",
            user_ids,
        )
    )


def select_signed_by(txn: Transaction, signer: str) -> dict[str, list[KeySignature]]:
    """Return the signatures of `signer` on other users' keys, by user; one query."""
    sql = (
        f"SELECT {_SIGNATURE} FROM key_signatures WHERE signer_user_id = ? AND target_user_id <> ?"
    )
    return _by_target(txn.query(sql, (signer, signer)))


def _by_target(rows: Iterable[Row]) -> dict[str, list[KeySignature]]:
    found: dict[str, list[KeySignature]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(KeySignature(*row))
    return found


def _select_signed(txn: Transaction, signer: str, since: int, upto: int) -> set[str]:
    rows = txn.query(
        "SELECT target_user_id FROM user_signature_positions"
        " WHERE signer_user_id = ? AND position > ?"
        " AND position <= ?",
        (signer, since, upto),
    )
    return {target for (target,) in rows}

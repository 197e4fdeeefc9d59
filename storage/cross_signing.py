"""Cross-signing: users' keys that vouch for their devices and for each other, and the signatures made with them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from storage.database import Database
from storage.devices import announce_device_list
from storage.transaction import Transaction, WriteTransaction


@dataclass(frozen=True, slots=True)
class CrossSigningKey:
    """A key of cross-signing. `content` is what was uploaded, canonical JSON."""

    user_id: str
    usage: str
    """master, self_signing or user_signing."""
    public_key: str
    content: bytes


@dataclass(frozen=True, slots=True)
class KeySignature:
    """A signature on a device or a key of cross-signing."""

    target_user_id: str
    target_key: str
    """A device id, or the public key."""
    signer_user_id: str
    signer_key_id: str
    signature: str


class CrossSigningStore:
    """The tables of cross-signing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_keys(self, user_ids: Iterable[str]) -> Mapping[str, Mapping[str, CrossSigningKey]]:
        """By user and usage; one query."""
        return await self._database.read("get_cross_signing_keys", _select_keys, tuple(user_ids))

    async def get_signatures(self, target_user_ids: Iterable[str]) -> Mapping[str, list[KeySignature]]:
        """All that was signed of these users; one query."""
        return await self._database.read("get_key_signatures", _select_signatures, tuple(target_user_ids))

    def set_keys(self, txn: WriteTransaction, keys: Sequence[CrossSigningKey]) -> None:
        """Set keys of one user of ours. Signatures on a key that is replaced go with it."""
        if keys:
            put_cross_signing_keys(txn, keys[0].user_id, (), keys)
            told = any(key.usage != "user_signing" for key in keys)
            announce_device_list(txn, keys[0].user_id, [None] if told else [])

    def add_signatures(self, txn: WriteTransaction, signatures: Sequence[KeySignature]) -> None:
        """Add signatures; who signed again replaces their signature. The users concerned are announced."""
        txn.execute_many(
            "INSERT INTO key_signatures (target_user_id, target_key, signer_user_id, signer_key_id, signature)"
            " VALUES (?, ?, ?, ?, ?) ON CONFLICT (target_user_id, target_key, signer_user_id, signer_key_id)"
            " DO UPDATE SET signature = excluded.signature",
            [
                (each.target_user_id, each.target_key, each.signer_user_id, each.signer_key_id, each.signature)
                for each in signatures
            ],
        )
        # what one signs of others is seen by oneself alone
        for user_id in sorted(
            {each.signer_user_id for each in signatures} | {each.target_user_id for each in signatures}
        ):
            own = [each for each in signatures if each.target_user_id == each.signer_user_id == user_id]
            told = {
                None if has_cross_signing_key(txn, user_id, each.target_key) else each.target_key: None for each in own
            }
            announce_device_list(txn, user_id, list(told))


def put_cross_signing_keys(
    txn: WriteTransaction, user_id: str, usages: Sequence[str], keys: Sequence[CrossSigningKey]
) -> bool:
    """Set keys of one user, and remove those of the usages that are not among them; whether anything changed.

    Signatures on a key that is replaced go with it. Nobody is told.
    """
    present = _select_keys(txn, (user_id,)).get(user_id, {})
    new = {key.usage: key for key in keys}
    for usage in {*usages, *new}:
        old, key = present.get(usage), new.get(usage)
        if old == key:
            continue
        if old is not None and (key is None or old.public_key != key.public_key):
            txn.execute(
                "DELETE FROM key_signatures WHERE target_user_id = ? AND target_key = ?", (user_id, old.public_key)
            )
        if key is None:
            txn.execute("DELETE FROM cross_signing_keys WHERE user_id = ? AND usage = ?", (user_id, usage))
            continue
        txn.execute(
            "INSERT INTO cross_signing_keys (user_id, usage, public_key, content) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (user_id, usage) DO UPDATE SET public_key = excluded.public_key,"
            " content = excluded.content",
            (user_id, usage, key.public_key, key.content),
        )
    return any(present.get(usage) != new.get(usage) for usage in {*usages, *new})


def has_cross_signing_key(txn: Transaction, user_id: str, public_key: str) -> bool:
    """Whether this is one of the user's public keys."""
    sql = "SELECT 1 FROM cross_signing_keys WHERE user_id = ? AND public_key = ?"
    return txn.query_one(sql, (user_id, public_key)) is not None


def _select_keys(txn: Transaction, user_ids: tuple[str, ...]) -> dict[str, dict[str, CrossSigningKey]]:
    rows = txn.query_in(
        "SELECT user_id, usage, public_key, content FROM cross_signing_keys WHERE user_id IN {keys}", user_ids
    )
    found: dict[str, dict[str, CrossSigningKey]] = {}
    for row in rows:
        found.setdefault(row[0], {})[row[1]] = CrossSigningKey(*row)
    return found


def _select_signatures(txn: Transaction, user_ids: tuple[str, ...]) -> dict[str, list[KeySignature]]:
    rows = txn.query_in(
        "SELECT target_user_id, target_key, signer_user_id, signer_key_id, signature FROM key_signatures"
        " WHERE target_user_id IN {keys}",
        user_ids,
    )
    found: dict[str, list[KeySignature]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(KeySignature(*row))
    return found

"""Quarantines and releases files, and protects files from quarantine.

Laws:
- A quarantine applies to a content: to all unprotected files with the same bytes, local and remote,
  and to those that arrive later. If all of them are deleted and one arrives again, a quarantine by
  an administrator still applies. A quarantine by a scanner does not: the file is scanned again.
- A remote file may be quarantined before there is a copy of it.
- While a file is protected, nothing quarantines it: neither a quarantine of another file with the
  same bytes nor a scanner that finds it harmful.
- If an administrator releases a file that a scanner found harmful, scanners do not quarantine it
  again.
- Each quarantine or release of a file gets a number. A reader that asks for changes after the last
  number that it got misses none.
"""

from collections.abc import Iterable, Sequence, Set
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.content_uris import ContentURI
from storage.media.references import ReferenceRole

SYSTEM: Final = "system"
"""`quarantined_by` of a file whose bytes were quarantined already."""
SCANNER: Final = "scanner"
"""`quarantined_by` of a file that a scanner found harmful."""
_COUNTER: Final = "quarantine_change"


class QuarantineChange(msgspec.Struct, frozen=True):
    """A file was quarantined or released."""

    number: int
    address: ContentURI
    quarantined: bool


class QuarantineStore:
    """Quarantines and releases files. `own`: this server's name."""

    def __init__(self, *, database: Database, own: str) -> None:
        self._database = database
        self._own = own

    async def quarantine(self, addresses: Iterable[ContentURI], by: str) -> int:
        """Quarantine these files and all with the same bytes. Return how many. Remote files without
        a copy are quarantined when a copy arrives."""
        return await self._database.write(
            "quarantine_media", self._quarantine_files, list(addresses), by
        )

    async def quarantine_user(self, user_id: str, by: str) -> int:
        """Quarantine a user's uploads. Return how many."""

        def write(txn: WriteTransaction) -> int:
            sql = (
                "SELECT DISTINCT hash FROM media"
                " WHERE user_id = ? AND quarantined = 0 AND protected = 0 AND hash IS NOT NULL"
            )
            return self._set(txn, [bytes(hash) for (hash,) in txn.query(sql, (user_id,))], by)

        return await self._database.write("quarantine_media_of_user", write)

    async def quarantine_room(self, room_id: str, by: str) -> int:
        """Quarantine the files in a room's events, without avatars of its members. Return how
        many."""

        def write(txn: WriteTransaction) -> int:
            rows = txn.query(
                "SELECT DISTINCT k.origin, k.media_id FROM rooms AS r"
                " JOIN media_event_references AS e ON e.room_nid = r.room_nid"
                " JOIN tracked_media AS k ON k.media_nid = e.media_nid"
                f" WHERE r.room_id = ? AND e.role <> {int(ReferenceRole.MEMBER)}",
                (room_id,),
            )
            return self._quarantine_files(txn, [ContentURI(*row) for row in rows], by)

        return await self._database.write("quarantine_media_of_room", write)

    async def release(self, address: ContentURI) -> int | None:
        """Release a file and all with the same bytes. Return how many; None if it neither exists
        nor is quarantined."""

        def write(txn: WriteTransaction) -> int | None:
            was_pending = self._take_pending(txn, address) is not None
            if not was_pending and not self._exists(txn, address):
                return None
            return self._release(txn, [address])

        return await self._database.write("release_media", write)

    async def release_all(self, addresses: Sequence[ContentURI]) -> int:
        """Release these files and all with the same bytes. Return how many."""
        return await self._database.write("release_all_media", self._release, addresses)

    async def set_protected(self, media_ids: Set[str], *, protected: bool) -> int:
        """Protect local files from quarantine and automatic deletion, or unprotect them. Return how
        many of them exist."""
        sql = "UPDATE media SET protected = ? WHERE media_id = ?"
        rows = [(int(protected), media_id) for media_id in sorted(media_ids)]
        return await self._database.write(
            "protect_media", lambda txn: sum(txn.execute(sql, row) for row in rows)
        )

    async def get_changes(self, after: int, limit: int) -> tuple[Sequence[QuarantineChange], int]:
        """Return changes after a number, and the number of the latest change."""
        return await self._database.read("get_quarantine_changes", _select_changes, after, limit)

    def quarantine_known(self, txn: WriteTransaction, hash: bytes) -> None:
        """Quarantine a new file if its bytes are quarantined."""
        if self.is_quarantined(txn, hash):
            self._set(txn, [hash], SYSTEM)

    def quarantine_known_copy(
        self, txn: WriteTransaction, address: ContentURI, hash: bytes
    ) -> None:
        """Quarantine a new copy if its bytes or its content URI are quarantined."""
        by = self._take_pending(txn, address)
        if by is None:
            self.quarantine_known(txn, hash)
        else:
            self._set(txn, [hash], by)

    def is_quarantined(self, txn: Transaction, hash: bytes) -> bool:
        """Whether files with these bytes are quarantined."""
        if txn.query_one("SELECT 1 FROM quarantined_contents WHERE hash = ?", (hash,)) is not None:
            return True
        return any(
            txn.query_one(
                f"SELECT 1 FROM {table} WHERE hash = ? AND quarantined = 1 LIMIT 1", (hash,)
            )
            is not None
            for table in ("media", "remote_media")
        )

    def quarantine_harmful(self, txn: WriteTransaction, hash: bytes) -> Sequence[str]:
        """Quarantine all files with these bytes, which a scanner found harmful. Return the
        uploaders of the local files that this quarantines."""
        sql = (
            "SELECT DISTINCT user_id FROM media"
            " WHERE hash = ? AND quarantined = 0 AND protected = 0 AND user_id <> ''"
            " ORDER BY user_id"
        )
        users = [str(user_id) for (user_id,) in txn.query(sql, (hash,))]
        self._set(txn, [hash], SCANNER)
        return users

    def _quarantine_files(
        self, txn: WriteTransaction, addresses: Sequence[ContentURI], by: str
    ) -> int:
        remote = [address for address in addresses if address.origin != self._own]
        txn.execute_many(
            "INSERT INTO quarantined_remote_media (origin, media_id, by_user_id) SELECT ?, ?, ?"
            " WHERE NOT EXISTS"
            " (SELECT 1 FROM remote_media WHERE origin = ? AND media_id = ?)"
            " ON CONFLICT (origin, media_id) DO NOTHING",
            [(*address, by, *address) for address in remote],
        )
        return self._set(txn, self._hashes(txn, addresses), by)

    def _release(self, txn: WriteTransaction, addresses: Sequence[ContentURI]) -> int:
        hashes = self._hashes(txn, addresses)
        # 2 and 3: harmful, released (storage/media/scans.py)
        txn.execute_many(
            "UPDATE media_scans SET state = 3 WHERE hash = ? AND state = 2",
            [(hash,) for hash in hashes],
        )
        return self._set(txn, hashes, None)

    def _take_pending(self, txn: WriteTransaction, address: ContentURI) -> str | None:
        """Delete the quarantine of a missing copy. Return who set it."""
        sql = (
            "DELETE FROM quarantined_remote_media WHERE origin = ? AND media_id = ?"
            " RETURNING by_user_id"
        )
        rows = txn.query(sql, address)
        return str(rows[0][0]) if rows else None

    def _exists(self, txn: Transaction, address: ContentURI) -> bool:
        if address.origin == self._own:
            sql = "SELECT 1 FROM media WHERE media_id = ? AND hash IS NOT NULL"
            return txn.query_one(sql, (address.media_id,)) is not None
        sql = "SELECT 1 FROM remote_media WHERE origin = ? AND media_id = ?"
        return txn.query_one(sql, address) is not None

    def _hashes(self, txn: Transaction, addresses: Sequence[ContentURI]) -> Sequence[bytes]:
        """Return the contents of those of the files that are not protected."""
        own = [address.media_id for address in addresses if address.origin == self._own]
        remote = [address for address in addresses if address.origin != self._own]
        sql = (
            "SELECT hash FROM media WHERE hash IS NOT NULL AND protected = 0 AND media_id IN {keys}"
        )
        rows = txn.query_in(sql, own)
        if remote:
            found = txn.query_each(
                "SELECT hash FROM remote_media WHERE origin = ? AND media_id = ?", remote
            )
            rows += [row for each in found for row in each]
        return sorted({bytes(hash) for (hash,) in rows})

    def _set(self, txn: WriteTransaction, hashes: Sequence[bytes], by: str | None) -> int:
        """Quarantine all files with these bytes, or (without `by`) release them. Return how
        many."""
        quarantined = int(by is not None)
        protected = " AND protected = 0" if quarantined else ""
        keys = [(hash,) for hash in hashes]
        if by is None:
            txn.execute_many("DELETE FROM quarantined_contents WHERE hash = ?", keys)
        elif by not in (SYSTEM, SCANNER):
            txn.execute_many(
                "INSERT INTO quarantined_contents (hash) VALUES (?) ON CONFLICT (hash) DO NOTHING",
                keys,
            )
        changed: list[ContentURI] = []
        for hash in hashes:
            update = (
                f"SET quarantined = {quarantined}, quarantined_by = ?"
                f" WHERE hash = ? AND quarantined = {1 - quarantined}"
            )
            rows = txn.query(f"UPDATE media {update}{protected} RETURNING media_id", (by, hash))
            changed += [ContentURI(self._own, media_id) for (media_id,) in rows]
            rows = txn.query(f"UPDATE remote_media {update} RETURNING origin, media_id", (by, hash))
            changed += [ContentURI(*row) for row in rows]
        if changed:
            first = txn.allocate(_COUNTER, len(changed))
            txn.execute_many(
                "INSERT INTO quarantine_changes (change_nid, origin, media_id, quarantined)"
                " VALUES (?, ?, ?, ?)",
                [(number, *address, quarantined) for number, address in enumerate(changed, first)],
            )
        return len(changed)


def _select_changes(
    txn: Transaction, after: int, limit: int
) -> tuple[Sequence[QuarantineChange], int]:
    sql = (
        "SELECT change_nid, origin, media_id, quarantined FROM quarantine_changes"
        " WHERE change_nid > ?"
        " ORDER BY change_nid LIMIT ?"
    )
    changes = [
        QuarantineChange(number, ContentURI(origin, media_id), bool(quarantined))
        for number, origin, media_id, quarantined in txn.query(sql, (after, limit))
    ]
    latest = txn.query_one("SELECT COALESCE(MAX(change_nid), 0) FROM quarantine_changes")
    return changes, int(latest[0]) if latest is not None else 0

"""Profiles of local users: a display name, an avatar and any further fields.

Each field is a JSON value stored as bytes. A change takes a position (`Topic.PROFILE`). A change
that rooms show (name, avatar) also adds a row to `profile_propagation_queue` in the same write.
Afterwards `homeserver/services/rooms/profile_propagation.py` sends new membership events with the
new profile, even after a crash. The latest `MAX_REMOVALS` removed fields of each user are recorded
too, so that readers of changes see that they were removed.

Fields that a shadow-banned user sets are stored separately (`shadow_profile_fields`). Only that
user sees them, so they take no position.
"""

from collections.abc import Iterable

from storage.directory.user_directory_queue import queue_directory_updates
from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.references import SettingKind, put_setting, remove_settings

MAX_REMOVALS = 100


class ProfileStore:
    """Stores profiles."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_profiles(self, user_ids: Iterable[str]) -> dict[str, dict[str, bytes]]:
        """Return fields and their JSON values, in one query. Users without fields are missing."""
        return await self._database.read_quickly(
            "get_profiles", self.get_profiles_in, tuple(user_ids)
        )

    def get_profiles_in(
        self, txn: Transaction, user_ids: Iterable[str]
    ) -> dict[str, dict[str, bytes]]:
        """Do `get_profiles` in a transaction."""
        profiles: dict[str, dict[str, bytes]] = {}
        sql = "SELECT user_id, field, value FROM profiles WHERE user_id IN {keys} ORDER BY field"
        for user_id, field, value in txn.query_in(sql, user_ids):
            profiles.setdefault(user_id, {})[field] = bytes(value)
        return profiles

    async def get_as_owner(self, user_id: str) -> dict[str, bytes]:
        """Return a profile as its owner sees it, including fields that no other user sees."""
        return await self._database.read_quickly(
            "get_profile_as_owner", self.get_as_owner_in, user_id
        )

    def get_as_owner_in(self, txn: Transaction, user_id: str) -> dict[str, bytes]:
        """Do `get_as_owner` in a transaction."""
        fields = self.get_profiles_in(txn, [user_id]).get(user_id, {})
        for field, value in txn.query(
            "SELECT field, value FROM shadow_profile_fields WHERE user_id = ?", (user_id,)
        ):
            if value is None:
                fields.pop(field, None)
            else:
                fields[field] = bytes(value)
        return fields

    def set_shadow_field(
        self, txn: WriteTransaction, user_id: str, field: str, value: bytes | None
    ) -> None:
        """Set or remove (None) one field that only the owner sees."""
        txn.execute(
            "INSERT INTO shadow_profile_fields (user_id, field, value) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value",
            (user_id, field, value),
        )

    def remove_shadow_fields(self, txn: WriteTransaction, user_id: str) -> None:
        """Delete the fields that only the owner sees."""
        txn.execute("DELETE FROM shadow_profile_fields WHERE user_id = ?", (user_id,))

    async def get_changes(
        self, since: int, upto: int, limit: int
    ) -> dict[str, dict[str, bytes | None]] | None:
        """Return the fields that changed after `since`, up to `upto`, by user. The value of a
        removed field is None.

        Return None if more than `limit` fields changed.
        """

        def read(txn: Transaction) -> dict[str, dict[str, bytes | None]] | None:
            bounds = "WHERE position > ? AND position <= ?"
            rows = txn.query(
                f"SELECT user_id, field, value FROM profiles {bounds}"
                f" UNION ALL SELECT user_id, field, NULL FROM profile_removals {bounds} LIMIT ?",
                (since, upto, since, upto, limit + 1),
            )
            if len(rows) > limit:
                return None
            changes: dict[str, dict[str, bytes | None]] = {}
            for user_id, field, value in rows:
                changes.setdefault(user_id, {})[field] = None if value is None else bytes(value)
            return changes

        return await self._database.read("get_profile_changes", read)

    def set_field(
        self, txn: WriteTransaction, user_id: str, field: str, value: bytes, *, propagate: bool
    ) -> int:
        """Set one field to a JSON value. Return the position of the change. `propagate`: update the
        memberships in rooms."""
        position = txn.next_position()
        txn.execute(
            "INSERT INTO profiles (user_id, field, value, position) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value,"
            " position = excluded.position",
            (user_id, field, value, position),
        )
        txn.execute(
            "DELETE FROM profile_removals WHERE user_id = ? AND field = ?", (user_id, field)
        )
        put_setting(txn, user_id, SettingKind.PROFILE, field, value)
        self._announce(txn, user_id, position, propagate)
        return position

    def remove_field(
        self, txn: WriteTransaction, user_id: str, field: str, *, propagate: bool
    ) -> int | None:
        """Remove one field. Return the position of the change, or None if the field was not set."""
        if not txn.execute(
            "DELETE FROM profiles WHERE user_id = ? AND field = ?", (user_id, field)
        ):
            return None
        put_setting(txn, user_id, SettingKind.PROFILE, field, b"")
        position = txn.next_position()
        txn.execute(
            "INSERT INTO profile_removals (user_id, field, position) VALUES (?, ?, ?)",
            (user_id, field, position),
        )
        txn.execute(
            "DELETE FROM profile_removals WHERE user_id = ? AND position <= (SELECT position"
            " FROM profile_removals"
            " WHERE user_id = ? ORDER BY position DESC LIMIT 1 OFFSET ?)",
            (user_id, user_id, MAX_REMOVALS),
        )
        self._announce(txn, user_id, position, propagate)
        return position

    def remove_profile(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove all fields. Rooms are not updated: an erased account leaves them."""
        txn.execute("DELETE FROM profile_removals WHERE user_id = ?", (user_id,))
        self.remove_shadow_fields(txn, user_id)
        remove_settings(txn, user_id, SettingKind.PROFILE)
        if txn.execute("DELETE FROM profiles WHERE user_id = ?", (user_id,)):
            self._announce(txn, user_id, txn.next_position(), propagate=False)

    async def get_propagations(self, limit: int) -> dict[str, int]:
        """Return users whose memberships have to be rewritten, oldest change first, with the
        position of the change."""

        def read(txn: Transaction) -> dict[str, int]:
            sql = (
                "SELECT user_id, position FROM profile_propagation_queue ORDER BY position LIMIT ?"
            )
            return dict(txn.query(sql, (limit,)))

        return await self._database.read("get_propagations", read)

    def remove_propagation(self, txn: WriteTransaction, user_id: str, position: int) -> bool:
        """Record that all rooms show the profile of this position. Return False if it has changed
        again since."""
        sql = "DELETE FROM profile_propagation_queue WHERE user_id = ? AND position = ?"
        return bool(txn.execute(sql, (user_id, position)))

    def _announce(
        self, txn: WriteTransaction, user_id: str, position: int, propagate: bool
    ) -> None:
        if propagate:
            txn.execute(
                "INSERT INTO profile_propagation_queue (user_id, position) VALUES (?, ?)"
                " ON CONFLICT (user_id) DO UPDATE SET position = excluded.position",
                (user_id, position),
            )
        queue_directory_updates(txn, [(user_id, position)])
        txn.announce(Change(position, Topic.PROFILE, user_id=user_id))

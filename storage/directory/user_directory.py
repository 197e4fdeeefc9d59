"""The user directory: names and avatars of users. A search matches prefixes of words.

A job updates the entries. A change of a name or avatar queues the user for the job
(`storage.directory.user_directory_queue`). The directory does not store who may find a user. Each
search computes this from the current memberships, so joins and leaves take effect immediately.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.interface import CUSTOM_PLAN, SQLValue
from storage.engine.transaction import Transaction, WriteTransaction

MAX_MATCHES = 2_000
"""The most matches of one spelling that are considered, in the alphabetical order of the words."""
MAX_RESULTS = 200
"""The most results of each kind: users who share a room with the searching user, and others."""
MAX_CHARACTER = "\U0010ffff"
"""Sorts after every other character."""


class DirectoryUser(msgspec.Struct, frozen=True):
    """A user as the directory shows them."""

    user_id: str
    is_local: bool
    display_name: str | None
    avatar_url: str | None
    name_words: str
    """The words of the display name, each with a space before and after."""


class FoundUser(msgspec.Struct, frozen=True):
    """A search result."""

    row: DirectoryUser
    shares_room: bool


class UserDirectoryQuery(msgspec.Struct, frozen=True):
    """A search, and the user who searches."""

    user_id: str
    words: Sequence[Sequence[str]]
    """For each word its alternatives: prefixes, one of which has to match."""
    id_prefix: str | None
    """A prefix of the user ID that also matches."""
    locals_only: bool
    include_all_local: bool
    """Include local users who share no room with the searching user and are in no public room."""
    include_locked: bool


class RemoteProfile(msgspec.Struct, frozen=True):
    """The name and avatar of a remote user in one room."""

    display_name: str | None
    avatar_url: str | None
    position: int
    is_public: bool


class UserDirectoryStore:
    """Stores the user directory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_users(self, query: UserDirectoryQuery) -> list[FoundUser]:
        """Return users who match and may be found, unordered, a bounded number. Two queries."""
        if not query.words and query.id_prefix is None:
            return []
        return await self._database.read("search_users", _select_users, query)

    def select_changes(self, txn: Transaction, limit: int) -> dict[str, int]:
        """Return queued users with their positions, oldest first."""
        return dict(
            txn.query(
                "SELECT user_id, position FROM user_directory_queue"
                " ORDER BY position, user_id LIMIT ?",
                (limit,),
            )
        )

    def select_local(self, txn: Transaction, user_ids: Iterable[str]) -> set[str]:
        """Return those of the users who have or had a local account. The search checks whether the
        account is active."""
        rows = txn.query_in("SELECT user_id FROM accounts WHERE user_id IN {keys}", user_ids)
        return {user_id for (user_id,) in rows}

    def select_remote_names(
        self, txn: Transaction, user_ids: Iterable[str]
    ) -> Mapping[str, list[RemoteProfile]]:
        """Return the names and avatars of users in the rooms they have joined. Users without a room
        are missing."""
        rows = txn.query_in(
            "SELECT m.user_id, m.display_name, m.avatar_url, m.position,"
            " CASE WHEN s.join_rule = 'public' OR s.history_visibility = 'world_readable' THEN 1"
            " ELSE 0 END"
            " FROM memberships AS m JOIN room_summaries AS s ON s.room_nid = m.room_nid"
            " WHERE m.user_id IN {keys} AND m.membership = 'join'",
            user_ids,
        )
        found: dict[str, list[RemoteProfile]] = {}
        for user_id, display_name, avatar_url, position, is_public in rows:
            found.setdefault(user_id, []).append(
                RemoteProfile(display_name, avatar_url, position, bool(is_public))
            )
        return found

    def put_users(
        self,
        txn: WriteTransaction,
        changes: Mapping[str, int],
        users: Iterable[tuple[DirectoryUser, Iterable[str]]],
    ) -> None:
        """Replace the entries of the queued users by these users, each with their words."""
        stale = [(user_id,) for user_id in changes]
        txn.execute_many("DELETE FROM user_directory_words WHERE user_id = ?", stale)
        txn.execute_many("DELETE FROM user_directory WHERE user_id = ?", stale)
        rows: list[tuple[SQLValue, ...]] = []
        keys: list[tuple[str, str]] = []
        for row, words in users:
            rows.append(
                (row.user_id, int(row.is_local), row.display_name, row.avatar_url, row.name_words)
            )
            keys += [(word, row.user_id) for word in words]
        if rows:
            txn.execute_many(
                "INSERT INTO user_directory (user_id, is_local, display_name, avatar_url,"
                " name_words)"
                " VALUES (?, ?, ?, ?, ?)",
                rows,
            )
            txn.execute_many(
                "INSERT INTO user_directory_words (word, user_id) VALUES (?, ?)"
                " ON CONFLICT DO NOTHING",
                keys,
            )
        # a user who changed again since is queued with another position
        txn.execute_many(
            "DELETE FROM user_directory_queue WHERE user_id = ? AND position = ?", changes.items()
        )

    def queue_all_users(self, txn: WriteTransaction) -> None:
        """Queue all users, so that their words are computed again."""
        txn.execute(
            "INSERT INTO user_directory_queue (user_id, position) SELECT user_id, 0"
            " FROM user_directory WHERE TRUE"
            " ON CONFLICT DO NOTHING"
        )


# LIMIT makes PostgreSQL evaluate this for one user after the other, instead of first computing it
# for all users.
_SHARED_ROOM = (
    "(SELECT 1 FROM memberships AS m JOIN memberships AS o ON o.room_nid = m.room_nid"
    " AND o.user_id = ?"
    " AND o.membership = 'join' WHERE m.user_id = u.user_id AND m.membership = 'join' LIMIT 1)"
)
_PUBLIC_ROOM = (
    "(SELECT 1 FROM memberships AS m JOIN room_summaries AS r ON r.room_nid = m.room_nid"
    " AND (r.join_rule = 'public' OR r.history_visibility = 'world_readable')"
    " WHERE m.user_id = u.user_id AND m.membership = 'join' LIMIT 1)"
)


def _select_users(txn: Transaction, query: UserDirectoryQuery) -> list[FoundUser]:
    matching, args = _matching_users(query)
    select = (
        f"{CUSTOM_PLAN}SELECT DISTINCT u.user_id, u.is_local, u.display_name, u.avatar_url,"
        " u.name_words"
        f" FROM ({matching}) AS k JOIN user_directory AS u ON u.user_id = k.user_id"
        " LEFT JOIN accounts AS a ON a.user_id = u.user_id"
        " WHERE a.deactivated_ts IS NULL AND a.approval_pending_ts IS NULL"
        " AND (COALESCE(a.locked, 0) = 0"
        " OR ? = 1) AND "
    )
    args.append(int(query.include_locked))
    found = [
        FoundUser(_row(row), shares_room=True)
        for row in txn.query(
            f"{select}{_SHARED_ROOM} IS NOT NULL LIMIT ?", (*args, query.user_id, MAX_RESULTS)
        )
    ]
    others = txn.query(
        f"{select}{_SHARED_ROOM} IS NULL"
        f" AND ((u.is_local = 1 AND a.is_guest = 0 AND ? = 1) OR {_PUBLIC_ROOM} IS NOT NULL)"
        " LIMIT ?",
        (*args, query.user_id, int(query.include_all_local), MAX_RESULTS),
    )
    return [*found, *(FoundUser(_row(row), shares_room=False) for row in others)]


def _matching_users(query: UserDirectoryQuery) -> tuple[str, list[SQLValue]]:
    """Return a query for the IDs of matching users, without the user who searches."""
    parts: list[str] = []
    args: list[SQLValue] = []
    # Start with the longest word; a user who has it must have the others too.
    words = sorted(query.words, key=lambda alternatives: -min(map(len, alternatives)))
    for prefix in words[0] if words else ():
        conditions = ""
        bounds: list[str] = [prefix, prefix + MAX_CHARACTER]
        for other in words[1:]:
            ranges = " OR ".join(["(x.word >= ? AND x.word < ?)"] * len(other))
            conditions += (
                " AND EXISTS (SELECT 1 FROM user_directory_words AS x"
                f" WHERE x.user_id = d.user_id AND ({ranges}))"
            )
            bounds += [bound for each in other for bound in (each, each + MAX_CHARACTER)]
        parts.append(conditions)
        args += [*bounds, query.user_id, int(query.locals_only), MAX_MATCHES]
    if query.id_prefix is not None:
        parts.append("")
        args += [
            query.id_prefix,
            query.id_prefix + MAX_CHARACTER,
            query.user_id,
            int(query.locals_only),
            MAX_MATCHES,
        ]
    selects = [
        "SELECT * FROM (SELECT d.user_id FROM user_directory_words AS d"
        " JOIN user_directory AS l ON l.user_id = d.user_id"
        f" WHERE d.word >= ? AND d.word < ?{conditions} AND d.user_id <> ? AND (l.is_local = 1"
        " OR ? = 0)"
        f" ORDER BY d.word, d.user_id LIMIT ?) AS p{number}"
        for number, conditions in enumerate(parts)
    ]
    return " UNION ".join(selects), args


def _row(row: tuple[str, int, str | None, str | None, str]) -> DirectoryUser:
    user_id, is_local, display_name, avatar_url, name_words = row
    return DirectoryUser(user_id, bool(is_local), display_name, avatar_url, name_words)

"""Lists of this server's accounts for administrators, filtered, ordered and paginated.

A search by name reads all accounts that pass the other filters and compares the names in Python,
because SQLite ignores case only for ASCII characters.
"""

from collections.abc import Sequence
from typing import Final, Literal, get_args

import msgspec

from storage.engine.database import Database
from storage.engine.interface import CUSTOM_PLAN, Row, SQLValue
from storage.engine.transaction import Transaction

UserOrder = Literal[
    "name",
    "displayname",
    "is_guest",
    "admin",
    "deactivated",
    "user_type",
    "avatar_url",
    "shadow_banned",
    "creation_ts",
    "last_seen_ts",
    "locked",
]
_LAST_SEEN: Final = "(SELECT MAX(d.last_seen_ts) FROM devices d WHERE d.user_id = a.user_id)"
_ORDERS: Final = {
    "name": "a.user_id",
    "displayname": "COALESCE(n.value, {empty})",
    "is_guest": "a.is_guest",
    "admin": "a.is_admin",
    "deactivated": "CASE WHEN a.deactivated_ts IS NULL THEN 0 ELSE 1 END",
    "user_type": "COALESCE(a.user_type, '')",
    "avatar_url": "COALESCE(p.value, {empty})",
    "shadow_banned": "a.shadow_banned",
    "creation_ts": "a.created_ts",
    "last_seen_ts": f"COALESCE({_LAST_SEEN}, 0)",
    "locked": "a.locked",
}
assert set(_ORDERS) == set(get_args(UserOrder))


class UserFilter(msgspec.Struct, frozen=True, kw_only=True):
    """A filter of accounts. None: no restriction."""

    name: str | None = None
    """A substring of the localpart or display name, case-insensitive."""
    user_id: str | None = None
    """A substring of the full user ID, case-insensitive."""
    guests: bool | None = None
    deactivated: bool | None = None
    locked: bool | None = None
    admins: bool | None = None
    awaiting_approval: bool | None = None
    """Whether they await approval."""
    without_types: Sequence[str] = ()
    """User types to leave out; the empty string stands for people."""


class ListedUser(msgspec.Struct, frozen=True):
    """An account in a list. Times are milliseconds since 1970."""

    user_id: str
    user_type: str | None
    is_guest: bool
    is_admin: bool
    deactivated: bool
    created_ts: int
    erased: bool
    locked: bool
    awaiting_approval: bool
    last_seen_ts: int | None
    display_name: str | None
    avatar_url: str | None
    shadow_banned: bool


class UserPage(msgspec.Struct, frozen=True):
    """A page of accounts, and the total number of matches."""

    users: Sequence[ListedUser]
    total: int


class UserListStore:
    """Reads lists of accounts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_page(
        self, wanted: UserFilter, order: UserOrder, *, backwards: bool, first: int, limit: int
    ) -> UserPage:
        """Return up to `limit` accounts from index `first`.

        Accounts with equal keys are in ascending order of their IDs, also with `backwards`.
        """
        return await self._database.read(
            "get_user_page", _select, wanted, order, backwards, first, limit
        )


def _select(
    txn: Transaction, wanted: UserFilter, order: UserOrder, backwards: bool, first: int, limit: int
) -> UserPage:
    where, args = _where(wanted)
    empty: list[SQLValue] = [b""] if "{empty}" in _ORDERS[order] else []
    ordered = (
        f"ORDER BY {_ORDERS[order].format(empty='?')} {'DESC' if backwards else 'ASC'}, a.user_id"
    )
    sql = (
        f"{CUSTOM_PLAN}SELECT a.user_id, a.user_type, a.is_guest, a.is_admin,"
        " a.deactivated_ts, a.created_ts,"
        f" a.erased, a.locked, a.approval_pending_ts, {_LAST_SEEN}, n.value, p.value,"
        " a.shadow_banned FROM accounts a"
        " LEFT JOIN profiles n ON n.user_id = a.user_id AND n.field = 'displayname'"
        " LEFT JOIN profiles p ON p.user_id = a.user_id AND p.field = 'avatar_url'"
        f" WHERE {where} {ordered}"
    )
    if wanted.name is not None:
        part = wanted.name.casefold()
        found = [
            user
            for user in map(_user, txn.query(sql, (*args, *empty)))
            if _matches_name(user, part)
        ]
        return UserPage(found[first : first + limit], len(found))
    counted = txn.query_one(f"{CUSTOM_PLAN}SELECT COUNT(*) FROM accounts a WHERE {where}", args)
    rows = txn.query(f"{sql} LIMIT ? OFFSET ?", (*args, *empty, limit, first))
    return UserPage([_user(row) for row in rows], 0 if counted is None else int(counted[0]))


def _where(wanted: UserFilter) -> tuple[str, list[SQLValue]]:
    conditions, args = ["1 = 1"], list[SQLValue]()
    for column, value in (
        ("a.is_guest", wanted.guests),
        ("a.locked", wanted.locked),
        ("a.is_admin", wanted.admins),
    ):
        if value is not None:
            conditions.append(f"{column} = ?")
            args.append(int(value))
    for column, is_set in (
        ("a.deactivated_ts", wanted.deactivated),
        ("a.approval_pending_ts", wanted.awaiting_approval),
    ):
        if is_set is not None:
            conditions.append(f"{column} IS {'NOT NULL' if is_set else 'NULL'}")
    if wanted.name is None and wanted.user_id is not None:
        escaped = "".join(f"!{sign}" if sign in "!%_" else sign for sign in wanted.user_id.lower())
        conditions.append("a.user_id LIKE ? ESCAPE '!'")
        args.append(f"%{escaped}%")
    for user_type in wanted.without_types:
        conditions.append("COALESCE(a.user_type, '') <> ?")
        args.append(user_type)
    return " AND ".join(conditions), args


def _matches_name(user: ListedUser, part: str) -> bool:
    localpart = user.user_id[1:].partition(":")[0]
    return part in localpart.casefold() or part in (user.display_name or "").casefold()


def _user(row: Row) -> ListedUser:
    return ListedUser(
        user_id=row[0],
        user_type=row[1],
        is_guest=bool(row[2]),
        is_admin=bool(row[3]),
        deactivated=row[4] is not None,
        created_ts=row[5],
        erased=bool(row[6]),
        locked=bool(row[7]),
        awaiting_approval=row[8] is not None,
        last_seen_ts=row[9],
        display_name=_text(row[10]),
        avatar_url=_text(row[11]),
        shadow_banned=bool(row[12]),
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else msgspec.json.decode(bytes(value), type=str)

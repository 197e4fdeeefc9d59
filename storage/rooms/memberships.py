"""The current memberships of users in rooms. The membership at a past event is in the state tree.

`storage.persist.state_effects` writes memberships in the transaction that changes a room's state.
`out_of_room_memberships` writes memberships of local users in rooms that this server is not in.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from storage.cluster.job_progress import select_job_progress, set_job_progress
from storage.engine.database import Database
from storage.engine.interface import CUSTOM_PLAN
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.references import RecheckKind, record_rechecks


class MembershipRow(msgspec.Struct, frozen=True, gc=False):
    """The current membership of a user in a room."""

    room_nid: int
    user_id: str
    membership: str
    event_nid: int
    sender: str
    position: int
    """The position of the event that set it, or of the state change that restored it."""
    is_local: bool
    display_name: str | None
    avatar_url: str | None
    forgotten: bool
    left_position: int | None = None
    """The position at which the user's last membership period ended, for a former member. None for
    all others."""
    joined_position: int | None = None
    """The position at which the current membership period began, for local users who are joined. A
    profile change does not begin a new period."""

    @property
    def was_joined(self) -> bool:
        """Whether the user is, or ever was, joined."""
        return self.membership == "join" or self.left_position is not None

    @property
    def is_join_update(self) -> bool:
        """Whether the user was joined already, as in a profile change."""
        return self.joined_position is not None and self.joined_position < self.position


class NewMembership(msgspec.Struct, frozen=True):
    """The content of a membership event."""

    user_id: str
    membership: str
    sender: str
    is_local: bool
    display_name: str | None
    avatar_url: str | None


FORGET_LEFT_ROOMS: Final = "forget_left_rooms"
"""The key of the job's progress: the position up to which left rooms are forgotten."""
_COLUMNS = (
    "room_nid, user_id, membership, event_nid, sender, position, is_local, display_name,"
    " avatar_url, forgotten,"
    " left_position, joined_position"
)

_SELECT_BY_KIND = (
    f"SELECT {_COLUMNS} FROM memberships WHERE room_nid = ? AND membership = ? ORDER BY event_nid"
)


class MembershipStore:
    """Reads the table `memberships`, and marks rooms as forgotten."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_memberships_of_user(self, user_id: str) -> Mapping[int, MembershipRow]:
        """Return all memberships of one user by room."""
        return await self._database.read_quickly(
            "get_memberships_of_user", _select_of_user, user_id
        )

    async def get_membership(self, room_nid: int, user_id: str) -> MembershipRow | None:
        """Return one user's membership of a room, or None if there never was one."""
        return (await self.get_memberships(room_nid, [user_id])).get(user_id)

    async def get_memberships(
        self, room_nid: int, user_ids: Iterable[str]
    ) -> Mapping[str, MembershipRow]:
        """Return the memberships of some users in a room; users who never had one are missing."""
        return await self._database.read_quickly(
            "get_memberships", select_memberships, room_nid, list(user_ids)
        )

    async def get_joined(self, pairs: Sequence[tuple[int, str]]) -> set[tuple[int, str]]:
        """Return those of the pairs of room and user where the user is joined."""
        return await self._database.read_quickly("get_joined_users", _select_joined, pairs)

    async def get_joined_profiles(self, room_nid: int) -> list[tuple[str, str | None, str | None]]:
        """Return (user ID, display name, avatar URL) of every joined member."""
        return await self._database.read("get_joined_profiles", _select_profiles, room_nid)

    async def get_members(self, room_nid: int, membership: str) -> list[MembershipRow]:
        """Return all members with that membership, in the order of their membership events."""
        return await self._database.read("get_members", _select_members, room_nid, membership)

    async def get_all(self, room_nid: int) -> Mapping[str, tuple[int, str]]:
        """Return, for every user who ever had a membership, its event number and the membership.

        The membership may be `leave` though the event says otherwise: such an event is no longer in
        the state.
        """
        return await self._database.read("get_all_memberships", _select_all, room_nid)

    async def get_local_members(self, room_nid: int) -> list[str]:
        """Return this server's joined users."""
        return await self._database.read_quickly(
            "get_local_members", _select_local_joined, room_nid
        )

    async def get_users_of_server(self, room_nid: int, server: str, limit: int) -> list[str]:
        """Return users of a server who ever had a membership of the room: joined users first, then
        by age.

        Reads all members of the room.
        """
        return await self._database.read(
            "get_users_of_server", _select_of_server, room_nid, server, limit
        )

    async def get_changed_members(
        self, room_nids: Iterable[int], since: int
    ) -> list[MembershipRow]:
        """Return the current memberships of users of these rooms whose membership changed after
        `since`, later changes included."""
        return await self._database.read(
            "get_changed_members", _select_changed, list(room_nids), since
        )

    async def get_shared_rooms(
        self, user_id: str, others: Iterable[str]
    ) -> Mapping[str, list[int]]:
        """Return for each of the others the rooms that both users are joined to. Users who share
        none are missing."""
        return await self._database.read("get_shared_rooms", _select_shared, user_id, list(others))

    async def get_invited_by_own_server(self, user_id: str, others: Iterable[str]) -> set[str]:
        """Return those of the others whom a user of the same server as `user_id` has invited to a
        room that `user_id` is joined to."""
        return await self._database.read(
            "get_invited_by_own_server", _select_invited, user_id, list(others)
        )

    async def get_rooms_with_local_members(self, room_nids: Iterable[int]) -> set[int]:
        """Return those of the rooms that a local user is joined to."""
        return await self._database.read(
            "get_rooms_with_local_members", _select_rooms_with_local_members, list(room_nids)
        )

    async def get_users_sharing_rooms(self, user_ids: Iterable[str]) -> set[str]:
        """Return those of the users who share a room with a local user."""
        return await self._database.read_quickly(
            "get_users_sharing_rooms", select_users_sharing_rooms, list(user_ids)
        )

    async def get_memberships_of_server(
        self, room_nids: Iterable[int], server: str
    ) -> Mapping[int, set[str]]:
        """Return the memberships (`join`, `invite`, `knock`) of a server's users by room; rooms
        without any are missing."""
        return await self._database.read(
            "get_rooms_with_server", _select_with_server, list(room_nids), server
        )

    async def get_disallowed_guests(
        self, limit: int, room_nid: int | None = None, after: str = ""
    ) -> list[tuple[str, str]]:
        """Return (room ID, user ID) of local guests who are joined to rooms that no longer admit
        guests.

        `room_nid` restricts the search to one room. At most `limit` guests, in the order of their
        IDs, after `after`. Reads the memberships of all these guests.
        """
        return await self._database.read(
            "get_disallowed_guests", _select_disallowed_guests, limit, room_nid, after
        )

    async def forget_left_rooms(self, limit: int) -> int:
        """Mark rooms as forgotten for local users who left since the last call. Return how many
        leaves were read, at most `limit`."""

        def write(txn: WriteTransaction) -> int:
            leaves = _select_leaves(
                txn, int(select_job_progress(txn, FORGET_LEFT_ROOMS) or 0), limit
            )
            for room_nid, user_id, forgotten, _ in leaves:
                if not forgotten:
                    _set_forgotten(txn, room_nid, user_id)
            if leaves:
                set_job_progress(txn, FORGET_LEFT_ROOMS, str(leaves[-1][3]))
            return len(leaves)

        if not await self._database.read_quickly("has_departures", _has_leaves):
            return 0
        return await self._database.write("forget_left_rooms", write)

    async def set_forgotten(self, room_nid: int, user_id: str) -> None:
        """Mark a left room as forgotten. Does nothing if the user has rejoined or was invited
        since."""
        await self._database.write("set_forgotten", _set_forgotten, room_nid, user_id)

    async def set_all_forgotten(self, user_id: str) -> None:
        """Mark all rooms that the user has left as forgotten."""
        await self._database.write("set_all_forgotten", _set_all_forgotten, user_id)


def _select_disallowed_guests(
    txn: Transaction, limit: int, room_nid: int | None, after: str
) -> list[tuple[str, str]]:
    of_room = "" if room_nid is None else " AND m.room_nid = ?"
    # CROSS JOIN makes SQLite begin with the guests, who are few
    return txn.query(
        f"{CUSTOM_PLAN}SELECT r.room_id, m.user_id FROM accounts AS a"
        " CROSS JOIN memberships AS m"
        " JOIN rooms AS r ON r.room_nid = m.room_nid"
        " JOIN room_summaries AS s ON s.room_nid = m.room_nid"
        " WHERE a.is_guest = 1 AND a.user_id > ? AND m.user_id = a.user_id"
        " AND m.membership = 'join'"
        f" AND COALESCE(s.guest_access, '') <> 'can_join'{of_room} ORDER BY a.user_id LIMIT ?",
        (after, *(() if room_nid is None else (room_nid,)), limit),
    )


def _select_leaves(txn: Transaction, after: int, limit: int) -> list[tuple[int, str, int, int]]:
    """Return local users who have left or were removed: room, user, whether it is forgotten,
    position."""
    return txn.query(
        "SELECT room_nid, user_id, forgotten, position FROM memberships"
        " WHERE is_local = 1 AND membership IN ('leave', 'ban') AND position > ?"
        " ORDER BY position LIMIT ?",
        (after, limit),
    )


def _has_leaves(txn: Transaction) -> bool:
    return bool(_select_leaves(txn, int(select_job_progress(txn, FORGET_LEFT_ROOMS) or 0), 1))


def select_memberships(
    txn: Transaction, room_nid: int, user_ids: Iterable[str]
) -> dict[str, MembershipRow]:
    """Do `get_memberships` in a transaction."""
    rows = txn.query_in(
        f"SELECT {_COLUMNS} FROM memberships WHERE room_nid = ? AND user_id IN {{keys}}",
        user_ids,
        before=(room_nid,),
    )
    return {row[1]: _row(row) for row in rows}


def put_memberships(txn: WriteTransaction, rows: Iterable[MembershipRow]) -> None:
    """Insert or replace memberships in one statement."""
    txn.execute_many(
        f"INSERT INTO memberships ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (room_nid, user_id) DO UPDATE SET membership = excluded.membership,"
        " event_nid = excluded.event_nid, sender = excluded.sender, position = excluded.position,"
        " display_name = excluded.display_name, avatar_url = excluded.avatar_url,"
        " forgotten = excluded.forgotten,"
        " left_position = excluded.left_position, joined_position = excluded.joined_position",
        [
            (
                row.room_nid,
                row.user_id,
                row.membership,
                row.event_nid,
                row.sender,
                row.position,
                int(row.is_local),
                row.display_name,
                row.avatar_url,
                int(row.forgotten),
                row.left_position,
                row.joined_position,
            )
            for row in rows
        ],
    )


def has_local_members(txn: Transaction, room_nid: int) -> bool:
    """Whether a local user is joined to the room."""
    sql = (
        "SELECT 1 FROM memberships WHERE room_nid = ? AND membership = 'join' AND is_local = 1"
        " LIMIT 1"
    )
    return txn.query_one(sql, (room_nid,)) is not None


def count_members(txn: Transaction, room_nid: int) -> tuple[int, int]:
    """Count the joined and the invited users of a room."""
    rows = txn.query(
        "SELECT membership, count(*) FROM memberships"
        " WHERE room_nid = ? AND membership IN ('join', 'invite')"
        " GROUP BY membership",
        (room_nid,),
    )
    counts = {membership: count for membership, count in rows}
    return counts.get("join", 0), counts.get("invite", 0)


def _row(
    row: tuple[
        int, str, str, int, str, int, int, str | None, str | None, int, int | None, int | None
    ],
) -> MembershipRow:
    (
        nid,
        user_id,
        membership,
        event_nid,
        sender,
        position,
        is_local,
        name,
        avatar,
        forgotten,
        *period,
    ) = row
    return MembershipRow(
        nid,
        user_id,
        membership,
        event_nid,
        sender,
        position,
        bool(is_local),
        name,
        avatar,
        bool(forgotten),
        *period,
    )


def _select_joined(txn: Transaction, pairs: Sequence[tuple[int, str]]) -> set[tuple[int, str]]:
    sql = "SELECT membership FROM memberships WHERE room_nid = ? AND user_id = ?"
    found = zip(pairs, txn.query_each(sql, pairs), strict=True)
    return {pair for pair, rows in found if rows and rows[0][0] == "join"}


def _select_of_user(txn: Transaction, user_id: str) -> dict[int, MembershipRow]:
    rows = txn.query(f"SELECT {_COLUMNS} FROM memberships WHERE user_id = ?", (user_id,))
    return {row[0]: _row(row) for row in rows}


def _select_profiles(txn: Transaction, room_nid: int) -> list[tuple[str, str | None, str | None]]:
    return txn.query(
        "SELECT user_id, display_name, avatar_url FROM memberships"
        " WHERE room_nid = ? AND membership = 'join'"
        " ORDER BY event_nid",
        (room_nid,),
    )


def _select_members(txn: Transaction, room_nid: int, membership: str) -> list[MembershipRow]:
    rows = txn.query(_SELECT_BY_KIND, (room_nid, membership))
    return [_row(row) for row in rows]


def select_first_members(
    txn: Transaction, room_nids: Iterable[int], memberships: Sequence[str], limit: int
) -> dict[int, list[MembershipRow]]:
    """Return the first few members of each room with each of these memberships, by age of the
    event.

    For use inside a transaction.
    """
    queries = [
        (room_nid, membership, limit) for room_nid in room_nids for membership in memberships
    ]
    first: dict[int, list[MembershipRow]] = {}
    for (room_nid, _, _), rows in zip(
        queries, txn.query_each(f"{_SELECT_BY_KIND} LIMIT ?", queries), strict=True
    ):
        first.setdefault(room_nid, []).extend(map(_row, rows))
    return first


def _select_all(txn: Transaction, room_nid: int) -> dict[str, tuple[int, str]]:
    rows = txn.query(
        "SELECT user_id, event_nid, membership FROM memberships WHERE room_nid = ?", (room_nid,)
    )
    return {user_id: (event_nid, membership) for user_id, event_nid, membership in rows}


def select_new_invites(txn: Transaction, after: int, upto: int, limit: int) -> list[MembershipRow]:
    """Return invites of local users that arrived in that range of positions and still stand, in
    order."""
    rows = txn.query(
        f"SELECT {_COLUMNS} FROM memberships WHERE membership = 'invite' AND is_local = 1"
        " AND position > ? AND position <= ? ORDER BY position LIMIT ?",
        (after, upto, limit),
    )
    return [_row(row) for row in rows]


def _select_local_joined(txn: Transaction, room_nid: int) -> list[str]:
    rows = txn.query(
        "SELECT user_id FROM memberships"
        " WHERE room_nid = ? AND membership = 'join' AND is_local = 1",
        (room_nid,),
    )
    return [user_id for (user_id,) in rows]


def _select_of_server(txn: Transaction, room_nid: int, server: str, limit: int) -> list[str]:
    rows = txn.query(
        "SELECT user_id FROM memberships WHERE room_nid = ?"
        " ORDER BY CASE membership WHEN 'join' THEN 0 ELSE 1 END, event_nid",
        (room_nid,),
    )
    return [user_id for (user_id,) in rows if user_id.partition(":")[2] == server][:limit]


def _select_changed(txn: Transaction, room_nids: list[int], since: int) -> list[MembershipRow]:
    sql = f"SELECT {_COLUMNS} FROM memberships WHERE room_nid IN {{keys}} AND position > ?"
    return [_row(row) for row in txn.query_in(sql, room_nids, after=(since,))]


def _select_shared(txn: Transaction, user_id: str, user_ids: list[str]) -> dict[str, list[int]]:
    rows = txn.query_in(
        "SELECT theirs.user_id, theirs.room_nid FROM memberships AS mine JOIN memberships AS theirs"
        " ON theirs.room_nid = mine.room_nid AND theirs.membership = 'join'"
        " WHERE mine.user_id = ? AND mine.membership = 'join' AND theirs.user_id IN {keys}",
        user_ids,
        before=(user_id,),
    )
    found: dict[str, list[int]] = {}
    for other, room_nid in rows:
        found.setdefault(other, []).append(room_nid)
    return found


def _select_invited(txn: Transaction, user_id: str, user_ids: list[str]) -> set[str]:
    # joined in Python: both databases would begin with the user's rooms, and search each of them
    # for each of the others
    own = txn.query(
        "SELECT room_nid FROM memberships WHERE user_id = ? AND membership = 'join'", (user_id,)
    )
    rooms = {nid for (nid,) in own}
    rows = txn.query_in(
        "SELECT user_id, room_nid, sender FROM memberships"
        " WHERE user_id IN {keys} AND membership = 'invite'",
        user_ids,
    )
    own_server = _server_of(user_id)
    return {
        invited
        for invited, nid, inviter in rows
        if nid in rooms and _server_of(inviter) == own_server
    }


def _server_of(user_id: str) -> str:
    return user_id.partition(":")[2]


def _select_rooms_with_local_members(txn: Transaction, room_nids: list[int]) -> set[int]:
    rows = txn.query_in(
        "SELECT r.room_nid FROM rooms AS r WHERE r.room_nid IN {keys}"
        " AND EXISTS (SELECT 1 FROM memberships AS m"
        " WHERE m.room_nid = r.room_nid AND m.membership = 'join' AND m.is_local = 1)",
        room_nids,
    )
    return {room_nid for (room_nid,) in rows}


def select_users_sharing_rooms(
    txn: Transaction, user_ids: Iterable[str], except_room_nid: int = 0
) -> set[str]:
    """Return those of the users who share a room with a local user, other than `except_room_nid`.
    One query."""
    rows = txn.query_in(
        "SELECT DISTINCT theirs.user_id FROM memberships AS theirs WHERE theirs.user_id IN {keys}"
        " AND theirs.membership = 'join' AND theirs.room_nid <> ?"
        " AND EXISTS (SELECT 1 FROM memberships AS ours"
        " WHERE ours.room_nid = theirs.room_nid AND ours.membership = 'join'"
        " AND ours.is_local = 1)",
        user_ids,
        after=(except_room_nid,),
    )
    return {user_id for (user_id,) in rows}


def _select_with_server(txn: Transaction, room_nids: list[int], server: str) -> dict[int, set[str]]:
    rows = txn.query_in(
        "SELECT DISTINCT room_nid, membership FROM memberships WHERE room_nid IN {keys}"
        " AND membership IN ('join', 'invite', 'knock')"
        " AND substr(user_id, CAST(length(user_id) - ? AS INTEGER)) = ?",
        room_nids,
        after=(len(server), f":{server}"),
    )
    found: dict[int, set[str]] = {}
    for room_nid, membership in rows:
        found.setdefault(room_nid, set()).add(membership)
    return found


def _set_all_forgotten(txn: WriteTransaction, user_id: str) -> None:
    sql = (
        "SELECT room_nid FROM memberships"
        " WHERE user_id = ? AND membership IN ('leave', 'ban') AND forgotten = 0"
    )
    for (room_nid,) in txn.query(sql, (user_id,)):
        _set_forgotten(txn, room_nid, user_id)


def _set_forgotten(txn: WriteTransaction, room_nid: int, user_id: str) -> None:
    row = select_memberships(txn, room_nid, [user_id]).get(user_id)
    if row is None or row.membership not in ("leave", "ban") or row.forgotten:
        return  # the user has rejoined, or was invited again, since the request
    txn.execute(
        "UPDATE memberships SET forgotten = 1 WHERE room_nid = ? AND user_id = ?",
        (room_nid, user_id),
    )
    change = Change(
        txn.next_position(), Topic.MEMBERSHIP, user_id=user_id, detail=replace(row, forgotten=True)
    )
    txn.announce(change)
    sql = "SELECT 1 FROM memberships WHERE room_nid = ? AND is_local = 1 AND forgotten = 0 LIMIT 1"
    if txn.query_one(sql, (room_nid,)) is None:
        record_rechecks(txn, RecheckKind.ROOM, [room_nid])

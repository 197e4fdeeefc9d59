"""Pushers: where users' notifications are sent, and the delivery state of each.

Laws:
- Setting and removing pushers takes a position (`Topic.PUSHER`). The latest position per user is
  stored, so that other nodes notice whose pushers changed.
- The delivery state is written in batches and takes no position. It may be a minute old. But if a
  pusher begins or ceases to fail, its state is written at the next renewal of the lease, within
  about ten seconds (`storage/cluster/lease_loop.py`).
- A locked or expired account gets no notifications: `get_users`, `get_active`, `get_failing` and
  `get_due` return none of its pushers.
- A push writes no row. All pushes up to the position that is stored with the lease (`leases.py`)
  are done, except those of failing pushers. Each failing pusher has a stored position of its own.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction


class PusherRow(msgspec.Struct, frozen=True):
    """A pusher. Times are milliseconds since 1970."""

    pusher_nid: int
    user_id: str
    app_id: str
    pushkey: str
    kind: str
    app_display_name: str
    device_display_name: str
    profile_tag: str | None
    lang: str
    data: bytes
    """JSON object."""
    gateway: str
    """Scheme, host and port; empty for e-mail."""
    device_id: str | None
    enabled: bool
    no_counts: bool
    set_ts: int
    position: int
    failing_since_ts: int | None = None
    last_attempt_ts: int = 0
    backoff_ms: int = 0
    last_success_ts: int | None = None
    due_ts: int | None = None
    error: str | None = None


class PusherState(msgspec.Struct, frozen=True):
    """The delivery state of a pusher after its last push. Times are milliseconds since 1970."""

    position: int
    failing_since_ts: int | None
    last_attempt_ts: int
    backoff_ms: int
    last_success_ts: int | None
    """When a push was last accepted; None: not since the previous state."""
    error: str | None


class EmailPause(msgspec.Struct, frozen=True):
    """The time of the last e-mail about a room, and the pause before the next one. Milliseconds."""

    sent_ts: int
    interval_ms: int


class GatewayRow(msgspec.Struct, frozen=True):
    """The delivery state of all pushers of a gateway. Times are milliseconds since 1970."""

    gateway: str
    pushers: int
    failing: int
    failing_since_ts: int | None
    """Since when the pusher that has failed for the longest time fails."""
    last_success_ts: int | None
    """The last accepted push."""


_COLUMNS = (
    "pusher_nid, user_id, app_id, pushkey, kind, app_display_name, device_display_name,"
    " profile_tag, lang, data,"
    " gateway, device_id, enabled, no_counts, set_ts, position, failing_since_ts, last_attempt_ts,"
    " backoff_ms, last_success_ts, due_ts, error"
)


_STOPPED = (
    "SELECT 1 FROM accounts AS a WHERE a.user_id = pushers.user_id AND (a.locked = 1"
    " OR a.is_expired = 1)"
)
_ACTIVE = f"enabled = 1 AND NOT EXISTS ({_STOPPED})"
_ACTIVE_ONE_BY_ONE = f"enabled = 1 AND ({_STOPPED} LIMIT 1) IS NULL"
"""With a LIMIT PostgreSQL reads the account of one pusher after the other, and does not scan all
accounts first."""


class PusherStore:
    """Reads and writes the table `pushers`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_pushers(self, user_ids: Iterable[str]) -> Mapping[str, list[PusherRow]]:
        """Return all pushers of these users, the oldest first; users without any are missing."""
        return await self._database.read_quickly("get_pushers", self.get_pushers_in, list(user_ids))

    def get_pushers_in(
        self, txn: Transaction, user_ids: Iterable[str]
    ) -> dict[str, list[PusherRow]]:
        """Do `get_pushers` in a transaction."""
        found: dict[str, list[PusherRow]] = {}
        sql = f"SELECT {_COLUMNS} FROM pushers WHERE user_id IN {{keys}} ORDER BY pusher_nid"
        for row in map(_row, txn.query_in(sql, user_ids)):
            found.setdefault(row.user_id, []).append(row)
        return found

    async def get_active(self, user_ids: Iterable[str]) -> Mapping[str, list[PusherRow]]:
        """Return the pushers of these users that get pushes; users without any are missing."""
        return await self._database.read_quickly(
            "get_active_pushers", _select_active, list(user_ids)
        )

    async def get_pusher(self, pusher_nid: int) -> PusherRow | None:
        """Return one pusher by its number."""
        return await self._database.read_quickly("get_pusher", _select_one, pusher_nid)

    async def get_users(self) -> set[str]:
        """Return all users with an enabled pusher."""
        return await self._database.read("get_users_with_pushers", _select_users)

    async def get_failing(self) -> list[PusherRow]:
        """Return the enabled pushers whose last push failed."""
        return await self._database.read("get_failing_pushers", _select_failing)

    async def get_gateways(self, limit: int) -> list[GatewayRow]:
        """Return gateways with enabled pushers, those with the most failing ones first; e-mail is
        the gateway ''."""
        return await self._database.read("get_push_gateways", _select_gateways, limit)

    async def count_pushers(self) -> Mapping[tuple[str, str], int]:
        """Count the enabled pushers by kind and state: well, failing."""
        return await self._database.read("count_pushers", _count)

    async def get_changed_users(self, after: int, upto: int) -> set[str]:
        """Return users whose pushers changed in that range of positions."""
        return await self._database.read_quickly(
            "get_users_with_changed_pushers", _select_changed, after, upto
        )

    async def get_due(self, now_ms: int, limit: int) -> list[PusherRow]:
        """Return e-mail pushers that are due, the most overdue first."""
        return await self._database.read_quickly("get_due_pushers", _select_due, now_ms, limit)

    async def get_next_due(self) -> int | None:
        """Return when the next e-mail pusher is due."""
        return await self._database.read_quickly("get_next_due_pusher", _select_next_due)

    async def get_pauses(self, pusher_nid: int) -> Mapping[int, EmailPause]:
        """Return the recent e-mails of a pusher by room."""
        return await self._database.read_quickly("get_email_pauses", _select_pauses, pusher_nid)

    def get_by_key(self, txn: Transaction, app_id: str, pushkey: str) -> dict[str, PusherRow]:
        """Return the pushers with that key by user."""
        sql = f"SELECT {_COLUMNS} FROM pushers WHERE app_id = ? AND pushkey = ?"
        return {row.user_id: row for row in map(_row, txn.query(sql, (app_id, pushkey)))}

    def set_pusher(self, txn: WriteTransaction, row: PusherRow) -> None:
        """Add a pusher, or replace the one with its number."""
        values = (
            row.pusher_nid,
            row.user_id,
            row.app_id,
            row.pushkey,
            row.kind,
            row.app_display_name,
            row.device_display_name,
            row.profile_tag,
            row.lang,
            row.data,
            row.gateway,
            row.device_id,
            int(row.enabled),
            int(row.no_counts),
            row.set_ts,
            row.position,
            row.failing_since_ts,
            row.last_attempt_ts,
            row.backoff_ms,
            row.last_success_ts,
            row.due_ts,
            row.error,
        )
        txn.execute("DELETE FROM pushers WHERE pusher_nid = ?", (row.pusher_nid,))
        txn.execute(
            f"INSERT INTO pushers ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values
        )
        _announce(txn, row.user_id)

    def remove_pusher(self, txn: WriteTransaction, user_id: str, app_id: str, pushkey: str) -> bool:
        """Remove a pusher; False if there is none."""
        sql = "SELECT pusher_nid FROM pushers WHERE user_id = ? AND app_id = ? AND pushkey = ?"
        return _remove(txn, user_id, txn.query(sql, (user_id, app_id, pushkey)))

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Remove the pushers that these devices set."""
        sql = "SELECT pusher_nid FROM pushers WHERE user_id = ? AND device_id IN {keys}"
        _remove(txn, user_id, txn.query_in(sql, device_ids, before=(user_id,)))

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove all pushers of a user."""
        _remove(
            txn, user_id, txn.query("SELECT pusher_nid FROM pushers WHERE user_id = ?", (user_id,))
        )

    def remove_address(self, txn: WriteTransaction, user_id: str, address: str) -> None:
        """Remove the pusher for an e-mail address of a user."""
        sql = "SELECT pusher_nid FROM pushers WHERE user_id = ? AND kind = 'email' AND pushkey = ?"
        _remove(txn, user_id, txn.query(sql, (user_id, address)))

    async def remove_rejected(self, user_id: str, app_id: str, pushkey: str) -> bool:
        """Remove a pusher that its gateway rejected; False if it is gone already."""
        return await self._database.write(
            "remove_rejected_pusher", self.remove_pusher, user_id, app_id, pushkey
        )

    async def set_states(self, states: Mapping[int, PusherState]) -> None:
        """Store the state of pushers. A position never moves back, and the last accepted push stays
        until another one is accepted."""
        rows = [
            (
                state.position,
                state.failing_since_ts,
                state.last_attempt_ts,
                state.backoff_ms,
                state.last_success_ts,
                state.error,
                pusher_nid,
            )
            for pusher_nid, state in states.items()
        ]
        await self._database.write("set_pusher_states", _set_states, rows)

    async def set_due(self, due: Mapping[int, int]) -> None:
        """Set when these e-mail pushers are next checked, unless that is sooner already."""
        await self._database.write("set_pushers_due", _set_due, due)

    def set_checked(
        self,
        txn: WriteTransaction,
        pusher_nid: int,
        position: int,
        due_ts: int | None,
        pauses: Mapping[int, EmailPause] | None,
        forget_before_ts: int,
    ) -> bool:
        """Record the check of an e-mail pusher: up to which position, when the next one is due, and
        about which rooms an e-mail goes out, if one does. False if the pusher is gone: then no
        e-mail is sent."""
        sql = "UPDATE pushers SET position = ?, due_ts = ? WHERE pusher_nid = ? AND enabled = 1"
        if not txn.execute(sql, (position, due_ts, pusher_nid)):
            return False
        sql = "DELETE FROM email_rate_limits WHERE pusher_nid = ? AND sent_ts < ?"
        txn.execute(sql, (pusher_nid, forget_before_ts))
        if pauses:
            txn.execute_many(
                "INSERT INTO email_rate_limits (pusher_nid, room_nid, sent_ts, interval_ms)"
                " VALUES (?, ?, ?, ?)"
                " ON CONFLICT (pusher_nid, room_nid)"
                " DO UPDATE SET sent_ts = excluded.sent_ts, interval_ms = excluded.interval_ms",
                [
                    (pusher_nid, room_nid, pause.sent_ts, pause.interval_ms)
                    for room_nid, pause in pauses.items()
                ],
            )
        return True


def _row(row: Row) -> PusherRow:
    values = list(row)
    values[9], values[12], values[13] = bytes(values[9]), bool(values[12]), bool(values[13])
    return PusherRow(*values)


def _announce(txn: WriteTransaction, user_id: str) -> None:
    position = txn.next_position()
    txn.execute(
        "INSERT INTO pusher_changes (user_id, position) VALUES (?, ?)"
        " ON CONFLICT (user_id) DO UPDATE SET position = excluded.position",
        (user_id, position),
    )
    txn.announce(Change(position, Topic.PUSHER, user_id=user_id))


def _remove(txn: WriteTransaction, user_id: str, numbers: Iterable[Row]) -> bool:
    rows: list[tuple[int]] = [(pusher_nid,) for (pusher_nid,) in numbers]
    if rows:
        txn.execute_many("DELETE FROM pushers WHERE pusher_nid = ?", rows)
        txn.execute_many("DELETE FROM email_rate_limits WHERE pusher_nid = ?", rows)
        _announce(txn, user_id)
    return bool(rows)


def _select_one(txn: Transaction, pusher_nid: int) -> PusherRow | None:
    row = txn.query_one(f"SELECT {_COLUMNS} FROM pushers WHERE pusher_nid = ?", (pusher_nid,))
    return None if row is None else _row(row)


def _select_active(txn: Transaction, user_ids: list[str]) -> dict[str, list[PusherRow]]:
    found: dict[str, list[PusherRow]] = {}
    sql = (
        f"SELECT {_COLUMNS} FROM pushers WHERE user_id IN {{keys}} AND {_ACTIVE_ONE_BY_ONE}"
        " ORDER BY pusher_nid"
    )
    for row in map(_row, txn.query_in(sql, user_ids)):
        found.setdefault(row.user_id, []).append(row)
    return found


def _select_users(txn: Transaction) -> set[str]:
    return {
        user_id for (user_id,) in txn.query(f"SELECT DISTINCT user_id FROM pushers WHERE {_ACTIVE}")
    }


def _select_failing(txn: Transaction) -> list[PusherRow]:
    sql = f"SELECT {_COLUMNS} FROM pushers WHERE failing_since_ts IS NOT NULL AND {_ACTIVE}"
    return list(map(_row, txn.query(sql)))


def _count(txn: Transaction) -> dict[tuple[str, str], int]:
    state = "CASE WHEN failing_since_ts IS NULL THEN 'working' ELSE 'failing' END"
    rows = txn.query(
        f"SELECT kind, {state}, COUNT(*) FROM pushers WHERE enabled = 1 GROUP BY kind, {state}"
    )
    return {(kind, state): count for kind, state, count in rows}


def _select_gateways(txn: Transaction, limit: int) -> list[GatewayRow]:
    rows = txn.query(
        "SELECT gateway, COUNT(*) AS pushers, SUM(CASE WHEN failing_since_ts IS NULL THEN 0"
        " ELSE 1 END) AS failing,"
        " MIN(failing_since_ts), MAX(last_success_ts) FROM pushers"
        " WHERE enabled = 1 GROUP BY gateway"
        " ORDER BY failing DESC, pushers DESC, gateway LIMIT ?",
        (limit,),
    )
    return [
        GatewayRow(gateway, pushers, int(failing), since, success)
        for gateway, pushers, failing, since, success in rows
    ]


def _select_changed(txn: Transaction, after: int, upto: int) -> set[str]:
    sql = "SELECT user_id FROM pusher_changes WHERE position > ? AND position <= ?"
    return {user_id for (user_id,) in txn.query(sql, (after, upto))}


def _select_due(txn: Transaction, now_ms: int, limit: int) -> list[PusherRow]:
    sql = (
        f"SELECT {_COLUMNS} FROM pushers"
        f" WHERE due_ts IS NOT NULL AND due_ts <= ? AND {_ACTIVE_ONE_BY_ONE}"
        " ORDER BY due_ts LIMIT ?"
    )
    return list(map(_row, txn.query(sql, (now_ms, limit))))


def _select_next_due(txn: Transaction) -> int | None:
    row = txn.query_one(
        f"SELECT MIN(due_ts) FROM pushers WHERE due_ts IS NOT NULL AND {_ACTIVE_ONE_BY_ONE}"
    )
    return None if row is None else row[0]


def _select_pauses(txn: Transaction, pusher_nid: int) -> dict[int, EmailPause]:
    sql = "SELECT room_nid, sent_ts, interval_ms FROM email_rate_limits WHERE pusher_nid = ?"
    return {
        room_nid: EmailPause(sent, pause) for room_nid, sent, pause in txn.query(sql, (pusher_nid,))
    }


def _set_states(txn: WriteTransaction, rows: Sequence[tuple[int | str | None, ...]]) -> None:
    txn.execute_many(
        "UPDATE pushers SET position = CASE WHEN position > ? THEN position"
        " ELSE ? END, failing_since_ts = ?,"
        " last_attempt_ts = ?, backoff_ms = ?, last_success_ts = COALESCE(?,"
        " last_success_ts), error = ?"
        " WHERE pusher_nid = ?",
        [(row[0], *row) for row in rows],
    )


def _set_due(txn: WriteTransaction, due: Mapping[int, int]) -> None:
    txn.execute_many(
        "UPDATE pushers SET due_ts = ? WHERE pusher_nid = ? AND (due_ts IS NULL OR due_ts > ?)",
        [(ts, pusher_nid, ts) for pusher_nid, ts in due.items()],
    )

"""Subscriptions of users to threads (MSC4306).

Laws:
- There is one row for each user and thread, with the latest change and its position
  (`Topic.THREAD_SUBSCRIPTION`). The row remains when the user unsubscribes.
- An automatic subscription names the event that caused it. It is refused if the user has
  unsubscribed since that event.
"""

import msgspec

from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction


class ThreadSubscriptionRow(msgspec.Struct, frozen=True):
    """A user's subscription state of a thread, and the position of its last change."""

    room_id: str
    root: str
    subscribed: bool
    automatic: bool
    position: int


_COLUMNS = "room_id, root, subscribed, automatic, position"


class ThreadSubscriptionStore:
    """Reads and writes the table `thread_subscriptions`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_subscription(
        self, user_id: str, room_id: str, root: str
    ) -> ThreadSubscriptionRow | None:
        """Return a user's last choice for a thread; None if there never was one."""
        return await self._database.read_quickly(
            "get_thread_subscription", _select_one, user_id, room_id, root
        )

    async def get_subscribers(self, room_id: str, root: str) -> frozenset[str]:
        """Return the subscribers of a thread."""

        def read(txn: Transaction) -> frozenset[str]:
            sql = (
                "SELECT user_id FROM thread_subscriptions"
                " WHERE room_id = ? AND root = ? AND subscribed = 1"
            )
            return frozenset(user_id for (user_id,) in txn.query(sql, (room_id, root)))

        return await self._database.read_quickly("get_thread_followers", read)

    async def get_subscribed_roots(self, user_id: str, room_id: str) -> frozenset[str]:
        """Return the roots of the threads of a room that a user subscribes to."""

        def read(txn: Transaction) -> frozenset[str]:
            sql = (
                "SELECT root FROM thread_subscriptions"
                " WHERE user_id = ? AND room_id = ? AND subscribed = 1"
            )
            return frozenset(root for (root,) in txn.query(sql, (user_id, room_id)))

        return await self._database.read_quickly("get_followed_threads", read)

    async def get_changes(
        self, user_id: str, after: int, upto: int, limit: int
    ) -> list[ThreadSubscriptionRow]:
        """Return the newest changes in a range of positions, newest first."""
        return await self._database.read(
            "get_thread_subscriptions", _select_changes, user_id, after, upto, limit
        )

    async def subscribe(self, user_id: str, room_id: str, root: str) -> None:
        """Subscribe a user to a thread by their own choice."""

        def write(txn: WriteTransaction) -> None:
            former = _select_one(txn, user_id, room_id, root)
            if former is None or not former.subscribed or former.automatic:
                _set(txn, user_id, room_id, root, subscribed=True, automatic=False)

        await self._database.write("subscribe_to_thread", write)

    async def subscribe_automatically(
        self, user_id: str, room_id: str, root: str, cause_position: int | None
    ) -> bool:
        """Subscribe a user to a thread because of an event at `cause_position` (None: before any
        known position).

        Returns False if the user unsubscribed after that event.
        """

        def write(txn: WriteTransaction) -> bool:
            former = _select_one(txn, user_id, room_id, root)
            if former is not None and former.subscribed:
                return True
            if former is not None and (cause_position is None or cause_position <= former.position):
                return False
            _set(txn, user_id, room_id, root, subscribed=True, automatic=True)
            return True

        return await self._database.write("subscribe_to_thread_automatically", write)

    async def unsubscribe(self, user_id: str, room_id: str, root: str) -> None:
        """Unsubscribe a user from a thread. Does nothing without a subscription."""

        def write(txn: WriteTransaction) -> None:
            former = _select_one(txn, user_id, room_id, root)
            if former is not None and former.subscribed:
                _set(txn, user_id, room_id, root, subscribed=False, automatic=False)

        await self._database.write("unsubscribe_from_thread", write)

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove all subscriptions of a user."""
        txn.execute("DELETE FROM thread_subscriptions WHERE user_id = ?", (user_id,))


def _set(
    txn: WriteTransaction,
    user_id: str,
    room_id: str,
    root: str,
    *,
    subscribed: bool,
    automatic: bool,
) -> None:
    position = txn.next_position()
    txn.execute(
        "INSERT INTO thread_subscriptions (user_id, room_id, root, subscribed, automatic, position)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (user_id, room_id, root) DO UPDATE SET"
        " subscribed = excluded.subscribed, automatic = excluded.automatic,"
        " position = excluded.position",
        (user_id, room_id, root, int(subscribed), int(automatic), position),
    )
    txn.announce(Change(position, Topic.THREAD_SUBSCRIPTION, room_id=room_id, user_id=user_id))


def _select_one(
    txn: Transaction, user_id: str, room_id: str, root: str
) -> ThreadSubscriptionRow | None:
    row = txn.query_one(
        f"SELECT {_COLUMNS} FROM thread_subscriptions"
        " WHERE user_id = ? AND room_id = ? AND root = ?",
        (user_id, room_id, root),
    )
    return None if row is None else _row(row)


def _select_changes(
    txn: Transaction, user_id: str, after: int, upto: int, limit: int
) -> list[ThreadSubscriptionRow]:
    rows = txn.query(
        f"SELECT {_COLUMNS} FROM thread_subscriptions"
        " WHERE user_id = ? AND position > ? AND position <= ?"
        " ORDER BY position DESC LIMIT ?",
        (user_id, after, upto, limit),
    )
    return [_row(row) for row in rows]


def _row(row: tuple[str, str, int, int, int]) -> ThreadSubscriptionRow:
    room_id, root, subscribed, automatic, position = row
    return ThreadSubscriptionRow(room_id, root, bool(subscribed), bool(automatic), position)

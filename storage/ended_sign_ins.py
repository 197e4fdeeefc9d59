"""Sign-ins at identity providers that have ended there, remembered for minutes: what was under way by one of them, on whichever
node, learns of it in its own write."""

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction
from storage.upstream_sessions import SignIns, read_origin


def is_ended(txn: Transaction, origin: str | None) -> bool:
    """Whether a sign-in has ended at its provider. `origin`: its JSON, as everywhere."""
    came = None if origin is None else read_origin(origin)
    if came is None or came.session is None:
        return False
    beginning = came.session[: came.session.rfind(".") + 1]
    names = [SignIns(came.provider, name).name for name in (came.session, beginning) if name]
    placeholders = ", ".join("?" for _ in names)
    sql = f"SELECT 1 FROM ended_sign_ins WHERE sign_in IN ({placeholders}) AND subject IN ('', ?)"
    return txn.query_one(sql, (*names, came.subject)) is not None


class EndedSignInStore:
    """The table of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_ended(self, txn: WriteTransaction, sign_ins: SignIns, subject: str | None, now: int) -> None:
        """One has ended, or all whose names begin so, up to their last dot; of this person only, where one is named. `now`: milliseconds
        since 1970."""
        sql = (
            "INSERT INTO ended_sign_ins (sign_in, subject, ended_ts) VALUES (?, ?, ?)"
            " ON CONFLICT (sign_in, subject) DO UPDATE SET ended_ts = excluded.ended_ts"
        )
        txn.execute(sql, (sign_ins.name, subject or "", now))

    async def remove_old(self, ended_before: int, limit: int) -> int:
        """Forget up to `limit` that ended before; how many."""

        def write(txn: WriteTransaction) -> int:
            sql = (
                "DELETE FROM ended_sign_ins WHERE (sign_in, subject) IN"
                " (SELECT sign_in, subject FROM ended_sign_ins WHERE ended_ts < ? LIMIT ?)"
            )
            return txn.execute(sql, (ended_before, limit))

        return await self._database.write("remove_old_ended_sign_ins", write)

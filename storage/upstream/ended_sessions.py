"""Sign-ins at identity providers that have ended there, remembered for minutes: what was under way
by one of them, on whichever node, learns of it in its own write."""

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.upstream.sessions import SignIns, read_origin


def is_ended(txn: Transaction, origin: str | None) -> bool:
    """Whether a sign-in has ended at its provider since somebody left for it. `origin`: its JSON,
    as everywhere. (What began after that is another, though it may have the same name: those of
    SAML are meant to come again, saml-core-2.0-os section 2.7.2.)"""
    came = None if origin is None else read_origin(origin)
    if came is None:
        return False
    session = came.session or ""
    of_person, dot, rest = session.partition(".")
    beginnings = (f"{of_person}.", f"{of_person}.{rest[: rest.rfind('.') + 1]}") if dot else ()
    names = [SignIns(came.provider, name).name for name in {"", session, *beginnings}]
    placeholders = ", ".join("?" for _ in names)
    is_one = f"sign_in IN ({placeholders}) AND subject IN ('', ?)"
    sql = f"SELECT 1 FROM ended_sign_ins WHERE {is_one} AND ended_ts >= ?"
    return txn.query_one(sql, (*names, came.subject, came.began_ts)) is not None


class EndedSignInStore:
    """The table of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_ended(
        self, txn: WriteTransaction, sign_ins: SignIns, subject: str | None, now: int
    ) -> None:
        """One has ended, or all whose names begin so, up to their first or last dot; of this person
        only, where one is named: then the beginning may be empty too. `now`: milliseconds since
        1970."""
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

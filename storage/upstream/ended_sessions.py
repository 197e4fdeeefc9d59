"""Ended sessions at identity providers, stored for some minutes.

A request that relies on a sign-in at a provider checks that the session of the sign-in has not
ended. It checks this in the transaction in which it writes. So a request that was in progress when
the session ended is refused, on any node.
"""

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.upstream.sessions import ProviderSessions, parse_origin


def is_ended(txn: Transaction, origin: str | None) -> bool:
    """Return whether the session of a sign-in ended after the sign-in began. `origin`: the JSON of
    the sign-in. A sign-in that began later has another session, even with the same session name:
    SAML reuses session indexes, saml-core-2.0-os section 2.7.2."""
    sign_in = None if origin is None else parse_origin(origin)
    if sign_in is None:
        return False
    session = sign_in.session or ""
    user_part, dot, rest = session.partition(".")
    prefixes = (f"{user_part}.", f"{user_part}.{rest[: rest.rfind('.') + 1]}") if dot else ()
    names = [ProviderSessions(sign_in.provider, name).key for name in {"", session, *prefixes}]
    placeholders = ", ".join("?" for _ in names)
    is_one = f"upstream_key IN ({placeholders}) AND subject IN ('', ?)"
    sql = f"SELECT 1 FROM ended_upstream_sessions WHERE {is_one} AND ended_ts >= ?"
    return txn.query_one(sql, (*names, sign_in.subject, sign_in.began_ts)) is not None


class EndedProviderSessionStore:
    """The table of ended sessions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_ended(
        self, txn: WriteTransaction, sign_ins: ProviderSessions, subject: str | None, now: int
    ) -> None:
        """Add ended sessions: one, or all with a prefix that ends at the first or last dot of their
        names. `subject`: only those of this person; then the prefix may be empty. `now`:
        milliseconds since 1970."""
        sql = (
            "INSERT INTO ended_upstream_sessions (upstream_key, subject, ended_ts) VALUES (?, ?, ?)"
            " ON CONFLICT (upstream_key, subject) DO UPDATE SET ended_ts = excluded.ended_ts"
        )
        txn.execute(sql, (sign_ins.key, subject or "", now))

    async def remove_old(self, ended_before: int, limit: int) -> int:
        """Remove up to `limit` rows that ended before; return how many."""

        def write(txn: WriteTransaction) -> int:
            sql = (
                "DELETE FROM ended_upstream_sessions WHERE (upstream_key, subject) IN"
                " (SELECT upstream_key, subject FROM ended_upstream_sessions"
                " WHERE ended_ts < ? LIMIT ?)"
            )
            return txn.execute(sql, (ended_before, limit))

        return await self._database.write("remove_old_ended_sessions", write)

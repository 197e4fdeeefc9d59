"""Records query plans, to check which indexes a query uses.

plans = note_plans(database, monkeypatch)
…  # reads
assert not [plan for plan in plans if "SCAN" in plan]
"""

from collections.abc import Iterable
from typing import Any

import pytest

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.prepared import PreparedStatements
from storage.engine.transaction import Transaction


def record_plans(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the plan steps of all statements of `query` and `query_in`, as the database describes
    them. On PostgreSQL, records the generic plan of `query` if there is one."""
    plans: list[str] = []
    query, query_in = Transaction.query, Transaction.query_in

    def explain(txn: Transaction, sql: str, args: Any = ()) -> list[Row]:
        prepare, _ = PreparedStatements().lookup(sql, args)
        if database.engine.name == "sqlite":
            plans.extend(str(row) for row in query(txn, f"EXPLAIN QUERY PLAN {sql}", args))
        elif prepare:
            # private: a read transaction has no method for a statement without rows
            txn._connection.execute(prepare.replace("PREPARE s1", "PREPARE noted", 1), ())
            noted = f"noted ({', '.join('?' * len(args))})" if args else "noted"
            plans.extend(str(row) for row in query(txn, f"EXPLAIN EXECUTE {noted}", args))
            txn._connection.execute("DEALLOCATE noted", ())  # private: as above
        else:
            plans.extend(str(row) for row in query(txn, f"EXPLAIN {sql}", args))
        return query(txn, sql, args)

    def explain_in(
        txn: Transaction, sql: str, keys: Iterable[Any], before: Any = (), after: Any = ()
    ) -> list[Row]:
        wanted = list(keys)
        explained = f"EXPLAIN {'QUERY PLAN ' if database.engine.name == 'sqlite' else ''}{sql}"
        plans.extend(str(row) for row in query_in(txn, explained, wanted, before, after))
        return query_in(txn, sql, wanted, before, after)

    monkeypatch.setattr(Transaction, "query", explain)
    monkeypatch.setattr(Transaction, "query_in", explain_in)
    return plans

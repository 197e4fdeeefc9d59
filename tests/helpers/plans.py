"""By which indexes a database finds what it is asked for.

plans = note_plans(database, monkeypatch)
…  # reads
assert not [plan for plan in plans if "SCAN" in plan]
"""

from typing import Any

import pytest

from storage.database import Database
from storage.engine import Row
from storage.prepared import Prepared
from storage.transaction import Transaction


def note_plans(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on the steps of all that is asked by `query`, in the words of the database. On PostgreSQL of the plan that serves all
    arguments, where there is one."""
    plans: list[str] = []
    query = Transaction.query

    def explain(txn: Transaction, sql: str, args: Any = ()) -> list[Row]:
        prepare, _ = Prepared().find(sql, args)
        if database.engine.name == "sqlite":
            plans.extend(str(row) for row in query(txn, f"EXPLAIN QUERY PLAN {sql}", args))
        elif prepare:
            txn._connection.execute(prepare.replace("PREPARE s1", "PREPARE noted", 1), ())
            noted = f"noted ({', '.join('?' * len(args))})" if args else "noted"
            plans.extend(str(row) for row in query(txn, f"EXPLAIN EXECUTE {noted}", args))
            txn._connection.execute("DEALLOCATE noted", ())
        else:
            plans.extend(str(row) for row in query(txn, f"EXPLAIN {sql}", args))
        return query(txn, sql, args)

    monkeypatch.setattr(Transaction, "query", explain)
    return plans

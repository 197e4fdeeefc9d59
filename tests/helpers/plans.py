"""By which indexes a database finds what it is asked for.

plans = note_plans(database, monkeypatch)
…  # reads
assert not [plan for plan in plans if "SCAN" in plan]
"""

from typing import Any

import pytest

from storage.database import Database
from storage.engine import Row
from storage.transaction import Transaction


def note_plans(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on the steps of all that is asked by `query`, in the words of the database."""
    plans: list[str] = []
    query = Transaction.query
    asked = "EXPLAIN QUERY PLAN" if database.engine.name == "sqlite" else "EXPLAIN"

    def explain(txn: Transaction, sql: str, args: Any = ()) -> list[Row]:
        plans.extend(str(row) for row in query(txn, f"{asked} {sql}", args))
        return query(txn, sql, args)

    monkeypatch.setattr(Transaction, "query", explain)
    return plans

"""Pushers, on both databases."""

import pytest

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.push.pushers import PusherStore
from tests.helpers.query_plans import record_plans


async def test_due_pushers_are_found_without_scanning_accounts(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"@{number}:example.org" for number in range(2000)]

    def write(txn: WriteTransaction) -> None:
        txn.execute_many(
            "INSERT INTO accounts (user_id, created_ts, position, locked) VALUES (?, 1, 1, ?)",
            [(name, int(number == 3)) for number, name in enumerate(names)],
        )
        txn.execute_many(
            "INSERT INTO pushers (pusher_nid, position, set_ts, due_ts, enabled, no_counts,"
            " user_id, app_id, pushkey, kind,"
            " app_display_name, device_display_name, lang, gateway, data, last_attempt_ts,"
            " backoff_ms)"
            " VALUES (?, 1, 1, ?, 1, 0, ?, 'app', 'key', 'email', 'App', 'Device', 'en',"
            " '', ?, 0, 0)",
            [(number, number, name, b"{}") for number, name in enumerate(names, 1)],
        )
        for table in ("accounts", "pushers"):
            txn.execute(f"ANALYZE {table}")

    await database.write("put", write)
    plans = record_plans(database, monkeypatch)
    found = await PusherStore(database).get_due(5, 100)
    assert [pusher.user_id for pusher in found] == [
        name for number, name in enumerate(names[:5]) if number != 3
    ]
    assert not [plan for plan in plans if "Seq Scan on accounts" in plan or "SCAN a" in plan], plans

"""Finding devices and browsers by the name of their session at a provider."""

from collections.abc import Sequence
from typing import cast

from storage.accounts.accounts import AccountRow, AccountStore
from storage.engine.database import Database
from storage.engine.interface import Row, SQLValue
from storage.engine.transaction import Transaction
from storage.login.browser_sessions import BrowserSessionStore
from storage.upstream.sessions import UpstreamSessionRow, UpstreamSessionStore

ALICE, BOB = "@alice:example.org", "@bob:example.org"


async def test_devices_are_found_by_prefix(database: Database) -> None:
    store = UpstreamSessionStore(database)
    rows = [
        UpstreamSessionRow(ALICE, "A", "saml", "1", "aa.11.x"),
        UpstreamSessionRow(ALICE, "B", "saml", "1", "aa.22.x"),
        UpstreamSessionRow(BOB, "C", "saml", "2", "ab.11.x"),
        UpstreamSessionRow(BOB, "D", "oidc", "2", "aa.11.x"),
        UpstreamSessionRow(BOB, "E", "saml", "2", None),
    ]
    for row in rows:
        await database.write("t", store.set_upstream_session, row)

    async def find(beginning: str) -> list[str]:
        found = await database.read("t", store.get_sessions_by_prefix, "saml", beginning)
        return sorted(row.device_id for row in found)

    assert await find("aa.") == ["A", "B"]
    assert await find("aa.11.") == ["A"]
    assert await find("ab.") == ["C"]
    assert await find("a.") == []


async def test_browsers_are_found_by_prefix(database: Database) -> None:
    accounts, store = AccountStore(database), BrowserSessionStore(database)
    origins = [
        (ALICE, '{"provider":"saml","subject":"1","session":"aa.11.x"}'),
        (BOB, '{"provider":"saml","subject":"aa.11.x","session":"bb.11.x"}'),
        (BOB, None),
    ]
    for user_id in (ALICE, BOB):
        await database.write("t", accounts.add_account, AccountRow(user_id, None, 1))
    for number, (user_id, origin) in enumerate(origins):
        await database.write("t", store.add_browser_session, bytes([number]), user_id, 1, 2, origin)
    for beginning, found in (
        ("aa.", origins[:1]),
        ("aa.11.", origins[:1]),
        ("bb.", origins[1:2]),
        ("cc.", []),
        ("a.", []),
    ):
        got = await database.read("t", store.get_browsers_by_session_prefix, beginning)
        assert [(user_id, origin) for _, user_id, origin in got] == found


async def test_the_browsers_of_a_session_are_found(database: Database) -> None:
    accounts, store = AccountStore(database), BrowserSessionStore(database)
    origins = [
        '{"provider":"x","subject":"1","session":"s"}',
        '{"provider":"y","subject":"2","session":"s"}',
        None,
    ]
    await database.write("t", accounts.add_account, AccountRow(ALICE, None, 1))
    for number, origin in enumerate([*origins, '{"provider":"x","subject":"1","session":"s2"}']):
        await database.write("t", store.add_browser_session, bytes([number]), ALICE, 1, 2, origin)
    found = await database.read("t", store.get_browsers_of_session, "s")
    assert sorted(found) == [(b"\0", ALICE, origins[0]), (b"\1", ALICE, origins[1])]
    assert await database.read("t", store.get_browsers_of_session, "t") == []


async def test_lookups_use_an_index(sqlite_database: Database) -> None:
    """Finding the devices and browsers of a logout uses an index."""

    def plans(txn: Transaction) -> str:
        asked: list[str] = []

        class Asked:
            def query(self, sql: str, args: Sequence[SQLValue]) -> list[Row]:
                asked.extend(str(row) for row in txn.query(f"EXPLAIN QUERY PLAN {sql}", args))
                return []

        transaction = cast(Transaction, Asked())
        BrowserSessionStore(sqlite_database).get_browsers_by_session_prefix(transaction, "aa.")
        BrowserSessionStore(sqlite_database).get_browsers_of_session(transaction, "aa")
        UpstreamSessionStore(sqlite_database).get_sessions_by_prefix(transaction, "saml", "aa.")
        return "\n".join(asked)

    plan = await sqlite_database.read("t", plans)
    assert "SCAN" not in plan
    assert (
        "browser_sessions_by_upstream_session (upstream_session_id>? AND upstream_session_id<?)"
        in plan
    )
    assert "browser_sessions_by_upstream_session (upstream_session_id=?)" in plan
    assert "upstream_sessions_by_session (provider=? AND session_id>? AND session_id<?)" in plan

"""Refresh of tokens: lost responses, concurrent tabs, and stolen refresh tokens.

spec: client-server-api#refreshing-access-tokens, client-server-api#soft-logout
"""

from pathlib import Path
from typing import Any

import pytest

from federation.peers.token_buckets import Rate
from homeserver.api.limits import Limit
from homeserver.services.login.sessions import TokenLifetimes
from homeserver.services.tokens.secret_tokens import hash_token
from storage.accounts.audit import AuditStore
from storage.engine.database import Database, PostgresConfig, SQLiteConfig
from storage.engine.transaction import Transaction, WriteTransaction
from storage.login.access_tokens import GRACE_MS, MAX_UNUSED_PAIRS, MAX_USED_PAIRS, RACE_MS
from tests.helpers.accounts import AccountsServer
from tests.helpers.databases import open_inline
from tests.helpers.http import Answer
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User

BRIEF = TokenLifetimes(refreshable_access_token=600_000, refresh_token=3600 * 1000)


@pytest.fixture
def server(database: Database) -> AccountsServer:
    server = AccountsServer(database, lifetimes=BRIEF)
    server.register("alice", device_id="DESK")
    return server


def begin(server: AccountsServer) -> Any:
    return server.login(refresh_token=True, device_id="PHONE").json


def refresh(server: AccountsServer, tokens: Any, ip: str = "10.0.0.1") -> Answer:
    return server.request("POST", "refresh", {"refresh_token": tokens["refresh_token"]}, ip=ip)


def use(server: AccountsServer, tokens: Any) -> Answer:
    return server.request("GET", "account/whoami", token=tokens["access_token"])


def works(server: AccountsServer, tokens: Any) -> bool:
    return use(server, tokens).status == 200


def is_refused_with_soft_logout(answer: Answer) -> bool:
    return (answer.status, answer.errcode, answer.json.get("soft_logout")) == (
        401,
        "M_UNKNOWN_TOKEN",
        True,
    )


async def events(server: AccountsServer) -> list[tuple[str, str | None, str | None]]:
    records = await AuditStore(server.database).get_records("@alice:example.org", 100)
    return [(record.event, record.address, record.device_id) for record in records]


def has_device(server: AccountsServer) -> bool:
    desk = server.login(device_id="DESK").json
    return server.request("GET", "devices/PHONE", token=desk["access_token"]).status == 200


@pytest.mark.parametrize("uses", ["access_token", "refresh_token"])
def test_the_old_pair_is_valid_until_a_new_token_is_used(server: AccountsServer, uses: str) -> None:
    first = begin(server)
    for _ in range(3):  # the responses are lost
        second = refresh(server, first).json
        assert works(server, first)
    if uses == "access_token":
        assert works(server, second)
    else:
        assert refresh(server, second).status == 200
    assert is_refused_with_soft_logout(use(server, first))
    assert is_refused_with_soft_logout(refresh(server, first))
    assert has_device(server)


async def test_two_tabs_that_refresh_concurrently_both_continue(server: AccountsServer) -> None:
    first = begin(server)
    one, two = refresh(server, first).json, refresh(server, first).json
    assert works(server, one)
    assert works(server, two)
    for _ in range(3):
        server.clock.advance(601)
        assert is_refused_with_soft_logout(use(server, one))
        one, two = refresh(server, one).json, refresh(server, two).json
        assert (works(server, two), works(server, one)) == (True, True)
    assert "token_reused" not in [event for event, _, _ in await events(server)]


async def test_tabs_can_refresh_on_different_nodes(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    here, there = (AccountsServer(open_inline(database_config), lifetimes=BRIEF) for _ in range(2))
    for _ in range(100):
        there.secret_text.access_token()  # test nodes generate the same sequence of tokens
    here.register("alice", device_id="DESK")
    first = begin(here)
    await there.database.catch_up()
    assert works(here, first)
    assert works(there, first)
    one, two = refresh(here, first).json, refresh(there, first).json
    assert works(there, one)
    assert works(here, two)
    for node in (here, there):
        await node.database.catch_up()
        assert works(node, one)
        assert works(node, two)
        assert is_refused_with_soft_logout(use(node, first))
        assert is_refused_with_soft_logout(refresh(node, first))
    for node in (here, there):
        node.clock.advance(GRACE_MS / 1000 + 1)
    assert is_refused_with_soft_logout(refresh(there, first))
    for node in (here, there):
        await node.database.catch_up()
        assert is_refused_with_soft_logout(use(node, one))
        assert is_refused_with_soft_logout(refresh(node, two))


async def test_a_late_refresh_within_the_grace_period_ends_nothing(server: AccountsServer) -> None:
    first = begin(server)
    second = refresh(server, first).json
    assert works(server, second)
    server.clock.advance(GRACE_MS / 1000 - 1)
    assert is_refused_with_soft_logout(refresh(server, first))
    assert works(server, second)
    assert refresh(server, second).status == 200
    assert has_device(server)
    assert "token_reused" not in [event for event, _, _ in await events(server)]


async def test_an_unused_competing_pair_is_not_a_theft(server: AccountsServer) -> None:
    first = begin(server)
    unused, second = refresh(server, first).json, refresh(server, first).json
    assert works(server, second)
    server.clock.advance(GRACE_MS / 1000 + 1)
    for _ in range(3):
        assert is_refused_with_soft_logout(use(server, unused))
        assert is_refused_with_soft_logout(refresh(server, unused))
        second = refresh(server, second).json
        assert works(server, second)
        server.clock.advance(301)
    assert "token_reused" not in [event for event, _, _ in await events(server)]


def test_a_retired_pair_is_refused(server: AccountsServer) -> None:
    first = begin(server)
    retired = refresh(server, first).json
    server.clock.advance(RACE_MS / 1000 + 1)
    second = refresh(server, first).json
    assert works(server, second)
    assert is_refused_with_soft_logout(use(server, retired))
    assert is_refused_with_soft_logout(refresh(server, retired))
    assert works(server, second)


@pytest.mark.parametrize("uses", ["access_token", "refresh_token"])
async def test_a_reused_refresh_token_ends_the_session_but_keeps_the_device(
    server: AccountsServer, uses: str
) -> None:
    first = begin(server)
    second = refresh(server, first).json
    if uses == "refresh_token":
        second = refresh(server, second).json
    assert works(server, second)
    server.clock.advance(GRACE_MS / 1000 + 1)
    assert is_refused_with_soft_logout(refresh(server, first, ip="10.0.0.66"))
    assert is_refused_with_soft_logout(use(server, second))
    assert is_refused_with_soft_logout(refresh(server, second))
    assert is_refused_with_soft_logout(refresh(server, first, ip="10.0.0.66"))
    found = await events(server)
    assert found[0] == ("token_reused", "10.0.0.66", "PHONE")
    assert [event for event, _, _ in found].count("token_reused") == 1
    assert has_device(server)
    assert works(server, begin(server))  # the owner of the password continues with the device
    assert [event for event, _, _ in await events(server)].count("session_ended") == 0


async def test_a_thief_cannot_hide_by_refreshing_twice(server: AccountsServer) -> None:
    """The thief refreshes before the owner, and refreshes the new token at once."""
    first = begin(server)
    stolen = refresh(server, first, ip="10.0.0.66").json
    assert works(server, stolen)
    refreshed_again = refresh(server, stolen, ip="10.0.0.66").json
    server.clock.advance(GRACE_MS / 1000 + 1)
    assert is_refused_with_soft_logout(refresh(server, first))
    assert (await events(server))[0] == ("token_reused", "10.0.0.1", "PHONE")
    for tokens in (stolen, refreshed_again):
        assert is_refused_with_soft_logout(use(server, tokens))
        assert is_refused_with_soft_logout(refresh(server, tokens))
    assert has_device(server)


async def test_only_the_newest_unused_pairs_stay_valid(server: AccountsServer) -> None:
    first = begin(server)
    tabs = [refresh(server, first).json for _ in range(MAX_UNUSED_PAIRS + 3)]
    assert all(is_refused_with_soft_logout(use(server, tokens)) for tokens in tabs[:3])
    assert all(works(server, tokens) for tokens in tabs[3:])
    server.clock.advance(GRACE_MS / 1000 + 1)
    assert all(is_refused_with_soft_logout(refresh(server, tokens)) for tokens in tabs[:3])
    assert all(refresh(server, tokens).status == 200 for tokens in tabs[-MAX_USED_PAIRS:])
    assert "token_reused" not in [event for event, _, _ in await events(server)]


async def test_the_number_of_parallel_pairs_is_bounded(server: AccountsServer) -> None:
    tokens = begin(server)
    abandoned = []
    for _ in range(2 * MAX_USED_PAIRS):
        one, two = refresh(server, tokens).json, refresh(server, tokens).json
        assert works(server, two)
        assert works(server, one)
        abandoned.append(two)
        tokens = one
        server.clock.advance(301)
    refreshed = [refresh(server, each).status == 200 for each in abandoned]
    assert refreshed == [False] * (MAX_USED_PAIRS + 1) + [True] * (MAX_USED_PAIRS - 1)
    assert refresh(server, tokens).status == 200
    assert "token_reused" not in [event for event, _, _ in await events(server)]


def test_a_refresh_token_of_a_replaced_session_ends_nothing(server: AccountsServer) -> None:
    first = begin(server)
    assert works(server, refresh(server, first).json)
    second_session = begin(server)
    server.clock.advance(GRACE_MS / 1000 + 1)
    unknown = refresh(server, first)
    assert (unknown.status, "soft_logout" in unknown.json) == (401, False)
    assert refresh(server, {"refresh_token": "mhr_" + "a" * 54}).status == 401
    assert works(server, second_session)


async def test_an_imported_refresh_token_without_family_can_be_refreshed(
    server: AccountsServer,
) -> None:
    alice = server.register("bob", device_id="OLD")

    def write(txn: WriteTransaction) -> None:
        server.token_store.add_refresh_token(
            txn,
            hash_token("syr_imported"),
            alice.id,
            "OLD",
            now=0,
            expires_ts=None,
            session_expires_ts=None,
        )

    await server.database.write("import", write)
    imported = {"refresh_token": "syr_imported"}
    refreshed = refresh(server, imported).json
    assert works(server, refreshed)
    server.clock.advance(GRACE_MS / 1000 + 1)
    assert refresh(server, imported).status == 401  # without a family its session is unknown
    assert works(server, refreshed)
    latest = refresh(server, refreshed).json
    assert works(server, latest)
    server.clock.advance(GRACE_MS / 1000 + 1)
    assert is_refused_with_soft_logout(refresh(server, refreshed))
    assert is_refused_with_soft_logout(use(server, latest))


async def test_stored_tokens_of_a_session_are_bounded(server: AccountsServer) -> None:
    tokens = begin(server)
    for _ in range(8):
        pairs = [refresh(server, tokens).json for _ in range(2 * MAX_UNUSED_PAIRS)]
        assert all(refresh(server, tokens).status == 200 for _ in range(3))
        tokens = refresh(server, tokens).json
        assert pairs
        assert works(server, tokens)
        server.clock.advance(GRACE_MS / 1000 + 1)

    def count(txn: Transaction) -> list[int]:
        tables = ("refresh_tokens", "access_tokens")
        return [
            txn.query(f"SELECT COUNT(*) FROM {table} WHERE device_id = 'PHONE'", ())[0][0]
            for table in tables
        ]

    counts = await server.database.read("count", count)
    assert all(found <= 30 for found in counts), counts
    assert works(server, tokens)


def test_refreshes_are_rate_limited(sqlite_database: Database) -> None:
    rates = {Limit.REFRESH: Rate(0.01, 8), Limit.REFRESH_ACCOUNT: Rate(0.01, 3)}
    server = AccountsServer(sqlite_database, rates=rates)
    server.register("alice")
    first = tokens = begin(server)
    for _ in range(3):
        tokens = refresh(server, tokens).json
    assert works(server, tokens)
    refused = refresh(server, tokens)
    assert (refused.status, refused.errcode) == (429, "M_LIMIT_EXCEEDED")
    assert refresh(server, first).status == 401  # a spent token counts against another limit
    server.clock.advance(100)
    assert refresh(server, tokens).status == 200  # the refused refresh changed nothing
    statuses = [
        refresh(server, {"refresh_token": f"guess{number}"}, ip="10.0.0.66").status
        for number in range(9)
    ]
    assert statuses == [401] * 8 + [429]


def test_pushers_of_a_stolen_session_are_deleted(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database)
    server.register("alice")
    body = {**password_auth("alice"), "device_id": "PHONE", "refresh_token": True}
    tokens = server.post("/_matrix/client/v3/login", body).json
    refreshed = server.post(
        "/_matrix/client/v3/refresh", {"refresh_token": tokens["refresh_token"]}
    ).json
    thief = User(server, {**tokens, **refreshed})
    pusher = {
        "kind": "http",
        "app_id": "org.example",
        "pushkey": "key",
        "app_display_name": "App",
        "device_display_name": "Phone",
        "lang": "en",
        "data": {"url": "https://push.example/_matrix/push/v1/notify"},
    }
    assert thief.post("/_matrix/client/v3/pushers/set", pusher).status == 200
    server.clock.advance(GRACE_MS / 1000 + 1)
    assert (
        server.post("/_matrix/client/v3/refresh", {"refresh_token": tokens["refresh_token"]}).status
        == 401
    )
    alice = User(server, server.post("/_matrix/client/v3/login", body).json)
    assert alice.get("/_matrix/client/v3/pushers").json == {"pushers": []}

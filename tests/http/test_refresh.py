"""Renewing the tokens of a session with `/refresh`: what answers that got lost, tabs that ask at
once, and thieves get.

spec: client-server-api#refreshing-access-tokens, client-server-api#soft-logout
"""

from pathlib import Path
from typing import Any

import pytest

from federation.peers.token_buckets import Rate
from homeserver.api.limits import Limit
from homeserver.services.login.sessions import Lifetimes
from homeserver.services.tokens.secret_tokens import hash_token
from storage.accounts.audit import AuditStore
from storage.engine.database import Database, PostgresConfig, SQLiteConfig
from storage.engine.transaction import Transaction, WriteTransaction
from storage.login.access_tokens import GRACE_MS, MOST_BRANCHES, MOST_EXCHANGES, SAME_MOMENT_MS
from tests.helpers.accounts import AccountsServer
from tests.helpers.databases import open_inline
from tests.helpers.http import Answer
from tests.helpers.server import TestServer, User

BRIEF = Lifetimes(refreshable_access_token=600_000, refresh_token=3600 * 1000)


@pytest.fixture
def server(database: Database) -> AccountsServer:
    made = AccountsServer(database, lifetimes=BRIEF)
    made.register("alice", device_id="DESK")
    return made


def begin(server: AccountsServer) -> Any:
    return server.login(refresh_token=True, device_id="PHONE").json


def refresh(server: AccountsServer, tokens: Any, ip: str = "10.0.0.1") -> Answer:
    return server.request("POST", "refresh", {"refresh_token": tokens["refresh_token"]}, ip=ip)


def use(server: AccountsServer, tokens: Any) -> Answer:
    return server.request("GET", "account/whoami", token=tokens["access_token"])


def works(server: AccountsServer, tokens: Any) -> bool:
    return use(server, tokens).status == 200


def is_softly_refused(answer: Answer) -> bool:
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
def test_the_old_token_is_good_until_a_new_one_is_used(server: AccountsServer, uses: str) -> None:
    first = begin(server)
    for _ in range(3):  # the answers get lost
        second = refresh(server, first).json
        assert works(server, first)
    if uses == "access_token":
        assert works(server, second)
    else:
        assert refresh(server, second).status == 200
    assert is_softly_refused(use(server, first))
    assert is_softly_refused(refresh(server, first))
    assert has_device(server)


async def test_two_tabs_that_refresh_at_once_both_go_on(server: AccountsServer) -> None:
    first = begin(server)
    one, two = refresh(server, first).json, refresh(server, first).json
    assert works(server, one)
    assert works(server, two)
    for _ in range(3):
        server.clock.advance(601)
        assert is_softly_refused(use(server, one))
        one, two = refresh(server, one).json, refresh(server, two).json
        assert (works(server, two), works(server, one)) == (True, True)
    assert "token_reused" not in [event for event, _, _ in await events(server)]


async def test_tabs_at_two_nodes(database_config: SQLiteConfig | PostgresConfig) -> None:
    here, there = (AccountsServer(open_inline(database_config), lifetimes=BRIEF) for _ in range(2))
    for _ in range(100):
        there.secret_text.access_token()  # nodes of tests make the same texts one after the other
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
        assert is_softly_refused(use(node, first))
        assert is_softly_refused(refresh(node, first))
    for node in (here, there):
        node.clock.advance(GRACE_MS / 1000 + 1)
    assert is_softly_refused(refresh(there, first))
    for node in (here, there):
        await node.database.catch_up()
        assert is_softly_refused(use(node, one))
        assert is_softly_refused(refresh(node, two))


async def test_a_tab_that_comes_a_moment_too_late_ends_nothing(server: AccountsServer) -> None:
    first = begin(server)
    second = refresh(server, first).json
    assert works(server, second)
    server.clock.advance(GRACE_MS / 1000 - 1)
    assert is_softly_refused(refresh(server, first))
    assert works(server, second)
    assert refresh(server, second).status == 200
    assert has_device(server)
    assert "token_reused" not in [event for event, _, _ in await events(server)]


async def test_a_pair_instead_of_which_another_was_used_is_no_theft(server: AccountsServer) -> None:
    first = begin(server)
    asleep, second = refresh(server, first).json, refresh(server, first).json
    assert works(server, second)
    server.clock.advance(GRACE_MS / 1000 + 1)
    for _ in range(3):
        assert is_softly_refused(use(server, asleep))
        assert is_softly_refused(refresh(server, asleep))
        second = refresh(server, second).json
        assert works(server, second)
        server.clock.advance(301)
    assert "token_reused" not in [event for event, _, _ in await events(server)]


def test_a_pair_that_was_put_by_is_good_no_more(server: AccountsServer) -> None:
    first = begin(server)
    put_by = refresh(server, first).json
    server.clock.advance(SAME_MOMENT_MS / 1000 + 1)
    second = refresh(server, first).json
    assert works(server, second)
    assert is_softly_refused(use(server, put_by))
    assert is_softly_refused(refresh(server, put_by))
    assert works(server, second)


@pytest.mark.parametrize("uses", ["access_token", "refresh_token"])
async def test_a_token_that_was_stolen_ends_the_session_and_not_the_device(
    server: AccountsServer, uses: str
) -> None:
    first = begin(server)
    second = refresh(server, first).json
    if uses == "refresh_token":
        second = refresh(server, second).json
    assert works(server, second)
    server.clock.advance(GRACE_MS / 1000 + 1)
    assert is_softly_refused(refresh(server, first, ip="10.0.0.66"))
    assert is_softly_refused(use(server, second))
    assert is_softly_refused(refresh(server, second))
    assert is_softly_refused(refresh(server, first, ip="10.0.0.66"))
    found = await events(server)
    assert found[0] == ("token_reused", "10.0.0.66", "PHONE")
    assert [event for event, _, _ in found].count("token_reused") == 1
    assert has_device(server)
    assert works(server, begin(server))  # whoever has the password goes on with the device
    assert [event for event, _, _ in await events(server)].count("session_ended") == 0


async def test_a_thief_hides_behind_no_exchange_of_his(server: AccountsServer) -> None:
    """He has renewed before the owner, and at once renewed what he was given."""
    first = begin(server)
    stolen = refresh(server, first, ip="10.0.0.66").json
    assert works(server, stolen)
    hidden = refresh(server, stolen, ip="10.0.0.66").json
    server.clock.advance(GRACE_MS / 1000 + 1)
    assert is_softly_refused(refresh(server, first))
    assert (await events(server))[0] == ("token_reused", "10.0.0.1", "PHONE")
    for tokens in (stolen, hidden):
        assert is_softly_refused(use(server, tokens))
        assert is_softly_refused(refresh(server, tokens))
    assert has_device(server)


async def test_more_tabs_than_are_remembered(server: AccountsServer) -> None:
    first = begin(server)
    tabs = [refresh(server, first).json for _ in range(MOST_EXCHANGES + 3)]
    assert all(is_softly_refused(use(server, tokens)) for tokens in tabs[:3])
    assert all(works(server, tokens) for tokens in tabs[3:])
    server.clock.advance(GRACE_MS / 1000 + 1)
    assert all(is_softly_refused(refresh(server, tokens)) for tokens in tabs[:3])
    assert all(refresh(server, tokens).status == 200 for tokens in tabs[-MOST_BRANCHES:])
    assert "token_reused" not in [event for event, _, _ in await events(server)]


async def test_a_pair_that_a_tab_left_lying_is_not_good_for_ever(server: AccountsServer) -> None:
    tokens = begin(server)
    left = []
    for _ in range(2 * MOST_BRANCHES):
        one, two = refresh(server, tokens).json, refresh(server, tokens).json
        assert works(server, two)
        assert works(server, one)
        left.append(two)
        tokens = one
        server.clock.advance(301)
    good = [refresh(server, each).status == 200 for each in left]
    assert good == [False] * (MOST_BRANCHES + 1) + [True] * (MOST_BRANCHES - 1)
    assert refresh(server, tokens).status == 200
    assert "token_reused" not in [event for event, _, _ in await events(server)]


def test_a_refresh_token_of_another_session_ends_nothing(server: AccountsServer) -> None:
    first = begin(server)
    assert works(server, refresh(server, first).json)
    anew = begin(server)
    server.clock.advance(GRACE_MS / 1000 + 1)
    unknown = refresh(server, first)
    assert (unknown.status, "soft_logout" in unknown.json) == (401, False)
    assert refresh(server, {"refresh_token": "mhr_" + "a" * 54}).status == 401
    assert works(server, anew)


async def test_a_refresh_token_of_before_there_were_families(server: AccountsServer) -> None:
    alice = server.register("bob", device_id="OLD")

    def write(txn: WriteTransaction) -> None:
        server.token_store.add_refresh_token(
            txn,
            hash_token("syr_imported"),
            alice.id,
            "OLD",
            now=0,
            expires_ts=None,
            ultimate_expires_ts=None,
        )

    await server.database.write("import", write)
    imported = {"refresh_token": "syr_imported"}
    renewed = refresh(server, imported).json
    assert works(server, renewed)
    server.clock.advance(GRACE_MS / 1000 + 1)
    assert refresh(server, imported).status == 401  # whose it was is not known any more
    assert works(server, renewed)
    again = refresh(server, renewed).json
    assert works(server, again)
    server.clock.advance(GRACE_MS / 1000 + 1)
    assert is_softly_refused(refresh(server, renewed))
    assert is_softly_refused(use(server, again))


async def test_what_is_kept_of_a_session_is_bounded(server: AccountsServer) -> None:
    tokens = begin(server)
    for _ in range(8):
        pairs = [refresh(server, tokens).json for _ in range(2 * MOST_EXCHANGES)]
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


def test_renewals_are_counted(sqlite_database: Database) -> None:
    rates = {Limit.REFRESH: Rate(0.01, 8), Limit.REFRESH_ACCOUNT: Rate(0.01, 3)}
    server = AccountsServer(sqlite_database, rates=rates)
    server.register("alice")
    first = tokens = begin(server)
    for _ in range(3):
        tokens = refresh(server, tokens).json
    assert works(server, tokens)
    refused = refresh(server, tokens)
    assert (refused.status, refused.errcode) == (429, "M_LIMIT_EXCEEDED")
    assert refresh(server, first).status == 401  # a token that is spent has another bucket
    server.clock.advance(100)
    assert refresh(server, tokens).status == 200  # what was refused has changed nothing
    statuses = [
        refresh(server, {"refresh_token": f"guess{number}"}, ip="10.0.0.66").status
        for number in range(9)
    ]
    assert statuses == [401] * 8 + [429]


def test_a_thief_is_told_of_no_messages_any_more(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database)
    server.register("alice")
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "alice"},
        "password": "wonderland",
        "device_id": "PHONE",
        "refresh_token": True,
    }
    tokens = server.post("/_matrix/client/v3/login", body).json
    renewed = server.post(
        "/_matrix/client/v3/refresh", {"refresh_token": tokens["refresh_token"]}
    ).json
    thief = User(server, {**tokens, **renewed})
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

"""Tokens of sessions, and what of them an older database had."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.accounts.accounts import AccountRow, AccountStore
from storage.engine.database import PostgresConfig, SQLiteConfig, make_engine
from storage.engine.migrate import migrate
from storage.engine.transaction import WriteTransaction
from storage.login.access_tokens import PairUse, TokenStore
from storage.login.login_tokens import LoginTokenRow, LoginTokenStore
from tests.helpers.databases import PostgresTemplates, older_database, open_inline

ALICE, PHONE = "@alice:example.org", "PHONE"
BEFORE_EXCHANGES = 97
"""The last schema in which a refresh token had one that was next."""


@pytest.fixture(params=["sqlite", "postgresql"])
def older(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_templates: PostgresTemplates
) -> Iterator[SQLiteConfig | PostgresConfig]:
    with older_database(request.param, tmp_path, postgres_templates, BEFORE_EXCHANGES) as config:
        yield config


async def test_what_was_under_way_goes_on(older: SQLiteConfig | PostgresConfig) -> None:
    engine = make_engine(older)
    connection = engine.connect_writer()
    connection.begin_write()
    connection.execute(
        "INSERT INTO accounts (user_id, created_ts, position, era) VALUES (?, 1, 1, 7)", (ALICE,)
    )
    for nid, next_nid in (
        (1, None),
        (2, 3),
        (3, None),
    ):  # the second was exchanged, for one that is not used yet
        connection.execute(
            "INSERT INTO refresh_tokens (token_hash, refresh_nid, user_id, device_id, created_ts, next_nid)"
            " VALUES (?, ?, ?, ?, 1, ?)",
            (bytes([nid]), nid, ALICE, PHONE if nid > 1 else "OTHER", next_nid),
        )
    connection.execute(
        "INSERT INTO login_tokens (token_hash, user_id, expires_ts) VALUES (?, ?, 100)",
        (b"t", ALICE),
    )
    connection.commit({"token": 3})
    connection.close()
    migrate(engine)
    database = open_inline(older)
    tokens = TokenStore(database)

    def use(txn: WriteTransaction) -> list[object]:
        return [
            tokens.set_pair_used(txn, 1, ALICE, "OTHER", 5),
            tokens.set_pair_used(txn, 3, ALICE, PHONE, 5),
            tokens.get_refresh_token(txn, b"\2"),
            tokens.is_just_spent(txn, b"\2", 6),
            tokens.set_pair_used(txn, 3, ALICE, PHONE, 7),
        ]

    assert await database.write("use", use) == [
        PairUse.AGAIN,
        PairUse.FIRST,
        None,
        True,
        PairUse.AGAIN,
    ]
    assert await LoginTokenStore(database).take_login_token(b"t", 50) == LoginTokenRow(
        ALICE, None, 7
    )
    await database.close()


async def test_a_login_token_keeps_the_era_in_which_it_was_given(
    older: SQLiteConfig | PostgresConfig,
) -> None:
    migrate(make_engine(older))
    database = open_inline(older)
    accounts, tokens = AccountStore(database), LoginTokenStore(database)

    def write(txn: WriteTransaction) -> None:
        accounts.add_account(txn, AccountRow(ALICE, None, 1))
        accounts.begin_era(txn, ALICE)
        tokens.add_login_token(txn, b"t", ALICE, 100)
        accounts.begin_era(txn, ALICE)

    await database.write("add", write)
    assert await tokens.take_login_token(b"t", 50) == LoginTokenRow(ALICE, None, 1)
    assert await tokens.take_login_token(b"t", 50) is None
    await database.close()

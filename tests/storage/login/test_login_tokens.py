"""Login tokens and the credential epoch of their account."""

from storage.accounts.accounts import AccountRow, AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.login_tokens import LoginTokenRow, LoginTokenStore

ALICE = "@alice:example.org"


async def test_a_login_token_keeps_the_epoch_in_which_it_was_issued(database: Database) -> None:
    accounts, tokens = AccountStore(database), LoginTokenStore(database)

    def write(txn: WriteTransaction) -> None:
        accounts.add_account(txn, AccountRow(ALICE, None, 1))
        accounts.advance_epoch(txn, ALICE)
        tokens.add_login_token(txn, b"t", ALICE, 100)
        accounts.advance_epoch(txn, ALICE)

    await database.write("add", write)
    assert await tokens.take_login_token(b"t", 50) == LoginTokenRow(ALICE, None, 1)
    assert await tokens.take_login_token(b"t", 50) is None

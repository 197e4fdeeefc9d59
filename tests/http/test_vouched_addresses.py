"""E-mail addresses that identity providers say are somebody's."""

from pathlib import Path

import pytest

from federation.protocol.ids import UserID
from storage.database import Database
from storage.threepids import ThreepidRow, ThreepidStore
from tests.helpers.server import TestServer, User

OFFICE, CLUB = "oidc-office", "oidc-club"
WORK, HOME = "alice@work.example", "alice@home.example"


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database)


@pytest.fixture
def alice(server: TestServer) -> User:
    return server.register("alice")


def vouch(user: User, provider: str, *addresses: str) -> list[str]:
    """A provider says so, as at a sign-in; the user's addresses then."""
    threepids = user.server.app.people.threepids
    user.server.run(threepids.do_set_vouched(UserID(user.user_id), addresses, provider))
    return sorted(each["address"] for each in user.get("/_matrix/client/v3/account/3pid").json["threepids"])


def test_an_address_stays_as_long_as_anybody_vouches_for_it(alice: User) -> None:
    assert vouch(alice, OFFICE, WORK) == [WORK]
    assert vouch(alice, CLUB, WORK, HOME) == [HOME, WORK]
    assert vouch(alice, OFFICE, HOME) == [HOME, WORK], "the club says so still"
    assert vouch(alice, CLUB, HOME) == [HOME], "nobody does any more"
    assert vouch(alice, CLUB, WORK) == [HOME, WORK], "the office says so of the other"
    assert vouch(alice, OFFICE, WORK) == [WORK]


def test_what_somebody_has_confirmed_is_no_providers_to_take_away(alice: User, database: Database) -> None:
    vouch(alice, OFFICE, WORK)
    store = ThreepidStore(database)
    alice.server.run(database.write("t", store.add_threepid, ThreepidRow("email", WORK, alice.user_id, 1, 1)))
    assert vouch(alice, CLUB, WORK) == [WORK]
    assert vouch(alice, OFFICE, HOME) == [HOME, WORK]
    assert vouch(alice, CLUB, HOME) == [HOME, WORK]


@pytest.mark.parametrize("ends_by", ["removal", "deactivation"])
def test_nothing_of_it_is_left_for_who_has_the_address_next(server: TestServer, alice: User, ends_by: str) -> None:
    vouch(alice, OFFICE, WORK)
    if ends_by == "removal":
        assert alice.post("/_matrix/client/v3/account/3pid/delete", {"medium": "email", "address": WORK}).status == 200
    else:
        server.run(server.app.people.deactivation.do_deactivate(UserID(alice.user_id), erase=False))
    bob = server.register("bob")
    assert vouch(bob, CLUB, WORK) == [WORK]
    assert vouch(bob, CLUB, HOME) == [HOME]


def test_a_sign_in_that_changes_nothing_writes_nothing(server: TestServer, alice: User, database: Database) -> None:
    """Also where an address is another's, or one too many."""
    vouch(alice, OFFICE, WORK)
    bob = server.register("bob")
    many = [f"bob{number}@home.example" for number in range(30)]
    before = vouch(bob, OFFICE, WORK, *many)
    assert WORK not in before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "write", None)
        assert vouch(bob, OFFICE, WORK, *many) == before
        assert vouch(alice, OFFICE, WORK) == [WORK]

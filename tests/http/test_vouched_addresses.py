"""E-mail addresses that identity providers say are somebody's."""

from pathlib import Path

import pytest

from federation.protocol.ids import UserID
from homeserver.services.accounts.provider_emails import compute_plans
from storage.engine.database import Database
from storage.threepids.threepids import ThreepidRow, ThreepidStore
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
    user.server.run(threepids.do_set_vouched({UserID(user.user_id): addresses}, provider))
    return sorted(
        each["address"] for each in user.get("/_matrix/client/v3/account/3pid").json["threepids"]
    )


def test_an_address_stays_as_long_as_anybody_vouches_for_it(alice: User) -> None:
    assert vouch(alice, OFFICE, WORK) == [WORK]
    assert vouch(alice, CLUB, WORK, HOME) == [HOME, WORK]
    assert vouch(alice, OFFICE, HOME) == [HOME, WORK], "the club says so still"
    assert vouch(alice, CLUB, HOME) == [HOME], "nobody does any more"
    assert vouch(alice, CLUB, WORK) == [HOME, WORK], "the office says so of the other"
    assert vouch(alice, OFFICE, WORK) == [WORK]


def test_what_somebody_has_confirmed_is_no_providers_to_take_away(
    alice: User, database: Database
) -> None:
    vouch(alice, OFFICE, WORK)
    store = ThreepidStore(database)
    alice.server.run(
        database.write("t", store.add_threepid, ThreepidRow("email", WORK, alice.user_id, 1, 1))
    )
    assert vouch(alice, CLUB, WORK) == [WORK]
    assert vouch(alice, OFFICE, HOME) == [HOME, WORK]
    assert vouch(alice, CLUB, HOME) == [HOME, WORK]


@pytest.mark.parametrize("ends_by", ["removal", "deactivation"])
def test_nothing_of_it_is_left_for_who_has_the_address_next(
    server: TestServer, alice: User, ends_by: str
) -> None:
    vouch(alice, OFFICE, WORK)
    if ends_by == "removal":
        assert (
            alice.post(
                "/_matrix/client/v3/account/3pid/delete", {"medium": "email", "address": WORK}
            ).status
            == 200
        )
    else:
        server.run(server.app.people.deactivation.do_deactivate(UserID(alice.user_id), erase=False))
    bob = server.register("bob")
    assert vouch(bob, CLUB, WORK) == [WORK]
    assert vouch(bob, CLUB, HOME) == [HOME]


def test_a_sign_in_that_changes_nothing_writes_nothing(
    server: TestServer, alice: User, database: Database
) -> None:
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


def test_people_make_room_for_one_another(server: TestServer, alice: User) -> None:
    """Whose addresses a provider says at once: two who swap, and a ring, but nobody is left
    without."""
    threepids = server.app.people.threepids
    people = [
        alice,
        *(server.register(name) for name in ("bob", "carol", "dora", "ernest", "outsider")),
    ]

    def say(*addresses: str) -> list[str]:
        said = {
            UserID(user.user_id): (f"{each}@x.example",)
            for user, each in zip(people, addresses, strict=False)
        }
        refused = server.run(threepids.do_set_vouched(said, OFFICE))
        return sorted(user_id[1] for user_id in refused)

    def have() -> list[str]:
        return [
            "".join(
                each["address"][0]
                for each in user.get("/_matrix/client/v3/account/3pid").json["threepids"]
            )
            for user in people
        ]

    vouch(people[5], CLUB, "f@x.example")
    assert say(*"abcde") == []
    assert say(*"badec") == []
    assert have() == [*"badecf"]
    # in a row behind somebody who cannot have what is another's: nobody moves, and nobody is
    # without
    assert say(*"fbade") == [*"abcde"]
    assert have() == [*"badecf"]
    # and where it goes on to one that is free, all do
    assert say(*"zbade") == []
    assert have() == [*"zbadef"]
    # two want one: who gives something up gets it, before who only wants more
    threes = {
        UserID(user.user_id): each
        for user, each in zip(people[:2], (("b@x.example",), ("z@x.example",)), strict=True)
    }
    wants = {UserID(people[5].user_id): ("f@x.example", "z@x.example")}
    assert server.run(threepids.do_set_vouched({**wants, **threes}, OFFICE)) == {people[5].user_id}
    assert have() == [*"bzadef"]


def test_a_long_row_is_planned_in_no_time() -> None:
    many = 3000
    users = [UserID(f"@u{number}:example.org") for number in range(many)]
    rows: dict[str, list[ThreepidRow]] = {
        user: [ThreepidRow("email", f"{number}@x", user, 0, 0, frozenset((OFFICE,)))]
        for number, user in enumerate(users)
    }
    owners = {f"{number}@x": user for number, user in enumerate(users)} | {
        f"{many}@x": "@outsider:example.org"
    }
    row = {user: [f"{number + 1}@x"] for number, user in enumerate(users)}
    plans = compute_plans(rows, owners, row, OFFICE, 20)
    assert not any(plan.has_changes for plan in plans.values())
    ring = {user: [f"{(number + 1) % many}@x"] for number, user in enumerate(users)}
    plans = compute_plans(rows, owners, ring, OFFICE, 20)
    assert {user: (plan.new, plan.gone) for user, plan in plans.items()} == {
        user: (ring[user], [f"{number}@x"]) for number, user in enumerate(users)
    }

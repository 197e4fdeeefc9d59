"""E-mail addresses that identity providers assert for their users."""

from pathlib import Path

import pytest

from federation.protocol.ids import UserID
from homeserver.services.accounts.provider_emails import compute_email_changes
from storage.engine.database import Database
from storage.threepids.threepids import ThreepidRow, ThreepidStore
from tests.helpers.server import TestServer, User

OFFICE, CLUB = "oidc-office", "oidc-club"
WORK, HOME = "alice@work.example", "alice@home.example"


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database)


def assert_addresses(user: User, provider: str, *addresses: str) -> list[str]:
    """Let a provider assert addresses, as at a sign-in; return the user's addresses afterwards."""
    threepids = user.server.app.user_data.threepids
    user.server.run(threepids.do_set_provider_emails({UserID(user.user_id): addresses}, provider))
    return sorted(
        each["address"] for each in user.get("/_matrix/client/v3/account/3pid").json["threepids"]
    )


def test_an_address_stays_while_a_provider_asserts_it(alice: User) -> None:
    assert assert_addresses(alice, OFFICE, WORK) == [WORK]
    assert assert_addresses(alice, CLUB, WORK, HOME) == [HOME, WORK]
    assert assert_addresses(alice, OFFICE, HOME) == [HOME, WORK], "the club still asserts it"
    assert assert_addresses(alice, CLUB, HOME) == [HOME], "no provider asserts it any more"
    assert assert_addresses(alice, CLUB, WORK) == [HOME, WORK], "the office asserts the other one"
    assert assert_addresses(alice, OFFICE, WORK) == [WORK]


def test_providers_do_not_remove_an_address_that_the_user_has_validated(
    alice: User, database: Database
) -> None:
    assert_addresses(alice, OFFICE, WORK)
    store = ThreepidStore(database)
    alice.server.run(
        database.write("t", store.add_threepid, ThreepidRow("email", WORK, alice.user_id, 1, 1))
    )
    assert assert_addresses(alice, CLUB, WORK) == [WORK]
    assert assert_addresses(alice, OFFICE, HOME) == [HOME, WORK]
    assert assert_addresses(alice, CLUB, HOME) == [HOME, WORK]


@pytest.mark.parametrize("ends_by", ["removal", "deactivation"])
def test_assertions_end_with_the_ownership_of_the_address(
    server: TestServer, alice: User, ends_by: str
) -> None:
    assert_addresses(alice, OFFICE, WORK)
    if ends_by == "removal":
        assert (
            alice.post(
                "/_matrix/client/v3/account/3pid/delete", {"medium": "email", "address": WORK}
            ).status
            == 200
        )
    else:
        server.run(
            server.app.user_data.deactivation.do_deactivate(UserID(alice.user_id), erase=False)
        )
    bob = server.register("bob")
    assert assert_addresses(bob, CLUB, WORK) == [WORK]
    assert assert_addresses(bob, CLUB, HOME) == [HOME]


def test_a_sign_in_that_changes_nothing_writes_nothing(
    server: TestServer, alice: User, database: Database
) -> None:
    """Also if an address belongs to another account, or exceeds the maximum."""
    assert_addresses(alice, OFFICE, WORK)
    bob = server.register("bob")
    many = [f"bob{number}@home.example" for number in range(30)]
    before = assert_addresses(bob, OFFICE, WORK, *many)
    assert WORK not in before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "write", None)
        assert assert_addresses(bob, OFFICE, WORK, *many) == before
        assert assert_addresses(alice, OFFICE, WORK) == [WORK]


def test_addresses_can_be_swapped_and_rotated(server: TestServer, alice: User) -> None:
    """A provider asserts addresses of several users together; nobody loses their only address."""
    threepids = server.app.user_data.threepids
    people = [
        alice,
        *(server.register(name) for name in ("bob", "carol", "dora", "ernest", "outsider")),
    ]

    def set_addresses(*addresses: str) -> list[str]:
        asserted = {
            UserID(user.user_id): (f"{each}@x.example",)
            for user, each in zip(people, addresses, strict=False)
        }
        refused = server.run(threepids.do_set_provider_emails(asserted, OFFICE))
        return sorted(user_id[1] for user_id in refused)

    def get_initials() -> list[str]:
        return [
            "".join(
                each["address"][0]
                for each in user.get("/_matrix/client/v3/account/3pid").json["threepids"]
            )
            for user in people
        ]

    assert_addresses(people[5], CLUB, "f@x.example")
    assert set_addresses(*"abcde") == []
    assert set_addresses(*"badec") == []
    assert get_initials() == [*"badecf"]
    # a chain that ends at another account's address: nothing changes
    assert set_addresses(*"fbade") == [*"abcde"]
    assert get_initials() == [*"badecf"]
    # a chain that ends at a free address: all move
    assert set_addresses(*"zbade") == []
    assert get_initials() == [*"zbadef"]
    # two users want one address: the one who frees an address gets it
    moving = {
        UserID(user.user_id): each
        for user, each in zip(people[:2], (("b@x.example",), ("z@x.example",)), strict=True)
    }
    wanting_more = {UserID(people[5].user_id): ("f@x.example", "z@x.example")}
    assert server.run(threepids.do_set_provider_emails({**wanting_more, **moving}, OFFICE)) == {
        people[5].user_id
    }
    assert get_initials() == [*"bzadef"]


def test_long_chains_and_rings_are_planned_fast() -> None:
    many = 3000
    users = [UserID(f"@u{number}:example.org") for number in range(many)]
    rows: dict[str, list[ThreepidRow]] = {
        user: [ThreepidRow("email", f"{number}@x", user, 0, 0, frozenset((OFFICE,)))]
        for number, user in enumerate(users)
    }
    owners = {f"{number}@x": user for number, user in enumerate(users)} | {
        f"{many}@x": "@outsider:example.org"
    }
    chain = {user: [f"{number + 1}@x"] for number, user in enumerate(users)}
    plans = compute_email_changes(rows, owners, chain, OFFICE, 20)
    assert not any(plan.has_changes for plan in plans.values())
    ring = {user: [f"{(number + 1) % many}@x"] for number, user in enumerate(users)}
    plans = compute_email_changes(rows, owners, ring, OFFICE, 20)
    assert {user: (plan.new, plan.removed) for user, plan in plans.items()} == {
        user: (ring[user], [f"{number}@x"]) for number, user in enumerate(users)
    }

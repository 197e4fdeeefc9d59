"""Third-party invites that an identity server binds to a local user. spec: client-server-
api#third-party-invites"""

from typing import Any

import pytest

from federation.protocol.signing import SigningKey, encode_base64, sign_json
from homeserver.services.rooms.invite_policy import MAX_CONCURRENT_CLAIMS
from tests.helpers.http import Pending
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH, WEST, members, rooms_in_sync
from tests.helpers.room_actions import create, join, membership, ok, set_state
from tests.helpers.server import User

PATH = "/_matrix/federation/v1/3pid/onbind"
KEY = SigningKey("0", b"k" * 32)
PROMISE = {
    "display_name": "b...@...",
    "public_key": encode_base64(KEY.public_key),
    "key_validity_url": "https://id",
}


def onbind_body(
    room_id: str, sender: User, target: User, *, key: SigningKey = KEY, token: str = "t"
) -> dict[str, Any]:
    """Return the request of the identity server."""
    signed = sign_json({"mxid": target.user_id, "token": token}, "id.example", key)
    about = {"medium": "email", "address": "b@example.org", "mxid": target.user_id}
    return {
        **about,
        "invites": [{**about, "room_id": room_id, "sender": sender.user_id, "signed": signed}],
    }


@pytest.fixture(params=["the same server", "another server"])
def people(network: Network, request: pytest.FixtureRequest) -> tuple[User, User]:
    """Return the user who promised an invite, and the user who owns the address."""
    north = network.add(NORTH)
    theirs = north if request.param == "the same server" else network.add(SOUTH)
    return north.register("alice"), theirs.register("bob")


def test_the_owner_of_the_address_is_invited(people: tuple[User, User], network: Network) -> None:
    alice, bob = people
    room_id = create(alice)
    set_state(alice, room_id, "m.room.third_party_invite", PROMISE, "t")

    answer = network.servers[bob.user_id.partition(":")[2]].put(
        PATH, onbind_body(room_id, alice, bob)
    )

    assert (answer.status, answer.json) == (200, {})
    assert members(alice, room_id)[bob.user_id] == "invite"
    assert room_id in rooms_in_sync(bob, "invite")
    join(bob, room_id)


@pytest.mark.parametrize(
    "forged", ["another key", "another token", "for somebody else", "no such room"]
)
def test_an_invalid_proof_invites_nobody(
    people: tuple[User, User], network: Network, forged: str
) -> None:
    alice, bob = people
    room_id = create(alice)
    set_state(alice, room_id, "m.room.third_party_invite", PROMISE, "t")
    said = onbind_body(
        "!none:north.example" if forged == "no such room" else room_id,
        alice,
        bob,
        key=SigningKey("0", b"x" * 32) if forged == "another key" else KEY,
        token="u" if forged == "another token" else "t",
    )
    if forged == "for somebody else":
        said["invites"][0]["signed"]["mxid"] = "@eve:north.example"

    assert network.servers[bob.user_id.partition(":")[2]].put(PATH, said).status == 200

    assert bob.user_id not in members(alice, room_id)


@pytest.mark.parametrize("sender", [NORTH, SOUTH])
def test_false_claims_do_not_block_invites(network: Network, sender: str) -> None:
    limit = (
        "rc_invites: {per_room: *unlimited, per_issuer: *unlimited, per_user: {per_second:"
        " 0.1,"
        " burst_count: 2}}\n"
    )
    bob = network.add(NORTH, limit).register("bob")
    alice = (network.servers[NORTH] if sender == NORTH else network.add(SOUTH)).register("alice")
    room_id = create(alice)
    for _ in range(3):
        assert (
            network.servers[NORTH].put(PATH, onbind_body(room_id, alice, bob, token="u")).status
            == 200
        )

    wanda = network.add(WEST).register("wanda")
    ok(membership(wanda, create(wanda), "invite", bob))


def test_true_claims_are_not_rate_limited(network: Network) -> None:
    """An identity server is one address for all of its people."""
    north = network.add(NORTH)
    alice = north.register("alice")
    for number in range(8):
        target, room_id = north.register(f"bob{number}"), create(alice)
        set_state(alice, room_id, "m.room.third_party_invite", PROMISE, "t")
        assert north.put(PATH, onbind_body(room_id, alice, target)).status == 200
        assert members(alice, room_id)[target.user_id] == "invite"


def test_false_claims_are_rate_limited(network: Network) -> None:
    limits = "rc_invites: {false_claims: {per_second: 0.1, burst_count: 3}}\n"
    north = network.add(NORTH, limits)
    alice, bob = north.register("alice"), north.register("bob")
    room_id = create(alice)
    set_state(alice, room_id, "m.room.third_party_invite", PROMISE, "t")
    forged, truth = onbind_body(room_id, alice, bob, token="u"), onbind_body(room_id, alice, bob)
    assert [north.put(PATH, forged).status for _ in range(4)] == [200, 200, 200, 429]
    assert north.put(PATH, truth).errcode == "M_LIMIT_EXCEEDED"
    assert bob.user_id not in members(alice, room_id)
    network.clock.advance(10)
    assert north.put(PATH, truth).status == 200
    assert members(alice, room_id)[bob.user_id] == "invite"


@pytest.mark.parametrize(
    ("limits", "most"),
    [("{per_second: 0.1, burst_count: 3}", 3), ("*unlimited", MAX_CONCURRENT_CLAIMS)],
)
def test_few_claims_of_one_address_run_concurrently(
    network: Network, limits: str, most: int
) -> None:
    """Each has another server asked, which may be slow to answer."""
    north, south = (
        network.add(NORTH, f"rc_invites: {{false_claims: {limits}}}\n"),
        network.add(SOUTH),
    )
    bob, eve = north.register("bob"), south.register("eve")

    def start(number: int, ip: str) -> Pending:
        forged = onbind_body(f"!x:{SOUTH}", eve, bob, token=f"u{number}")
        return north.client.start("PUT", PATH, json=forged, ip=ip)

    network.hold()
    under_way = [start(number, f"2001:db8::{number}") for number in range(20)]
    network.settle()
    assert len(network.held()) == most
    assert [each.answer.status for each in under_way if each.done] == [429] * (20 - most)
    elsewhere = start(20, "192.0.2.1")
    network.settle()
    assert len(network.held()) == most + 1
    network.deliver()
    network.settle()
    assert [each.answer.status for each in (*under_way, elsewhere)].count(200) == most + 1


def test_one_request_cannot_exceed_the_rate_limit(network: Network) -> None:
    north = network.add(NORTH, "rc_invites: {false_claims: {per_second: 0.1, burst_count: 3}}\n")
    bob, eve = north.register("bob"), network.add(SOUTH).register("eve")
    forged = onbind_body(f"!x:{SOUTH}", eve, bob, token="u")
    asked = len(network.log)
    assert (
        north.put(PATH, {**forged, "invites": forged["invites"] * 20}).errcode == "M_LIMIT_EXCEEDED"
    )
    assert sum("exchange" in uri for _, _, _, uri in network.log[asked:]) == 3


def test_claims_about_remote_users_are_refused(people: tuple[User, User], network: Network) -> None:
    alice, bob = people
    said = {**onbind_body("!a:b", alice, bob), "mxid": "@bob:elsewhere.example"}
    assert network.servers[NORTH].put(PATH, said).json["errcode"] == "M_NOT_FOUND"
    assert network.servers[NORTH].put(PATH, {"mxid": 1}).json["errcode"] == "M_BAD_JSON"

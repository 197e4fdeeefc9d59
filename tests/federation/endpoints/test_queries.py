"""Queries between servers: profiles, aliases and the public directory."""

import json
from typing import Any
from urllib.parse import quote

import pytest

from federation.peers.client import MAX_OPENINGS, RefusedByRemote
from federation.peers.federation_policy import make_rules
from federation.peers.wire import WireResponse
from federation.protocol.canonical_json import MAX_DEPTH, MAX_SENT_DEPTH
from federation.protocol.ids import ServerName
from homeserver.services.directory import remote_directory
from tests.helpers.network import Network, count_requests
from tests.helpers.remote_membership import NORTH, SOUTH, WEST, join_via
from tests.helpers.room_actions import V3, create, get_state, ok, put_state, refused, set_state
from tests.helpers.server import User

OPEN = "allow_public_rooms_over_federation: true\n"


def pair(network: Network, config: str = "") -> tuple[User, User]:
    """A user on each of two servers."""
    return network.add(NORTH, config).register("alice"), network.add(SOUTH).register("bob")


def test_a_profile_of_a_remote_user_is_fetched(network: Network) -> None:
    alice, bob = pair(network)
    ok(alice.put(f"{V3}/profile/{alice.user_id}/displayname", {"displayname": "Alice"}))
    ok(alice.put(f"{V3}/profile/{alice.user_id}/m.tz", {"m.tz": "Asia/Tashkent"}))

    profile = ok(bob.get(f"{V3}/profile/{alice.user_id}"))

    assert profile == {"displayname": "Alice", "m.tz": "Asia/Tashkent"}
    assert ok(bob.get(f"{V3}/profile/{alice.user_id}/displayname")) == {"displayname": "Alice"}
    assert refused(bob.get(f"{V3}/profile/{alice.user_id}/avatar_url")) == (404, "M_NOT_FOUND")
    assert refused(bob.get(f"{V3}/profile/@nobody:{NORTH}")) == (404, "M_NOT_FOUND")


def test_too_deeply_nested_custom_fields_are_omitted(
    network: Network,
) -> None:
    alice, bob = pair(network)
    path = f"{V3}/profile/{alice.user_id}/org.example.deep"
    deep = json.loads("[" * MAX_SENT_DEPTH + "]" * MAX_SENT_DEPTH)
    ok(alice.put(path, {"org.example.deep": deep}))
    assert refused(alice.put(path, {"org.example.deep": [deep]})) == (400, "M_BAD_JSON")
    assert ok(bob.get(path)) == {"org.example.deep": deep}

    deeper = b'{"org.example.deep":%b%b}' % (b"[" * MAX_DEPTH, b"]" * MAX_DEPTH)
    network.forge(NORTH, lambda _request, _answer: WireResponse(200, {}, deeper))
    network.clock.advance(31)  # the result is cached for that long
    left = b'{"org.example.deep":%bnull%b}' % (b"[" * (MAX_DEPTH - 1), b"]" * (MAX_DEPTH - 1))
    assert ok(bob.get(path)) == json.loads(left)

    # and the lookup takes no more than a quarter of a second
    many = b'{"org.example.deep":%b%b,"a":[%b[]]}' % (
        b"[" * MAX_DEPTH,
        b"]" * MAX_DEPTH,
        b"[]," * MAX_OPENINGS,
    )
    network.forge(NORTH, lambda _request, _answer: WireResponse(200, {}, many))
    network.clock.advance(31)
    assert refused(bob.get(path))[0] == 502


def test_cached_results_of_a_server_that_is_denied_meanwhile_are_not_returned(
    network: Network,
) -> None:
    alice, bob = pair(network, OPEN)
    ok(alice.post(f"{V3}/createRoom", {"room_alias_name": "tea"}))
    alias = quote(f"#tea:{NORTH}")
    paths = (f"profile/{alice.user_id}", f"directory/room/{alias}", f"publicRooms?server={NORTH}")
    for path in paths:
        ok(bob.get(f"{V3}/{path}"))

    network.servers[SOUTH].app.peers.policy.change(make_rules(None, [NORTH]))

    for path in paths:
        assert refused(bob.get(f"{V3}/{path}")) == (403, "M_FORBIDDEN"), path


async def test_profiles_can_be_hidden_from_other_servers(network: Network) -> None:
    alice, bob = pair(network, "allow_profile_lookup_over_federation: false\n")
    assert ok(alice.get(f"{V3}/profile/{alice.user_id}")) == {"displayname": "alice"}
    assert refused(bob.get(f"{V3}/profile/{alice.user_id}"))[0] in (403, 404)
    path = f"/_matrix/federation/v1/query/profile?user_id={quote(alice.user_id)}"
    path = "/_matrix/federation/v1/query/profile"
    asking = network.servers[SOUTH].app.peers.requests.get(
        ServerName(NORTH), path, [("user_id", alice.user_id)]
    )
    with pytest.raises(RefusedByRemote, match="403 M_FORBIDDEN"):
        await asking


def test_results_are_cached_briefly(network: Network) -> None:
    alice, bob = pair(network)
    path = f"{V3}/profile/{alice.user_id}"
    ok(bob.get(path))
    ok(alice.put(f"{path}/displayname", {"displayname": "Alicia"}))

    ok(bob.get(path))
    assert count_requests(network, word="query/profile") == 1

    network.clock.advance(31)
    assert ok(bob.get(path)) == {"displayname": "Alicia"}


def test_fewer_large_results_are_cached(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_directory, "CACHE_BYTES", 5000)
    alice, bob = pair(network)
    ok(
        alice.put(
            f"{V3}/profile/{alice.user_id}/org.example.long", {"org.example.long": "x" * 3000}
        )
    )
    whole, name = f"{V3}/profile/{alice.user_id}", f"{V3}/profile/{alice.user_id}/displayname"
    field = f"{V3}/profile/{alice.user_id}/org.example.long"
    for path, count in (
        (whole, 1),
        (name, 2),
        (whole, 2),
        (field, 3),
        (name, 3),
        (whole, 4),
        (field, 5),
    ):
        ok(bob.get(path))
        assert count_requests(network, word="query/profile") == count, path


def test_concurrent_queries_share_one_request(network: Network) -> None:
    alice, bob = pair(network)
    network.hold()
    waiting = [bob.start("GET", f"{V3}/profile/{alice.user_id}") for _ in range(30)]

    network.deliver()

    assert {each.answer.status for each in waiting} == {200}
    assert count_requests(network, word="query/profile") == 1


def test_a_server_gets_few_queries_at_once(network: Network) -> None:
    _, bob = pair(network)
    network.hold()
    waiting = [bob.start("GET", f"{V3}/profile/@user{number}:{NORTH}") for number in range(25)]

    assert [each.answer.status for each in waiting if each.done] == [429] * 5
    network.deliver()


def test_a_profile_on_an_unreachable_server_is_an_error(network: Network) -> None:
    alice, bob = pair(network)
    network.cut(NORTH, SOUTH)
    answer = bob.get(f"{V3}/profile/{alice.user_id}")
    assert refused(answer) == (502, "M_UNKNOWN")
    assert answer.json["error"].count(NORTH) == 1


def test_a_remote_alias_resolves_to_a_room_and_its_servers(network: Network) -> None:
    alice, bob = pair(network)
    carol = network.add(WEST).register("carol")
    room_id = create(alice, preset="public_chat", room_alias_name="tea")
    ok(join_via(bob, room_id, NORTH))

    path = f"{V3}/directory/room/{quote(f'#tea:{NORTH}')}"

    assert ok(carol.get(path)) == {"room_id": room_id, "servers": [NORTH, SOUTH]}
    assert ok(alice.get(path)) == {"room_id": room_id, "servers": [NORTH, SOUTH]}
    assert refused(carol.get(f"{V3}/directory/room/{quote(f'#none:{NORTH}')}")) == (
        404,
        "M_NOT_FOUND",
    )
    assert refused(join_via(carol, f"#none:{NORTH}")) == (404, "M_NOT_FOUND")


def test_a_join_by_an_alias_that_has_just_moved_enters_the_new_room(network: Network) -> None:
    alice, bob = pair(network)
    old = create(alice, preset="public_chat", room_alias_name="tea")
    path = f"{V3}/directory/room/{quote(f'#tea:{NORTH}')}"
    assert ok(bob.get(path))["room_id"] == old
    new = ok(alice.post(f"{V3}/rooms/{quote(old)}/upgrade", {"new_version": "11"}))[
        "replacement_room"
    ]
    assert ok(bob.get(path))["room_id"] == old, "a lookup without a join returns the cached result"

    assert ok(join_via(bob, f"#tea:{NORTH}")) == {"room_id": new}
    assert ok(bob.get(path))["room_id"] == new


def test_a_room_may_publish_an_alias_of_another_server(
    network: Network,
) -> None:
    """spec: client-server-api#mroomcanonical_alias"""
    alice, bob = pair(network)
    room_id = create(alice, preset="public_chat")
    ok(join_via(bob, room_id, NORTH))
    create(bob, room_alias_name="other")
    ok(bob.put(f"{V3}/directory/room/{quote(f'#tea:{SOUTH}')}", {"room_id": room_id}))
    published = {"alt_aliases": [f"#tea:{SOUTH}"]}

    set_state(alice, room_id, "m.room.canonical_alias", published)

    for alias in (f"#other:{SOUTH}", f"#none:{SOUTH}"):
        answer = put_state(alice, room_id, "m.room.canonical_alias", {"alias": alias})
        assert refused(answer) == (400, "M_BAD_ALIAS")
        assert alias in answer.json["error"]
    network.cut(NORTH, SOUTH)
    answer = put_state(alice, room_id, "m.room.canonical_alias", {"alias": f"#cups:{SOUTH}"})
    assert refused(answer)[0] == 502
    # an alias that is published already is not queried again
    set_state(alice, room_id, "m.room.canonical_alias", {"alias": f"#tea:{SOUTH}"})
    assert get_state(alice, room_id, "m.room.canonical_alias") == {"alias": f"#tea:{SOUTH}"}


def test_one_event_looks_up_a_bounded_number_of_remote_aliases(network: Network) -> None:
    alice, _ = pair(network)
    room_id = create(alice)
    aliases = [f"#tea{number}:{SOUTH}" for number in range(11)]

    answer = put_state(alice, room_id, "m.room.canonical_alias", {"alt_aliases": aliases})

    assert refused(answer) == (400, "M_INVALID_PARAM")
    assert count_requests(network, word="query/directory") == 0


def names(page: Any) -> list[str]:
    return [room["name"] for room in page["chunk"]]


def test_public_rooms_of_another_server_are_listed(network: Network) -> None:
    alice, bob = pair(network, OPEN)
    for name in ("black tea", "green tea", "coffee"):
        create(alice, visibility="public", name=name)
    create(alice, visibility="public", name="ours", creation_content={"m.federate": False})
    create(alice, name="secret")
    path = f"{V3}/publicRooms?server={NORTH}"

    assert sorted(names(ok(bob.get(path)))) == ["black tea", "coffee", "green tea"]
    found = ok(bob.post(path, {"filter": {"generic_search_term": "tea"}}))
    assert sorted(names(found)) == ["black tea", "green tea"]

    first = ok(bob.get(f"{path}&limit=2"))
    second = ok(bob.get(f"{path}&limit=2&since={first['next_batch']}"))
    assert len(first["chunk"]) == 2
    assert sorted(names(first) + names(second)) == ["black tea", "coffee", "green tea"]


def test_a_directory_is_closed_to_other_servers_by_default(network: Network) -> None:
    alice, bob = pair(network)
    create(alice, visibility="public", name="tea")

    assert refused(bob.get(f"{V3}/publicRooms?server={NORTH}")) == (403, "M_FORBIDDEN")


def test_a_client_without_an_account_queries_no_other_server(network: Network) -> None:
    network.add(NORTH, OPEN)
    south = network.add(SOUTH, "allow_public_rooms_without_auth: true\n")

    assert refused(south.get(f"{V3}/publicRooms?server={NORTH}")) == (401, "M_MISSING_TOKEN")
    assert not network.log


async def test_queries_of_other_types_are_refused_clearly(network: Network) -> None:
    _alice, bob = pair(network)
    requests = bob.server.app.peers.requests
    with pytest.raises(RefusedByRemote, match="queries of the type 'choose_fate'") as refusal:
        await requests.get(ServerName(NORTH), "/_matrix/federation/v1/query/choose_fate")
    assert (refusal.value.status, refusal.value.errcode) == (404, "M_UNRECOGNIZED")

"""Space hierarchies, room summaries and events by time over federation."""

from urllib.parse import quote

from tests.helpers.federated_rooms import two_users
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH, WEST, join_via
from tests.helpers.room_actions import V3, create, ok, refused, say, set_state
from tests.helpers.server import User

V1 = "/_matrix/client/v1"


def hierarchy(user: User, room_id: str, query: str = "") -> list[str]:
    """The names of the rooms in a space, as the user sees it."""
    answer = ok(user.get(f"{V1}/rooms/{quote(room_id)}/hierarchy{query}"))
    return [room.get("name", room["room_id"]) for room in answer["rooms"]]


def space(user: User, name: str, *children: str, via: str = NORTH) -> str:
    room_id = create(user, name=name, preset="public_chat", creation_content={"type": "m.space"})
    for number, child in enumerate(children):
        set_state(user, room_id, "m.space.child", {"via": [via], "order": f"{number}"}, child)
    return room_id


def test_a_space_shows_remote_rooms(network: Network) -> None:
    alice, bob = two_users(network)
    garden = create(alice, name="Garden", preset="public_chat")
    cellar = create(alice, name="Cellar", preset="private_chat")
    upstairs = space(alice, "Upstairs", create(alice, name="Attic", preset="public_chat"))
    house = space(alice, "House", garden, cellar, upstairs)
    ok(join_via(bob, house, NORTH))
    town = space(bob, "Town", house, via=SOUTH)

    assert hierarchy(bob, house) == ["House", "Garden", "Upstairs", "Attic"]
    assert hierarchy(bob, town, "?max_depth=1") == ["Town", "House"]
    # What is private is not shown, and who is not there is not asked again.
    asked = len(network.log)
    assert hierarchy(bob, house) == ["House", "Garden", "Upstairs", "Attic"]
    assert len(network.log) == asked


def test_an_unreachable_server_hides_only_its_rooms(network: Network) -> None:
    alice, bob = two_users(network)
    garden = create(alice, name="Garden", preset="public_chat")
    shed = create(bob, name="Shed", preset="public_chat")
    house = space(bob, "House", garden, shed)
    network.cut(NORTH, SOUTH)

    assert hierarchy(bob, house) == ["House", "Shed"]

    network.mend(NORTH, SOUTH)
    network.clock.advance(5 * 60 + 1)
    assert hierarchy(bob, house) == ["House", "Garden", "Shed"]


def test_the_summary_of_a_remote_room_is_shown(network: Network) -> None:
    alice, bob = two_users(network)
    garden = create(alice, name="Garden", preset="public_chat", room_alias_name="garden")
    cellar = create(alice, name="Cellar", preset="private_chat")

    assert refused(bob.get(f"{V1}/room_summary/{quote(garden)}?via={WEST}")) == (404, "M_NOT_FOUND")
    for wanted in (f"{quote(garden)}?via={NORTH}", quote(f"#garden:{NORTH}")):
        summary = ok(bob.get(f"{V1}/room_summary/{wanted}"))
        assert (summary["name"], summary["membership"], summary["num_joined_members"]) == (
            "Garden",
            "leave",
            1,
        )
    hidden = bob.get(f"{V1}/room_summary/{quote(cellar)}?via={NORTH}")
    assert refused(hidden) == (404, "M_NOT_FOUND")


def test_a_remote_restricted_room_is_shown_to_users_who_may_join(network: Network) -> None:
    alice, bob = two_users(network)
    house = space(alice, "House")
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": house}]}
    kitchen = create(
        alice,
        name="Kitchen",
        initial_state=[{"type": "m.room.join_rules", "content": rule}],
    )
    set_state(alice, house, "m.space.child", {"via": [NORTH]}, kitchen)
    ok(join_via(bob, house, NORTH))
    assert hierarchy(bob, house) == ["House", "Kitchen"]


def test_an_event_before_the_join_is_found_by_time(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat")
    start = int(network.clock.seconds() * 1000)
    for number in range(5):
        network.clock.advance(60)
        say(alice, room_id, f"{number}")
    ok(join_via(bob, room_id, NORTH))

    def at(minutes: float, direction: str) -> str:
        path = (
            f"{V1}/rooms/{quote(room_id)}/timestamp_to_event?ts={start + int(minutes * 60_000)}"
            f"&dir={direction}"
        )
        event_id = ok(bob.get(path))["event_id"]
        return str(
            ok(bob.get(f"{V3}/rooms/{quote(room_id)}/event/{quote(event_id)}"))["content"]["body"]
        )

    assert at(1.5, "f") == "1"
    assert at(2.5, "b") == "1"
    assert at(3, "f") == "2"
    network.cut(NORTH, SOUTH)
    path = f"{V1}/rooms/{quote(room_id)}/timestamp_to_event?ts={start + 9 * 60_000}&dir=b"
    assert ok(bob.get(path))["event_id"]

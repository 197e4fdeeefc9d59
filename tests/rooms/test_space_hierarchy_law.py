"""The walk through random trees of rooms, compared with a simple reference implementation."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.room_actions import create, set_state
from tests.helpers.server import TestServer, User
from tests.helpers.spaces import add_child, create_space, every_page, rooms_below

SPACES, HIDDEN, ROOMS = 4, 1, 3
TOTAL = SPACES + HIDDEN + ROOMS

links = st.dictionaries(
    st.tuples(st.integers(0, SPACES + HIDDEN - 1), st.integers(0, TOTAL - 1)),
    st.tuples(st.sampled_from(["", "a", "b", "c"]), st.booleans()),
    max_size=14,
)


class SpaceModel:
    """Some rooms, and the links between them as they are now."""

    def __init__(self, server: TestServer) -> None:
        self.alice, self.bob = server.register("alice"), server.register("bob")
        spaces = [create_space(self.alice) for _ in range(SPACES)]
        hidden = [create_space(self.alice, preset="private_chat") for _ in range(HIDDEN)]
        self.rooms = [
            *spaces,
            *hidden,
            *(create(self.alice, preset="public_chat") for _ in range(ROOMS)),
        ]
        self.links: set[tuple[int, int]] = set()
        self.clock = server.clock

    def link(
        self, wanted: Mapping[tuple[int, int], tuple[str, bool]]
    ) -> dict[tuple[int, int], float]:
        """Replace all links by these; each was created at the given time."""
        for parent, child in self.links:
            set_state(self.alice, self.rooms[parent], "m.space.child", {}, self.rooms[child])
        self.links = set(wanted)
        made = {}
        for (parent, child), (order, suggested) in wanted.items():
            self.clock.advance(1)
            made[parent, child] = self.clock.seconds()
            more = {"order": order} if order else {}
            add_child(
                self.alice, self.rooms[parent], self.rooms[child], suggested=suggested, **more
            )
        return made


@pytest.fixture
def model(server: TestServer) -> SpaceModel:
    return SpaceModel(server)


def expected(
    wanted: Mapping[tuple[int, int], tuple[str, bool]],
    made: Mapping[tuple[int, int], float],
    *,
    shown: Sequence[int],
    suggested_only: bool,
    max_depth: int,
) -> list[int]:
    """Return the expected order: a room, then what is below its children in their order."""
    found: list[int] = []
    seen: set[int] = set()

    def walk(room: int, depth: int) -> None:
        if room in seen:
            return
        seen.add(room)
        if room not in shown:
            return
        found.append(room)
        if depth == max_depth:
            return
        children = [child for parent, child in wanted if parent == room]
        children.sort(
            key=lambda child: (
                not wanted[room, child][0],
                wanted[room, child][0],
                made[room, child],
            )
        )
        for child in children:
            if wanted[room, child][1] or not suggested_only:
                walk(child, depth + 1)

    walk(0, 0)
    return found


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    wanted=links, suggested_only=st.booleans(), max_depth=st.integers(0, 4), limit=st.integers(1, 4)
)
def test_any_hierarchy_equals_a_simple_walk(
    model: SpaceModel,
    wanted: Mapping[tuple[int, int], tuple[str, bool]],
    suggested_only: bool,
    max_depth: int,
    limit: int,
) -> None:
    made = model.link(wanted)
    query = {"suggested_only": str(suggested_only).lower(), "max_depth": max_depth}
    everybody = range(TOTAL)
    outsiders = [number for number in everybody if not SPACES <= number < SPACES + HIDDEN]
    readers: list[tuple[User, Sequence[int]]] = [(model.alice, everybody), (model.bob, outsiders)]
    for user, shown in readers:
        walked = expected(
            wanted, made, shown=shown, suggested_only=suggested_only, max_depth=max_depth
        )
        rooms = [model.rooms[number] for number in walked]
        assert rooms_below(user, model.rooms[0], **query) == rooms
        pages = every_page(user, model.rooms[0], limit, **query)
        assert [room for page in pages for room in page] == rooms

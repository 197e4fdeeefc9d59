"""The auth chain index gives the same answers as a walk over events, on any graph and for any
batches of writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.engine.database import Database, Transaction
from storage.events.auth_chains import AuthChainStore, AuthChainTooLong, AuthNode, UnknownAuthEvent

FIRST_NIDS = count(1, 1000)
"""Each example has event_nids of its own, so that all can use one database."""


@dataclass(frozen=True)
class Graph:
    """Events 0, 1, … with earlier ones as their auth events, and the sizes of the batches."""

    nodes: Sequence[AuthNode]
    portions: Sequence[int]


MOST_EVENTS = 24
COUNTS = st.integers(1, MOST_EVENTS)
EARLIER = [
    st.lists(st.integers(0, nid - 1), max_size=4, unique=True) for nid in range(1, MOST_EVENTS)
]
PLACES = [st.sampled_from(range(count)) for count in range(1, 6)]
BATCHES = st.lists(st.integers(1, 10), max_size=6)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    nodes = []
    for nid in range(draw(COUNTS)):
        auth = draw(EARLIER[nid - 1]) if nid else []
        previous = [*auth, None][draw(PLACES[len(auth)])]
        nodes.append(AuthNode(nid, auth, previous))
    return Graph(nodes, draw(BATCHES))


EVENTS = st.sets(st.integers(0, 23), max_size=8)


def walk(nodes: Sequence[AuthNode], start: set[int]) -> set[int]:
    reached: set[int] = set()
    queue = list(start)
    while queue:
        for nid in nodes[queue.pop()].auth_event_nids:
            if nid not in reached:
                reached.add(nid)
                queue.append(nid)
    return reached


async def add(database: Database, store: AuthChainStore, graph: Graph, first: int) -> None:
    nodes = [
        AuthNode(
            first + node.event_nid,
            [first + nid for nid in node.auth_event_nids],
            None if node.previous is None else first + node.previous,
        )
        for node in graph.nodes
    ]
    for size in (*graph.portions, len(nodes)):
        await database.write("add", store.add, nodes[:size])
        nodes = nodes[size:]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(graphs(), st.lists(EVENTS, min_size=2, max_size=3), EVENTS)
async def test_the_index_gives_the_same_answers_as_the_walk(
    database: Database, graph: Graph, sets: list[set[int]], common: set[int]
) -> None:
    store = AuthChainStore(database=database, recent=2)
    first = next(FIRST_NIDS)
    await add(database, store, graph, first)
    nodes, size = graph.nodes, len(graph.nodes)

    def known(events: set[int]) -> set[int]:
        return {nid % size for nid in events}

    def stored(events: set[int]) -> set[int]:
        return {first + nid for nid in events}

    for nid in range(size):
        assert await store.get_auth_chain([first + nid]) == stored(walk(nodes, {nid}))
    a, b = known(sets[0]), known(sets[1])
    assert await store.get_auth_chain(stored(a)) == stored(walk(nodes, a))
    for x in a:
        for y in b:
            assert await store.is_in_auth_chain(first + x, first + y) == (x in walk(nodes, {y}))

    states = [known(state | common) for state in sets]
    chains = [walk(nodes, state) for state in states]
    difference: set[int] = set().union(*chains).difference(chains[0].intersection(*chains[1:]))
    assert await store.get_auth_difference([stored(state) for state in states]) == stored(
        difference
    )
    agreed = stored(set.intersection(*states))
    disputed = [stored(state) - agreed for state in states]
    likely = sorted(agreed)[:1]
    lazily = await database.read(
        "lazily", store.get_conflicted_difference_in, disputed, likely, agreed.intersection
    )
    assert lazily == stored(difference)

    below = walk(nodes, a)
    above = {nid for nid in range(size) if walk(nodes, {nid}) & a}
    subgraph = (below & above) | (a & (below | above))
    assert await store.get_conflicted_subgraph(stored(a)) == stored(subgraph)


def room_of(members: int) -> list[AuthNode]:
    """Create (1), its creator's membership (2), power levels (3), join rules (4), then members who
    cite all these."""
    start = [AuthNode(1, []), AuthNode(2, [1]), AuthNode(3, [1, 2]), AuthNode(4, [1, 2, 3])]
    return start + [AuthNode(nid, [1, 3, 4]) for nid in range(5, 5 + members)]


async def test_a_member_costs_a_place_and_a_link(database: Database) -> None:
    store = AuthChainStore(database=database)
    await database.write("add", store.add, room_of(50))
    await database.write("add", store.add, [AuthNode(100, [1, 3, 4, 7], 7)])

    def count_rows(txn: Transaction) -> tuple[int, int, int]:
        places = txn.query("SELECT COUNT(*), COUNT(DISTINCT chain) FROM auth_chains")
        links = txn.query("SELECT COUNT(*) FROM auth_chain_links WHERE chain > 4")
        return (*places[0], links[0][0])

    # the second membership of a user continues the chain of the first, which implies all its auth
    # events
    assert await database.read("count", count_rows) == (55, 54, 50)


async def test_the_auth_difference_of_similar_large_states_is_cheap(database: Database) -> None:
    store = AuthChainStore(database=database)
    nodes = room_of(3000)
    # two conflicting power levels, one of which has a successor
    nodes += [
        AuthNode(5001, [1, 2, 3], 3),
        AuthNode(5002, [1, 2, 3], 3),
        AuthNode(5003, [1, 2, 5002], 5002),
    ]
    await database.write("add", store.add, nodes)
    agreed = {nid for nid in range(1, 3005) if nid != 3}

    def difference(txn: Transaction) -> tuple[set[int], int]:
        found = store.get_auth_difference_in(txn, [agreed | {5001}, agreed | {5003}])
        return found, txn.queries

    found, queries = await database.read("difference", difference)
    assert found == {5002}
    assert queries < 20


async def test_adding_an_event_again_changes_nothing(database: Database) -> None:
    store = AuthChainStore(database=database)
    await database.write("add", store.add, room_of(3))
    await database.write("add", store.add, room_of(4))
    assert await store.get_auth_chain([8]) == {1, 2, 3, 4}


async def test_unknown_events_are_refused_by_number(database: Database) -> None:
    store = AuthChainStore(database=database)
    with pytest.raises(UnknownAuthEvent, match="77 is an auth event of 5"):
        await database.write("add", store.add, [AuthNode(5, [77])])
    with pytest.raises(UnknownAuthEvent, match="5"):
        await store.get_auth_chain([5])


async def test_a_chain_longer_than_the_limit_is_refused(database: Database) -> None:
    store = AuthChainStore(database=database)
    await database.write("add", store.add, room_of(3))
    assert len(await store.get_auth_chain([5, 6], limit=4)) == 4
    with pytest.raises(AuthChainTooLong):
        await store.get_auth_chain([5, 6], limit=3)

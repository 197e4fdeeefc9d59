"""The state that goes with a room is what the request matches, however it is asked for and wherever
it is read from."""

from random import Random

from federation.protocol.events import StateKey
from homeserver.services.sliding_sync.request import (
    ANY,
    MEMBER,
    RequiredState,
    StateClause,
    StatePattern,
)
from homeserver.services.sliding_sync.required_state import (
    AVATAR,
    NAME,
    RequiredStates,
    StateRequest,
)
from storage.engine.database import Database, WriteTransaction
from storage.state.state_tree import StateTreeStore

ROOMS = 3
TYPES = ["m.room.name", "m.room.avatar", MEMBER, "org.example.thing"]
KEYS = ["", "@a:x", "@b:x", "@c:x"]


def patterns(chance: Random, most: int) -> frozenset[StatePattern]:
    return frozenset(
        (chance.choice([*TYPES, *TYPES, *TYPES, ANY]), chance.choice([*KEYS, ANY]))
        for _ in range(chance.randrange(most + 1))
    )


async def test_required_state_returns_the_matching_entries(database: Database) -> None:
    chance = Random(1)
    whole = {
        StateKey(type, key): number
        for number, (type, key) in enumerate(((t, k) for t in TYPES for k in KEYS), 1)
    }
    states: list[dict[tuple[str, str], int]] = [
        {key: nid for key, nid in whole.items() if chance.random() < 0.6} for _ in range(ROOMS)
    ]
    trees = StateTreeStore(database=database)

    def write(txn: WriteTransaction) -> list[bytes | None]:
        return [trees.apply(txn, room_nid, None, state) for room_nid, state in enumerate(states, 1)]

    roots = await database.write("apply", write)
    reader = RequiredStates(trees)
    queries = 0
    for _ in range(400):
        clauses = frozenset(
            StateClause(patterns(chance, 4), patterns(chance, 2 * chance.randrange(2)))
            for _ in range(chance.choice([1, 1, 2]))
        )
        wanted = RequiredState(clauses, lazy_members=True)
        members = chance.sample(KEYS, chance.randrange(3))
        asked = [
            StateRequest(room_nid, root, wanted, members) for room_nid, root in enumerate(roots, 1)
        ]
        queries += reader.query_for(wanted) is not None
        for reading in (reader, RequiredStates(StateTreeStore(database=database))):
            for state, found in zip(states, await reading.get_complete(asked), strict=True):
                named = {StateKey(MEMBER, user_id) for user_id in members}
                assert found.entries == {
                    key: nid for key, nid in state.items() if wanted.matches(*key) or key in named
                }, wanted
                assert found.named == {key: state.get(key) for key in (NAME, AVATAR)}
    assert 100 < queries < 400

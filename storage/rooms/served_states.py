"""States of rooms with their auth chains, as other servers are told them: one read for all that an
answer needs.

A state of a few hundred events comes with their PDUs, unless these are long. Of a larger one the
sizes are told, so that an answer can be announced and then sent piece by piece
(`EventStore.get_pdus`).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction
from storage.events.auth_chains import AuthChainStore
from storage.events.events import select_event_ids, select_pdus, select_sizes
from storage.state.keys import StateKey
from storage.state.state_tree import StateTreeStore

WITH_PDUS: Final = 500
"""Up to so many events the PDUs are read at once;"""
WITH_BYTES: Final = 4 << 20
"""up to so many bytes of them."""

Choose = Callable[[Mapping[StateKey, int]], Iterable[int]]
"""What is told of a state: numbers of its events. Runs in a thread."""


class ToldState(msgspec.Struct, frozen=True):
    """Events of a state, and their auth chain, by their numbers in ascending order."""

    state: Sequence[int]
    chain: Sequence[int]
    """The auth chain, as far as it is not part of the state where that was asked for."""
    pdus: Mapping[int, bytes] | None
    """Of all of them; None where they are too many."""
    sizes: Mapping[int, int]
    """How many bytes each PDU has, where they are too many."""


class ToldStates:
    """Reads them."""

    def __init__(self, database: Database, trees: StateTreeStore, chains: AuthChainStore) -> None:
        self._database = database
        self._trees = trees
        self._chains = chains

    async def get_state(
        self,
        room_nid: int,
        root: bytes | None,
        choose: Choose,
        further: Collection[int] = (),
        *,
        only_beyond: bool = False,
    ) -> ToldState:
        """What is told of a state. `further`: events whose auth chains are told too. `only_beyond`:
        of the auth chains without what is told of the state."""
        return await self._database.read(
            "get_told_state", self._read_state, room_nid, root, choose, further, only_beyond
        )

    async def get_ids(
        self, room_nid: int, root: bytes | None, choose: Choose
    ) -> tuple[list[str], list[str]]:
        """(the ids of the events of a state, those of their auth chain)."""
        return await self._database.read("get_told_ids", self._read_ids, room_nid, root, choose)

    def _read(
        self,
        txn: Transaction,
        room_nid: int,
        root: bytes | None,
        choose: Choose,
        further: Collection[int],
    ) -> tuple[list[int], set[int]]:
        state = sorted(choose(self._trees.get_all_in(txn, room_nid, root)))
        return state, self._chains.get_auth_chain_in(txn, [*state, *further])

    def _read_state(
        self,
        txn: Transaction,
        room_nid: int,
        root: bytes | None,
        choose: Choose,
        further: Collection[int],
        only_beyond: bool,
    ) -> ToldState:
        state, chain = self._read(txn, room_nid, root, choose, further)
        every = {*state, *chain}
        if only_beyond:
            chain -= set(state)
        sizes = select_sizes(txn, every)
        if len(every) <= WITH_PDUS and sum(sizes.values()) <= WITH_BYTES:
            return ToldState(state, sorted(chain), select_pdus(txn, every), {})
        return ToldState(state, sorted(chain), None, sizes)

    def _read_ids(
        self, txn: Transaction, room_nid: int, root: bytes | None, choose: Choose
    ) -> tuple[list[str], list[str]]:
        state, chain = self._read(txn, room_nid, root, choose, ())
        ids = select_event_ids(txn, {*state, *chain})
        return [ids[nid] for nid in state], [ids[nid] for nid in sorted(chain)]

"""Reads room states with their auth chains for responses to other servers, in one read per
response.

If a state and its auth chain have at most a few hundred events, and their PDUs are not long, the
PDUs are returned. Otherwise only their sizes are returned. From these the caller computes the
length of the response. It then streams the response, and reads the PDUs in batches
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

MAX_PDUS: Final = 500
"""Up to so many events are read with their PDUs."""
MAX_PDU_BYTES: Final = 4 << 20
"""Up to so many bytes of PDUs are read at once."""

Choose = Callable[[Mapping[StateKey, int]], Iterable[int]]
"""Chooses the events of a state to serve, by number. Runs in a database thread."""


class ServedState(msgspec.Struct, frozen=True):
    """The events of a state and of their auth chain, by number in ascending order."""

    state: Sequence[int]
    chain: Sequence[int]
    """The auth chain; without events of the state if `exclude_state` was given."""
    pdus: Mapping[int, bytes] | None
    """The PDUs of all of them; None if they are too many."""
    sizes: Mapping[int, int]
    """The size of each PDU in bytes, if they are too many."""


class ServedStateReader:
    """Reads states with their auth chains."""

    def __init__(
        self, *, database: Database, trees: StateTreeStore, chains: AuthChainStore
    ) -> None:
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
        exclude_state: bool = False,
    ) -> ServedState:
        """Return the chosen events of a state and their auth chains.

        `further`: other events whose auth chains are included. `exclude_state`: leave events of the
        state out of the auth chain.
        """
        return await self._database.read(
            "get_served_state", self._read_state, room_nid, root, choose, further, exclude_state
        )

    async def get_ids(
        self, room_nid: int, root: bytes | None, choose: Choose
    ) -> tuple[list[str], list[str]]:
        """Return (event IDs of the state, event IDs of its auth chain)."""
        return await self._database.read(
            "get_served_state_ids", self._read_ids, room_nid, root, choose
        )

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
        exclude_state: bool,
    ) -> ServedState:
        state, chain = self._read(txn, room_nid, root, choose, further)
        all_nids = {*state, *chain}
        if exclude_state:
            chain -= set(state)
        sizes = select_sizes(txn, all_nids)
        if len(all_nids) <= MAX_PDUS and sum(sizes.values()) <= MAX_PDU_BYTES:
            return ServedState(state, sorted(chain), select_pdus(txn, all_nids), {})
        return ServedState(state, sorted(chain), None, sizes)

    def _read_ids(
        self, txn: Transaction, room_nid: int, root: bytes | None, choose: Choose
    ) -> tuple[list[str], list[str]]:
        state, chain = self._read(txn, room_nid, root, choose, ())
        ids = select_event_ids(txn, {*state, *chain})
        return [ids[nid] for nid in state], [ids[nid] for nid in sorted(chain)]

"""Auth chains of state events, indexed by a chain cover, so that no query follows auth events one
by one.

State events and their auth events form a directed acyclic graph. The index divides these events
into *index chains*. The auth chain of each event contains all earlier events of its index chain.
The events of an index chain are numbered from 1 (the column `sequence_number`). A *link* leads from
event m of an index chain A to event n of an index chain B. It says: every event of A from m on has
all events of B up to n in its auth chain.

So the part of an auth chain that lies in one index chain is described by one number, the last
sequence number that it contains. These numbers, by index chain, are the *reach* of an event or of
several events. A reach is found by following links from one index chain to the next, with one query
for each step. A room of 50,000 members has about as many index chains. But few state events have
the membership of an ordinary member among their auth events, so most index chains are never
followed.

Laws:
- An event is not in its own auth chain, as the specification defines it (spec:
  rooms/v2#definitions).
- The index only grows. An event and its links are added to it in the transaction that stores the
  event, or in which a partial-state resync accepts the event.
- A link that follows from other links need not be written. The reach is still exact.
- Methods named `…_in` run inside a read or a write.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from heapq import nlargest

import msgspec

from storage.engine.database import Database, Transaction, WriteTransaction

ChainPosition = tuple[int, int]
"""(chain, sequence number)."""
Reach = dict[int, int]
"""The last reached sequence number by chain; all earlier ones are reached too."""

RECENT = 200
"""How many of the events that all states share are tried first: recent ones mostly reach whatever
any of them does."""

_SELECT_POSITIONS = (
    "SELECT event_nid, chain, sequence_number FROM auth_chains WHERE event_nid IN {keys}"
)
_SELECT_CHAINS = "SELECT event_nid, chain, sequence_number FROM auth_chains WHERE chain IN {keys}"
_SELECT_LASTS = (
    "SELECT chain, MAX(sequence_number) FROM auth_chains WHERE chain IN {keys} GROUP BY chain"
)
_SELECT_LINKS = (
    "SELECT chain, sequence_number, target_chain, target_sequence_number"
    " FROM auth_chain_links WHERE chain IN {keys}"
)
_SELECT_LINKS_TO = (
    "SELECT chain, sequence_number, target_chain, target_sequence_number FROM auth_chain_links"
    " WHERE target_chain IN {keys}"
)
_INSERT_POSITION = "INSERT INTO auth_chains (event_nid, chain, sequence_number) VALUES (?, ?, ?)"
_INSERT_LINK = (
    "INSERT INTO auth_chain_links (chain, sequence_number, target_chain,"
    " target_sequence_number) VALUES (?, ?, ?, ?)"
)


class UnknownAuthEvent(Exception):
    """An event that must be in the index is not there."""


class AuthChainTooLong(Exception):
    """The auth chain has more events than the caller's limit."""


class AuthNode(msgspec.Struct, frozen=True):
    """A state event to be indexed."""

    event_nid: int
    auth_event_nids: Sequence[int]
    previous: int | None = None
    """Its auth event with the same type and state_key, if any: the event continues that one's
    chain.

    Without it the event begins a chain, which is as correct and less compact.
    """


class AuthChainStore:
    """The auth chain index of all rooms."""

    def __init__(self, *, database: Database, recent: int = RECENT) -> None:
        self._database = database
        self._recent = recent

    def add(
        self, txn: WriteTransaction, events: Iterable[AuthNode], new: Collection[int] = ()
    ) -> None:
        """Add state events, each after its auth events; indexed ones are left alone. `new`: numbers
        that are known not to be indexed.

        Three reads and two writes for any number of events; some more reads if they begin chains.
        Raises UnknownAuthEvent.
        """
        nodes = list({node.event_nid: node for node in events}.values())
        named = {nid for node in nodes for nid in (node.event_nid, *node.auth_event_nids)}
        positions = _get_positions(txn, named.difference(new))
        nodes = [node for node in nodes if node.event_nid not in positions]
        if not nodes:
            return
        cited = {
            positions[nid][0] for node in nodes for nid in node.auth_event_nids if nid in positions
        }
        links = _ChainLinks(txn)
        links.load(cited)
        lasts: dict[int, int] = dict(txn.query_in(_SELECT_LASTS, cited))
        next_chain = txn.allocate("auth_chain", len(nodes))
        new_links: list[tuple[int, int, int, int]] = []
        for node in nodes:
            try:
                targets = {nid: positions[nid] for nid in node.auth_event_nids}
            except KeyError as missing:
                raise UnknownAuthEvent(f"{missing} is an auth event of {node.event_nid}") from None
            before = targets.get(node.previous) if node.previous is not None else None
            if before is not None and lasts[before[0]] == before[1]:
                chain, sequence = before[0], before[1] + 1
            else:
                chain, sequence = next_chain, 1
                next_chain += 1
                links.begin(chain)
            positions[node.event_nid] = (chain, sequence)
            lasts[chain] = sequence
            for target_chain, target_sequence in _select_targets(
                links, (chain, sequence), targets.values()
            ).items():
                links.add(chain, sequence, target_chain, target_sequence)
                new_links.append((chain, sequence, target_chain, target_sequence))
        txn.execute_many(
            _INSERT_POSITION, [(node.event_nid, *positions[node.event_nid]) for node in nodes]
        )
        if new_links:
            txn.execute_many(_INSERT_LINK, new_links)

    async def get_auth_chain(
        self, event_nids: Collection[int], limit: int | None = None
    ) -> set[int]:
        """Return all events in the auth chains of these. Raises AuthChainTooLong past the limit,
        UnknownAuthEvent."""
        return await self._database.read(
            "get_auth_chain", self.get_auth_chain_in, event_nids, limit
        )

    def get_auth_chain_in(
        self, txn: Transaction, event_nids: Collection[int], limit: int | None = None
    ) -> set[int]:
        """Do `get_auth_chain` in a transaction."""
        reach = _ChainLinks(txn).reach(_find_positions(txn, event_nids).values())
        if limit is not None and sum(reach.values()) > limit:
            raise AuthChainTooLong(f"{sum(reach.values())} events; the limit is {limit}")
        return _get_events(txn, {chain: (0, last) for chain, last in reach.items()})

    async def is_in_auth_chain(self, event_nid: int, of: int) -> bool:
        """Whether the first event is in the auth chain of the second. Raises UnknownAuthEvent."""
        return await self._database.read(
            "is_in_auth_chain", self.is_in_auth_chain_in, event_nid, of
        )

    def is_in_auth_chain_in(self, txn: Transaction, event_nid: int, of: int) -> bool:
        """Do `is_in_auth_chain` in a transaction."""
        positions = _find_positions(txn, (event_nid, of))
        chain, sequence = positions[event_nid]
        return sequence <= _ChainLinks(txn).reach([positions[of]]).get(chain, 0)

    async def get_auth_difference(self, state_sets: Sequence[Collection[int]]) -> set[int]:
        """Return the events that are in the auth chains of some but not all of the states, given as
        event_nids.

        Costs the size of the difference; shared events are read only as far as they cite conflicted
        ones. Raises UnknownAuthEvent. spec: rooms/v2#definitions (auth difference)
        """
        if len(state_sets) < 2:
            return set()
        return await self._database.read(
            "get_auth_difference", self.get_auth_difference_in, state_sets
        )

    def get_auth_difference_in(
        self, txn: Transaction, state_sets: Sequence[Collection[int]]
    ) -> set[int]:
        """Do `get_auth_difference` in a transaction."""
        sets = [set(state) for state in state_sets]
        agreed = set.intersection(*sets) if sets else set()
        recent = nlargest(self._recent, agreed)
        further = agreed.intersection if len(agreed) > self._recent else None
        return self._find_difference(txn, [state - agreed for state in sets], recent, further)

    def get_conflicted_difference_in(
        self,
        txn: Transaction,
        conflicted: Sequence[Collection[int]],
        likely: Collection[int],
        find_agreed: Callable[[Collection[int]], Collection[int]],
    ) -> set[int]:
        """Do `get_auth_difference` in a transaction, for states of which only the conflicted events
        are known.

        `likely` are some shared events, preferably those that many others cite. `find_agreed`
        returns which of some events all states share.
        """
        return self._find_difference(txn, conflicted, likely, find_agreed)

    def _find_difference(
        self,
        txn: Transaction,
        conflicted: Sequence[Collection[int]],
        likely: Collection[int],
        find_agreed: Callable[[Collection[int]], Collection[int]] | None,
    ) -> set[int]:
        positions = _find_positions(txn, set().union(*conflicted))
        links = _ChainLinks(txn)
        reaches = [links.reach([positions[nid] for nid in state]) for state in conflicted]
        ranges: dict[int, ChainPosition] = {}
        for chain in {chain for reach in reaches for chain in reach}:
            lasts = [reach.get(chain, 0) for reach in reaches]
            if min(lasts) < max(lasts):
                ranges[chain] = (min(lasts), max(lasts))
        # shared events reach the same in all states, and so reduce the difference
        if ranges and likely:
            _subtract_reach(ranges, links.reach(_find_positions(txn, likely).values()))
        if ranges and find_agreed is not None:
            above = _find_above(txn, {chain: bottom + 1 for chain, (bottom, _) in ranges.items()})
            candidates = {
                nid: (chain, sequence)
                for nid, chain, sequence in txn.query_in(_SELECT_CHAINS, above)
                if sequence >= above[chain]
            }
            _subtract_reach(
                ranges, links.reach([candidates[nid] for nid in find_agreed(candidates.keys())])
            )
        return _get_events(txn, ranges)

    async def get_conflicted_subgraph(self, conflicted: Collection[int]) -> set[int]:
        """Return the events on a path along auth events from one of these to another, ends included
        (if on such a path).

        Raises UnknownAuthEvent. spec: rooms/v12#definitions (conflicted state subgraph)
        """
        return await self._database.read(
            "get_conflicted_subgraph", self.get_conflicted_subgraph_in, conflicted
        )

    def get_conflicted_subgraph_in(self, txn: Transaction, conflicted: Collection[int]) -> set[int]:
        """Do `get_conflicted_subgraph` in a transaction."""
        ends = _find_positions(txn, conflicted)
        links = _ChainLinks(txn)
        below = links.reach(ends.values())
        # paths stay inside the reach, whose links are all loaded by now
        above = links.climb(ends.values())
        subgraph = _get_events(
            txn,
            {
                chain: (above[chain] - 1, last)
                for chain, last in below.items()
                if above.get(chain, last + 1) <= last
            },
        )
        for nid, (chain, sequence) in ends.items():
            if sequence <= below.get(chain, 0) or sequence >= above.get(chain, sequence + 1):
                subgraph.add(nid)
        return subgraph


class _ChainLinks(msgspec.Struct):
    """The loaded links of chains, and methods that follow them."""

    _txn: Transaction
    _by_chain: dict[int, list[tuple[int, int, int]]] = msgspec.field(default_factory=dict)

    def load(self, chains: Iterable[int]) -> None:
        """Read the links that start in these chains, unless they are loaded."""
        missing = [chain for chain in chains if chain not in self._by_chain]
        for chain in missing:
            self._by_chain[chain] = []
        for chain, sequence, target_chain, target_sequence in self._txn.query_in(
            _SELECT_LINKS, missing
        ):
            self._by_chain[chain].append((sequence, target_chain, target_sequence))

    def begin(self, chain: int) -> None:
        """Record that a new chain has no links yet."""
        self._by_chain[chain] = []

    def add(self, chain: int, sequence: int, target_chain: int, target_sequence: int) -> None:
        self._by_chain.setdefault(chain, []).append((sequence, target_chain, target_sequence))

    def up_to(self, chain: int, sequence: int) -> Iterable[ChainPosition]:
        """Return the targets of a chain's links that hold at a sequence number."""
        return [
            (target, last)
            for start, target, last in self._by_chain.get(chain, ())
            if start <= sequence
        ]

    def reach(self, starts: Iterable[ChainPosition]) -> Reach:
        """Return the reach of the auth chains of the events at these positions. One query a step
        from chain to chain."""
        reach: Reach = {}
        # the last sequence number of each chain whose links are to be followed
        pending: dict[int, int] = {}
        for chain, sequence in starts:
            pending[chain] = max(pending.get(chain, 0), sequence)
            if sequence > 1:
                reach[chain] = max(reach.get(chain, 0), sequence - 1)
        followed: dict[int, int] = {}
        while pending:
            self.load(pending)
            onward: dict[int, int] = {}
            for chain, sequence in pending.items():
                done = followed.get(chain, 0)
                followed[chain] = sequence
                for start, target_chain, target_sequence in self._by_chain[chain]:
                    if done < start <= sequence and target_sequence > reach.get(target_chain, 0):
                        reach[target_chain] = target_sequence
                        onward[target_chain] = target_sequence
            pending = {
                chain: sequence
                for chain, sequence in onward.items()
                if sequence > followed.get(chain, 0)
            }
        return reach

    def climb(self, starts: Iterable[ChainPosition]) -> dict[int, int]:
        """Return by chain the first sequence number whose auth chain has one of these positions, as
        far as the loaded links tell."""
        at_or_above: dict[int, int] = {}
        above: dict[int, int] = {}
        for chain, sequence in starts:
            at_or_above[chain] = min(at_or_above.get(chain, sequence), sequence)
            above[chain] = at_or_above[chain] + 1
        to: dict[int, list[tuple[int, int, int]]] = {}
        for chain, links in self._by_chain.items():
            for sequence, target_chain, target_sequence in links:
                to.setdefault(target_chain, []).append((target_sequence, chain, sequence))
        queue = list(at_or_above)
        while queue:
            target_chain = queue.pop()
            for target_sequence, chain, sequence in to.get(target_chain, ()):
                if target_sequence < at_or_above[target_chain]:
                    continue
                if sequence < above.get(chain, sequence + 1):
                    above[chain] = sequence
                if sequence < at_or_above.get(chain, sequence + 1):
                    at_or_above[chain] = sequence
                    queue.append(chain)
        return above


def _select_targets(
    links: _ChainLinks, own: ChainPosition, cited: Iterable[ChainPosition]
) -> Mapping[int, int]:
    """Return the links that an event needs: without those that its own chain or another of its auth
    events implies."""
    chain, sequence = own
    known: Reach = {chain: sequence}
    for target_chain, target_sequence in links.up_to(chain, sequence):
        known[target_chain] = max(known.get(target_chain, 0), target_sequence)
    targets: Reach = {}
    for target_chain, target_sequence in cited:
        if target_sequence > max(known.get(target_chain, 0), targets.get(target_chain, 0)):
            targets[target_chain] = target_sequence
    starts = set(targets.items())
    if sequence > 1:
        starts.add((chain, sequence - 1))
    if not targets or len(starts) < 2:
        return targets
    reached = links.reach(starts)
    return {target: last for target, last in targets.items() if last > reached.get(target, 0)}


def _find_above(txn: Transaction, starts: Mapping[int, int]) -> dict[int, int]:
    """Return by chain the first sequence number at or above one of these positions. One query a
    step from chain to chain."""
    above = dict(starts)
    level = set(above)
    while level:
        onward: set[int] = set()
        for chain, sequence, target_chain, target_sequence in txn.query_in(_SELECT_LINKS_TO, level):
            if target_sequence >= above[target_chain] and sequence < above.get(chain, sequence + 1):
                above[chain] = sequence
                onward.add(chain)
        level = onward
    return above


def _subtract_reach(ranges: dict[int, ChainPosition], reach: Reach) -> None:
    """Remove the reach from the ranges (after the first sequence number, up to the second)."""
    for chain, (bottom, top) in list(ranges.items()):
        reached = max(bottom, reach.get(chain, 0))
        if reached < top:
            ranges[chain] = (reached, top)
        else:
            del ranges[chain]


def _get_positions(txn: Transaction, event_nids: Iterable[int]) -> dict[int, ChainPosition]:
    return {
        nid: (chain, sequence)
        for nid, chain, sequence in txn.query_in(_SELECT_POSITIONS, event_nids)
    }


def _find_positions(txn: Transaction, event_nids: Collection[int]) -> dict[int, ChainPosition]:
    """Return the positions of events that must have one. Raises UnknownAuthEvent."""
    positions = _get_positions(txn, event_nids)
    for nid in event_nids:
        if nid not in positions:
            raise UnknownAuthEvent(str(nid))
    return positions


def _get_events(txn: Transaction, ranges: Mapping[int, ChainPosition]) -> set[int]:
    """Return the events in ranges of chains: after the first sequence number, up to the second."""
    return {
        nid
        for nid, chain, sequence in txn.query_in(_SELECT_CHAINS, ranges)
        if ranges[chain][0] < sequence <= ranges[chain][1]
    }

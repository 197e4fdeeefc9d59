"""The auth chains of state events, indexed by a chain cover. So no query walks them event by event.

Theory. The auth events of all events form a directed acyclic graph. It is cut into chains. In a
chain, every event has all earlier events of the chain in its auth chain, and a *place* (the column
`sequence_number`) numbers them from 1. A *link* means: from a place of one chain on, another chain
is in the auth chain up to some place. The auth chain of any set of events is then, in each chain,
everything up to one place. These few numbers are a *reach*. They are found by following links from
chain to chain, with one query a step. A room of 50,000 members has about as many chains, but no
event cites the membership of an ordinary member, so these chains are never followed.

Laws:
- An event is not in its own auth chain, as the specification defines it (spec:
  rooms/v2#definitions).
- The index only grows. Places and links of an event are written with it, in the same transaction.
- A link that follows from others need not be written. The reach over all links is still exact.
- Methods named `…_in` run inside a read or a write.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from heapq import nlargest

import msgspec

from storage.engine.database import Database, Transaction, WriteTransaction

ChainPlace = tuple[int, int]
"""(chain, sequence number)."""
Reach = dict[int, int]
"""The last reached place by chain; all places before it are reached too."""

RECENT = 200
"""How many of the events that all states share are tried first: recent ones mostly reach whatever
any of them does."""

_SELECT_PLACES = (
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
_INSERT_PLACE = "INSERT INTO auth_chains (event_nid, chain, sequence_number) VALUES (?, ?, ?)"
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
        places = _get_places(txn, named.difference(new))
        nodes = [node for node in nodes if node.event_nid not in places]
        if not nodes:
            return
        cited = {places[nid][0] for node in nodes for nid in node.auth_event_nids if nid in places}
        links = _ChainLinks(txn)
        links.load(cited)
        lasts: dict[int, int] = dict(txn.query_in(_SELECT_LASTS, cited))
        next_chain = txn.allocate("auth_chain", len(nodes))
        new_links: list[tuple[int, int, int, int]] = []
        for node in nodes:
            try:
                targets = {nid: places[nid] for nid in node.auth_event_nids}
            except KeyError as missing:
                raise UnknownAuthEvent(f"{missing} is an auth event of {node.event_nid}") from None
            before = targets.get(node.previous) if node.previous is not None else None
            if before is not None and lasts[before[0]] == before[1]:
                chain, place = before[0], before[1] + 1
            else:
                chain, place = next_chain, 1
                next_chain += 1
                links.begin(chain)
            places[node.event_nid] = (chain, place)
            lasts[chain] = place
            for target_chain, target_place in _select_targets(
                links, (chain, place), targets.values()
            ).items():
                links.add(chain, place, target_chain, target_place)
                new_links.append((chain, place, target_chain, target_place))
        txn.execute_many(
            _INSERT_PLACE, [(node.event_nid, *places[node.event_nid]) for node in nodes]
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
        """As `get_auth_chain`."""
        reach = _ChainLinks(txn).reach(_find_places(txn, event_nids).values())
        if limit is not None and sum(reach.values()) > limit:
            raise AuthChainTooLong(f"{sum(reach.values())} events; the limit is {limit}")
        return _get_events(txn, {chain: (0, last) for chain, last in reach.items()})

    async def is_in_auth_chain(self, event_nid: int, of: int) -> bool:
        """Whether the first event is in the auth chain of the second. Raises UnknownAuthEvent."""
        return await self._database.read(
            "is_in_auth_chain", self.is_in_auth_chain_in, event_nid, of
        )

    def is_in_auth_chain_in(self, txn: Transaction, event_nid: int, of: int) -> bool:
        """As `is_in_auth_chain`."""
        places = _find_places(txn, (event_nid, of))
        chain, place = places[event_nid]
        return place <= _ChainLinks(txn).reach([places[of]]).get(chain, 0)

    async def get_auth_difference(self, state_sets: Sequence[Collection[int]]) -> set[int]:
        """Return the events that are in the auth chains of some but not all of the states, given as
        event_nids.

        Costs the size of the difference; shared events are read only as far as they cite disputed
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
        """As `get_auth_difference`."""
        sets = [set(state) for state in state_sets]
        agreed = set.intersection(*sets) if sets else set()
        recent = nlargest(self._recent, agreed)
        further = agreed.intersection if len(agreed) > self._recent else None
        return self._find_difference(txn, [state - agreed for state in sets], recent, further)

    def get_difference_of_disputed_in(
        self,
        txn: Transaction,
        disputed: Sequence[Collection[int]],
        likely: Collection[int],
        find_agreed: Callable[[Collection[int]], Collection[int]],
    ) -> set[int]:
        """As `get_auth_difference`, for states of which only the differing events are at hand.

        `likely` are some shared events, preferably those that many others cite. `find_agreed`
        returns which of some events all states share.
        """
        return self._find_difference(txn, disputed, likely, find_agreed)

    def _find_difference(
        self,
        txn: Transaction,
        disputed: Sequence[Collection[int]],
        likely: Collection[int],
        find_agreed: Callable[[Collection[int]], Collection[int]] | None,
    ) -> set[int]:
        places = _find_places(txn, set().union(*disputed))
        links = _ChainLinks(txn)
        reaches = [links.reach([places[nid] for nid in state]) for state in disputed]
        ranges: dict[int, ChainPlace] = {}
        for chain in {chain for reach in reaches for chain in reach}:
            lasts = [reach.get(chain, 0) for reach in reaches]
            if min(lasts) < max(lasts):
                ranges[chain] = (min(lasts), max(lasts))
        # shared events reach the same in all states, and so reduce the difference
        if ranges and likely:
            _raise_bottoms(ranges, links.reach(_find_places(txn, likely).values()))
        if ranges and find_agreed is not None:
            above = _find_above(txn, {chain: bottom + 1 for chain, (bottom, _) in ranges.items()})
            candidates = {
                nid: (chain, place)
                for nid, chain, place in txn.query_in(_SELECT_CHAINS, above)
                if place >= above[chain]
            }
            _raise_bottoms(
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
        """As `get_conflicted_subgraph`."""
        ends = _find_places(txn, conflicted)
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
        for nid, (chain, place) in ends.items():
            if place <= below.get(chain, 0) or place >= above.get(chain, place + 1):
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
        for chain, place, target_chain, target_place in self._txn.query_in(_SELECT_LINKS, missing):
            self._by_chain[chain].append((place, target_chain, target_place))

    def begin(self, chain: int) -> None:
        """Record that a new chain has no links yet."""
        self._by_chain[chain] = []

    def add(self, chain: int, place: int, target_chain: int, target_place: int) -> None:
        self._by_chain.setdefault(chain, []).append((place, target_chain, target_place))

    def up_to(self, chain: int, place: int) -> Iterable[ChainPlace]:
        """Return the targets of a chain's links that hold at a place."""
        return [
            (target, last)
            for start, target, last in self._by_chain.get(chain, ())
            if start <= place
        ]

    def reach(self, starts: Iterable[ChainPlace]) -> Reach:
        """Return the reach of the auth chains of the events at these places. One query a step from
        chain to chain."""
        reach: Reach = {}
        # the last place of each chain whose links are to be followed
        follow: dict[int, int] = {}
        for chain, place in starts:
            follow[chain] = max(follow.get(chain, 0), place)
            if place > 1:
                reach[chain] = max(reach.get(chain, 0), place - 1)
        followed: dict[int, int] = {}
        while follow:
            self.load(follow)
            onward: dict[int, int] = {}
            for chain, place in follow.items():
                done = followed.get(chain, 0)
                followed[chain] = place
                for start, target_chain, target_place in self._by_chain[chain]:
                    if done < start <= place and target_place > reach.get(target_chain, 0):
                        reach[target_chain] = target_place
                        onward[target_chain] = target_place
            follow = {
                chain: place for chain, place in onward.items() if place > followed.get(chain, 0)
            }
        return reach

    def climb(self, starts: Iterable[ChainPlace]) -> dict[int, int]:
        """Return by chain the first place whose auth chain has one of these places, as far as the
        loaded links tell."""
        at_or_above: dict[int, int] = {}
        above: dict[int, int] = {}
        for chain, place in starts:
            at_or_above[chain] = min(at_or_above.get(chain, place), place)
            above[chain] = at_or_above[chain] + 1
        to: dict[int, list[tuple[int, int, int]]] = {}
        for chain, links in self._by_chain.items():
            for place, target_chain, target_place in links:
                to.setdefault(target_chain, []).append((target_place, chain, place))
        queue = list(at_or_above)
        while queue:
            target_chain = queue.pop()
            for target_place, chain, place in to.get(target_chain, ()):
                if target_place < at_or_above[target_chain]:
                    continue
                if place < above.get(chain, place + 1):
                    above[chain] = place
                if place < at_or_above.get(chain, place + 1):
                    at_or_above[chain] = place
                    queue.append(chain)
        return above


def _select_targets(
    links: _ChainLinks, own: ChainPlace, cited: Iterable[ChainPlace]
) -> Mapping[int, int]:
    """Return the links that an event needs: without those that its own chain or another of its auth
    events implies."""
    chain, place = own
    known: Reach = {chain: place}
    for target_chain, target_place in links.up_to(chain, place):
        known[target_chain] = max(known.get(target_chain, 0), target_place)
    targets: Reach = {}
    for target_chain, target_place in cited:
        if target_place > max(known.get(target_chain, 0), targets.get(target_chain, 0)):
            targets[target_chain] = target_place
    starts = set(targets.items())
    if place > 1:
        starts.add((chain, place - 1))
    if not targets or len(starts) < 2:
        return targets
    reached = links.reach(starts)
    return {target: last for target, last in targets.items() if last > reached.get(target, 0)}


def _find_above(txn: Transaction, firsts: Mapping[int, int]) -> dict[int, int]:
    """Return by chain the first place at or above one of these places. One query a step from chain
    to chain."""
    above = dict(firsts)
    level = set(above)
    while level:
        onward: set[int] = set()
        for chain, place, target_chain, target_place in txn.query_in(_SELECT_LINKS_TO, level):
            if target_place >= above[target_chain] and place < above.get(chain, place + 1):
                above[chain] = place
                onward.add(chain)
        level = onward
    return above


def _raise_bottoms(ranges: dict[int, ChainPlace], reach: Reach) -> None:
    """Remove the reach from the ranges (after the first place, up to the second)."""
    for chain, (bottom, top) in list(ranges.items()):
        reached = max(bottom, reach.get(chain, 0))
        if reached < top:
            ranges[chain] = (reached, top)
        else:
            del ranges[chain]


def _get_places(txn: Transaction, event_nids: Iterable[int]) -> dict[int, ChainPlace]:
    return {nid: (chain, place) for nid, chain, place in txn.query_in(_SELECT_PLACES, event_nids)}


def _find_places(txn: Transaction, event_nids: Collection[int]) -> dict[int, ChainPlace]:
    """Return the places of events that must have one. Raises UnknownAuthEvent."""
    places = _get_places(txn, event_nids)
    for nid in event_nids:
        if nid not in places:
            raise UnknownAuthEvent(str(nid))
    return places


def _get_events(txn: Transaction, ranges: Mapping[int, ChainPlace]) -> set[int]:
    """Return the events in ranges of chains: after the first place, up to the second."""
    return {
        nid
        for nid, chain, place in txn.query_in(_SELECT_CHAINS, ranges)
        if ranges[chain][0] < place <= ranges[chain][1]
    }

"""Takes and renews the lease on one kind of work, for this node, in the rounds of `lease_loop.py`.

A lease expires. If its holder is known to be gone, other nodes take the lease before it expires.
The name of a holder contains its node number, and each running node holds an advisory lock on its
number (`postgres_notify.py`). With SQLite there is only one node, so it takes the lease from any
earlier holder at once.

Laws:
- When a node starts, it immediately takes the lease of a holder that is gone. So a server that was
  killed and restarted continues without a pause.
- A node that was already running takes the lease before its expiry only if it found the holder gone
  in its previous round too. The reason: if all connections to the database break, each node gets a
  new number. Between the two rounds, a holder that is still running can record its new number.
- A holder that has just started may have no number yet. It counts as gone only when its lease has
  expired.
- A holder that is replaced while it runs notices when it renews. Until then, for one round, both
  nodes may work. The same happens if a node starts while all connections are broken, or if clocks
  differ. So repeated work must do no harm.
"""

from collections.abc import Callable
from typing import Final

from storage.cluster.leases import Lease, LeaseStore
from storage.engine.database import Database

FIRST_RENEWAL_SECONDS: Final = 0.5
"""Seconds after which a new lease is renewed first. A process that starts has no node number yet,
by which others could see that it is gone."""
_SEPARATOR: Final = "@"


class NodeLease:
    """This node's hold on the lease. Use this class only on the reactor thread."""

    def __init__(
        self, *, database: Database, name: str, process: str, get_node: Callable[[], int]
    ) -> None:
        """`name` is the name of the work. `process` identifies this process among all on the
        database. `get_node` returns its node number, or 0 if it has none."""
        self._store = LeaseStore(database=database, name=name)
        self._database = database
        self._process = process
        self._get_node = get_node
        self.is_single_node = database.engine.name == "sqlite"
        """Whether there can be no other node."""
        self._holder = process
        """The name under which the lease was last taken or renewed."""
        self._dead_holder: str | None = None
        """The holder whose node was gone in the previous round."""
        self._is_first = True

    async def take(self, now_ms: int, expires_ts: int) -> Lease | None:
        """Take the lease if no running node has it. Return None if one has."""
        name = self._name()
        lease = await self._store.take(name, now_ms, expires_ts, force=self.is_single_node)
        if lease is None:
            dead, previous, is_first = (
                await self._find_dead_holder(),
                self._dead_holder,
                self._is_first,
            )
            self._dead_holder = dead
            if dead is not None and (is_first or dead == previous):
                lease = await self._store.take(
                    name, now_ms, expires_ts, force=False, replacing=dead
                )
        self._is_first = False
        if lease is not None:
            self._holder = name
        return lease

    async def renew(self, expires_ts: int, position: int) -> bool:
        """Record the position and extend the lease. Return False if the lease is lost."""
        name = self._name()
        if not await self._store.renew(self._holder, expires_ts, position, name=name):
            return False
        self._holder = name
        return True

    def _name(self) -> str:
        return f"{self._process}{_SEPARATOR}{self._get_node()}"

    async def _find_dead_holder(self) -> str | None:
        """Return the name of the holder if its node is gone."""
        holder = await self._store.get_holder()
        if holder is None:
            return None
        number = holder.rpartition(_SEPARATOR)[2]
        if not number.isdecimal() or number == "0" or _SEPARATOR not in holder:
            return None
        return None if int(number) in await self._database.get_nodes() else holder

"""The lease of a kind of work, as a node takes and keeps it.

A lease ends by its time; where its holder is seen to be gone, nobody waits for that. The name of a
holder bears the number that it has among the nodes, and each node that lives holds a lock of its
number (`postgres_notify.py`). On SQLite, which is for one node, nobody else can have it.

Laws:
- Who starts takes at once the lease of a holder that is gone: a server that was killed and comes
  back goes on without a pause.
- Who has been there takes it where the holder was gone a round before as well: where all
  connections broke, the holder has time to say its new number.
- A holder whose number is not known is gone when its time is over.
- Who is replaced though it lives hears of it as it renews: until then, a round, both may work. So
  it is where a node starts just as all connections broke, or where clocks differ. What the work
  does twice then must do no harm.
"""

from collections.abc import Callable
from typing import Final

from storage.cluster.leases import Lease, LeaseStore
from storage.engine.database import Database

FIRST_RENEWAL_SECONDS: Final = 0.5
"""After so long a lease that was taken is to be renewed first: at its start a process has no number
yet among the nodes, by which others see that it is gone."""
_SEPARATOR: Final = "@"


class NodeLease:
    """The lease. For the reactor thread."""

    def __init__(
        self, database: Database, name: str, process: str, get_node: Callable[[], int]
    ) -> None:
        """`name` of the work; `process` names this process among all on the database; `get_node`:
        its number among the nodes that hear one another, 0 where it has none."""
        self._store = LeaseStore(database, name)
        self._database = database
        self._process = process
        self._get_node = get_node
        self.is_alone = database.engine.name == "sqlite"
        """There can be no other node."""
        self._holder = process
        """The name under which it was taken or renewed last."""
        self._gone: str | None = None
        """The holder that was gone a round before."""
        self._is_first = True

    async def take(self, now_ms: int, expires_ts: int) -> Lease | None:
        """Take it, where nobody has it who lives; None where somebody has."""
        name = self._name()
        lease = await self._store.take(name, now_ms, expires_ts, by_force=self.is_alone)
        if lease is None:
            gone, before, is_first = await self._find_gone(), self._gone, self._is_first
            self._gone = gone
            if gone is not None and (is_first or gone == before):
                lease = await self._store.take(
                    name, now_ms, expires_ts, by_force=False, instead_of=gone
                )
        self._is_first = False
        if lease is not None:
            self._holder = name
        return lease

    async def renew(self, expires_ts: int, position: int) -> bool:
        """Note how far all is done, and go on; False: the lease is lost."""
        name = self._name()
        if not await self._store.renew(self._holder, expires_ts, position, name=name):
            return False
        self._holder = name
        return True

    def _name(self) -> str:
        return f"{self._process}{_SEPARATOR}{self._get_node()}"

    async def _find_gone(self) -> str | None:
        """The name of who has it, if that is gone."""
        holder = await self._store.get_holder()
        if holder is None:
            return None
        number = holder.rpartition(_SEPARATOR)[2]
        if not number.isdecimal() or number == "0" or _SEPARATOR not in holder:
            return None
        return None if int(number) in await self._database.get_nodes() else holder

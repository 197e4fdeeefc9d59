"""Slots for downloads from other servers. Slow downloads have slots of their own, so they delay no
other downloads.

Laws:
- A download starts in a fast slot. Fast slots are shared fairly among users and servers. One user
  holds at most half of them, one server at most `MAX_FAST_PER_SERVER`.
- A download that receives less than `MIN_FAST_BYTES` in `CHECK_SECONDS` is slow. If a slow slot is
  free, the download moves there from its fast slot. In a slow slot it costs a connection but little
  memory, because `remote_downloads.py` writes all but small files to disk as they arrive.
- While a server has slow downloads, its waiting downloads start one at a time. While it has
  `MAX_SLOW_PER_SERVER` slow downloads, none of them starts.
- The number of slow slots is bounded. If none is free, a slow download stays in its fast slot until
  a download from another server needs that slot. Then the slowest download in a slow slot is
  cancelled, and the download in the fast slot takes over that slow slot. So fast slots become free,
  however slow the servers are. Neither a few servers nor a user with many requests can take all
  fast slots.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from federation.peers.fair_semaphore import FairSemaphore
from federation.protocol.errors import LimitExceeded
from federation.protocol.ids import ServerName

MAX_FAST: Final = 40
MAX_FAST_PER_SERVER: Final = 4
MAX_FAST_PER_USER: Final = 20
MAX_SLOW: Final = 160
MAX_SLOW_PER_SERVER: Final = 4
"""Fewer than the connections to one server (`federation.http_client.agent`), as events need some
too. Its fast downloads use these connections as well."""
MAX_WAITING_PER_SERVER: Final = 200
MAX_WAITING_PER_USER: Final = 200
CHECK_SECONDS: Final = 5.0
MIN_FAST_BYTES: Final = 5 << 20
"""A download that received fewer since the last check is slow."""


class _Party(NamedTuple):
    """A server or a user that shares slots."""

    kind: Literal["server", "user"]
    name: str


class DownloadSlots:
    """Manages all slots."""

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self._slow: list[DownloadSlot] = []
        self._slow_of: Counter[str] = Counter()
        self._fast: FairSemaphore[_Party] = FairSemaphore(
            permits=MAX_FAST,
            permits_per_key=self._share,
            max_waiting_per_key=lambda party: (
                MAX_WAITING_PER_SERVER if party.kind == "server" else MAX_WAITING_PER_USER
            ),
            refusal=_refusal,
        )

    async def acquire(self, server: ServerName, user: str) -> "DownloadSlot":
        """Wait for a slot for a file of this server, requested by a user. Raises LimitExceeded."""
        slot = DownloadSlot(slots=self, server=server, user=user)
        await self._fast.acquire(*slot.parties)
        slot.start()
        return slot

    def move_to_slow(self, slot: "DownloadSlot") -> bool:
        """Move a slow download to a slow slot. False: there is none, and nobody waits for its fast
        slot."""
        if len(self._slow) >= MAX_SLOW:
            if not self._is_wanted(slot):
                return False
            self._cancel_slowest()
        self._slow.append(slot)
        self._slow_of[slot.server] += 1
        self._fast.release(*slot.parties)
        return True

    def release(self, slot: "DownloadSlot") -> None:
        """Release the slot of a download."""
        if not slot.is_slow:
            self._fast.release(*slot.parties)
        elif slot in self._slow:
            self._remove(slot)

    def _share(self, party: _Party) -> int:
        if party.kind == "user":
            return MAX_FAST_PER_USER
        slow = self._slow_of[party.name]
        if slow >= MAX_SLOW_PER_SERVER:
            return 0
        return 1 if slow else MAX_FAST_PER_SERVER

    def _is_wanted(self, slot: "DownloadSlot") -> bool:
        """Whether a file of another server could start if this slot were free."""

        def has_share(party: _Party) -> bool:
            return self._fast.held(party) < self._share(party)

        own_server, own_user = slot.parties
        return any(
            server != own_server and has_share(server) and (user == own_user or has_share(user))
            for server, user in self._fast.waiting_keys()
        )

    def _cancel_slowest(self) -> None:
        slowest = min(self._slow, key=DownloadSlot.speed)
        self._remove(slowest)
        slowest.cancel()

    def _remove(self, slot: "DownloadSlot") -> None:
        """Remove a download from the slow ones."""
        self._slow.remove(slot)
        self._slow_of -= Counter({slot.server: 1})
        self._fast.recheck()


def _refusal(party: _Party | None) -> LimitExceeded:
    if party is not None and party.kind == "server":
        return LimitExceeded(
            f"Too many files of {party.name} are being fetched", retry_after_ms=5000
        )
    return LimitExceeded(
        "You have requested too many files of other servers at once", retry_after_ms=5000
    )


class DownloadSlot:
    """A slot for one download."""

    def __init__(self, *, slots: DownloadSlots, server: ServerName, user: str) -> None:
        self.server = server
        self.parties = (_Party("server", server), _Party("user", user))
        self.is_slow = False
        self.is_cancelled = False
        self._slots = slots
        self._received: Callable[[], int] = lambda: 0
        self._give_up: Callable[[], None] = lambda: None
        self._began = 0.0
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Start to measure: the slot is held from now on."""
        self._began = self._slots.clock.seconds()
        self._check_later(0)

    def connect(self, received: Callable[[], int], give_up: Callable[[], None]) -> None:
        """Connect the download. `received`: returns the number of bytes so far; `give_up` cancels
        it."""
        self._received = received
        self._give_up = give_up

    def speed(self) -> float:
        """Return the average speed in bytes per second."""
        return self._received() / max(1.0, self._slots.clock.seconds() - self._began)

    def release(self) -> None:
        """End the download and release the slot."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._slots.release(self)

    def cancel(self) -> None:
        """Cancel the download, since others need the slot."""
        self.is_cancelled = True
        self._give_up()

    def _check_later(self, before: int) -> None:
        self._timer = self._slots.clock.callLater(CHECK_SECONDS, self._check, before)

    def _check(self, before: int) -> None:
        received = self._received()
        self._timer = None
        self.is_slow = received - before < MIN_FAST_BYTES and self._slots.move_to_slow(self)
        if not self.is_slow:
            self._check_later(received)

"""When devices were last seen: noted in memory by every request, written in batches.

A device is noted anew once `granularity` seconds have passed since the last note of it at its
address, so that an address that is new to the account is never missed for one that was used a
moment before; the notes are written every `interval` seconds, in one write, when devices are looked
at, and when the server stops. A crash loses a minute of them, which is as exact as the
specification asks.
"""

from collections.abc import Mapping
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from federation.api.request import find_user_agent
from federation.protocol.ids import DeviceID, UserID
from homeserver.http.rate_limits import address_key
from homeserver.services.audit.audit import Happened
from storage.cache import LRU
from storage.devices.devices import DeviceSighting, DeviceStore
from storage.engine.database import DatabaseUnavailable

_MOST_REMEMBERED: Final = 100_000
_MOST_ADDRESSES: Final = 8
"""Of one device that wait to be written: whoever has very many addresses does not fill the memory,
nor the records, with them."""
_KNOWN: Final = frozenset(
    {Happened.REGISTERED.value, Happened.SESSION_BEGAN.value, Happened.BROWSER_SIGNED_IN.value}
)
"""What tells already that the account is used from an address."""


class LastSeen:
    """Notes and writes them."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        devices: DeviceStore,
        *,
        addresses_ms: int | None,
        granularity: float = 120.0,
        interval: float = 30.0,
    ) -> None:
        """`addresses_ms`: how long it is kept whence a device was used last; None: as long as the
        device is there."""
        self._addresses_ms = addresses_ms
        self._clock = clock
        self._devices = devices
        self._granularity = granularity
        self._interval = interval
        self._noted: LRU[tuple[UserID, DeviceID, str], float] = LRU(max_entries=_MOST_REMEMBERED)
        self._waiting: dict[tuple[UserID, DeviceID], dict[str, DeviceSighting]] = {}
        """By what counts as one address, the latest last."""
        self._loop = LoopingCall(lambda: Deferred.fromCoroutine(self.flush()))
        self._loop.clock = clock

    def start(self) -> None:
        """Write every interval from now on."""
        self._loop.start(self._interval, now=False)

    async def stop(self) -> None:
        """Write what waits, and no more."""
        if self._loop.running:
            self._loop.stop()
        await self.flush()

    def note(
        self, user_id: UserID, device_id: DeviceID, ip: str, headers: Mapping[bytes, bytes]
    ) -> None:
        """The device made a request just now. `headers`: its headers, by names in small letters."""
        key = (user_id, device_id, ip)
        now = self._clock.seconds()
        if now - (self._noted.peek(key) or 0.0) < self._granularity:
            return
        waiting = self._waiting.setdefault((user_id, device_id), {})
        address = address_key(ip)
        if waiting.pop(address, None) is None and len(waiting) >= _MOST_ADDRESSES:
            return
        self._noted.put(key, now)
        agent = find_user_agent(headers).replace("\0", "")
        waiting[address] = DeviceSighting(
            user_id, device_id, int(now * 1000), ip, agent, Happened.NEW_ADDRESS.value, address
        )

    async def do_forget_addresses(self, limit: int) -> int:
        """Forget whence devices came that were not used for so long, up to so many; how many. A job
        does it."""
        if self._addresses_ms is None:
            return 0
        return await self._devices.forget_addresses(
            int(self._clock.seconds() * 1000) - self._addresses_ms, limit
        )

    async def flush(self) -> None:
        """Write what waits. A failure loses no request: it is logged, and the notes come again in
        time."""
        if not self._waiting:
            return
        sightings, self._waiting = self._waiting, {}
        try:
            await self._devices.set_sightings(
                [each for of_one in sightings.values() for each in of_one.values()], _KNOWN
            )
        except DatabaseUnavailable as error:
            self._log.warn(
                "could not write when devices were last seen: {error}", error=str(error).strip()
            )
        except Exception:
            self._log.failure("could not write when devices were last seen")

"""Records the time and the IP address of each device's last request.

Requests are recorded in memory, and the records are written in batches. For one device and one
address, a request is recorded at most every `granularity` seconds. All pending records are written
in one write: every `interval` seconds, before devices are read, and when the server stops. A crash
loses the records since the last write; the specification asks for no more precision.
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
from homeserver.services.audit.audit import AuditEvent
from storage.cache import LRU
from storage.devices.devices import DeviceLastSeen, DeviceStore
from storage.engine.database import DatabaseUnavailable

_MAX_RECENT: Final = 100_000
_MAX_ADDRESSES: Final = 8
"""Pending addresses of one device: a client with very many addresses must not fill memory or the
audit log."""
_SIGN_IN_EVENTS: Final = frozenset(
    {
        AuditEvent.REGISTERED.value,
        AuditEvent.SESSION_BEGAN.value,
        AuditEvent.BROWSER_SIGNED_IN.value,
    }
)
"""Events that already record that the account is used from an address."""


class LastSeen:
    """Records when and from which address devices were seen."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        devices: DeviceStore,
        address_retention_ms: int | None,
        granularity: float = 120.0,
        interval: float = 30.0,
    ) -> None:
        """`address_retention_ms`: how long to store the last address of a device; None: as long as
        the device exists."""
        self._address_retention_ms = address_retention_ms
        self._clock = clock
        self._devices = devices
        self._granularity = granularity
        self._interval = interval
        self._recent: LRU[tuple[UserID, DeviceID, str], float] = LRU(max_entries=_MAX_RECENT)
        self._pending: dict[tuple[UserID, DeviceID], dict[str, DeviceLastSeen]] = {}
        """Sightings by address key (`address_key`), the latest last."""
        self._loop = LoopingCall(lambda: Deferred.fromCoroutine(self.flush()))
        self._loop.clock = clock

    def start(self) -> None:
        """Start to write every `interval` seconds."""
        self._loop.start(self._interval, now=False)

    async def stop(self) -> None:
        """Stop, and write the pending records."""
        if self._loop.running:
            self._loop.stop()
        await self.flush()

    def record(
        self, user_id: UserID, device_id: DeviceID, ip: str, headers: Mapping[bytes, bytes]
    ) -> None:
        """Record a request of the device. `headers`: its headers, with lower-case names."""
        key = (user_id, device_id, ip)
        now = self._clock.seconds()
        if now - (self._recent.peek(key) or 0.0) < self._granularity:
            return
        pending = self._pending.setdefault((user_id, device_id), {})
        address = address_key(ip)
        if pending.pop(address, None) is None and len(pending) >= _MAX_ADDRESSES:
            return
        self._recent.put(key, now)
        agent = find_user_agent(headers).replace("\0", "")
        pending[address] = DeviceLastSeen(
            user_id, device_id, int(now * 1000), ip, agent, AuditEvent.NEW_ADDRESS.value, address
        )

    async def do_delete_old_addresses(self, limit: int) -> int:
        """Delete up to `limit` addresses of devices not used for `address_retention_ms`.

        Return their number. A job calls it.
        """
        if self._address_retention_ms is None:
            return 0
        return await self._devices.delete_addresses(
            int(self._clock.seconds() * 1000) - self._address_retention_ms, limit
        )

    async def flush(self) -> None:
        """Write the pending records.

        A failure fails no request: it is logged, and later requests record the devices again.
        """
        if not self._pending:
            return
        pending, self._pending = self._pending, {}
        try:
            await self._devices.set_last_seen(
                [each for user_devices in pending.values() for each in user_devices.values()],
                _SIGN_IN_EVENTS,
            )
        except DatabaseUnavailable as error:
            self._log.warn(
                "could not write when devices were last seen: {error}", error=str(error).strip()
            )
        except Exception:
            self._log.failure("could not write when devices were last seen")

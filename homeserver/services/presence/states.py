"""Computes a user's presence from the states of their devices. Times are in seconds.

- A device is present while it syncs, and for a grace time after its last sync. Its state is the one
  that it requested. Only present devices count.
- A user is online if a present device is online and the user was active recently. Otherwise the
  user is unavailable if a present device is online or unavailable, else offline.

spec: client-server-api#presence
"""

from collections.abc import Iterator
from itertools import chain
from typing import Final, Literal

import msgspec
from twisted.internet.interfaces import IDelayedCall

from federation.protocol.ids import UserID

State = Literal["online", "unavailable", "offline"]

MAX_STATUS: Final = 2048
"""Characters of a status message."""
TOLERANCE: Final = 0.001
"""Seconds by which a timer may fire early: sums of floating-point times are not exact."""
RESTART_DEVICE: Final = "\0restart"
"""Key of the placeholder for the devices that were present before a restart."""


class PresenceTimes(msgspec.Struct, frozen=True):
    """Delays after which a user becomes less present, in seconds."""

    active: float
    """Seconds after the last activity for which a user is currently active."""
    idle: float
    """Seconds without activity after which a user becomes unavailable."""
    grace: float
    """Seconds after its last /sync for which a device still counts as present."""


class PublishedPresence(msgspec.Struct, frozen=True):
    """The presence that others see, without the time of the last activity."""

    state: State = "offline"
    currently_active: bool = False
    status_msg: str | None = None


class DevicePresence(msgspec.Struct):
    """A device that syncs, or did so recently."""

    requested: State
    """The state that the client requested."""
    open_syncs: int
    """The number of its open sync requests."""
    last_sync_end: float
    """When the last of them ended."""

    def is_present(self, now: float, times: PresenceTimes) -> bool:
        """Return whether the device counts as present."""
        return self.open_syncs > 0 or now - self.last_sync_end < times.grace - TOLERANCE


class LocalPresence(msgspec.Struct, eq=False):
    """The presence of a local user."""

    user_id: UserID
    status_msg: str | None = None
    last_active: float | None = None
    is_loaded: bool = False
    """Whether the stored state was read from the database."""
    is_stored: bool = True
    """Whether the state is written to the database: False for a deactivated account."""
    devices: dict[str, DevicePresence] = msgspec.field(default_factory=dict)
    other_nodes: dict[int, DevicePresence] = msgspec.field(default_factory=dict)
    """The user's state on other nodes, by node."""
    sent_state: State = "offline"
    """The state on this node that was last sent to the other nodes."""
    sent_last_active: float | None = None
    """The time of the last activity that all nodes know."""
    published: PublishedPresence = msgspec.field(default_factory=PublishedPresence)
    """The presence that was last broadcast."""
    encoded_event: tuple[int, PublishedPresence, bytes] | None = None
    """The encoded m.presence event, with its second and presence."""
    timer: IDelayedCall | None = None
    """The timer of the next check."""
    timer_at: float = 0.0
    """The time of the next check."""

    def remove_absent_devices(self, now: float, times: PresenceTimes) -> None:
        """Remove the devices that are no longer present."""
        self.devices = {
            key: device for key, device in self.devices.items() if device.is_present(now, times)
        }
        self.other_nodes = {
            node: device
            for node, device in self.other_nodes.items()
            if device.is_present(now, times)
        }

    def local_state(self, now: float, times: PresenceTimes) -> State:
        """Return `online` if a present device on this node requested it, else `unavailable` if one
        requested that, else `offline`."""
        wanted = {
            device.requested
            for key, device in self.devices.items()
            if key != RESTART_DEVICE and device.is_present(now, times)
        }
        return (
            "online"
            if "online" in wanted
            else "unavailable"
            if "unavailable" in wanted
            else "offline"
        )

    def current(self, now: float, times: PresenceTimes) -> PublishedPresence:
        """Return the presence at `now`."""
        wanted = {
            device.requested for device in self._all_devices() if device.is_present(now, times)
        }
        if "online" in wanted:
            inactive = now - self.last_active if self.last_active is not None else 0.0
            if inactive >= times.idle - TOLERANCE:
                return PublishedPresence("unavailable", False, self.status_msg)
            return PublishedPresence("online", inactive < times.active - TOLERANCE, self.status_msg)
        return PublishedPresence(
            "unavailable" if "unavailable" in wanted else "offline", False, self.status_msg
        )

    def next_change(self, now: float, times: PresenceTimes) -> float | None:
        """Return when the presence will change if nothing happens; None: never."""
        moments = [
            device.last_sync_end + times.grace
            for device in self._all_devices()
            if device.open_syncs == 0
        ]
        if self.last_active is not None and any(
            device.requested == "online" for device in self._all_devices()
        ):
            ends = (self.last_active + times.active, self.last_active + times.idle)
            moments += [end for end in ends if end > now + TOLERANCE]
        return min(moments, default=None)

    def _all_devices(self) -> Iterator[DevicePresence]:
        return chain(self.devices.values(), self.other_nodes.values())


class RemotePresence(msgspec.Struct, eq=False):
    """The presence of a remote user, as their server reported it."""

    user_id: UserID
    reported: PublishedPresence
    last_active: float | None
    reported_at: float
    """When the server reported it."""
    published: PublishedPresence = msgspec.field(default_factory=PublishedPresence)
    encoded_event: tuple[int, PublishedPresence, bytes] | None = None

    def current(self, now: float, times: PresenceTimes) -> PublishedPresence:
        """Return the presence that the server reported."""
        return self.reported

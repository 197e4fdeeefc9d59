"""How somebody is there, as it follows from what their devices do. Values and arithmetic; times are
in seconds.

- A device that synchronises, or has lately, is there in the way that it says; else it is not there.
- A person is there in the best way of all their devices, but online only while they do something
  now and then.

spec: client-server-api#presence
"""

from collections.abc import Iterator
from itertools import chain
from typing import Final, Literal

import msgspec
from twisted.internet.interfaces import IDelayedCall

from federation.protocol.ids import UserID

State = Literal["online", "unavailable", "offline"]

LONGEST_STATUS: Final = 2048
"""Characters."""
SLACK: Final = 0.001
"""Seconds by which a timer may come early: sums of floating-point times are not exact."""
RESTART: Final = "\0restart"
"""Stands for the devices with which somebody was there before a restart."""


class PresenceTimes(msgspec.Struct, frozen=True):
    """When one becomes less present, in seconds."""

    active: float
    """How long after the last activity one counts as active just now."""
    idle: float
    """How long after the last activity one is unavailable."""
    grace: float
    """How long after the last /sync of a device it is still there."""


class Shown(msgspec.Struct, frozen=True):
    """What others are told of somebody, but for the time of their last activity."""

    state: State = "offline"
    currently_active: bool = False
    status_msg: str | None = None


class Device(msgspec.Struct):
    """One that synchronises, or has lately."""

    wanted: State
    syncing: int
    """How many of its requests are being answered."""
    left: float
    """When the last of them ended."""

    def is_there(self, now: float, times: PresenceTimes) -> bool:
        """Whether it counts."""
        return self.syncing > 0 or now - self.left < times.grace - SLACK


class Person(msgspec.Struct, eq=False):
    """One of this server's users."""

    user_id: UserID
    status_msg: str | None = None
    last_active: float | None = None
    is_read: bool = False
    """Whether what the database knows of them was looked up."""
    is_kept: bool = True
    """Whether how they are there is written: not of an account that has ended."""
    devices: dict[str, Device] = msgspec.field(default_factory=dict)
    elsewhere: dict[int, Device] = msgspec.field(default_factory=dict)
    """By node, what other nodes say of the person's devices there."""
    noted: State = "offline"
    """How other nodes were last told that the person is there with the devices of this node."""
    noted_active: float | None = None
    """The last activity of which all nodes know."""
    shown: Shown = msgspec.field(default_factory=Shown)
    """As they were last told of."""
    encoded: tuple[int, Shown, bytes] | None = None
    """The event about them, as it was last told: in which second, and of what."""
    check: IDelayedCall | None = None
    """When they are to be looked at again."""
    check_at: float = 0.0
    """The time of that."""

    def drop_devices(self, now: float, times: PresenceTimes) -> None:
        """Forget the devices that are gone."""
        self.devices = {
            key: device for key, device in self.devices.items() if device.is_there(now, times)
        }
        self.elsewhere = {
            node: device for node, device in self.elsewhere.items() if device.is_there(now, times)
        }

    def here(self, now: float, times: PresenceTimes) -> State:
        """The best way in which a device of this node is there."""
        wanted = {
            device.wanted
            for key, device in self.devices.items()
            if key != RESTART and device.is_there(now, times)
        }
        return (
            "online"
            if "online" in wanted
            else "unavailable"
            if "unavailable" in wanted
            else "offline"
        )

    def current(self, now: float, times: PresenceTimes) -> Shown:
        """How they are there."""
        wanted = {device.wanted for device in self._all_devices() if device.is_there(now, times)}
        if "online" in wanted:
            silent = now - self.last_active if self.last_active is not None else 0.0
            if silent >= times.idle - SLACK:
                return Shown("unavailable", False, self.status_msg)
            return Shown("online", silent < times.active - SLACK, self.status_msg)
        return Shown(
            "unavailable" if "unavailable" in wanted else "offline", False, self.status_msg
        )

    def next_change(self, now: float, times: PresenceTimes) -> float | None:
        """When they will be there in another way if nothing happens; None: never."""
        moments = [
            device.left + times.grace for device in self._all_devices() if device.syncing == 0
        ]
        if self.last_active is not None and any(
            device.wanted == "online" for device in self._all_devices()
        ):
            ends = (self.last_active + times.active, self.last_active + times.idle)
            moments += [end for end in ends if end > now + SLACK]
        return min(moments, default=None)

    def _all_devices(self) -> Iterator[Device]:
        return chain(self.devices.values(), self.elsewhere.values())


class RemotePerson(msgspec.Struct, eq=False):
    """Somebody of another server, as that server says."""

    user_id: UserID
    told: Shown
    last_active: float | None
    heard: float
    """When it said so."""
    shown: Shown = msgspec.field(default_factory=Shown)
    encoded: tuple[int, Shown, bytes] | None = None

    def current(self, now: float, times: PresenceTimes) -> Shown:
        """How they are there."""
        return self.told

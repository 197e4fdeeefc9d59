"""Records which membership events a device was sent, so that lazy loading does not repeat them.

Laws:
- The members of a response are confirmed only when the device sends that response's token, since a
  response may get lost.
- A device that sends a token unknown to this node starts again, with no confirmed members. This
  happens in three cases. The device went back to an older token, for example because the app was
  killed before it stored the last response. Or another node answered the last request, and may have
  sent a newer membership. Or this node has no record of the device, for example after a restart.

spec: client-server-api#lazy-loading-room-members
"""

from collections.abc import Hashable, Iterable

import msgspec

from storage.cache import LRU, drop_oldest

RoomMember = tuple[int, str]
"""Room number and user."""

MAX_MEMBERS = 5_000
"""The maximum number of members stored for one device; beyond that, some are sent again."""
MAX_RESPONSES = 8
"""The latest responses to one token that are stored: there are several if a device repeats a
request."""


class _Device(msgspec.Struct, gc=False):
    token: str
    """The token of its latest request; empty at the beginning."""
    confirmed: set[RoomMember] = set()
    """The members that the device has confirmed."""
    responses: dict[str, set[RoomMember]] = {}
    """The members that each response to that token carried, by the response's token."""


class LazyMembers:
    """The members that were sent to devices. Use this class only on the reactor thread."""

    def __init__(self, *, capacity: int) -> None:
        """`capacity`: the number of stored members, of all devices together. A device counts as a
        member, too."""
        self._devices: LRU[Hashable, _Device] = LRU(
            max_weight=capacity, weigh=lambda _, device: 1 + len(device.confirmed)
        )

    def __len__(self) -> int:
        """Return the number of stored members."""
        return self._devices.weight - len(self._devices)

    def get_confirmed(self, key: Hashable, since: str | None) -> set[RoomMember]:
        """Return the members that the device has confirmed by this token.

        A caller that changes a member without sending it removes it from the set. `key` names a
        device, or a connection of one.
        """
        device = self._devices.get(key)
        if device is None or not since or (since != device.token and since not in device.responses):
            device = _Device(since or "")
            self._devices.put(key, device)
        elif since != device.token:
            sent = device.responses[since]
            if sent:
                if len(device.confirmed) + len(sent) > MAX_MEMBERS:
                    device.confirmed = set()
                device.confirmed |= sent
            device.token, device.responses = since, {}
        self._devices.reweigh(key)
        return device.confirmed

    def add_sent(
        self, key: Hashable, since: str | None, members: Iterable[RoomMember], token: str
    ) -> None:
        """Record the members in the response that has this token, to the request that came with
        `since`."""
        device = self._devices.peek(key)
        if device is None or device.token != (since or "") or token == device.token:
            return  # the device has gone on without this response, or there is nothing in it
        device.responses.setdefault(token, set()).update(members)
        drop_oldest(device.responses, MAX_RESPONSES)

"""Builds the next transaction to a destination, with events and EDUs.

The events come from the queue of the destination. If the destination has missed events, for example
in an outage, `catch_up.py` chooses the events, room by room.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from federation.devices.local_devices import LocalDevices, encode_edu
from federation.protocol.events import encode_event_json
from federation.protocol.redaction import redact
from federation.remote.transactions import MAX_EDUS, MAX_PDUS, FederationTransaction
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.history.retention import RoomRetentionCache
from federation.sender.catch_up import CatchUp
from federation.sender.destination import Destination, PendingTransaction, QueuedEvent
from storage.encryption.outgoing_to_device import OutgoingToDeviceStore
from storage.federation.destinations import ReceiptToSend
from storage.rooms.rooms import RoomStore

MAX_BYTES: Final = 512 << 10
"""Size of the EDUs in a transaction, as many reverse proxies accept at most a megabyte.
A larger EDU is sent alone."""
MAX_USERS: Final = 20
"""Users whose device list updates one transaction holds. Each may take several EDUs."""
MAX_UPDATES: Final = 50
"""EDUs about the devices of one user."""
MAX_PRESENCES: Final = 100
MAX_RECEIPT_EDUS: Final = 20


class _Edus:
    """The EDUs of one transaction, within its limits."""

    def __init__(self) -> None:
        self.encoded: list[bytes] = []
        self._size = 0

    def fits(self, edus: Sequence[bytes]) -> bool:
        """Return whether these can be added. The first ones always fit, up to `MAX_EDUS`."""
        size = self._size + sum(map(len, edus))
        return len(self.encoded) + len(edus) <= MAX_EDUS and (size <= MAX_BYTES or not self.encoded)

    def add(self, edus: Iterable[bytes]) -> None:
        for edu in edus:
            self.encoded.append(edu)
            self._size += len(edu)


class TransactionBuilder:
    """Builds transactions from the unsent data of destinations. Use this class only on the reactor
    thread."""

    def __init__(
        self,
        *,
        rooms: RoomStore,
        events: RoomEvents,
        catch_up: CatchUp,
        to_device: OutgoingToDeviceStore,
        devices: LocalDevices,
        lifetimes: RoomRetentionCache | None,
        now_ms: Callable[[], int],
    ) -> None:
        self._rooms = rooms
        self._events = events
        self._catch_up = catch_up
        self._to_device = to_device
        self._devices = devices
        self._lifetimes = lifetimes
        self._now_ms = now_ms

    async def build_next(
        self, destination: Destination, txn_id: str, upto: int
    ) -> PendingTransaction | None:
        """Take the next transaction out of the unsent data, or None if there is none.

        `upto`: the present stream position.
        """
        if not destination.has_unsent:
            return None
        taken = _TakenData()
        try:
            return await self._take(destination, taken, txn_id, upto)
        except BaseException:
            taken.put_back(destination)
            raise

    async def _take(
        self, destination: Destination, taken: "_TakenData", txn_id: str, upto: int
    ) -> PendingTransaction:
        if destination.is_behind:
            nids = await self._take_missed(destination, taken, upto)
        else:
            while destination.queue and len(taken.events) < MAX_PDUS:
                taken.events.append(destination.queue.popleft())
            nids = [event.event_nid for event in taken.events]
        edus = _Edus()
        to_device_upto = await self._take_to_device(destination, taken, edus)
        await self._take_users(destination, taken, edus)
        stored = await self._events.get_events(nids)
        pdus = [await self._encode_pdu(stored[nid]) for nid in nids if nid in stored]
        rooms = await self._rooms.get_rooms_by_nid({key[0] for key in destination.receipts})
        # no await from here on
        receipts = _take_receipts(
            destination, edus, {nid: row.room_id for nid, row in rooms.items()}
        )
        _take_notices(destination, edus)
        transaction = FederationTransaction(txn_id, self._now_ms(), pdus, edus.encoded)
        return PendingTransaction(
            transaction,
            deque([transaction] if pdus or edus.encoded else ()),
            taken.all_rooms(),
            taken.users,
            to_device_upto,
            receipts,
        )

    async def _encode_pdu(self, stored: StoredEvent) -> bytes:
        """Return the PDU. An event older than the retention of its room is redacted."""
        if self._lifetimes is None or await self._lifetimes.shows(stored):
            return stored.pdu
        version = stored.event.version
        return encode_event_json(version, redact(version, stored.event.pdu))

    async def _take_missed(
        self, destination: Destination, taken: "_TakenData", upto: int
    ) -> list[int]:
        """Take the events of missed rooms: of at least one room, if there is any."""
        nids: list[int] = []
        for room_nid in list(destination.missed_rooms):
            # removed first, so that events that arrive during the queries are recorded again
            first = taken.rooms[room_nid] = destination.missed_rooms.pop(room_nid)
            of_room = await self._catch_up.get_events(destination.server, room_nid, first, upto)
            if nids and len(nids) + len(of_room) > MAX_PDUS:
                taken.put_back_room(destination, room_nid)
                break
            nids += of_room
        return nids

    async def _take_to_device(
        self, destination: Destination, taken: "_TakenData", edus: _Edus
    ) -> int | None:
        if not destination.has_to_device:
            return None
        destination.has_to_device, taken.to_device = False, True
        upto = None
        messages = await self._to_device.get_messages(destination.server, MAX_PDUS)
        for message in messages:
            edu = b'{"content":%b,"edu_type":"m.direct_to_device"}' % message.content
            if not edus.fits([edu]):
                break
            edus.add([edu])
            upto = message.position
        if messages and (len(messages) == MAX_PDUS or upto != messages[-1].position):
            destination.has_to_device = True
        return upto

    async def _take_users(self, destination: Destination, taken: "_TakenData", edus: _Edus) -> None:
        for user_id in list(destination.users)[:MAX_USERS]:
            since = taken.users[user_id] = destination.users.pop(user_id)
            # a server that lacks the first ones requests the complete device list
            updates = (await self._devices.get_updates(user_id, since))[-MAX_UPDATES:]
            if not edus.fits(updates):
                taken.put_back_user(destination, user_id)
                break
            edus.add(updates)


class _TakenData:
    """The data that was taken out of a destination, so that it can be put back."""

    def __init__(self) -> None:
        self.events: list[QueuedEvent] = []
        self.rooms: dict[int, int] = {}
        self.users: dict[str, int] = {}
        self.to_device = False

    def all_rooms(self) -> Mapping[int, int]:
        """Return all rooms of the transaction, with the position of their first event."""
        return {event.room_nid: event.position for event in reversed(self.events)} | self.rooms

    def put_back_room(self, destination: Destination, room_nid: int) -> None:
        """Put back a room that did not fit into the transaction."""
        first = self.rooms.pop(room_nid)
        destination.missed_rooms[room_nid] = min(
            first, destination.missed_rooms.get(room_nid, first)
        )

    def put_back_user(self, destination: Destination, user_id: str) -> None:
        """Put back a user that did not fit into the transaction."""
        first = self.users.pop(user_id)
        destination.users[user_id] = min(first, destination.users.get(user_id, first))

    def put_back(self, destination: Destination) -> None:
        """Put back everything, as the transaction could not be built."""
        if destination.is_behind:
            for event in reversed(self.events):
                destination.missed_rooms[event.room_nid] = event.position
        else:
            destination.queue.extendleft(reversed(self.events))
        for room_nid in list(self.rooms):
            self.put_back_room(destination, room_nid)
        for user_id in list(self.users):
            self.put_back_user(destination, user_id)
        destination.has_to_device = destination.has_to_device or self.to_device


def _take_receipts(
    destination: Destination, edus: _Edus, room_ids: Mapping[int, str]
) -> list[ReceiptToSend]:
    """Take the receipts that fit.

    An EDU holds one receipt of a user in a room. Further ones, for threads, go into further EDUs.
    spec: server-server-api#receipts
    """
    contents: list[dict[str, dict[str, dict[str, Any]]]] = []
    taken: list[ReceiptToSend] = []
    for key, receipt in list(destination.receipts.items()):
        room_id = room_ids.get(receipt.room_nid)
        if room_id is None:
            continue  # it was added during the queries
        data: dict[str, Any] = {"ts": receipt.ts}
        if receipt.thread_id:
            data["thread_id"] = receipt.thread_id
        for content in contents:
            if receipt.user_id not in content.get(room_id, {}).get("m.read", {}):
                break
        else:
            if len(contents) == MAX_RECEIPT_EDUS or not edus.fits([b""] * (len(contents) + 1)):
                break
            content = {}
            contents.append(content)
        of_room = content.setdefault(room_id, {}).setdefault("m.read", {})
        of_room[receipt.user_id] = {"event_ids": [receipt.event_id], "data": data}
        taken.append(destination.receipts.pop(key))
    edus.add([encode_edu("m.receipt", content) for content in contents])
    return taken


def _take_notices(destination: Destination, edus: _Edus) -> None:
    if destination.presence and edus.fits([b""]):
        push: list[Mapping[str, Any]] = []
        while destination.presence and len(push) < MAX_PRESENCES:
            push.append(destination.presence.popitem(last=False)[1])
        edus.add([encode_edu("m.presence", {"push": push})])
    while destination.ephemeral_edus and edus.fits(
        [next(iter(destination.ephemeral_edus.values()))]
    ):
        edus.add([destination.ephemeral_edus.popitem(last=False)[1]])

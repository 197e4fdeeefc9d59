"""What goes into the next transaction to a server.

A server that is behind gets of each room that it missed something of the newest events that it
should have had (those of ours that are sticky before all others), at most a transaction full, and
the room's forward extremities: from these it sees what it lacks, and fetches that
(server-server-api#post_matrixfederationv1get_missing_eventsroomid). So an outage costs a bounded
number of transactions, however much was said meanwhile.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from federation.devices.local_devices import OwnDevices, encode_edu
from federation.peers.identity import ServerIdentity
from federation.protocol.events import encode_event_json
from federation.protocol.ids import RoomID
from federation.protocol.redaction import redact
from federation.remote.transactions import MAX_EDUS, MAX_PDUS, Transaction
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.history.retention import Lifetimes
from federation.rooms.room_servers import RoomServers
from federation.rooms.sticky_events import StickyEvents
from federation.sender.destination import Destination, Pending, QueuedEvent
from storage.encryption.outgoing_to_device import OutgoingToDeviceStore
from storage.federation.destinations import DestinationStore, ReceiptToSend
from storage.rooms.rooms import RoomStore

MAX_BYTES: Final = 512 << 10
"""Of a transaction's EDUs, as many a reverse proxy takes no more than a megabyte; one that is
longer goes alone."""
MAX_EXTREMITIES: Final = 20
"""Of a room, when a server catches up."""
MAX_USERS: Final = 20
"""Of whose devices one transaction tells: each may take several EDUs."""
MAX_UPDATES: Final = 50
"""EDUs about one user's devices."""
MAX_PRESENCES: Final = 100
MAX_RECEIPT_EDUS: Final = 20


class _Edus:
    """The EDUs of one transaction, within its limits."""

    def __init__(self) -> None:
        self.encoded: list[bytes] = []
        self._size = 0

    def fits(self, edus: Sequence[bytes]) -> bool:
        """Whether these can still be added; the first ones always can, if they are not too many."""
        size = self._size + sum(map(len, edus))
        return len(self.encoded) + len(edus) <= MAX_EDUS and (size <= MAX_BYTES or not self.encoded)

    def add(self, edus: Iterable[bytes]) -> None:
        for edu in edus:
            self.encoded.append(edu)
            self._size += len(edu)


class Contents:
    """Fills transactions. For the reactor thread."""

    def __init__(
        self,
        rooms: RoomStore,
        engine: RoomEngine,
        events: RoomEvents,
        servers: RoomServers,
        destinations: DestinationStore,
        to_device: OutgoingToDeviceStore,
        devices: OwnDevices,
        sticky: StickyEvents,
        lifetimes: Lifetimes | None,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
    ) -> None:
        self._rooms = rooms
        self._engine = engine
        self._events = events
        self._servers = servers
        self._destinations = destinations
        self._to_device = to_device
        self._devices = devices
        self._sticky = sticky
        self._lifetimes = lifetimes
        self._identity = identity
        self._now_ms = now_ms

    async def take(self, destination: Destination, txn_id: str, upto: int) -> Pending | None:
        """The next transaction, taken out of what waits; None when nothing does. `upto`: the stream
        as it is now."""
        if not destination.has_news:
            return None
        taken = _Taken()
        try:
            return await self._take(destination, taken, txn_id, upto)
        except BaseException:
            taken.give_back(destination)
            raise

    async def _take(
        self, destination: Destination, taken: "_Taken", txn_id: str, upto: int
    ) -> Pending:
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
        pdus = [await self._form_of(stored[nid]) for nid in nids if nid in stored]
        rooms = await self._rooms.get_rooms_by_nid({key[0] for key in destination.receipts})
        # from here on nothing is waited for
        receipts = _take_receipts(
            destination, edus, {nid: row.room_id for nid, row in rooms.items()}
        )
        _take_notices(destination, edus)
        transaction = Transaction(txn_id, self._now_ms(), pdus, edus.encoded)
        return Pending(
            transaction,
            deque([transaction] if pdus or edus.encoded else ()),
            taken.all_rooms(),
            taken.users,
            to_device_upto,
            receipts,
        )

    async def _form_of(self, stored: StoredEvent) -> bytes:
        """The PDU; what is older than its room keeps it goes out without its content."""
        if self._lifetimes is None or await self._lifetimes.shows(stored):
            return stored.pdu
        version = stored.event.version
        return encode_event_json(version, redact(version, stored.event.pdu))

    async def _take_missed(self, destination: Destination, taken: "_Taken", upto: int) -> list[int]:
        """The events to tell of rooms that the server missed something of: of one room at least, if
        there is any."""
        nids: list[int] = []
        for room_nid in list(destination.missed):
            # taken out first: what is said in the room while we look is noted anew
            first = taken.rooms[room_nid] = destination.missed.pop(room_nid)
            of_room = await self._missed_of(destination, room_nid, first, upto)
            if nids and len(nids) + len(of_room) > MAX_PDUS:
                taken.give_back_room(destination, room_nid)
                break
            nids += of_room
        return nids

    async def _missed_of(
        self, destination: Destination, room_nid: int, first: int, upto: int
    ) -> list[int]:
        since = (await self._servers.in_room(room_nid)).get(destination.server)
        if since is None:
            # it has left: it hears of what was said until then, and of how its users came to leave
            left = [
                position
                for user_id, position in await self._destinations.get_departures(room_nid, first)
                if user_id.partition(":")[2] == destination.server
            ]
            return list(
                await self._destinations.get_missed_events(
                    room_nid, first - 1, max(left, default=0), MAX_PDUS
                )
            )
        room = (await self._rooms.get_rooms_by_nid([room_nid]))[room_nid]
        head = (await self._engine.get_snapshot(RoomID(room.room_id))).head
        extremities = [nid for nid, _ in head.extremities[:MAX_EXTREMITIES]]
        rows = (await self._sticky.in_rooms({room_nid: (first - 1, upto)})).get(room_nid, [])
        sticky = [row.event_nid for row in rows if self._identity.is_local(row.sender)]
        sticky = [nid for nid in sticky if nid not in extremities][len(extremities) - MAX_PDUS :]
        missed = await self._destinations.get_missed_events(
            room_nid, max(first, since) - 1, upto, MAX_PDUS - len(extremities)
        )
        others = [nid for nid in missed if nid not in extremities and nid not in sticky]
        room_for = MAX_PDUS - len(extremities) - len(sticky)
        return [*sorted([*sticky, *others[-room_for:]] if room_for else sticky), *extremities]

    async def _take_to_device(
        self, destination: Destination, taken: "_Taken", edus: _Edus
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

    async def _take_users(self, destination: Destination, taken: "_Taken", edus: _Edus) -> None:
        for user_id in list(destination.users)[:MAX_USERS]:
            since = taken.users[user_id] = destination.users.pop(user_id)
            # whoever has not heard of the first ones asks for the whole list
            updates = (await self._devices.get_updates(user_id, since))[-MAX_UPDATES:]
            if not edus.fits(updates):
                taken.give_back_user(destination, user_id)
                break
            edus.add(updates)


class _Taken:
    """What has been taken of what waits for a server, so that it can be given back."""

    def __init__(self) -> None:
        self.events: list[QueuedEvent] = []
        self.rooms: dict[int, int] = {}
        self.users: dict[str, int] = {}
        self.to_device = False

    def all_rooms(self) -> Mapping[int, int]:
        """All rooms that the transaction tells of, with the first position."""
        return {event.room_nid: event.position for event in reversed(self.events)} | self.rooms

    def give_back_room(self, destination: Destination, room_nid: int) -> None:
        """The room is not in the transaction."""
        first = self.rooms.pop(room_nid)
        destination.missed[room_nid] = min(first, destination.missed.get(room_nid, first))

    def give_back_user(self, destination: Destination, user_id: str) -> None:
        """The user is not in the transaction."""
        first = self.users.pop(user_id)
        destination.users[user_id] = min(first, destination.users.get(user_id, first))

    def give_back(self, destination: Destination) -> None:
        """There will be no transaction."""
        if destination.is_behind:
            for event in reversed(self.events):
                destination.missed[event.room_nid] = event.position
        else:
            destination.queue.extendleft(reversed(self.events))
        for room_nid in list(self.rooms):
            self.give_back_room(destination, room_nid)
        for user_id in list(self.users):
            self.give_back_user(destination, user_id)
        destination.has_to_device = destination.has_to_device or self.to_device


def _take_receipts(
    destination: Destination, edus: _Edus, room_ids: Mapping[int, str]
) -> list[ReceiptToSend]:
    """Receipts, as far as they fit.

    A user has one receipt a room in an EDU: further ones, of threads, are in further EDUs.
    spec: server-server-api#receipts
    """
    contents: list[dict[str, dict[str, dict[str, Any]]]] = []
    taken: list[ReceiptToSend] = []
    for key, receipt in list(destination.receipts.items()):
        room_id = room_ids.get(receipt.room_nid)
        if room_id is None:
            continue  # it came while the others were looked at
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
    while destination.notices and edus.fits([next(iter(destination.notices.values()))]):
        edus.add([destination.notices.popitem(last=False)[1]])

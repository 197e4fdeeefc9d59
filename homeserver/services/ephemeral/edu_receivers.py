"""Receives typing, receipt and presence EDUs of other servers.

A server may send them only for its own users. Typing notifications and receipts count only in rooms
that these users have joined. `federation/receiver/edus.py` applies server ACLs before it calls this
module.

spec: server-server-api#typing-notifications, server-server-api#receipts, server-server-api#presence
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import EventID, ServerName, UserID, domain_of, is_event_id, is_user_id
from federation.rooms.event_threads import find_threads
from federation.rooms.events import RoomEvents
from federation.rooms.memberships import Memberships
from homeserver.services.ephemeral.typing import Typing
from homeserver.services.presence.presence import Presence
from homeserver.services.presence.remote_users import PresenceUpdate
from homeserver.services.presence.states import State
from storage.rooms.early_receipts import PUBLIC, EarlyReceipt, EarlyReceiptStore
from storage.rooms.memberships import MembershipStore
from storage.rooms.receipts import (
    MAIN_THREAD,
    UNTHREADED,
    NewReceipt,
    ReceiptStore,
    is_valid_thread,
)
from storage.rooms.rooms import RoomStore

MAX_RECEIPTS: Final = 1000
"""In one EDU."""
MAX_PRESENCES: Final = 1000
"""In one EDU."""
MAX_AGO_MS: Final = (1 << 53) - 1


class ReceiptData(msgspec.Struct):
    """The data of one receipt."""

    ts: int | None = None
    thread_id: str | None = None


class ReceiptEntry(msgspec.Struct):
    """A user's read receipt."""

    event_ids: list[str]
    data: ReceiptData


class PresenceEntry(msgspec.Struct):
    """One user in an m.presence EDU."""

    user_id: str
    presence: State
    last_active_ago: int | None = None
    currently_active: bool = False
    status_msg: str | None = None


class EDUReceivers:
    """Validates and applies these EDUs. Used only on the reactor thread."""

    def __init__(
        self,
        *,
        rooms: RoomStore,
        events: RoomEvents,
        memberships: Memberships,
        membership_store: MembershipStore,
        typing: Typing,
        receipts: ReceiptStore,
        early_receipts: EarlyReceiptStore,
        presence: Presence,
        now_ms: Callable[[], int],
    ) -> None:
        self._rooms = rooms
        self._events = events
        self._memberships = memberships
        self._membership_store = membership_store
        self._typing = typing
        self._receipts = receipts
        self._early_receipts = early_receipts
        self._presence = presence
        self._now_ms = now_ms

    async def receive_typing(self, origin: ServerName, content: Mapping[str, Any]) -> None:
        """Receive m.typing. Raises InvalidParam."""
        room_id, user_id, is_typing = (
            content.get("room_id"),
            content.get("user_id"),
            content.get("typing"),
        )
        if (
            not isinstance(room_id, str)
            or not _is_user_of(origin, user_id)
            or not isinstance(is_typing, bool)
        ):
            raise InvalidParam("room_id, user_id or typing is missing or malformed")
        room = await self._rooms.get_room(room_id)
        if room is not None and await self._memberships.local_members(room.room_nid):
            await self._typing.receive(
                origin, room.room_nid, UserID(str(user_id)), is_typing=is_typing
            )

    async def receive_receipts(self, origin: ServerName, content: Mapping[str, Any]) -> None:
        """Receive m.receipt. Only receipts of joined users count.

        A receipt may arrive before its event: then it is stored until the event arrives
        (`EarlyReceiptStore`). The number of receipts per user is bounded (`ReceiptStore`).
        """
        await self._apply_receipts(origin, list(_parse_receipts(origin, content)))

    async def _apply_receipts(
        self, origin: ServerName, found: Sequence[tuple[str, UserID, ReceiptEntry]]
    ) -> None:
        rooms = await self._rooms.get_rooms({room_id for room_id, _, _ in found})
        events = await self._events.get_in_any_room(
            {EventID(receipt.event_ids[0]) for _, _, receipt in found}
        )
        joined = await self._memberships.find_joined(
            (rooms[room_id].room_nid, user_id) for room_id, user_id, _ in found if room_id in rooms
        )
        threaded = {
            EventID(receipt.event_ids[0])
            for _, _, receipt in found
            if receipt.data.thread_id is not None
        }
        threads = await find_threads(
            self._events, [event for id, event in events.items() if id in threaded]
        )
        new: list[NewReceipt] = []
        early: list[EarlyReceipt] = []
        for room_id, user_id, receipt in found:
            room = rooms.get(room_id)
            if room is None or (room.room_nid, user_id) not in joined:
                continue
            if not await self._memberships.local_members(room.room_nid):
                continue
            event_id = EventID(receipt.event_ids[0])
            event = events.get(event_id)
            if event is not None and event.room_nid != room.room_nid:
                continue
            thread_id = receipt.data.thread_id or UNTHREADED
            ts = receipt.data.ts
            if ts is None or not 0 <= ts < 1 << 53:
                ts = self._now_ms()
            if event is None or event.is_outlier:
                early.append(EarlyReceipt(room.room_nid, user_id, thread_id, event_id, ts))
            elif thread_id == UNTHREADED or is_valid_thread(thread_id, event_id, threads[event_id]):
                new.append(
                    NewReceipt(
                        room.room_nid,
                        room_id,
                        user_id,
                        PUBLIC,
                        thread_id,
                        event_id,
                        event.position,
                        ts,
                    )
                )
        if new:
            await self._receipts.set_receipts(new)
        if early:
            arrived = await self._early_receipts.add_receipts(origin, early)
            if arrived:
                self._events.evict(map(EventID, arrived))
                retried = [each for each in found if each[2].event_ids[0] in arrived]
                await self._apply_receipts(origin, retried)

    async def receive_presence(self, origin: ServerName, content: Mapping[str, Any]) -> None:
        """Receive m.presence. Only users who share a room with a local user count. Raises
        InvalidParam."""
        push = content.get("push")
        if not isinstance(push, list):
            raise InvalidParam("push is missing or malformed")
        if not self._presence.is_on:
            return
        updates: list[PresenceUpdate] = []
        for entry in push[:MAX_PRESENCES]:
            try:
                presence = msgspec.convert(entry, PresenceEntry)
            except msgspec.ValidationError:
                continue
            if _is_user_of(origin, presence.user_id):
                updates.append(
                    PresenceUpdate(
                        UserID(presence.user_id),
                        presence.presence,
                        _clamp(presence.last_active_ago),
                        presence.currently_active,
                        presence.status_msg,
                    )
                )
        # users in memory were checked before; others may be made up, and would evict real ones
        new = {
            update.user_id
            for update in updates
            if self._presence.table.find(update.user_id) is None
        }
        unrelated = new - await self._membership_store.get_users_sharing_rooms(new) if new else new
        self._presence.receive(
            origin, [update for update in updates if update.user_id not in unrelated]
        )


def _clamp(ago_ms: int | None) -> int | None:
    return None if ago_ms is None else min(max(ago_ms, 0), MAX_AGO_MS)


def _parse_receipts(
    origin: ServerName, content: Mapping[str, Any]
) -> Iterator[tuple[str, UserID, ReceiptEntry]]:
    """Yield (room, user, receipt) of the well-formed receipts, at most `MAX_RECEIPTS`."""
    count = 0
    for room_id, by_type in content.items():
        users = by_type.get(PUBLIC) if isinstance(by_type, dict) else None
        for user_id, receipt in users.items() if isinstance(users, dict) else ():
            count += 1
            if count > MAX_RECEIPTS:
                return
            try:
                read = msgspec.convert(receipt, ReceiptEntry)
            except msgspec.ValidationError:
                continue
            thread = read.data.thread_id
            if (
                _is_user_of(origin, user_id)
                and read.event_ids
                and is_event_id(read.event_ids[0])
                and (thread is None or thread == MAIN_THREAD or is_event_id(thread))
            ):
                yield room_id, UserID(user_id), read


def _is_user_of(origin: ServerName, user_id: object) -> bool:
    return isinstance(user_id, str) and is_user_id(user_id) and domain_of(user_id) == origin

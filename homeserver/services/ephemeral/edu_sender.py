"""Sends typing and presence EDUs of local users to other servers.

spec: server-server-api#typing-notifications, server-server-api#presence
"""

from collections.abc import Awaitable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from federation.devices.local_devices import encode_edu
from federation.protocol.ids import UserID
from federation.sender.sender import FederationSender
from homeserver.services.presence.remote_users import PresenceUpdate
from storage.rooms.rooms import RoomStore


class EDUSender:
    """Passes typing and presence changes to the federation sender. Used only on the reactor
    thread."""

    log = Logger()

    def __init__(self, *, sender: FederationSender, rooms: RoomStore) -> None:
        self._sender = sender
        self._rooms = rooms

    def send_typing(self, room_nid: int, user_id: UserID, is_typing: bool) -> None:
        """Send that a user starts or stops typing."""
        self._start(self._send_typing(room_nid, user_id, is_typing))

    def send_presence(self, updates: Sequence[PresenceUpdate]) -> None:
        """Send presence changes."""
        self._start(self._send_presence(updates))

    async def _send_typing(self, room_nid: int, user_id: UserID, is_typing: bool) -> None:
        room = (await self._rooms.get_rooms_by_nid([room_nid]))[room_nid]
        content = {"room_id": room.room_id, "user_id": user_id, "typing": is_typing}
        await self._sender.send_ephemeral_edu(
            room_nid, (room.room_id, user_id), encode_edu("m.typing", content)
        )

    async def _send_presence(self, updates: Sequence[PresenceUpdate]) -> None:
        for update in updates:
            presence: dict[str, Any] = {
                "user_id": update.user_id,
                "presence": update.state,
                "currently_active": update.currently_active,
            }
            if update.last_active_ago is not None:
                presence["last_active_ago"] = update.last_active_ago
            if update.status_msg is not None:
                presence["status_msg"] = update.status_msg
            await self._sender.send_presence(update.user_id, presence)

    def _start(self, sending: Awaitable[None]) -> None:
        Deferred.fromCoroutine(_run(sending)).addErrback(
            lambda failure: self.log.failure(
                "typing or presence could not be sent to other servers", failure
            )
        )


async def _run(sending: Awaitable[None]) -> None:
    await sending
